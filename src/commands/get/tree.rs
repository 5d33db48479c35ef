//! `-r`: all files below a directory listing.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};

use axum::http::HeaderMap;
use reqwest::Url;

use super::limits::{MAX_DEPTH, MAX_FILES};
use super::links::links;
use super::outcome::{Failed, Fault};
use super::progress::Teller;
use super::target::segment;
use super::ways::Ways;

/// A file below the place that was named.
#[derive(Debug)]
pub(super) struct Leaf {
    pub url: Url,
    /// Below the user's directory.
    pub file: PathBuf,
}

/// The files below `root`; listings come from the source, never out of the swarm.
pub(super) async fn walk(ways: &Ways, root: &Url, headers: &HeaderMap, teller: Teller) -> Result<Vec<Leaf>, Failed> {
    let mut root = root.clone();
    root.set_query(None);
    if !root.path().ends_with('/') {
        root.set_path(&format!("{}/", root.path()));
    }
    let mut leaves = Vec::new();
    let mut seen = HashSet::from([root.clone()]);
    let mut listings = VecDeque::from([(root, PathBuf::new(), 0)]);
    while let Some((url, directory, depth)) = listings.pop_front() {
        let html = ways.listing(&url, headers).await?;
        for link in links(&html, &url) {
            if !seen.insert(link.url.clone()) {
                continue;
            }
            let Some(file) = local(&directory, &link.path) else {
                teller.error(&format!("{}: left out, since this is no name for a file", link.url));
                continue;
            };
            if !link.path.ends_with('/') {
                leaves.push(Leaf { url: link.url, file });
            } else if depth < MAX_DEPTH {
                listings.push_back((link.url, file, depth + 1));
            }
            if leaves.len() + listings.len() > MAX_FILES {
                return Err(Failed::new(
                    Fault::Protocol,
                    format!("more than {MAX_FILES} entries; name a smaller directory"),
                ));
            }
        }
    }
    Ok(leaves)
}

/// An encoded path below `directory`, each of its parts the name of one file.
pub(super) fn local(directory: &Path, encoded: &str) -> Option<PathBuf> {
    let mut parts = encoded.trim_end_matches('/').split('/').map(segment);
    parts.try_fold(directory.to_owned(), |path, part| Some(path.join(part?)))
}

/// The same for a path that is written as it is.
pub(super) fn plain(directory: &Path, path: &str) -> Option<PathBuf> {
    let mut parts = path.split('/').map(|part| segment(&part.replace('%', "%25")));
    parts.try_fold(directory.to_owned(), |path, part| Some(path.join(part?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_the_directory() {
        let top = Path::new("top");
        let (encoded, raw) = (|path: &str| local(top, path), |path: &str| plain(top, path));
        assert_eq!(encoded("a/b%20c/"), Some("top/a/b c".into()));
        assert_eq!(raw("a/b%20c"), Some("top/a/b%20c".into()));
        for bad in ["..", "a/../b", "%2e%2e/x", "a%2fb", "a//b", "", "%00"] {
            assert_eq!(encoded(bad), None, "{bad}");
        }
        for bad in ["..", "a/../b", "/etc/x", "a//b", ""] {
            assert_eq!(raw(bad), None, "{bad}");
        }
    }
}
