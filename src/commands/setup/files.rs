//! Files replaced whole: whoever reads one finds the old or the new, also after a crash.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::SetupError;

/// Who may do what with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Access {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Access {
    /// Of the file at `path`.
    pub(super) fn of(path: &Path) -> Result<Self, SetupError> {
        let found = std::fs::metadata(path).map_err(|error| SetupError::file(path, error))?;
        Ok(Self { mode: found.mode() & 0o7777, uid: found.uid(), gid: found.gid() })
    }

    /// What this process makes.
    pub(super) fn own(mode: u32) -> Self {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { mode, uid, gid }
    }
}

/// Puts `content` in the place of what is at `path`.
pub(super) fn replace(path: &Path, content: &[u8], access: Access) -> Result<(), SetupError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.lapwing-part"));
    let result = write(&part, content, access).and_then(|()| std::fs::rename(&part, path));
    if result.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    result.map_err(|error| SetupError::file(path, error))?;
    sync_parent(path)
}

fn write(part: &Path, content: &[u8], access: Access) -> std::io::Result<()> {
    match std::fs::remove_file(part) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Nobody else may read it before it has its mode: these files hold passwords.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part)?;
    file.write_all(content)?;
    let made = file.metadata()?;
    if (made.uid(), made.gid()) != (access.uid, access.gid) {
        chown(part, Some(access.uid), Some(access.gid))?;
    }
    file.set_permissions(Permissions::from_mode(access.mode))?;
    file.sync_all()
}

/// Makes what happened in the directory of `path` last.
pub(super) fn sync_parent(path: &Path) -> Result<(), SetupError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|error| SetupError::file(parent, error))
}

/// The directories above `path` that are not there, outermost first.
pub(super) fn missing_parents(path: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<_> = path
        .ancestors()
        .skip(1)
        .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
        .map(PathBuf::from)
        .collect();
    missing.reverse();
    missing
}
