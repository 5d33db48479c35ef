//! The names below the root that the mounter knows, and what each may be used for.
//!
//! ```text
//! data                            the FUSE mount; data/<name>: what it serves
//! layers/<name>/<name>            images and tars
//! snapshots/<number>/fs           where layers are mounted, and what containers write
//! snapshots/removed-<number>[-<number>]
//! probe-<number>/{data,mount,erofs}   a trial of mounts; probe-<number>/data/<name>
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::limits::{MAX_NAME_BYTES, MAX_PATH_BYTES};

/// What a path is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Mounting the FUSE connection there.
    Connection,
    /// Mounting a layer there.
    Layer,
    /// Taking mounts away.
    Detach,
    /// An EROFS image.
    Image,
    /// The device of an image.
    Device,
    /// A tree in the FUSE mount.
    Tree,
    /// A layer's tar.
    Tar,
    /// The files of a snapshot.
    Files,
    /// Deleting.
    Removed,
}

/// Whether `path`, relative to the root, is a place for `what`.
pub(super) fn is_for(what: Use, path: &[u8]) -> bool {
    let Some(parts) = parts(path) else { return false };
    match (what, parts.as_slice()) {
        (Use::Connection | Use::Detach, [b"data"])
        | (Use::Tree | Use::Device, [b"data", _])
        | (Use::Tar | Use::Device, [b"layers", _, b"tar"]) => true,
        (Use::Connection | Use::Detach, [probe, b"data"])
        | (Use::Layer | Use::Detach, [probe, b"mount"])
        | (Use::Image, [probe, b"erofs"])
        | (Use::Device, [probe, b"data", _]) => is_probe(probe),
        (Use::Image, [b"layers", _, image]) => *image == b"erofs" || image.starts_with(b"erofs-"),
        (Use::Layer | Use::Files | Use::Detach, [b"snapshots", id, b"fs"]) => is_number(id),
        (Use::Removed, [b"snapshots", removed]) => is_removed(removed),
        _ => false,
    }
}

/// The names of a relative path without detours; `None` for any other.
fn parts(path: &[u8]) -> Option<Vec<&[u8]>> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let fits = |part: &&[u8]| {
        !part.is_empty() && part.len() <= MAX_NAME_BYTES && *part != b"." && *part != b".." && !part.contains(&0)
    };
    (path.len() <= MAX_PATH_BYTES && parts.iter().all(fits)).then_some(parts)
}

fn is_number(part: &[u8]) -> bool {
    (1..=20).contains(&part.len()) && part.iter().all(u8::is_ascii_digit)
}

fn is_probe(part: &[u8]) -> bool {
    part.strip_prefix(b"probe-").is_some_and(is_number)
}

fn is_removed(part: &[u8]) -> bool {
    part.strip_prefix(b"removed-").is_some_and(|rest| rest.split(|byte| *byte == b'-').take(3).all(is_number))
        && part.iter().filter(|byte| **byte == b'-').count() <= 2
}

/// The kernel's name of an EROFS mount over files among its backing devices.
pub(super) fn is_bdi(name: &str) -> bool {
    name.strip_prefix("erofs-").is_some_and(|rest| is_number(rest.as_bytes()))
}

/// As a path.
pub(super) fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_for_its_use_alone() {
        let uses = [
            Use::Connection,
            Use::Layer,
            Use::Detach,
            Use::Image,
            Use::Device,
            Use::Tree,
            Use::Tar,
            Use::Files,
            Use::Removed,
        ];
        for (path, expected) in [
            ("data", &[Use::Connection, Use::Detach][..]),
            ("data/0a.tar", &[Use::Device, Use::Tree]),
            ("layers/0a/tar", &[Use::Device, Use::Tar]),
            ("layers/0a/erofs", &[Use::Image]),
            ("layers/0a/erofs-77", &[Use::Image]),
            ("snapshots/7/fs", &[Use::Layer, Use::Detach, Use::Files]),
            ("snapshots/removed-7", &[Use::Removed]),
            ("snapshots/removed-7-3", &[Use::Removed]),
            ("probe-9/data", &[Use::Connection, Use::Detach]),
            ("probe-9/mount", &[Use::Layer, Use::Detach]),
            ("probe-9/erofs", &[Use::Image]),
            ("probe-9/data/trial", &[Use::Device]),
        ] {
            let found: Vec<_> = uses.into_iter().filter(|what| is_for(*what, path.as_bytes())).collect();
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn nothing_else_is_a_place() {
        let long = format!("data/{}", "x".repeat(MAX_NAME_BYTES + 1));
        for path in [
            "",
            "/",
            "/data",
            "data/",
            "./data",
            "../data",
            "data/..",
            "data/../x",
            "data//x",
            "data/a\0b",
            "etc",
            "snapshots/7",
            "snapshots/7/work",
            "snapshots/7/fs/etc",
            "snapshots/x/fs",
            "snapshots/../7/fs",
            "snapshots/removed-",
            "snapshots/removed-x",
            "snapshots/removed-7-3-1",
            "snapshots/removed-7-",
            "snapshots/removed-7/fs",
            "snapshots/7-removed",
            "probe-/data",
            "probe-x/mount",
            "layers/0a/spans",
            "layers/0a",
            &long,
        ] {
            for what in [Use::Connection, Use::Layer, Use::Detach, Use::Image, Use::Device, Use::Tree, Use::Removed] {
                assert!(!is_for(what, path.as_bytes()), "{path} for {what:?}");
            }
        }
    }

    #[test]
    fn backing_devices_have_one_name() {
        assert!(is_bdi("erofs-12"));
        for other in ["erofs-", "erofs-1/..", "../erofs-1", "8:0", "erofs-x", ""] {
            assert!(!is_bdi(other), "{other}");
        }
    }
}
