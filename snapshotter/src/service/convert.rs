//! Between the graph's types and the wire's, and the checks at the edge.

use tonic::{Code, Status};

use super::idmap::IdMapping;
use super::{SnapshotError, proto};
use crate::graph::{GraphError, Info, Kind, Labels};
use crate::limits::{MAX_LABEL_BYTES, MAX_SNAPSHOT_NAME_BYTES};

impl From<SnapshotError> for Status {
    fn from(error: SnapshotError) -> Self {
        let code = match &error {
            SnapshotError::Graph(GraphError::NotFound(_)) => Code::NotFound,
            SnapshotError::Graph(GraphError::AlreadyExists(_)) => Code::AlreadyExists,
            SnapshotError::Graph(GraphError::InvalidArgument(_)) => Code::InvalidArgument,
            SnapshotError::Graph(GraphError::FailedPrecondition(_)) => Code::FailedPrecondition,
            SnapshotError::Graph(_) | SnapshotError::Directory { .. } | SnapshotError::Root(_) => Code::Internal,
            SnapshotError::Filter(_) | SnapshotError::Request(_) => Code::InvalidArgument,
            SnapshotError::Mount { .. } | SnapshotError::Ending => Code::Unavailable,
        };
        if code == Code::Internal {
            tracing::error!(%error, "snapshot request failed");
        }
        Self::new(code, error.to_string())
    }
}

impl From<Info> for proto::Info {
    fn from(info: Info) -> Self {
        let kind = match info.kind {
            Kind::View => proto::Kind::View,
            Kind::Active => proto::Kind::Active,
            Kind::Committed => proto::Kind::Committed,
        };
        Self {
            name: info.name,
            parent: info.parent,
            kind: kind.into(),
            created_at: Some(info.created.into()),
            updated_at: Some(info.updated.into()),
            labels: info.labels,
        }
    }
}

/// Checks a name that a snapshot is to get.
pub(super) fn check_name(name: &str) -> Result<(), SnapshotError> {
    if name.is_empty() {
        return Err(SnapshotError::Request("a snapshot needs a name".to_owned()));
    }
    if name.len() > MAX_SNAPSHOT_NAME_BYTES {
        let message = format!("name of {} bytes, at most {MAX_SNAPSHOT_NAME_BYTES} are taken", name.len());
        return Err(SnapshotError::Request(message));
    }
    Ok(())
}

/// Checks labels that are to be stored, by the bound that containerd has too.
pub(super) fn check_labels(labels: &Labels) -> Result<(), SnapshotError> {
    for (key, value) in labels {
        if key.len() + value.len() > MAX_LABEL_BYTES {
            let start: String = key.chars().take(64).collect();
            let message = format!("label {start:?}: key and value have more than {MAX_LABEL_BYTES} bytes");
            return Err(SnapshotError::Request(message));
        }
    }
    Ok(())
}

/// Checks what a new snapshot is to be.
pub(super) fn check_new(key: &str, labels: &Labels) -> Result<(), SnapshotError> {
    check_name(key)?;
    check_labels(labels)?;
    IdMapping::of(labels).map(drop)
}
