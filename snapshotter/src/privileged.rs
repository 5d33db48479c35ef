//! What needs rights that the daemon has not: mounting, and files and processes of other users.
//!
//! The daemon speaks with the network and parses what comes from there. So it gives its capabilities up, and a process of its own, the
//! *mounter*, keeps those few that are left to be used ([`serve`]). They share a socket pair (`SOCK_SEQPACKET`) and nothing else:
//!
//! ```text
//! daemon -> mounter: one request (request::Request) a packet, with descriptors where it names some
//! mounter -> daemon: one answer a packet: an error, or what was asked for; longer ones in a memory file
//! ```
//!
//! The mounter believes the daemon in nothing: what it mounts are Lapwing's own three kinds with their fixed options, at places below
//! the root that have the names of such places ([`place`]), found without following a link ([`spot`]). It ends with its socket.
//!
//! * [`request`], [`answer`]: what is said, byte by byte; without I/O
//! * [`place`]: which names below the root may be used for what
//! * [`spot`]: a mount point, by descriptors
//! * [`link`]: packets and descriptors
//! * [`client`]: the daemon's side
//! * [`server`]: the mounter's
//!
//! A process that has no mounter ([`use_mounter`] was not called) does all of it itself, with the rights that it has: commands, tests, and
//! daemons that were started without any.

use std::sync::OnceLock;

mod answer;
mod client;
mod link;
mod place;
mod request;
mod server;
pub(crate) mod spot;

pub use client::Mounter;
pub use server::serve;

static MOUNTER: OnceLock<Mounter> = OnceLock::new();

/// Has all of this process go by way of `mounter` from now on; the first one counts.
pub fn use_mounter(mounter: Mounter) -> &'static Mounter {
    MOUNTER.get_or_init(|| mounter)
}

/// The mounter of this process, if it has one.
pub fn mounter() -> Option<&'static Mounter> {
    MOUNTER.get()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    /// A mounter in a thread of this process, which needs no rights for what is asked here.
    fn started(root: &Path) -> (Mounter, std::thread::JoinHandle<std::io::Result<()>>) {
        let (ours, theirs) = link::pair().unwrap();
        let served = root.to_owned();
        let thread = std::thread::spawn(move || serve(&served, None, &theirs));
        (Mounter::new(root, ours).unwrap(), thread)
    }

    #[test]
    fn what_the_mounter_says_is_what_this_process_would_find() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap();
        let (upper, lower) = (root.join("snapshots/8/fs"), root.join("snapshots/7/fs"));
        for directory in [upper.join("etc"), lower.join("etc"), lower.join("var/lib")] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::set_permissions(upper.join("etc"), fs::Permissions::from_mode(0o1750)).unwrap();
        fs::write(lower.join("var/file"), vec![7; 100_000]).unwrap();
        fs::create_dir_all(root.join("snapshots/removed-7/fs")).unwrap();
        let (mounter, thread) = started(&root);

        let directories = ["etc", "var/lib", "var/file", "none"].map(|path| path.as_bytes().to_vec());
        let lowers = [upper.clone(), lower.clone()];
        let found = mounter.attributes(&directories, &lowers).unwrap();
        assert_eq!(found, crate::lazy::inherited_here(&directories, &lowers));
        assert_eq!((found.len(), found[b"etc".as_slice()].mode), (2, 0o1750), "{found:?}");
        assert_eq!(mounter.usage(&lower).unwrap(), crate::service::usage_here(&lower).unwrap());
        mounter.delete(&root.join("snapshots/removed-7")).unwrap();
        assert!(!root.join("snapshots/removed-7").exists());
        let owner = fs::metadata(&upper).unwrap();
        mounter.own(&upper, owner.uid(), owner.gid()).unwrap();
        mounter.detach(&root.join("data")).unwrap();
        assert!(!mounter.release(&root.join("data")).unwrap());
        assert!(mounter.tables().unwrap().is_empty() || !crate::mountpoint::mounts_of_all().unwrap().is_empty());

        for refused in [
            mounter.detach(Path::new("/proc")),
            mounter.detach(&root.join("snapshots/8/work")),
            mounter.own(&root.join("snapshots/8"), 0, 0),
            mounter.own(&upper, u32::MAX, 0),
            mounter.delete(&root.join("snapshots/8")),
            mounter.detach_all(Path::new("/elsewhere")).map(drop),
        ] {
            let text = refused.unwrap_err().to_string();
            assert!(["no place", "is not below", "no such owner"].iter().any(|word| text.contains(word)), "{text}");
        }

        let start = Instant::now();
        for _ in 0..1000 {
            mounter.detach(&root.join("probe-1/data")).unwrap();
        }
        eprintln!("a question takes {:?}", start.elapsed() / 1000);
        drop(mounter);
        thread.join().unwrap().unwrap();
    }
}
