//! Why a configuration is not written.

use std::path::{Path, PathBuf};

/// Nothing was changed, or, for [`SetupError::File`] while files are written, what `--undo` gives back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("{}: {reason}", path.display())]
    Refused { path: PathBuf, reason: String },
    #[error("{0}")]
    Usage(String),
    #[error(
        "{}: it was changed since Lapwing wrote it, and is not taken back: take Lapwing's lines out by hand, or compare it with what it was before, {}",
        path.display(), before.display()
    )]
    ChangedSince { path: PathBuf, before: PathBuf },
    #[error("{}: there is no record that `lapwing setup` wrote anything here; was it given another --config?", .0.display())]
    NoRecord(PathBuf),
}

impl SetupError {
    #[allow(clippy::needless_pass_by_value, reason = "errors are passed on by value")]
    pub(super) fn file(path: &Path, error: impl ToString) -> Self {
        Self::File { path: path.to_owned(), reason: error.to_string() }
    }

    pub(super) fn refused(path: &Path, reason: impl Into<String>) -> Self {
        Self::Refused { path: path.to_owned(), reason: reason.into() }
    }
}
