//! [`Exchange`](crate::exchange) on the wire: carries out its steps, answers peers' questions, takes their answers up.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::Node;
use super::blob::lock;
use super::derived::Standing;
use crate::digest::Digest;
use crate::discovery::{Holding, StatementKind, may_dial};
use crate::exchange::{Exchange, Step, remembered};
use crate::identity::PeerId;
use crate::limits::MAX_TOLD_HOLDERS;
use crate::wire::Frame;
use crate::wire::telling::{Telling, ToldHolder};

/// How often what changed is written down.
const SAVE: Duration = Duration::from_secs(30);

pub(super) async fn remember(node: Arc<Node>) {
    loop {
        tokio::time::sleep(SAVE).await;
        node.save_remembered().await;
    }
}

impl Node {
    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        lock(&self.exchange)
    }

    /// Writes down whom this node met, if that changed.
    pub(super) async fn save_remembered(&self) {
        let Some(peers) = self.exchange().take_changed() else { return };
        let root = self.store.root().to_owned();
        let saved = tokio::task::spawn_blocking(move || remembered::save(&root, &peers)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "the peers that this node met are not remembered over a restart");
        }
    }

    /// Says where this node is to a peer that understands it.
    pub(super) fn introduce(&self, peer: PeerId) {
        let group = self.exchange().group();
        if let Some(link) = lock(&self.inner).links.get(&peer) {
            link.send(Frame::Here { port: self.local_addr.port(), group });
        }
    }

    /// A peer said where it is.
    pub(super) fn introduced(self: &Arc<Self>, peer: PeerId, remote: IpAddr, port: u16, group: [u8; 32]) {
        let Some(link) = lock(&self.inner).links.get(&peer).map(|link| link.id) else { return };
        let address = SocketAddr::new(remote.to_canonical(), port);
        let steps = self.exchange().met(self.elapsed(), peer, link, address, group);
        self.carry_out(steps);
    }

    pub(super) fn parted(&self, peer: PeerId, link: u64) {
        self.exchange().parted(peer, link);
    }

    pub(super) fn not_reached(&self, peer: PeerId) {
        self.exchange().unreachable(self.elapsed(), peer);
    }

    /// Asks peers who has a blob.
    pub(super) fn ask_peers(self: &Arc<Self>, digest: Digest) {
        let steps = self.exchange().search(self.elapsed(), digest);
        self.carry_out(steps);
    }

    fn carry_out(self: &Arc<Self>, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Ask { peer, digest } => {
                    if let Some(link) = lock(&self.inner).links.get(&peer) {
                        link.send(Frame::AskHolders { digest });
                    }
                }
                Step::Dial { peer, address } => {
                    tracing::debug!(%peer, %address, "no tracker answers: a remembered peer is asked");
                    self.spawn(Arc::clone(self).dial(peer, address));
                }
            }
        }
    }

    /// A peer asks who has a blob.
    pub(super) fn asked(&self, peer: PeerId, digest: Digest) {
        let seen_from = {
            let mut exchange = self.exchange();
            if !exchange.may_ask(self.elapsed(), peer) {
                self.metrics.refused_questions.inc();
                return;
            }
            exchange.address_of(&peer)
        };
        let Some(seen_from) = seen_from else { return };
        let telling = self.telling(peer, seen_from.ip(), digest);
        if let Some(link) = lock(&self.inner).links.get(&peer) {
            link.send(Frame::Holders(telling));
        }
    }

    /// What this node has of a blob, and whom it trades it with.
    fn telling(&self, asker: PeerId, seen_from: IpAddr, digest: Digest) -> Telling {
        let has_some = || self.open_blob(&digest).is_some_and(|blob| blob.stored.have().count() > 0);
        let own = match self.store.is_verified(&digest) {
            true => Some(Holding::Complete),
            false => has_some().then_some(Holding::Partial),
        };
        let proven = self.derived.get(digest, StatementKind::Metainfo).into_iter();
        let mut proven = proven.filter(|(_, standing)| *standing == Standing::Own).map(|(statement, _)| statement);
        let metainfo = proven.next().map(|statement| (statement.object, statement.length));
        // An address of this machine's own means nothing to others.
        let useful = |address: &SocketAddr| address.port() != 0 && may_dial(address.ip(), seen_from.is_loopback());
        let (named, trading) = lock(&self.inner).swarm.holders_of(&digest);
        let named = named.into_iter().map(|holder| (holder.peer, (holder.address, holder.holding)));
        let mut others: BTreeMap<PeerId, (SocketAddr, Holding)> = named.collect();
        {
            let exchange = self.exchange();
            let trading =
                trading.into_iter().filter_map(|(peer, holding)| Some((peer, (exchange.address_of(&peer)?, holding))));
            others.extend(trading);
        }
        let others = others.into_iter().filter(|(peer, (address, _))| *peer != asker && useful(address));
        let others = others.map(|(peer, (address, holding))| ToldHolder { peer, address, holding });
        Telling { digest, own, metainfo, others: others.take(MAX_TOLD_HOLDERS).collect() }
    }

    /// A peer answers.
    pub(super) fn told(self: &Arc<Self>, peer: PeerId, telling: &Telling) {
        let digest = telling.digest;
        let answer = self.exchange().answered(self.elapsed(), peer, telling);
        match answer {
            Ok(None) => {}
            Ok(Some(found)) => {
                self.metrics.told_holders.inc_by(found.holders.len() as u64);
                tracing::debug!(%digest, %peer, holders = found.holders.len(), "a peer names holders");
                if let Some(blob) = self.open_blob(&digest) {
                    let node = Arc::clone(self);
                    self.spawn(async move { node.take_up(blob, found, true).await });
                }
            }
            Err(disbelief) => {
                self.metrics.refused_answers.inc();
                tracing::debug!(%digest, %peer, %disbelief, "a peer's answer is not believed");
            }
        }
    }
}
