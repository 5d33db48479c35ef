//! The snapshot graph: which snapshots exist, what stands on what, and under which labels.
//!
//! One redb database, one transaction per operation; a writing call returns after its transaction is durable. The rules
//! and the error classes are those of containerd's own store (`core/snapshots/storage/bolt.go`), because containerd
//! keeps a second graph of its own and takes decisions on these errors.
//!
//! ```text
//! snapshots   key or name     -> record (protobuf)
//! children    (parent id, id) -> ()
//! remotes     (snapshot.ref label, parent, name) -> (), for snapshots that stand for a layer mounted on demand
//! meta        "format", "next_id"
//! ```
//!
//! After a crash the graph is what the last finished transaction left. The directories are not in the transaction: they
//! are made before it and removed after it, so that a crash can leave a directory without a record (collected at the
//! next start) and never a record without its directory.
//!
//! Nothing here touches directories or mounts, and no clock is read: the time is passed in.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use lapwing_p2p::digest::Digest;
use redb::{Database, ReadableTable as _, TableDefinition};

mod read;
mod record;
mod write;

pub use read::{Ancestor, Snapshot};
pub use write::Claimed;

/// The label by which containerd names the chain id that an extraction is to produce.
pub const REF_LABEL: &str = "containerd.io/snapshot.ref";

const SNAPSHOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");
const CHILDREN: TableDefinition<(u64, u64), ()> = TableDefinition::new("children");
const REMOTES: TableDefinition<(&str, &str, &str), ()> = TableDefinition::new("remotes");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;

/// Labels of a snapshot.
pub type Labels = HashMap<String, String>;

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A read-only look at a committed snapshot.
    View,
    /// Writable; becomes committed or is removed.
    Active,
    /// Immutable; may be a parent.
    Committed,
}

impl Kind {
    /// The name that containerd's filters use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What callers see of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Key of an active snapshot or view, name of a committed one.
    pub name: String,
    /// Name of the parent; empty when there is none.
    pub parent: String,
    /// What it is.
    pub kind: Kind,
    /// Labels; none has an empty value.
    pub labels: Labels,
    /// When it was prepared, or, once committed, when that was.
    pub created: SystemTime,
    /// Last change of the labels.
    pub updated: SystemTime,
}

/// Disk space that a snapshot takes, without its parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Allocated bytes.
    pub size_bytes: u64,
    /// Inodes, hard links counted once.
    pub inodes: u64,
}

/// Why an operation was refused; the first four are containerd's error classes.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// There is no such snapshot or parent.
    #[error("{0}: not found")]
    NotFound(String),
    /// The key or name is taken.
    #[error("{0}: already exists")]
    AlreadyExists(String),
    /// The request can never be granted.
    #[error("{0}: invalid argument")]
    InvalidArgument(String),
    /// The request cannot be granted in the present state.
    #[error("{0}: failed precondition")]
    FailedPrecondition(String),
    /// A record contradicts the format.
    #[error(
        "snapshot graph: {0}; the database is damaged: stop containerd, move it away, and remove containerd's metadata for this snapshotter"
    )]
    Damaged(String),
    /// The database cannot be opened.
    #[error("snapshot graph {path}: {source} (is another daemon running on the same root?)")]
    Open {
        /// Its file.
        path: PathBuf,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// The database failed.
    #[error("snapshot graph: {0}")]
    Store(Box<redb::Error>),
}

macro_rules! from_store {
    ($($error:ty),*) => { $(impl From<$error> for GraphError {
        fn from(error: $error) -> Self {
            Self::Store(Box::new(error.into()))
        }
    })* };
}
from_store!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// The graph, open. Calls block on the disk; they may come from several threads at once.
#[derive(Debug)]
pub struct Graph {
    database: Database,
    next_id: AtomicU64,
}

impl Graph {
    /// Opens the graph in the file `path`, or makes it.
    pub fn open(path: &Path) -> Result<Self, GraphError> {
        let open_error = |source| GraphError::Open { path: path.to_owned(), source: Box::new(source) };
        let database = Database::create(path).map_err(|error| open_error(error.into()))?;
        let transaction = database.begin_write()?;
        let next_id = {
            transaction.open_table(SNAPSHOTS)?;
            transaction.open_table(CHILDREN)?;
            transaction.open_table(REMOTES)?;
            let mut meta = transaction.open_table(META)?;
            let format = meta.get("format")?.map_or(FORMAT, |format| format.value());
            if format != FORMAT {
                return Err(GraphError::Damaged(format!("{} has format {format}, expected {FORMAT}", path.display())));
            }
            meta.insert("format", FORMAT)?;
            meta.get("next_id")?.map_or(1, |id| id.value())
        };
        transaction.commit()?;
        Ok(Self { database, next_id: AtomicU64::new(next_id) })
    }

    /// An id that no snapshot has or had, unless the daemon stopped before a snapshot was created under it.
    pub fn allocate_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// What a new snapshot starts with.
#[derive(Debug, Clone)]
pub struct NewSnapshot<'a> {
    /// From [`Graph::allocate_id`]; its directories exist already.
    pub id: u64,
    /// Name of the parent; empty for none.
    pub parent: &'a str,
    /// Labels to store.
    pub labels: &'a Labels,
    /// The present time.
    pub now: SystemTime,
}

/// A snapshot that stands for a layer mounted on demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteSnapshot {
    /// Its directory's id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The layer.
    pub layer: Digest,
}
