//! Snapshots for user namespaces: whose ids stand for whose.
//!
//! containerd writes the mapping into two labels (`core/snapshots/snapshotter.go`, `plugins/snapshots/overlay/overlay.go`). A
//! snapshotter that it knows to map ids (`capabilities = ["remap-ids"]` of its proxy plug-in) is given the image as it is, and answers
//! with mount options by which containerd shows the layers with mapped owners, without touching a file. For any other it
//! makes a copy of the image first, with every owner changed, and asks for a snapshot on top of that with the same
//! labels. The two are told apart by who owns the root of what it asks to stand on.

use super::SnapshotError;
use super::directories::Owner;
use crate::graph::Labels;
use crate::limits::MAX_ID_RANGES;

const UIDS: &str = "containerd.io/snapshot/uidmapping";
const GIDS: &str = "containerd.io/snapshot/gidmapping";

/// A checked mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdMapping {
    uids: String,
    gids: String,
    /// What the namespace's root is outside.
    pub(crate) root: Owner,
}

impl IdMapping {
    /// The mapping that the labels of a snapshot ask for, if they do.
    pub(crate) fn of(labels: &Labels) -> Result<Option<Self>, SnapshotError> {
        let (uids, gids) = match (labels.get(UIDS), labels.get(GIDS)) {
            (None, None) => return Ok(None),
            (Some(uids), Some(gids)) => (uids.clone(), gids.clone()),
            _ => return Err(SnapshotError::Request(format!("the labels {UIDS} and {GIDS} go together"))),
        };
        let root = |label: &str, text: &str| {
            root_of(text).map_err(|wrong| SnapshotError::Request(format!("label {label}, {text:?}: {wrong}")))
        };
        let root = Owner { uid: root(UIDS, &uids)?, gid: root(GIDS, &gids)? };
        Ok(Some(Self { uids, gids, root }))
    }

    /// Options by which containerd mounts with mapped ids.
    pub(crate) fn options(&self) -> [String; 2] {
        [format!("uidmap={}", self.uids), format!("gidmap={}", self.gids)]
    }
}

/// What id 0 is outside, of `inside:outside:count[,...]`.
fn root_of(text: &str) -> Result<u32, String> {
    let mut root = None;
    for (number, range) in text.split(',').enumerate() {
        if number >= MAX_ID_RANGES {
            return Err(format!("more than {MAX_ID_RANGES} ranges"));
        }
        let parts: Vec<u32> = range.split(':').map_while(|part| part.parse().ok()).collect();
        let [inside, outside, count] = parts.as_slice() else {
            return Err(format!("{range:?} is not inside:outside:count"));
        };
        let fits = |begin: u32| begin.checked_add(*count).is_some();
        if *count == 0 || range.split(':').count() != 3 || !fits(*inside) || !fits(*outside) {
            return Err(format!("{range:?} is not a range of ids"));
        }
        if *inside == 0 {
            root = Some(*outside);
        }
    }
    root.ok_or_else(|| "nothing stands for id 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uids: Option<&str>, gids: Option<&str>) -> Result<Option<IdMapping>, String> {
        let labels = [(UIDS, uids), (GIDS, gids)];
        let labels =
            labels.into_iter().filter_map(|(label, text)| Some((label.to_owned(), text?.to_owned()))).collect();
        IdMapping::of(&labels).map_err(|error| error.to_string())
    }

    #[test]
    fn mappings_as_containerd_writes_them() {
        assert_eq!(of(None, None), Ok(None));
        let found = of(Some("1:5:9,0:1000:1"), Some("0:200000:65536")).unwrap().unwrap();
        assert_eq!(found.root, Owner { uid: 1000, gid: 200_000 });
        assert_eq!(found.options(), ["uidmap=1:5:9,0:1000:1", "gidmap=0:200000:65536"]);
    }

    #[test]
    fn what_is_no_mapping_is_refused_by_name() {
        let good = "0:1:1";
        assert!(of(Some(good), None).unwrap_err().contains("go together"));
        let many = vec!["0:1:1"; MAX_ID_RANGES + 1].join(",");
        for (bad, hint) in [
            ("", "inside:outside:count"),
            ("0:1", "inside:outside:count"),
            ("0:1:1:1", "inside:outside:count"),
            ("0:x:1", "inside:outside:count"),
            ("0:1:0", "not a range"),
            ("0:4294967295:2", "not a range"),
            ("0:4294967296:1", "inside:outside:count"),
            ("1:1:1", "id 0"),
            (&many, "ranges"),
        ] {
            let error = of(Some(good), Some(bad)).unwrap_err();
            assert!(error.contains(hint) && error.contains(GIDS), "{bad}: {error}");
        }
    }
}
