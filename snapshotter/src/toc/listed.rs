//! An entry as tables list it, whatever they are written in.

use crate::limits::{MAX_FILE_BYTES, MAX_PATH_BYTES, MAX_TAR_META_BYTES, MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES};
use crate::tar::bound_time;
use crate::tar::path::clean;
use crate::tree::{Entry, Kind};

use super::{TocError, malformed, rfc3339};

/// What a table lists, taken over from headers as Go's `archive/tar` reads them.
pub(super) struct Listed<'a> {
    pub(super) name: &'a [u8],
    /// As CRFS, and all after it, name types.
    pub(super) kind: &'a str,
    pub(super) size: i64,
    pub(super) link: &'a [u8],
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    /// Major and minor number.
    pub(super) device: (i64, i64),
    /// As RFC 3339 has it, or empty.
    pub(super) modified: &'a str,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Listed<'_> {
    /// The entry without the places of its bytes; none where containerd would ignore it.
    pub(super) fn entry(self) -> Result<Option<Entry>, TocError> {
        // No tar has a longer one.
        if self.name.len() as u64 > MAX_TAR_META_BYTES {
            return Err(malformed(format!("a name of {} bytes", self.name.len())));
        }
        let name = String::from_utf8_lossy(self.name);
        let bad = |problem: String| malformed(format!("{name:?}: {problem}"));
        let u32_of = |value: i64| u32::try_from(value).map_err(|_| bad(format!("number {value}")));
        let kind = match self.kind {
            "reg" => {
                let size = u64::try_from(self.size).ok().filter(|size| *size <= MAX_FILE_BYTES);
                Kind::File { size: size.ok_or_else(|| bad(format!("size {}", self.size)))?, extents: Vec::new() }
            }
            "dir" => Kind::Directory,
            "symlink" if self.link.is_empty() || self.link.len() > MAX_PATH_BYTES || self.link.contains(&0) => {
                return Err(bad("symbolic link whose target is empty or too long".to_owned()));
            }
            "symlink" => Kind::Symlink(self.link.to_vec()),
            "hardlink" => {
                let target = clean(self.link).map_err(bad)?;
                if target.is_empty() {
                    return Err(bad("hard link to the root".to_owned()));
                }
                Kind::Hardlink(target)
            }
            "char" => Kind::CharDevice { major: u32_of(self.device.0)?, minor: u32_of(self.device.1)? },
            "block" => Kind::BlockDevice { major: u32_of(self.device.0)?, minor: u32_of(self.device.1)? },
            "fifo" => Kind::Fifo,
            other => return Err(bad(format!("type {other:?}"))),
        };
        let path = clean(self.name).map_err(bad)?;
        if path.is_empty() && kind != Kind::Directory {
            return Ok(None);
        }
        for (name, value) in &self.xattrs {
            let is_name = !name.is_empty() && name.len() <= MAX_XATTR_NAME_BYTES && !name.contains(&0);
            if !is_name || value.len() > MAX_XATTR_VALUE_BYTES {
                return Err(bad("extended attribute beyond the kernel's limits".to_owned()));
            }
        }
        let (mtime, mtime_nanos) = match self.modified {
            "" => (0, 0),
            text => bound_time(rfc3339::parse(text).ok_or_else(|| bad(format!("time {text:?}")))?),
        };
        let mode = (self.mode & 0o7777) as u16;
        let (uid, gid) = (u32_of(self.uid)?, u32_of(self.gid)?);
        Ok(Some(Entry { path, kind, mode, uid, gid, mtime, mtime_nanos, xattrs: self.xattrs }))
    }
}
