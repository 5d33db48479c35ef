//! Which layers this node can mount lazily, and how it comes to know.
//!
//! A layer is lazy once its index is here and believed. [`Layers`] owns that knowledge: it searches the swarm for indexes
//! as soon as a manifest passes the mirror ([`Layers::expect`]), answers the snapshotter from what it knows
//! ([`RemoteLayers`]), and builds the index of a layer that is pulled whole and that nobody has indexed ([`build`]).
//!
//! An index is believed when the swarm's statements name it, its own digest matches, and its diffID continues the chain
//! that containerd asks for; each span it describes is checked again when it is read. A layer that brings its own table of
//! contents needs none ([`contents`]): the manifest names the table's digest. Kept on disk by [`LazyMounts`]; everything else
//! here is rebuilt by asking again.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Statement, StatementKind};
use lapwing_p2p::node::{Blob, Node};
use lapwing_p2p::store::Hold;
use lapwing_p2p::timeline::Track;
use lapwing_p2p::trace::{self, Span, SpanKind};
use lapwing_snapshotter::index::{Form, Index};
use lapwing_snapshotter::lazy::{KeptLayers, LazyError, LazyLayer, LazyMounts, MountError, Proof, WholeTar};
use lapwing_snapshotter::remote::{Fallback, Fetched, RemoteLayers, Started, Target, chain_id};
use lapwing_snapshotter::source::LayerSource;
use tokio::sync::{Semaphore, watch};

use crate::catalog::{Catalog, LayerRecord};
use crate::config::Formats;
use crate::limits::MAX_INDEX_CANDIDATES;
use crate::profiles::Profiles;
use build::Builder;
use tars::Tars;

pub(crate) mod build;
mod contents;
mod fetched;
mod kept;
mod label;
mod soci;
mod source;
pub(crate) mod sweep;
pub(crate) mod tars;

pub(crate) use kept::KeptIndexes;
pub(crate) use source::{Origins, SwarmLayer};

/// How long an index is waited for that nodes state and nobody in reach has: statements outlive who made them by some minutes.
const NOBODY: Duration = Duration::from_secs(10);
/// The same where the whole layer is here, so that the index can be built.
const NOBODY_BUT_HERE: Duration = Duration::from_secs(1);
/// How often it is looked whether somebody has it.
const LOOK: Duration = Duration::from_millis(100);
/// How long "nobody has an index" is believed before the swarm is asked again.
const ABSENT_FOR: Duration = Duration::from_secs(5);
/// Shortest and longest pause before the background completion of a layer is tried again.
const COMPLETE_AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// Most layers whose state is remembered; the oldest absent ones are forgotten first.
const MAX_LAYERS: usize = 10_000;

/// What is known of a layer.
#[derive(Debug, Clone)]
pub(crate) enum Knowledge {
    /// The swarm is being asked for an index.
    Searching,
    /// Can be mounted; with the digest of its uncompressed tar, and what makes it so.
    Ready { diff_id: Digest, form: Form },
    /// Cannot be mounted now.
    Absent { reason: &'static str, message: String, since: Instant },
    /// Was not, and has been indexed here since: whoever asks for it next searches again.
    Indexed,
}

/// The lazy mounts of this machine, or why there are none.
pub(crate) struct Lazy {
    pub(crate) mounts: Option<Arc<LazyMounts>>,
    /// Why no layer is newly mounted, though a former process may have mounted some.
    pub(crate) unsupported: Option<String>,
}

/// See the module's documentation.
pub(crate) struct Layers {
    this: Weak<Self>,
    node: Arc<Node>,
    catalog: Arc<Catalog>,
    origins: Arc<Origins>,
    mounts: Option<Arc<LazyMounts>>,
    kept: KeptIndexes,
    /// Tables of contents that are used.
    formats: Formats,
    /// Layers that wait for their background completion, or are in it.
    completing: Mutex<HashSet<Digest>>,
    /// By layer, the name of the index that this node made of the whole layer itself.
    made: Mutex<HashMap<Digest, Digest>>,
    /// Keeps the blob of a mounted layer in the store until all of it is in the layer's own file.
    holds: Mutex<HashMap<PathBuf, (Digest, Hold)>>,
    /// None: never.
    complete_after: Option<Duration>,
    runtime: tokio::runtime::Handle,
    /// Why no layer is newly mounted lazily, if so: `mounts` is missing, or there only for what a former process mounted.
    unsupported: Option<String>,
    known: Mutex<HashMap<Digest, watch::Receiver<Knowledge>>>,
    /// None where nothing is mounted lazily.
    profiles: OnceLock<Arc<Profiles>>,
    /// None where this node builds no indexes.
    builder: OnceLock<Arc<Builder>>,
    /// None where none are kept.
    tars: OnceLock<Arc<Tars>>,
    interest: sweep::Interest,
}

impl Layers {
    pub(crate) fn new(
        node: Arc<Node>,
        catalog: Arc<Catalog>,
        origins: Arc<Origins>,
        lazy: Lazy,
        kept: KeptIndexes,
        formats: Formats,
        complete_after: Option<Duration>,
    ) -> Arc<Self> {
        let runtime = tokio::runtime::Handle::current();
        let Lazy { mounts, unsupported } = lazy;
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            node,
            catalog,
            origins,
            mounts,
            kept,
            formats,
            completing: Mutex::default(),
            made: Mutex::default(),
            holds: Mutex::default(),
            complete_after,
            runtime,
            unsupported,
            known: Mutex::default(),
            profiles: OnceLock::new(),
            builder: OnceLock::new(),
            tars: OnceLock::new(),
            interest: sweep::Interest::default(),
        })
    }

    /// Who is told of images and starts.
    pub(crate) fn tell(&self, profiles: Arc<Profiles>) {
        // Said once, at the start.
        let _ = self.profiles.set(profiles);
    }

    /// Who builds indexes that nobody has, and where the tars are that come of it.
    pub(crate) fn build_by(&self, builder: Arc<Builder>, tars: Option<Arc<Tars>>) {
        // Said once, at the start.
        let _ = self.builder.set(builder);
        if let Some(tars) = tars {
            let _ = self.tars.set(tars);
        }
    }

    /// The tar that came out of the pass that made the index of that name, if it is still there.
    fn tar_of(&self, layer: &Digest, index: Digest) -> Option<WholeTar> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(layer).copied();
        if made == Some(index) { self.tars.get()?.take(layer) } else { None }
    }

    /// An image passed the mirror: its layers, base first, and what it is started with.
    pub(crate) fn image_seen(&self, records: &[LayerRecord], arguments: &[String]) {
        if let (Some(profiles), Some(top)) = (self.profiles.get(), records.last()) {
            let layers = records.iter().map(|record| record.layer).collect();
            profiles.image_seen(&top.chain_id, layers, arguments);
        }
    }

    /// A layer will probably be asked for: its index is searched for now, unless that is known already.
    pub(crate) fn expect(&self, record: &LayerRecord) -> watch::Receiver<Knowledge> {
        let layer = record.layer;
        self.interest.asked(layer);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(knowledge) = known.get(&layer)
            && !is_stale(knowledge)
        {
            return knowledge.clone();
        }
        if known.len() >= MAX_LAYERS {
            known.retain(|_, knowledge| !matches!(&*knowledge.borrow(), Knowledge::Absent { .. } | Knowledge::Indexed));
        }
        let (sender, receiver) = watch::channel(Knowledge::Searching);
        known.insert(layer, receiver.clone());
        drop(known);
        let (this, record) = (Weak::clone(&self.this), record.clone());
        let mut span = Span::step("layer.find_index", SpanKind::Internal, trace::current());
        tokio::spawn(trace::within(span.context(), async move {
            span.say("lapwing.digest", &layer);
            let Some(this) = this.upgrade() else { return };
            let found = match this.origins.allow(&record).await {
                Ok(record) => this.search(&record).await,
                Err((reason, message)) => absent(reason, message),
            };
            if let Knowledge::Absent { reason, message, .. } = &found {
                tracing::debug!(digest = %layer, reason, message, "no index for this layer");
                span.set("lapwing.absent", *reason);
            }
            sender.send_replace(found);
        }));
        receiver
    }

    /// Nothing is kept of this layer any more: whoever asks for it next searches again.
    fn forget(&self, layer: &Digest) {
        self.completing.lock().unwrap_or_else(PoisonError::into_inner).remove(layer);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(layer);
    }

    /// What is known of each layer, for `lapwing ls`.
    pub(crate) fn snapshot(&self) -> Vec<(Digest, Knowledge)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(layer, knowledge)| (*layer, knowledge.borrow().clone())).collect()
    }

    pub(crate) fn mounts(&self) -> Option<&Arc<LazyMounts>> {
        self.mounts.as_ref()
    }

    /// Takes up an index, of that name, which this node has just built.
    pub(crate) fn built(&self, layer: Digest, name: Digest) {
        {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            if made.len() >= MAX_LAYERS {
                made.clear();
            }
            made.insert(layer, name);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(knowledge) = known.get_mut(&layer)
            && matches!(&*knowledge.borrow(), Knowledge::Absent { .. })
        {
            *knowledge = watch::channel(Knowledge::Indexed).1;
        }
    }

    async fn search(&self, record: &LayerRecord) -> Knowledge {
        let layer = record.layer;
        if let Some(reason) = &self.unsupported {
            return absent("unsupported", reason.clone());
        }
        let Some(mounts) = &self.mounts else { return absent("unsupported", String::new()) };
        match self.by_contents(mounts, record).await {
            Ok(knowledge) => return knowledge,
            Err(message) if record.toc.is_some() => {
                tracing::info!(digest = %layer, reason = message, "the layer's own table of contents is not used");
            }
            Err(_) => {}
        }
        let found = self.by_swarm(mounts, record, NOBODY).await;
        if matches!(found, Knowledge::Ready { .. }) {
            return found;
        }
        match self.by_soci(mounts, record).await {
            Ok(Some(knowledge)) => return knowledge,
            Ok(None) => {}
            Err(message) => {
                tracing::info!(digest = %layer, reason = message, "the image's SOCI index is not used");
            }
        }
        found
    }

    /// What an index that nodes have built makes of the layer. `patience`: for how long nobody in reach may have it.
    async fn by_swarm(&self, mounts: &Arc<LazyMounts>, record: &LayerRecord, patience: Duration) -> Knowledge {
        let (layer, mut wrong) = (record.layer, None);
        for _ in 0..MAX_INDEX_CANDIDATES {
            let Some(object) = self.node.derived(layer, StatementKind::LayerIndex).await else { break };
            let _followed = object.follow(trace::current());
            let bytes = match whole(&object, patience).await {
                Ok(bytes) => bytes,
                Err(message) => return absent("index_unavailable", message),
            };
            let statement = index_statement(layer, object.digest(), object.length());
            match decode(record, bytes.clone()).await {
                Ok(index) => {
                    self.node.accept(statement).await;
                    let tar = self.tar_of(&layer, object.digest());
                    return self.take_up_with(mounts, record, index, Some(bytes), tar).await;
                }
                // The next vote may be for a right one.
                Err(message) => {
                    self.node.refute(statement).await;
                    wrong = Some(format!("index {}: {message}", object.digest()));
                }
            }
        }
        wrong.map_or_else(
            || absent("no_index", "nobody in the swarm has indexed this layer yet".into()),
            |message| absent("index_wrong", message),
        )
    }

    /// Has a layer with that index mounted whenever it is asked for. `encoded`: what is to be kept of it, if it is not yet.
    async fn take_up(
        &self,
        mounts: &Arc<LazyMounts>,
        record: &LayerRecord,
        index: Arc<Index>,
        encoded: Option<bytes::Bytes>,
    ) -> Knowledge {
        self.take_up_with(mounts, record, index, encoded, None).await
    }

    /// [`Self::take_up`] with the layer's tar, if that came out of the pass that made this index.
    async fn take_up_with(
        &self,
        mounts: &Arc<LazyMounts>,
        record: &LayerRecord,
        index: Arc<Index>,
        encoded: Option<bytes::Bytes>,
        tar: Option<WholeTar>,
    ) -> Knowledge {
        let source = Arc::new(self.source(record, index.layer_length()));
        let added = match mounts.add_with(Arc::clone(&index), source, tar).await {
            Ok(added) => added,
            Err(error) => return absent("not_mountable", error.to_string()),
        };
        let (known, layer) = (Arc::clone(added.index()), record.layer);
        let (diff_id, form) = (known.diff_id(), known.form());
        // What is mounted with one device cannot go on with another.
        if form != index.form() {
            return absent("not_mountable", "it is known by another index already".to_owned());
        }
        let Some(encoded) = encoded else { return Knowledge::Ready { diff_id, form } };
        let kept = self.kept.clone();
        let keeping = tokio::task::spawn_blocking(move || {
            // Nor by another than the one that is kept of it.
            let same = Arc::ptr_eq(&known, &index) || known == index;
            if same { kept.keep(&layer, &encoded) } else { Ok(()) }
        });
        match keeping.await.map_err(|error| error.to_string()).and_then(|kept| kept) {
            Ok(()) => Knowledge::Ready { diff_id, form },
            Err(message) => absent("not_mountable", message),
        }
    }

    /// A mounted layer's index was held against the whole layer: this node says now in its own name that it is right, or
    /// never takes it again.
    async fn judged(&self, layer: Digest, right: bool) {
        let Some((object, length)) = self.kept.object(&layer) else { return };
        let statement = index_statement(layer, object, length);
        if right {
            self.node.prove(statement).await;
        } else {
            self.node.refute(statement).await;
        }
    }

    /// A layer that a former process mounted, from the index it kept. Asks nobody.
    fn reload(&self, layer: &Digest) -> Result<(Arc<Index>, Arc<dyn LayerSource>), String> {
        let index = Arc::new(self.kept.load(layer)?);
        let length = index.layer_length();
        let source = match self.catalog.by_layer(layer) {
            Some(record) => self.source(&record, length),
            None => {
                tracing::warn!(digest = %layer, "no image is known with this layer: what is missing can only come from peers");
                SwarmLayer::new(Arc::clone(&self.node), *layer, length, None)
            }
        };
        Ok((index, Arc::new(source)))
    }

    /// Goes on with the mounts of a former process, if they live.
    pub(crate) fn serve_former(&self) -> Result<(), MountError> {
        let kept = Arc::new(Kept(Weak::clone(&self.this)));
        self.mounts.as_ref().map_or(Ok(()), |mounts| mounts.serve(kept))
    }

    /// After a while, fetches the rest of a mounted layer and proves its index; tries again until that is done.
    fn complete_later(&self, mounts: &Arc<LazyMounts>, layer: Digest) {
        let (Some(mounted), Some(delay)) = (mounts.layer(&layer), self.complete_after) else { return };
        if !self.completing.lock().unwrap_or_else(PoisonError::into_inner).insert(layer) {
            return;
        }
        let this = Weak::clone(&self.this);
        self.runtime.spawn(async move {
            let mut pause = delay;
            loop {
                tokio::time::sleep(pause).await;
                let outcome = mounted.complete_all().await;
                let Some(this) = this.upgrade() else { break };
                // Another task sees to one that was deleted meanwhile and came again.
                if !this.is_current(&mounted) {
                    return;
                }
                match outcome {
                    Ok(()) => {
                        this.judged(layer, true).await;
                        this.let_go(&layer);
                        if let Some(mounts) = &this.mounts {
                            mounts.completed(&layer);
                        }
                        break;
                    }
                    Err(error @ LazyError::Quarantined(_)) => {
                        tracing::error!(digest = %layer, %error, "a layer's index was wrong");
                        this.judged(layer, false).await;
                        break;
                    }
                    Err(error) => {
                        pause =
                            (pause * 2).clamp(COMPLETE_AGAIN.0, COMPLETE_AGAIN.1).mul_f64(0.75 + fastrand::f64() / 2.0);
                        tracing::warn!(digest = %layer, %error, again_in = ?pause, "a layer is not complete yet");
                    }
                }
            }
            if let Some(this) = this.upgrade()
                && this.is_current(&mounted)
            {
                this.completing.lock().unwrap_or_else(PoisonError::into_inner).remove(&layer);
            }
        });
    }

    /// Whether this is the layer that is kept under its digest now.
    fn is_current(&self, layer: &Arc<LazyLayer>) -> bool {
        let now = self.mounts.as_ref().and_then(|mounts| mounts.layer(&layer.digest()));
        now.is_some_and(|now| Arc::ptr_eq(&now, layer))
    }

    /// What a mount reads must not be evicted.
    fn hold(&self, mounts: &LazyMounts, layer: Digest, at: &Path) {
        // Proved is not enough: it may not be on the disk yet.
        let complete = mounts.layer(&layer).is_some_and(|mounted| mounted.complete().is_some());
        if !complete {
            let hold = (layer, self.node.store().hold(layer));
            self.holds.lock().unwrap_or_else(PoisonError::into_inner).insert(at.to_owned(), hold);
        }
    }

    fn let_go(&self, layer: &Digest) {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, (held, _)| held != layer);
    }

    fn source(&self, record: &LayerRecord, length: u64) -> SwarmLayer {
        let origin = self.origins.of(&record.registry, &record.repo, record.layer, length);
        SwarmLayer::new(Arc::clone(&self.node), record.layer, length, origin)
    }

    /// Holds an index's diffID against the chain that containerd asks for: nobody else checks it for a claimed layer.
    fn claim(&self, record: LayerRecord, diff_id: Digest, target: &Target<'_>) -> Result<Digest, Fallback> {
        let parent = record.parent_chain.as_deref();
        let chain = chain_id(parent, &diff_id);
        if chain != target.chain_id {
            let message = format!("the index of {} gives chain {chain}, not {}", record.layer, target.chain_id);
            return Err(Fallback { reason: "wrong_chain", message });
        }
        let layer = record.layer;
        let mounted = self.mounts.as_ref().and_then(|mounts| mounts.layer(&layer));
        if mounted.is_some_and(|mounted| mounted.progress().proof == Proof::Quarantined) {
            return Err(Fallback { reason: "quarantined", message: LazyError::Quarantined(layer).to_string() });
        }
        self.catalog.remember(LayerRecord { diff_id, ..record });
        if let Some(profiles) = self.profiles.get() {
            profiles.claimed(target.chain_id);
        }
        Ok(layer)
    }

    /// The layer that a chain id stands for: as the catalog knows it, else as the labels hint.
    fn identify(&self, target: &Target<'_>) -> Result<LayerRecord, Fallback> {
        if let Some(record) = self.catalog.by_chain(target.chain_id) {
            return Ok(record);
        }
        label::record(target).ok_or_else(|| Fallback {
            reason: "unknown_chain",
            message: format!(
                "chain {} was in no manifest that passed the mirror, and no label names its layer",
                target.chain_id
            ),
        })
    }
}

impl RemoteLayers for Layers {
    fn resolve<'a>(&'a self, target: &'a Target<'a>) -> BoxFuture<'a, Result<Digest, Fallback>> {
        async move {
            let record = self.identify(target)?;
            let _looking = self.node.timelines().of(&record.layer).span(Track::Index);
            let mut knowledge = self.expect(&record);
            let settled = knowledge.wait_for(|now| !matches!(now, Knowledge::Searching)).await;
            match settled.map(|now| now.clone()) {
                Ok(Knowledge::Ready { diff_id, .. }) => self.claim(record, diff_id, target),
                Ok(Knowledge::Absent { reason, message, .. }) => Err(Fallback { reason, message }),
                _ => Err(Fallback { reason: "index_unavailable", message: "the search for an index ended".into() }),
            }
        }
        .boxed()
    }

    fn fetched<'a>(&'a self, layer: &'a Digest, length: u64) -> BoxFuture<'a, Result<Fetched, Fallback>> {
        self.make_ready(*layer, length).boxed()
    }

    fn mount(&self, layer: &Digest, at: &Path, lowers: &[PathBuf]) -> Result<(), String> {
        let mounts = self.mounts.as_ref().ok_or_else(|| self.unsupported.clone().unwrap_or_default())?;
        let mounting = self.node.timelines().of(layer).span(Track::Mount);
        let mut span = Span::step("layer.mount", SpanKind::Internal, trace::current());
        span.say("lapwing.digest", layer);
        mounts.reopen(layer).map_err(|error| error.to_string())?;
        mounts.mount(layer, at, lowers).map_err(|error| error.to_string())?;
        drop((mounting, span));
        self.hold(mounts, *layer, at);
        self.interest.mounted(layer);
        if let Some(mounted) = mounts.layer(layer) {
            mounted.prefetch_landmark();
        }
        self.complete_later(mounts, *layer);
        Ok(())
    }

    fn directory(&self, layer: &Digest) -> Option<PathBuf> {
        let directory = self.mounts.as_ref()?.directory(layer);
        directory.is_dir().then_some(directory)
    }

    fn started(&self, started: Started) {
        if let Some(profiles) = self.profiles.get() {
            profiles.started(started);
        }
    }

    fn unmount(&self, at: &Path) {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner).remove(at);
        if let Some(mounts) = &self.mounts
            && let Err(error) = mounts.unmount(at)
        {
            tracing::warn!(mount = %at.display(), %error, "a lazily mounted layer could not be unmounted");
        }
        self.interest.unmounted();
    }
}

/// Brings layers of a former process back, for as long as there are [`Layers`].
struct Kept(Weak<Layers>);

impl KeptLayers for Kept {
    fn reload(&self, layer: &Digest) -> Result<(Arc<Index>, Arc<dyn LayerSource>), String> {
        self.0.upgrade().ok_or("the node is ending")?.reload(layer)
    }
}

fn is_stale(receiver: &watch::Receiver<Knowledge>) -> bool {
    let abandoned = receiver.has_changed().is_err();
    let knowledge = &*receiver.borrow();
    if abandoned && matches!(knowledge, Knowledge::Searching) {
        return true;
    }
    match knowledge {
        Knowledge::Absent { since, .. } => since.elapsed() > ABSENT_FOR,
        Knowledge::Indexed => true,
        Knowledge::Searching | Knowledge::Ready { .. } => false,
    }
}

fn absent(reason: &'static str, message: String) -> Knowledge {
    Knowledge::Absent { reason, message, since: Instant::now() }
}

const fn index_statement(subject: Digest, object: Digest, length: u64) -> Statement {
    Statement { subject, kind: StatementKind::LayerIndex, object, length }
}

/// Decodes an index, or what one is made of: half a gigabyte may come of it, so only a few at once.
async fn decoding<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    static AT_ONCE: Semaphore = Semaphore::const_new(2);
    let permit = AT_ONCE.acquire().await.map_err(|error| error.to_string())?;
    let done = tokio::task::spawn_blocking(move || {
        // Until the work is done, though nobody may wait for it any more.
        let _permit = permit;
        work()
    });
    done.await.map_err(|error| error.to_string())
}

/// An index of that layer, or why the bytes are none.
async fn decode(record: &LayerRecord, encoded: bytes::Bytes) -> Result<Arc<Index>, String> {
    let index = decoding(move || Index::decode(&encoded)).await?.map_err(|error| error.to_string())?;
    if index.layer() != record.layer {
        return Err(format!("it is of {}", index.layer()));
    }
    if index.layer_length() != record.length {
        return Err(format!("{} bytes for {}", index.layer_length(), record.length));
    }
    Ok(Arc::new(index))
}

/// Waits for a derived object, but no longer than `patience` while nobody in reach has any of it.
async fn comes(object: &Arc<Blob>, patience: Duration) -> Result<(), String> {
    let mut verified = std::pin::pin!(object.verified());
    let mut offered = Instant::now();
    loop {
        match tokio::time::timeout(LOOK, &mut verified).await {
            Ok(verified) => return verified.map_err(|error| error.to_string()),
            Err(_) if object.is_offered() => offered = Instant::now(),
            Err(_) if offered.elapsed() >= patience => {
                return Err(format!("{} is stated, but no node in reach has it", object.digest()));
            }
            Err(_) => {}
        }
    }
}

/// All bytes of a small derived object, verified; see [`comes`].
async fn whole(object: &Arc<Blob>, patience: Duration) -> Result<bytes::Bytes, String> {
    comes(object, patience).await?;
    object.read(0..object.length(), lapwing_p2p::node::Priority::Prefetch).await.map_err(|error| error.to_string())
}
