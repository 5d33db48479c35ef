//! Extended attributes: which of a layer's are kept, and their form in an inode.
//!
//! All are stored inline, after the inode: a header of 12 bytes, then per attribute its name's suffix, prefix number and
//! value, padded to 4 bytes. The kernel is told of no name filter, so the header's first field stays zero.

use std::collections::BTreeMap;

use super::ErofsError;
use super::tree::Node;
use crate::limits::MAX_EROFS_XATTR_BYTES;
use crate::tree::Entry;

/// Marks a directory whose lower layers are hidden (kernel, `Documentation/filesystems/overlayfs.rst`).
pub(super) const OVERLAY_OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Its presence makes overlayfs look for whiteouts in a directory that it would otherwise list as it is.
pub(super) const OVERLAY_ORIGIN: &[u8] = b"trusted.overlay.origin";
/// File capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
/// Longest name of an attribute with its prefix (`XATTR_NAME_MAX`).
const MAX_NAME: usize = 255;
/// What `i_xattr_icount` can count.
const MAX_BODY: usize = HEADER + (u16::MAX as usize - 1) * 4;
const HEADER: usize = 12;

/// The attributes of `entry` that containerd would set: `trusted.*` and name spaces that the kernel does not know are
/// dropped, `user.*` too where only files and directories may have it.
pub(super) fn kept(entry: &Entry, node: &Node<'_>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ErofsError> {
    let mut kept = BTreeMap::new();
    for (name, value) in &entry.xattrs {
        if is_kept(entry, node, name)? {
            check(entry, name, value)?;
            kept.insert(name.clone(), value.clone());
        }
    }
    Ok(kept)
}

fn is_kept(entry: &Entry, node: &Node<'_>, name: &[u8]) -> Result<bool, ErofsError> {
    let plain = matches!(node, Node::File { .. } | Node::Directory(_));
    let symlink = matches!(node, Node::Symlink(_));
    if name == ACL_DEFAULT && !matches!(node, Node::Directory(_)) && !symlink {
        return Err(ErofsError::apply(&entry.path, "a default ACL on something that is not a directory"));
    }
    Ok(match prefix_of(name) {
        Some((1, _)) => plain,
        Some((2 | 3, _)) => !symlink,
        Some((6, _)) => true,
        _ => false,
    })
}

fn check(entry: &Entry, name: &[u8], value: &[u8]) -> Result<(), ErofsError> {
    let suffix_needed = !matches!(name, ACL_ACCESS | ACL_DEFAULT);
    let suffix = prefix_of(name).map_or(&[][..], |(_, suffix)| suffix);
    if (suffix_needed && suffix.is_empty()) || name.len() > MAX_NAME || name.contains(&0) {
        return Err(ErofsError::apply(&entry.path, "the name of an extended attribute is empty or too long"));
    }
    if value.len() > MAX_EROFS_XATTR_BYTES {
        return Err(ErofsError::unfit(&entry.path, "the value of an extended attribute is longer than 65535 bytes"));
    }
    let acl = !suffix_needed;
    if acl && !(value.len() >= 4 && value[..4] == 2u32.to_le_bytes() && (value.len() - 4).is_multiple_of(8)) {
        return Err(ErofsError::apply(&entry.path, "a malformed ACL"));
    }
    Ok(())
}

/// EROFS's number for the prefix of `name`, and what follows it.
fn prefix_of(name: &[u8]) -> Option<(u8, &[u8])> {
    match name {
        ACL_ACCESS => return Some((2, b"")),
        ACL_DEFAULT => return Some((3, b"")),
        _ => {}
    }
    [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
        .into_iter()
        .find_map(|(number, prefix)| Some((number, name.strip_prefix(prefix)?)))
}

/// The prefix that one of EROFS's numbers stands for.
pub(super) const fn prefix(number: u8) -> Option<&'static [u8]> {
    Some(match number {
        1 => b"user.",
        2 => ACL_ACCESS,
        3 => ACL_DEFAULT,
        4 => b"trusted.",
        6 => b"security.",
        _ => return None,
    })
}

/// The bytes that follow an inode; empty without attributes.
pub(super) fn body(path: &[u8], xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>, ErofsError> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut body = vec![0; HEADER];
    for (name, value) in xattrs {
        let unfit = || ErofsError::unfit(path, "an extended attribute has no form in EROFS");
        let (number, suffix) = prefix_of(name).ok_or_else(unfit)?;
        body.push(u8::try_from(suffix.len()).map_err(|_| unfit())?);
        body.push(number);
        body.extend(u16::try_from(value.len()).map_err(|_| unfit())?.to_le_bytes());
        body.extend(suffix);
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    if body.len() > MAX_BODY {
        return Err(ErofsError::unfit(path, "extended attributes of more than 256 KiB in all"));
    }
    Ok(body)
}

/// `i_xattr_icount` for a body of this length.
pub(super) fn count(body_length: usize) -> u16 {
    if body_length == 0 {
        return 0;
    }
    u16::try_from(1 + (body_length - HEADER) / 4).expect("body() keeps within MAX_BODY")
}
