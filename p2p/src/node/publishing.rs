//! Objects that derive from blobs, metainfo and layer indexes: made and stated, found, and judged.
//!
//! Nodes state what they have proven, each in its own name, and never what others told them: so the votes that discovery
//! counts are of independent witnesses. Whoever uses an object says what became of it: [`Node::accept`] for one that proved
//! usable, [`Node::refute`] for one that is not what it was stated to be (it is not tried again, the next vote is), and
//! [`Node::prove`] once it was held against the verified blob itself.

use std::sync::Arc;

use bytes::Bytes;

use super::derived::Standing;
use super::{Blob, Node, NodeError};
use crate::digest::Digest;
use crate::discovery::{DiscoveryError, Holding, Statement, StatementKind};
use crate::layout::{PieceIndex, PieceLayout};
use crate::store::{BlobSummary, StoreError};
use crate::swarm::PieceSource;
use crate::verify::{Metainfo, piece_hash};

impl Node {
    /// Stores an object that this node derived from the verified blob `subject`, announces it and states it; its digest is
    /// returned.
    pub async fn publish(
        self: &Arc<Self>,
        kind: StatementKind,
        subject: Digest,
        object: Bytes,
    ) -> Result<Digest, NodeError> {
        let length = object.len() as u64;
        let digest = Digest::of(&object);
        let layout = PieceLayout::new(length).map_err(StoreError::from)?;
        let hashes = (0..layout.piece_count()).map(|piece| layout.range(PieceIndex(piece)));
        let hashes = hashes.map(|range| piece_hash(&object[range.start as usize..range.end as usize])).collect();
        let node = Arc::clone(self);
        let stored = tokio::task::spawn_blocking(move || node.store.insert(&digest, &object).map(drop));
        if let Ok(stored) = stored.await {
            stored?;
        }
        if let Some(blob) = self.open_blob(&digest) {
            // Somebody waits for it already: what was inserted beside the swarm has arrived, too.
            for piece in (0..layout.piece_count()).map(PieceIndex) {
                self.arrived(&blob, piece, PieceSource::Origin, 0);
            }
        }
        self.prove(Statement { subject, kind, object: digest, length }).await;
        if layout.piece_count() > 1
            && let Ok(metainfo) = Metainfo::new(digest, length, hashes)
        {
            // Ends: a metainfo is a thousandth of its blob, and a single piece needs none.
            Box::pin(self.publish(StatementKind::Metainfo, digest, metainfo.encode().into())).await?;
        }
        Ok(digest)
    }

    /// The object of that kind that derives from `subject`: a local one, or that with most votes that was not refuted.
    /// Its bytes come when they are read. The caller checks that it speaks of `subject`, and then accepts or refutes it.
    pub async fn derived(self: &Arc<Self>, subject: Digest, kind: StatementKind) -> Option<Arc<Blob>> {
        let known = self.derived.get(subject, kind);
        let refuted = |object: &Digest| {
            known.iter().any(|(known, standing)| known.object == *object && *standing == Standing::Refuted)
        };
        let believed = || known.iter().map(|(statement, _)| *statement).filter(|known| !refuted(&known.object));
        let here = |known: &Statement| self.store.is_verified(&known.object);
        if let Some(known) = believed().find(here) {
            return self.open(known.object, known.length, None).ok();
        }
        let quorum = match kind {
            StatementKind::Metainfo => 1,
            StatementKind::LayerIndex => self.config.index_quorum,
            StatementKind::Referent => self.config.referent_quorum,
            StatementKind::Profile | StatementKind::Right => 1,
        };
        let found = self.discovery.find(subject).await.unwrap_or_default();
        let voted = found.votes.iter().filter(|vote| vote.nodes >= quorum).map(|vote| vote.statement).find(|stated| {
            stated.kind == kind && stated.subject == subject && stated.is_possible() && !refuted(&stated.object)
        });
        let Statement { object, length, .. } = voted.or_else(|| believed().next())?;
        self.open(object, length, None).ok()
    }

    /// All objects of that kind that are stated of `subject`, at most `most`: those with most votes first, then what is only
    /// known from before. For kinds of which several may be right. Their bytes come when they are read.
    pub async fn all_derived(self: &Arc<Self>, subject: Digest, kind: StatementKind, most: usize) -> Vec<Arc<Blob>> {
        let known = self.derived.get(subject, kind);
        let found = self.discovery.find(subject).await.unwrap_or_default();
        let voted = found.votes.iter().map(|vote| vote.statement);
        let stated = voted.filter(|stated| stated.kind == kind && stated.subject == subject && stated.is_possible());
        let remembered = known.iter().map(|(statement, _)| *statement);
        let mut chosen: Vec<Statement> = Vec::new();
        for statement in stated.chain(remembered) {
            let refuted = known
                .iter()
                .any(|(known, standing)| known.object == statement.object && *standing == Standing::Refuted);
            if chosen.len() < most && !refuted && chosen.iter().all(|other| other.object != statement.object) {
                chosen.push(statement);
            }
        }
        chosen.into_iter().filter_map(|statement| self.open(statement.object, statement.length, None).ok()).collect()
    }

    /// An object that others stated proved usable: it is found again after a restart, without asking anybody.
    pub async fn accept(self: &Arc<Self>, statement: Statement) {
        self.note(statement, Standing::Accepted).await;
    }

    /// An object is not what it was stated to be: it is not tried again.
    pub async fn refute(self: &Arc<Self>, statement: Statement) {
        let Statement { subject, object, .. } = statement;
        tracing::warn!(digest = %subject, %object, "what others state to derive from this blob does not");
        self.note(statement, Standing::Refuted).await;
    }

    /// An object was derived from its verified subject, or held against it: this node says so in its own name.
    pub async fn prove(self: &Arc<Self>, statement: Statement) {
        self.note(statement, Standing::Own).await;
        self.proclaim(statement).await;
    }

    /// States what is of no use tomorrow, and where the object is no blob: nothing of it is kept here.
    pub async fn tell(&self, statement: Statement) {
        if let Err(error) = self.discovery.state(statement).await {
            tracing::debug!(digest = %statement.subject, %error, "a statement is not known to discovery");
        }
    }

    /// The objects that others [tell](Self::tell) of, those with most votes first.
    pub async fn stated(&self, subject: Digest, kind: StatementKind) -> Vec<Digest> {
        let found = self.discovery.find(subject).await.unwrap_or_default();
        let stated = found.votes.iter().map(|vote| vote.statement);
        stated.filter(|stated| stated.kind == kind && stated.subject == subject).map(|stated| stated.object).collect()
    }

    async fn note(self: &Arc<Self>, statement: Statement, standing: Standing) {
        let node = Arc::clone(self);
        let noted = tokio::task::spawn_blocking(move || node.derived.remember(statement, standing)).await;
        if let Ok(Err(error)) = noted {
            tracing::warn!(digest = %statement.object, %error, "derived object is not remembered over a restart");
        }
    }

    /// Tells discovery of a derived object that is here, and what it derives from.
    async fn proclaim(&self, statement: Statement) {
        let digest = statement.object;
        if !statement.is_possible() {
            let (length, limit) = (statement.length, statement.kind.max_length());
            tracing::warn!(%digest, length, limit, "derived object is too long for others, kept here only");
            return;
        }
        let announced = self.announce_complete(digest).await;
        let stated = self.discovery.state(statement).await;
        if let Err(error) = announced.and(stated) {
            tracing::debug!(%digest, %error, "derived object is not known to discovery yet");
        }
    }

    /// Tells discovery of a complete blob, unless it has been evicted: who withdrew it may have come first.
    pub(super) async fn announce_complete(&self, digest: Digest) -> Result<(), DiscoveryError> {
        self.discovery.announce(digest, Some(Holding::Complete)).await?;
        if self.store.is_verified(&digest) {
            return Ok(());
        }
        self.discovery.announce(digest, None).await
    }

    /// Tells discovery what a former process left, and makes the metainfo that it did not come to.
    pub(super) async fn announce_stored(self: Arc<Self>) {
        let verified: Vec<BlobSummary> = self.store.list().into_iter().filter(|blob| blob.verified).collect();
        for blob in &verified {
            if let Err(error) = self.announce_complete(blob.digest).await {
                tracing::debug!(digest = %blob.digest, %error, "announcement failed");
            }
        }
        for statement in self.derived.own() {
            if self.store.is_verified(&statement.object) {
                self.proclaim(statement).await;
            }
        }
        for blob in verified {
            self.make_missing_metainfo(&blob).await;
        }
    }

    /// A process that dies, or a store that is full, between the proof of a blob and the publication of its metainfo
    /// leaves peers without.
    async fn make_missing_metainfo(self: &Arc<Self>, blob: &BlobSummary) {
        let digest = blob.digest;
        if PieceLayout::new(blob.length).is_ok_and(|layout| self.has_own_metainfo(&digest, layout)) {
            return;
        }
        let Some(stored) = self.store.get(&digest) else { return };
        let made = tokio::task::spawn_blocking(move || stored.metainfo().map_or_else(|| stored.verify(), Ok)).await;
        match made {
            Ok(Ok(metainfo)) => {
                if let Err(error) = self.publish(StatementKind::Metainfo, digest, metainfo.encode().into()).await {
                    tracing::warn!(%digest, %error, "metainfo cannot be published");
                }
            }
            Ok(Err(error)) => {
                // When somebody wants it next, what is wrong is found out and fetched again.
                tracing::error!(%digest, %error, "blob on this node's disk is not what it was, withdrawn");
                let _ = self.discovery.announce(digest, None).await;
            }
            Err(_) => {}
        }
    }
}
