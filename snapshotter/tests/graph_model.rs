//! The snapshot graph against a model of containerd's rules, over random histories with restarts.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::graph::{
    Claimed, Graph, GraphError, Info, Kind, Labels, NewSnapshot, REF_LABEL, RemoteSnapshot, Usage,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Create { view: bool, key: u8, parent: u8 },
    Commit { key: u8, name: u8, parent: u8 },
    Remove { key: u8 },
    Update { key: u8, value: u8, path: u8 },
    Claim { chain_id: u8, parent: u8 },
    Restart,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    NotFound,
    AlreadyExists,
    InvalidArgument,
    FailedPrecondition,
}

fn refusal(error: &GraphError) -> Refusal {
    match error {
        GraphError::NotFound(_) => Refusal::NotFound,
        GraphError::AlreadyExists(_) => Refusal::AlreadyExists,
        GraphError::InvalidArgument(_) => Refusal::InvalidArgument,
        GraphError::FailedPrecondition(_) => Refusal::FailedPrecondition,
        other => panic!("{other}"),
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    parent: String,
    kind: Kind,
    labels: Labels,
    created: SystemTime,
    usage: Usage,
    is_remote: bool,
}

#[derive(Debug, Default)]
struct Model(BTreeMap<String, Entry>);

impl Model {
    fn parent(&self, name: &str, not_committed: Refusal) -> Result<(), Refusal> {
        match self.0.get(name) {
            _ if name.is_empty() => Ok(()),
            None => Err(Refusal::NotFound),
            Some(entry) if entry.kind != Kind::Committed => Err(not_committed),
            Some(_) => Ok(()),
        }
    }

    fn create(&mut self, key: &str, entry: Entry) -> Result<(), Refusal> {
        self.parent(&entry.parent, Refusal::InvalidArgument)?;
        if self.0.contains_key(key) {
            return Err(Refusal::AlreadyExists);
        }
        self.0.insert(key.to_owned(), entry);
        Ok(())
    }

    fn commit(&mut self, key: &str, name: &str, parent: &str, now: SystemTime, usage: Usage) -> Result<(), Refusal> {
        if self.0.contains_key(name) {
            return Err(Refusal::AlreadyExists);
        }
        let mut entry = self.0.get(key).cloned().ok_or(Refusal::NotFound)?;
        if entry.kind != Kind::Active {
            return Err(Refusal::FailedPrecondition);
        }
        if !entry.parent.is_empty() && !parent.is_empty() && entry.parent != parent {
            return Err(Refusal::InvalidArgument);
        }
        if entry.parent.is_empty() {
            entry.parent = parent.to_owned();
        }
        self.parent(&entry.parent, Refusal::FailedPrecondition)?;
        self.0.remove(key);
        (entry.kind, entry.labels, entry.created, entry.usage) = (Kind::Committed, labels("committed"), now, usage);
        self.0.insert(name.to_owned(), entry);
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Result<(), Refusal> {
        if !self.0.contains_key(key) {
            return Err(Refusal::NotFound);
        }
        if self.0.values().any(|entry| entry.parent == key) {
            return Err(Refusal::FailedPrecondition);
        }
        self.0.remove(key);
        Ok(())
    }

    fn remote(&self, chain_id: &str, parent: &str) -> Option<&String> {
        let wanted = |entry: &Entry| {
            entry.is_remote && entry.parent == parent && entry.labels.get(REF_LABEL).is_some_and(|l| l == chain_id)
        };
        self.0.iter().find(|(_, entry)| wanted(entry)).map(|(name, _)| name)
    }
}

fn labels(value: &str) -> Labels {
    Labels::from([("label".to_owned(), value.to_owned()), ("empty".to_owned(), String::new())])
}

fn kept(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

struct Rig {
    directory: tempfile::TempDir,
    graph: Option<Graph>,
    model: Model,
    now: SystemTime,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let graph = Some(Graph::open(&directory.path().join("graph.redb")).unwrap());
        Self { directory, graph, model: Model::default(), now: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30) }
    }

    fn graph(&self) -> &Graph {
        self.graph.as_ref().unwrap()
    }

    /// A few fixed names, and those of the remote snapshots that exist.
    fn name(&self, number: u8) -> String {
        let remotes: Vec<_> = self.model.0.iter().filter(|(_, e)| e.is_remote).map(|(name, _)| name).collect();
        match usize::from(number) {
            0 => String::new(),
            fixed @ 1..=5 => format!("snapshot-{fixed}"),
            more if remotes.is_empty() => format!("absent-{more}"),
            more => remotes[more % remotes.len()].clone(),
        }
    }

    fn entry(&self, kind: Kind, parent: &str, labels: Labels, is_remote: bool) -> Entry {
        let (parent, usage) = (parent.to_owned(), Usage::default());
        Entry { parent, kind, labels: kept(labels), created: self.now, usage, is_remote }
    }

    fn step(&mut self, step: &Step) {
        self.now += Duration::from_nanos(1_000_000_007);
        let now = self.now;
        let (found, expected) = match *step {
            Step::Create { view, key, parent } => {
                let (key, parent) = (format!("k{}", self.name(key)), self.name(parent));
                let kind = if view { Kind::View } else { Kind::Active };
                let given = labels("new");
                let new = NewSnapshot { id: self.graph().allocate_id(), parent: &parent, labels: &given, now };
                let found = self.graph().create(kind, &key, &new).map(|_| ());
                let entry = self.entry(kind, &parent, given, false);
                (found, self.model.create(&key, entry))
            }
            Step::Commit { key, name, parent } => {
                let (key, name) = (format!("k{}", self.name(key)), format!("snapshot-{}", name % 5 + 1));
                let parent = self.name(parent);
                let usage = Usage { size_bytes: 4096, inodes: 3 };
                let found = self.graph().commit(&key, &name, &parent, &labels("committed"), usage, now);
                let expected = self.model.commit(&key, &name, &parent, now, usage);
                if let Some(entry) = self.model.0.get_mut(&name).filter(|_| expected.is_ok()) {
                    entry.labels = kept(labels("committed"));
                }
                (found, expected)
            }
            Step::Remove { key } => {
                let key = if key % 2 == 0 { self.name(key / 2) } else { format!("k{}", self.name(key / 2)) };
                (self.graph().remove(&key).map(|_| ()), self.model.remove(&key))
            }
            Step::Update { key, value, path } => self.update(key, value, path),
            Step::Claim { chain_id, parent } => self.claim(chain_id, parent),
            Step::Restart => {
                self.graph = None;
                self.graph = Some(Graph::open(&self.directory.path().join("graph.redb")).unwrap());
                (Ok(()), Ok(()))
            }
        };
        assert_eq!(found.map_err(|error| refusal(&error)), expected, "{step:?}");
    }

    fn update(&mut self, key: u8, value: u8, path: u8) -> (Result<(), GraphError>, Result<(), Refusal>) {
        let name = self.name(key);
        let value = if value == 0 { String::new() } else { format!("sha256:{value}") };
        let given = Labels::from([(REF_LABEL.to_owned(), value.clone())]);
        let paths: Vec<String> = match path {
            0 => vec![],
            1 => vec!["labels".to_owned()],
            2 => vec![format!("labels.{REF_LABEL}")],
            _ => vec![format!("labels.{REF_LABEL}"), "parent".to_owned()],
        };
        let found = self.graph().update(&name, &given, &paths, self.now).map(|_| ());
        let expected = match self.model.0.get_mut(&name) {
            None => Err(Refusal::NotFound),
            Some(_) if path > 2 => Err(Refusal::InvalidArgument),
            Some(entry) => {
                if path < 2 {
                    entry.labels.clear();
                }
                entry.labels.insert(REF_LABEL.to_owned(), value);
                entry.labels = kept(std::mem::take(&mut entry.labels));
                Ok(())
            }
        };
        (found, expected)
    }

    fn claim(&mut self, chain_id: u8, parent: u8) -> (Result<(), GraphError>, Result<(), Refusal>) {
        let (chain_id, parent) = (format!("sha256:{chain_id}"), self.name(parent));
        let given = Labels::from([(REF_LABEL.to_owned(), chain_id.clone())]);
        let id = self.graph().allocate_id();
        let name = RemoteSnapshot::name_for(id);
        let new = NewSnapshot { id, parent: &parent, labels: &given, now: self.now };
        let found = self.graph().insert_remote(&name, &Digest::of(chain_id.as_bytes()), &new);
        if self.model.remote(&chain_id, &parent).is_some() {
            assert_eq!(found.unwrap(), Claimed::ThereAlready);
            return (Ok(()), Ok(()));
        }
        let entry = self.entry(Kind::Committed, &parent, given, true);
        (found.map(|claimed| assert_eq!(claimed, Claimed::Inserted)), self.model.create(&name, entry))
    }

    fn check(&self) {
        let found = self.graph().list(|_| true).unwrap();
        let seen: Vec<_> = found.iter().map(|info| (&info.name, &info.parent, info.kind, &info.labels)).collect();
        let wanted: Vec<_> = self.model.0.iter().map(|(name, e)| (name, &e.parent, e.kind, &e.labels)).collect();
        assert_eq!(seen, wanted);
        let mut ids = std::collections::HashSet::new();
        for info in &found {
            self.check_one(info, &mut ids);
        }
        assert_eq!(self.graph().ids().unwrap(), ids);
        for (chain_id, parent) in (0..4).flat_map(|c| (0..8).map(move |p| (format!("sha256:{c}"), p))) {
            let parent = self.name(parent);
            let found = self.graph().remote(&chain_id, &parent).unwrap();
            assert_eq!(found.is_some(), self.model.remote(&chain_id, &parent).is_some(), "{chain_id} on {parent:?}");
            if let Some(remote) = found {
                assert_eq!(self.model.0[&remote.name].labels[REF_LABEL], chain_id);
            }
        }
    }

    fn check_one(&self, info: &Info, ids: &mut std::collections::HashSet<u64>) {
        let entry = &self.model.0[&info.name];
        let (id, stat, usage) = self.graph().stat(&info.name).unwrap();
        assert_eq!((&stat, usage, stat.created), (info, entry.usage, entry.created));
        assert!(ids.insert(id), "id {id} twice");
        if entry.kind != Kind::Committed {
            let mut depth = 0;
            let mut parent = &entry.parent;
            while !parent.is_empty() {
                depth += 1;
                parent = &self.model.0[parent].parent;
            }
            assert_eq!(self.graph().mountable(&info.name).unwrap().ancestors.len(), depth);
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 1..6u8, 0..9u8).prop_map(|(view, key, parent)| Step::Create { view, key, parent }),
        4 => (1..6u8, 0..5u8, 0..9u8).prop_map(|(key, name, parent)| Step::Commit { key, name, parent }),
        3 => (2..18u8).prop_map(|key| Step::Remove { key }),
        2 => (0..9u8, 0..4u8, 0..4u8).prop_map(|(key, value, path)| Step::Update { key, value, path }),
        3 => (0..4u8, 0..9u8).prop_map(|(chain_id, parent)| Step::Claim { chain_id, parent }),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn does_what_containerds_store_does(steps in prop::collection::vec(step(), 1..40)) {
        let mut rig = Rig::new();
        for step in &steps {
            rig.step(step);
            rig.check();
        }
    }
}

#[test]
fn a_second_daemon_is_refused_by_name() {
    let rig = Rig::new();
    let path = rig.directory.path().join("graph.redb");
    let error = Graph::open(&path).unwrap_err().to_string();
    assert!(error.contains("graph.redb") && error.contains("another daemon"), "{error}");
}
