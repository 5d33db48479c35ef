//! Outage mode: what a registry said before it went away (`[outage]`).
//!
//! Off unless the operator says how stale an answer may be. Then the mirror shows [`Outage`] what registries say, and asks it
//! when one does not answer. [`Outage`] remembers to whom manifests were given ([`Proofs`]), keeps their bytes in the chunk
//! store, and states to the swarm what tags stood for that were given to anonymous clients: so a node that never asked the
//! registry finds them ([`Periods`]). Who was given a manifest may have what it names ([`manifest`]).
//!
//! What was given with credentials is given to the same credential only, by this node only, and only until it ends. What
//! is public survives a restart, by the swarm's own record of statements. Nodes believe each other what a tag stands for, as
//! far as `outage.quorum` says; whatever they say, bytes are held against digests.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Statement, StatementKind};
use lapwing_p2p::node::{Node, Priority};
use lapwing_plugins::limits::MAX_MANIFEST_LENGTH;
use lapwing_plugins::registry::{Credential, Reference, RegistryName, RepositoryName};

mod manifest;
mod period;
mod proofs;

use manifest::Manifest;
use period::{Period, Periods};
use proofs::Proofs;
pub(crate) use proofs::{Asker, Given, Place};

/// How long the swarm may take to bring a manifest.
const MANIFEST_DEADLINE: Duration = Duration::from_secs(4);

/// See the module's documentation.
pub(crate) struct Outage {
    max_stale: Duration,
    periods: Periods,
    node: Arc<Node>,
    proofs: Mutex<Proofs>,
}

/// A manifest as a registry gave it once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stale {
    pub digest: Digest,
    /// In bytes.
    pub length: u64,
    pub media_type: String,
    /// How long ago the registry said so, at most.
    pub age: Duration,
    /// Empty if only the rest was asked for.
    pub body: Bytes,
}

impl Place {
    /// Where somebody asks with that credential.
    pub(crate) fn new(registry: &RegistryName, repo: &RepositoryName, credential: &Credential) -> Self {
        Self { registry: registry.clone(), repo: repo.clone(), asker: credential.into() }
    }
}

impl Outage {
    pub(crate) fn new(max_stale: Duration, node: Arc<Node>) -> Arc<Self> {
        let periods = Periods::new(max_stale);
        Arc::new(Self { max_stale, periods, node, proofs: Mutex::new(Proofs::new()) })
    }

    fn proofs(&self) -> std::sync::MutexGuard<'_, Proofs> {
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A registry says that `reference` stands for this manifest, and gave its bytes unless they are empty. Counts at once;
    /// storing it and telling others go on in the background.
    pub(crate) fn told(self: &Arc<Self>, place: &Place, reference: &Reference, given: Given, body: Bytes) {
        let now = since_epoch();
        let before = self.proofs().put(place, reference.clone(), given.clone(), now);
        self.proofs().put(place, Reference::Digest(given.digest), given.clone(), now);
        if !body.is_empty() {
            self.vouch(place, &body, now);
        }
        let period = |at: Duration| self.periods.at(UNIX_EPOCH + at);
        let is_stated = before.is_some_and(|before| period(before) == period(now));
        if is_stated && (body.is_empty() || self.node.store().is_verified(&given.digest)) {
            return;
        }
        let (this, place, reference) = (Arc::clone(self), place.clone(), reference.clone());
        tokio::spawn(async move {
            if place.asker == Asker::Public {
                this.state(&place, &reference, &given, body).await;
            } else if !body.is_empty() {
                this.keep(given.digest, body).await;
            }
        });
    }

    /// Who may read a manifest may read what it names.
    fn vouch(&self, place: &Place, body: &[u8], at: Duration) {
        let Some(manifest) = Manifest::parse(body) else { return };
        let mut proofs = self.proofs();
        for child in manifest.children {
            proofs.put(place, Reference::Digest(child.digest), child, at);
        }
    }

    /// Tells the swarm what a public reference stands for, once the bytes are here: clients ask what a tag stands for first, and
    /// for the manifest by its digest then.
    async fn state(&self, place: &Place, reference: &Reference, given: &Given, body: Bytes) {
        let (kind, period) = (StatementKind::Referent, self.periods.at(SystemTime::now()));
        let subject = |reference: &Reference| self.periods.subject(period, &place.registry, &place.repo, reference);
        let stated = |reference: &Reference| Statement {
            subject: subject(reference),
            kind,
            object: given.digest,
            length: given.length,
        };
        if body.is_empty() {
            if self.node.store().is_verified(&given.digest) && stated(reference).is_possible() {
                self.node.prove(stated(reference)).await;
            }
            return;
        }
        if let Err(error) = self.node.publish(kind, subject(reference), body).await {
            tracing::warn!(digest = %given.digest, %error, "a manifest is not kept for an outage");
            return;
        }
        let tags = self.proofs().tags_of(place, given.digest);
        for (tag, _) in tags.iter().filter(|(tag, _)| tag != reference) {
            self.node.prove(stated(tag)).await;
        }
    }

    async fn keep(&self, digest: Digest, body: Bytes) {
        let node = Arc::clone(&self.node);
        let kept = tokio::task::spawn_blocking(move || node.store().insert(&digest, &body).map(drop)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%digest, %error, "a manifest is not kept for an outage");
        }
    }

    /// What a reference stood for when its registry was last heard, if that was not too long ago and to this asker, or to
    /// anybody. `with_body`: and its bytes.
    pub(crate) async fn manifest(&self, place: &Place, reference: &Reference, with_body: bool) -> Option<Stale> {
        let now = since_epoch();
        let known = self.proofs().get(place, reference, now.saturating_sub(self.max_stale));
        if let Some((given, at)) = known {
            let body = if with_body { self.bytes(&given).await? } else { Bytes::new() };
            let parsed = || Manifest::parse(&body).map(|manifest| manifest.media_type);
            let media_type = given.media_type.clone().or_else(parsed)?;
            return Some(Stale {
                digest: given.digest,
                length: given.length,
                media_type,
                age: now.saturating_sub(at),
                body,
            });
        }
        let (period, given, body) = self.found(place, reference).await?;
        let media_type = Manifest::parse(&body)?.media_type;
        let age = self.periods.age(period, SystemTime::now());
        let (public, at) = (Place { asker: Asker::Public, ..place.clone() }, now.saturating_sub(age));
        let given = Given { media_type: Some(media_type.clone()), ..given };
        // Not the tag: others may have been told since what it stands for now.
        self.proofs().put(&public, Reference::Digest(given.digest), given.clone(), at);
        self.vouch(&public, &body, at);
        Some(Stale { digest: given.digest, length: given.length, media_type, age, body })
    }

    /// Length in bytes of a blob that this asker, or anybody, was given, or that a manifest names that he was given.
    pub(crate) fn blob(&self, place: &Place, digest: Digest) -> Option<u64> {
        let since = since_epoch().saturating_sub(self.max_stale);
        self.proofs().get(place, &Reference::Digest(digest), since).map(|(given, _)| given.length)
    }

    /// What nodes state of a public reference, in the last period in which any does.
    async fn found(&self, place: &Place, reference: &Reference) -> Option<(Period, Given, Bytes)> {
        let periods: Vec<Period> = self.periods.valid(SystemTime::now()).collect();
        let objects = join_all(periods.iter().map(|period| {
            let subject = self.periods.subject(*period, &place.registry, &place.repo, reference);
            self.node.derived(subject, StatementKind::Referent)
        }));
        for (period, object) in periods.iter().zip(objects.await) {
            let Some(object) = object else { continue };
            let given = Given { digest: object.digest(), length: object.length(), media_type: None };
            let is_other = matches!(reference, Reference::Digest(digest) if *digest != given.digest);
            if is_other {
                continue;
            }
            if let Some(body) = self.bytes(&given).await {
                return Some((*period, given, body));
            }
        }
        None
    }

    /// All bytes of a manifest, from here or from peers.
    async fn bytes(&self, given: &Given) -> Option<Bytes> {
        if given.length > MAX_MANIFEST_LENGTH as u64 {
            return None;
        }
        let blob = self.node.open(given.digest, given.length, None).ok()?;
        let read = async {
            blob.want_all(Priority::Fault);
            blob.verified().await?;
            blob.read(0..given.length, Priority::Fault).await
        };
        match tokio::time::timeout(MANIFEST_DEADLINE, read).await {
            Ok(Ok(body)) => Some(body),
            Ok(Err(error)) => {
                tracing::warn!(digest = %given.digest, %error, "a manifest cannot be had during an outage");
                None
            }
            Err(_) => {
                tracing::warn!(digest = %given.digest, "no node gives a manifest during an outage");
                None
            }
        }
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
