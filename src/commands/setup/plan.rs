//! What is to be written, and how it is shown.

use std::fmt;
use std::path::{Path, PathBuf};

use similar::TextDiff;

use super::error::SetupError;

/// Longest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Unchanged lines shown around changed ones.
const CONTEXT_LINES: usize = 3;

/// One file, as it is and as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Where symbolic links lead.
    pub path: PathBuf,
    /// `None`: it is not there.
    pub before: Option<String>,
    pub after: String,
}

/// Everything to be done, and what the operator must know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub changes: Vec<Change>,
    pub notes: Vec<String>,
    /// What takes the changes up.
    pub afterwards: Vec<String>,
}

impl Plan {
    /// Adds a file if it is to change.
    pub(super) fn file(&mut self, path: &Path, before: Option<String>, after: String) {
        if before.as_ref() != Some(&after) {
            self.changes.push(Change { path: path.to_owned(), before, after });
        }
    }
}

/// The unified diffs of all files.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            let after = change.path.display().to_string();
            let before = if change.before.is_some() { &after } else { "/dev/null" };
            let diff = TextDiff::from_lines(change.before.as_deref().unwrap_or_default(), &change.after);
            write!(f, "{}", diff.unified_diff().context_radius(CONTEXT_LINES).header(before, &after))?;
        }
        Ok(())
    }
}

/// The file that a path leads to, and its text; `None` if it is not there.
pub(super) fn read(path: &Path) -> Result<(PathBuf, Option<String>), SetupError> {
    let path = match std::fs::canonicalize(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if path.is_symlink() {
                return Err(SetupError::file(path, "the symbolic link leads nowhere"));
            }
            return Ok((path.to_owned(), None));
        }
        Err(error) => return Err(SetupError::file(path, error)),
    };
    let failed = |error: std::io::Error| SetupError::file(&path, error);
    let found = std::fs::metadata(&path).map_err(failed)?;
    if !found.is_file() || found.len() > MAX_FILE_BYTES {
        return Err(SetupError::file(&path, format!("not a file of at most {MAX_FILE_BYTES} bytes")));
    }
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    Ok((path, Some(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_shown_as_unified_diffs() {
        let mut plan = Plan::default();
        plan.file(Path::new("/etc/a"), Some("one\ntwo\n".into()), "one\n2\n".into());
        plan.file(Path::new("/etc/b"), None, "new\n".into());
        plan.file(Path::new("/etc/c"), Some("same".into()), "same".into());
        assert_eq!(plan.changes.len(), 2);
        let expected =
            "--- /etc/a\n+++ /etc/a\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n--- /dev/null\n+++ /etc/b\n@@ -0,0 +1 @@\n+new\n";
        assert_eq!(plan.to_string(), expected);
    }

    #[test]
    fn a_symbolic_link_is_followed_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read(&link).unwrap(), (file.canonicalize().unwrap(), Some("x".into())));
        std::fs::remove_file(&file).unwrap();
        assert!(read(&link).unwrap_err().to_string().contains("leads nowhere"));
        assert_eq!(read(&file).unwrap(), (file, None));
    }
}
