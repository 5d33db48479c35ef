//! What the command line asks for: URLs, the names of their files, and the headers that go along.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use axum::http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use reqwest::Url;

use super::limits::{MAX_HEADER_FILE, MAX_NAME};
use super::outcome::{Failed, Fault};
use super::part::Promise;

/// Headers that are this command's own to set.
const OWN: [&str; 12] = [
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "if-match",
    "if-none-match",
    "if-range",
    "range",
    "te",
    "transfer-encoding",
    "upgrade",
];

fn usage(reason: impl Into<String>) -> Failed {
    Failed::new(Fault::Usage, reason)
}

/// Reads a URL; a user and password in it become a header.
pub(super) fn url(text: &str, headers: &mut HeaderMap) -> Result<Url, Failed> {
    let mut url = Url::parse(text).map_err(|error| usage(format!("{text:?} is not a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(usage(format!("{text:?}: only http:// and https:// URLs can be fetched")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let pair = [decoded(url.username()), b":".to_vec(), decoded(url.password().unwrap_or_default())].concat();
        let value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)));
        let mut value = value.map_err(|error| usage(error.to_string()))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    url.set_fragment(None);
    Ok(url)
}

/// The last part of its path, where that can be the name of a file.
pub(super) fn file_name(url: &Url) -> Result<PathBuf, Failed> {
    let last = url.path().rsplit('/').next().unwrap_or_default();
    if last.is_empty() {
        return Ok("index.html".into());
    }
    segment(last)
        .map(PathBuf::from)
        .ok_or_else(|| usage(format!("{url}: {last:?} cannot be a file's name; give one with -O")))
}

/// A part of a URL's path as the name of one file or directory, and nothing else.
pub(super) fn segment(encoded: &str) -> Option<String> {
    let name = percent_decode_str(encoded).decode_utf8().ok()?.into_owned();
    let bad = name.is_empty() || name == "." || name == ".." || name.len() > MAX_NAME;
    (!bad && !name.contains('/') && !name.chars().any(char::is_control)).then_some(name)
}

/// `Name: value` each, or `@FILE` with one in each line.
pub(super) fn headers(given: &[String]) -> Result<HeaderMap, Failed> {
    let mut headers = HeaderMap::new();
    for text in given {
        match text.strip_prefix('@') {
            Some(path) => {
                let lines = header_file(Path::new(path))?;
                lines.lines().filter(|line| !line.trim().is_empty()).try_for_each(|line| header(line, &mut headers))?;
            }
            None => header(text, &mut headers)?,
        }
    }
    Ok(headers)
}

fn header_file(path: &Path) -> Result<String, Failed> {
    let failed = |error: &dyn std::fmt::Display| Failed::file(path, error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
    file.take(MAX_HEADER_FILE + 1).read_to_string(&mut text).map_err(|error| failed(&error))?;
    if text.len() as u64 > MAX_HEADER_FILE {
        return Err(failed(&format!("more than {MAX_HEADER_FILE} bytes of headers")));
    }
    Ok(text)
}

fn header(line: &str, headers: &mut HeaderMap) -> Result<(), Failed> {
    // The value may be a secret: it is not shown.
    let bad = || usage("--header: a header is \"Name: value\", on one line");
    let (name, value) = line.split_once(':').ok_or_else(bad)?;
    let name: HeaderName = name.trim().parse().map_err(|_| bad())?;
    if OWN.contains(&name.as_str()) || name.as_str().starts_with("lapwing-") {
        return Err(usage(format!("--header: {name} is set by lapwing get itself")));
    }
    let mut value = HeaderValue::from_str(value.trim()).map_err(|_| bad())?;
    value.set_sensitive(true);
    headers.append(name, value);
    Ok(())
}

/// What `--digest` and `--md5` promise.
pub(super) fn promise(digest: Option<&str>, md5: Option<&str>) -> Result<Promise, Failed> {
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let sha256 = digest.map(|digest| {
        let digits = digest.strip_prefix("sha256:").filter(|digits| hex(digits, 64));
        digits
            .map(str::to_ascii_lowercase)
            .ok_or_else(|| usage(format!("--digest: {digest:?} is not sha256: and 64 hexadecimal digits")))
    });
    let md5 = md5.map(|sum| {
        let digits = Some(sum).filter(|digits| hex(digits, 32)).map(str::to_ascii_lowercase);
        digits.ok_or_else(|| usage(format!("--md5: {sum:?} is not 32 hexadecimal digits")))
    });
    Ok(Promise { sha256: sha256.transpose()?, md5: md5.transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        let name = |text: &str| file_name(&Url::parse(text).unwrap()).ok().map(|name| name.display().to_string());
        let cases = [
            ("https://h/a/b.bin?x=/y", Some("b.bin")),
            ("https://h/a%20b", Some("a b")),
            ("https://h/", Some("index.html")),
            ("https://h", Some("index.html")),
            ("https://h/a/%2e%2e%2fb", None),
            ("https://h/%00", None),
            ("https://h/%1b[2J", None),
            ("https://h/%ff", None),
        ];
        for (url, expected) in cases {
            assert_eq!(name(url).as_deref(), expected, "{url}");
        }
        assert_eq!(segment(".."), None);
        assert_eq!(segment(&"x".repeat(MAX_NAME + 1)), None);
    }

    #[test]
    fn passwords_leave_the_url() {
        let mut headers = HeaderMap::new();
        let url = url("https://lapwing:lapwing%2dtest@h/x#part", &mut headers).unwrap();
        assert_eq!(url.as_str(), "https://h/x");
        assert_eq!(headers[AUTHORIZATION], "Basic bGFwd2luZzpsYXB3aW5nLXRlc3Q=");
    }

    #[test]
    fn headers_of_the_users() {
        let given = |lines: &[&str]| headers(&lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>());
        let headers = given(&["Authorization: Bearer a:b", "X-A:1", "X-A: 2"]).unwrap();
        assert_eq!(headers[AUTHORIZATION], "Bearer a:b");
        assert_eq!(headers.get_all("x-a").iter().count(), 2);
        for bad in ["no colon", "Range: bytes=0-1", "Host: x", "lapwing-pace: 1", "a b: c", "x: a\u{7f}b"] {
            assert!(given(&[bad]).is_err(), "{bad}");
        }
        let error = given(&["X y: secret"]).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn promises() {
        let sha = format!("sha256:{}", "Ab".repeat(32));
        assert_eq!(promise(Some(&sha), None).unwrap().sha256, Some("ab".repeat(32)));
        assert!(promise(Some(&sha[7..]), None).is_err() && promise(Some("sha256:ab"), None).is_err());
        assert!(promise(None, Some(&"0".repeat(32))).is_ok() && promise(None, Some("x")).is_err());
    }
}
