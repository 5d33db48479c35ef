//! Names as containerd's archive/tar.go cleans them, but strict where it would clamp.

use crate::limits::{MAX_NAME_BYTES, MAX_PATH_BYTES};

/// `name` without `.` and empty components and with `..` resolved; the root is empty.
///
/// A name that climbs above the root is an error: containerd clamps it to the root, which no honest builder relies on.
pub(crate) fn clean(name: &[u8]) -> Result<Vec<u8>, String> {
    let mut components: Vec<&[u8]> = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop().ok_or_else(|| format!("name {:?} leaves the root", String::from_utf8_lossy(name)))?;
            }
            _ => components.push(component),
        }
    }
    let path = components.join(&b'/');
    if is_clean(&path) { Ok(path) } else { Err("name too long for Linux, or with a NUL in it".to_owned()) }
}

/// Whether `path` has the form of [`Entry::path`](crate::tree::Entry::path) and fits the kernel's limits.
pub(crate) fn is_clean(path: &[u8]) -> bool {
    let component =
        |name: &[u8]| !matches!(name, b"" | b"." | b"..") && name.len() <= MAX_NAME_BYTES && !name.contains(&0);
    path.is_empty() || (path.len() <= MAX_PATH_BYTES && path.split(|byte| *byte == b'/').all(component))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_like_go_filepath_clean() {
        for (name, path) in [
            ("", ""),
            ("/", ""),
            ("./", ""),
            ("a", "a"),
            ("./a//b/", "a/b"),
            ("/etc/./passwd", "etc/passwd"),
            ("a/../b", "b"),
            ("a/b/../../", ""),
            ("..a/...", "..a/..."),
        ] {
            assert_eq!(clean(name.as_bytes()).unwrap(), path.as_bytes(), "{name}");
        }
    }

    #[test]
    fn refuses_to_leave_the_root_and_names_no_kernel_takes() {
        let long = format!("{}/x", "n".repeat(256));
        let deep = "d/".repeat(2049);
        for name in ["..", "../x", "a/../../x", "/..", "a\0b", &long, &deep] {
            assert!(clean(name.as_bytes()).is_err(), "{name:?}");
        }
    }

    #[test]
    fn clean_is_a_fixed_point() {
        for path in ["", "a", "a/b/c", ".wh..wh..opq"] {
            assert!(is_clean(path.as_bytes()));
        }
        for path in ["/", "a/", "/a", "a//b", "a/./b", "a/..", "."] {
            assert!(!is_clean(path.as_bytes()), "{path}");
        }
    }
}
