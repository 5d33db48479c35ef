//! What containerd is to mount for a snapshot: the same as its own overlayfs snapshotter says.
//!
//! `plugins/snapshots/overlay/overlay.go`: no parents: a bind mount of the snapshot's own directory; a view of one
//! parent: a read-only bind mount of the parent's; else an overlay, nearest parent first.

use std::collections::HashSet;
use std::path::Path;

use super::directories::Directories;
use super::idmap::IdMapping;
use super::proto::Mount;
use crate::graph::{Ancestor, Kind, Snapshot};

/// Options that every overlay mount gets on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OverlayOptions(Vec<String>);

impl OverlayOptions {
    /// `userxattr` inside a user namespace, where `trusted.*` attributes are out of reach (Linux 5.11); `index=off`
    /// where the module knows it, since layers are shared by many mounts.
    pub(crate) fn detect() -> Self {
        let mut options = Vec::new();
        if std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| in_user_namespace(&map)) {
            options.push("userxattr".to_owned());
        }
        if Path::new("/sys/module/overlay/parameters/index").exists() {
            options.push("index=off".to_owned());
        }
        Self(options)
    }
}

/// The initial user namespace maps all ids onto themselves (`user_namespaces(7)`).
fn in_user_namespace(uid_map: &str) -> bool {
    let fields: Vec<_> = uid_map.split_whitespace().collect();
    fields != ["0", "0", "4294967295"]
}

/// `mapping`: whose ids containerd is to show as whose.
pub(crate) fn mounts(
    directories: &Directories,
    snapshot: &Snapshot,
    overlay: &OverlayOptions,
    mapping: Option<&IdMapping>,
) -> Vec<Mount> {
    let mapped = || mapping.into_iter().flat_map(IdMapping::options);
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let files = |id| text(directories.files(id));
    let bind = |id, mode: &str| {
        let options = mapped().chain([mode.to_owned(), "rbind".to_owned()]).collect();
        vec![Mount { r#type: "bind".to_owned(), source: files(id), target: String::new(), options }]
    };
    // A layer that comes twice adds nothing below itself, and overlayfs refuses one directory twice, which two mounts of a FUSE tree are.
    let mut named = HashSet::new();
    let is_first = |ancestor: &&Ancestor| ancestor.layer.is_none_or(|layer| named.insert(layer));
    let ancestors: Vec<&Ancestor> = snapshot.ancestors.iter().filter(is_first).collect();
    let places = match (snapshot.kind, ancestors.as_slice()) {
        (Kind::Active, []) => return bind(snapshot.id, "rw"),
        (_, []) => return bind(snapshot.id, "ro"),
        (Kind::Active, _) => {
            vec![format!("workdir={}", text(directories.work(snapshot.id))), format!("upperdir={}", files(snapshot.id))]
        }
        (_, [parent]) => return bind(parent.id, "ro"),
        _ => Vec::new(),
    };
    let lower: Vec<_> = ancestors.iter().map(|ancestor| files(ancestor.id)).collect();
    let mut options: Vec<_> = mapped().chain(places).collect();
    options.push(format!("lowerdir={}", lower.join(":")));
    options.extend_from_slice(&overlay.0);
    vec![Mount { r#type: "overlay".to_owned(), source: "overlay".to_owned(), target: String::new(), options }]
}

#[cfg(test)]
mod tests {
    use super::*;
    fn options_of(kind: Kind, ancestors: &[u64], mapping: Option<&IdMapping>) -> (String, Vec<String>) {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        let ancestors = ancestors.iter().map(|id| Ancestor { id: *id, layer: None }).collect();
        let overlay = OverlayOptions(vec!["index=off".to_owned()]);
        let mut found = mounts(&directories, &Snapshot { id: 9, kind, ancestors }, &overlay, mapping);
        assert_eq!(found.len(), 1);
        let mount = found.remove(0);
        let top = format!("{}/", directories.top().display());
        let short = |text: &str| text.replace(&top, "");
        (format!("{} {}", mount.r#type, short(&mount.source)), mount.options.iter().map(|o| short(o)).collect())
    }

    #[test]
    fn are_those_of_the_overlay_snapshotter() {
        for (kind, ancestors, source, options) in [
            (Kind::Active, &[][..], "bind 9/fs", "rw rbind"),
            (Kind::View, &[], "bind 9/fs", "ro rbind"),
            (Kind::View, &[5], "bind 5/fs", "ro rbind"),
            (Kind::View, &[5, 4], "overlay overlay", "lowerdir=5/fs:4/fs index=off"),
            (Kind::Active, &[5], "overlay overlay", "workdir=9/work upperdir=9/fs lowerdir=5/fs index=off"),
        ] {
            let found = options_of(kind, ancestors, None);
            assert_eq!((found.0.as_str(), found.1.join(" ").as_str()), (source, options));
            let labels = ["uid", "gid"].map(|id| (format!("containerd.io/snapshot/{id}mapping"), "0:7:9".to_owned()));
            let mapping = IdMapping::of(&labels.into()).unwrap();
            let found = options_of(kind, ancestors, mapping.as_ref());
            assert_eq!(found.1.join(" "), format!("uidmap=0:7:9 gidmap=0:7:9 {options}"));
        }
    }

    #[test]
    fn a_layer_that_comes_twice_is_mounted_once() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        let [empty, other] = [b"empty", b"other"].map(|name| Some(lapwing_p2p::digest::Digest::of(name)));
        let lowers = |kind: Kind, layers: &[Option<lapwing_p2p::digest::Digest>]| {
            let ancestors = layers.iter().enumerate().map(|(id, layer)| Ancestor { id: id as u64, layer: *layer });
            let snapshot = Snapshot { id: 9, kind, ancestors: ancestors.collect() };
            let mount = mounts(&directories, &snapshot, &OverlayOptions(Vec::new()), None).remove(0);
            let top = format!("{}/", directories.top().display());
            let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir=")).map(str::to_owned);
            lower.unwrap_or(mount.source).replace(&top, "")
        };
        assert_eq!(lowers(Kind::Active, &[empty, other, empty, None, None]), "0/fs:1/fs:3/fs:4/fs");
        assert_eq!(lowers(Kind::View, &[empty, empty]), "0/fs");
    }

    #[test]
    fn tells_user_namespaces() {
        assert!(!in_user_namespace("         0          0 4294967295\n"));
        assert!(in_user_namespace("0 100000 65536\n"));
        assert!(in_user_namespace("0 1000 1\n1 100000 65536\n"));
    }
}
