//! Carries out what the scheduler decides. Runs under the node's lock, so it only queues and spawns.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::TcpStream;

use super::blob::lock;
use super::connection::{self, Channel, ConnectionError};
use super::error::ReadError;
use super::{Inner, Node};
use crate::identity::PeerId;
use crate::limits::MAX_HAVES;
use crate::swarm::{Action, CloseReason, Event};
use crate::wire::Frame;

impl Node {
    /// Carries out one action; what follows from it at once goes to `events`.
    pub(super) fn perform(self: &Arc<Self>, inner: &mut Inner, action: Action, events: &mut VecDeque<Event>) {
        match action {
            Action::Dial { peer, address } => self.spawn(Arc::clone(self).dial(peer, address)),
            Action::Close { peer, reason } => {
                if let Some(link) = inner.links.remove(&peer) {
                    link.closing.cancel();
                    self.metrics.peers.dec();
                }
                tracing::debug!(%peer, ?reason, "connection closed");
                if reason == CloseReason::Banned {
                    events.push_back(Event::PeerDown(peer));
                }
            }
            Action::Banned(peer) => {
                self.metrics.bans.inc();
                tracing::warn!(%peer, "peer is refused for {:?} after repeated wrong pieces", self.config.ban);
            }
            Action::Upload { peer, digest, piece } => {
                if !inner.links.get(&peer).is_some_and(|link| link.upload(digest, piece)) {
                    events.push_back(Event::Sent { peer });
                }
            }
            Action::SayHello { .. }
            | Action::SayHave { .. }
            | Action::SayNotHere { .. }
            | Action::SayFree { .. }
            | Action::Request { .. }
            | Action::Cancel { .. } => self.say(inner, action),
            Action::AskSeed { digest, urgency, failed } => {
                if let Some(blob) = inner.blobs.get(&digest) {
                    self.spawn(Arc::clone(self).ask_seed(Arc::clone(blob), urgency, failed));
                }
            }
            _ => self.consult(inner, action),
        }
    }

    /// Actions that are a frame to a peer.
    fn say(&self, inner: &mut Inner, action: Action) {
        match action {
            Action::SayHello { peer, digest, have } => {
                let Some(layout) = inner.blobs.get(&digest).map(|blob| blob.layout) else { return };
                let Some(link) = inner.links.get_mut(&peer) else { return };
                if let Some(blob) = link.assign(digest) {
                    link.send(Frame::Hello { blob, digest, layout, have });
                }
            }
            Action::SayHave { peer, digest, pieces } => {
                let Some(link) = inner.links.get(&peer) else { return };
                let Some(blob) = link.number(&digest) else { return };
                for pieces in pieces.chunks(MAX_HAVES) {
                    link.send(Frame::Have { blob, pieces: pieces.to_vec() });
                }
            }
            Action::SayNotHere { peer, digest, piece } => {
                if let Some(link) = inner.links.get(&peer) {
                    link.send(Frame::NotHere { digest, piece });
                }
            }
            Action::Request { peer, digest, piece, urgent, hedge } => {
                if hedge {
                    self.metrics.hedges.inc();
                }
                let Some(link) = inner.links.get(&peer) else { return };
                if let Some(traced) = inner.blobs.get(&digest) {
                    traced.trace_request(peer, link);
                }
                link.request(digest, piece, urgent);
            }
            Action::SayFree { peer, digest } => {
                let Some(link) = inner.links.get(&peer) else { return };
                if let Some(blob) = link.number(&digest) {
                    link.send(Frame::Free { blob });
                }
            }
            Action::Cancel { peer, digest, piece } => {
                let Some(link) = inner.links.get(&peer) else { return };
                if let Some(blob) = link.number(&digest) {
                    link.send(Frame::Cancel { blob, piece });
                }
            }
            _ => {}
        }
    }

    /// Actions that ask discovery or the origin, or tell readers.
    fn consult(self: &Arc<Self>, inner: &Inner, action: Action) {
        match action {
            Action::Find(digest) => {
                if let Some(blob) = inner.blobs.get(&digest) {
                    self.spawn(Arc::clone(self).find(Arc::clone(blob)));
                }
            }
            Action::Announce { digest, holding } => {
                let discovery = Arc::clone(&self.discovery);
                self.spawn(async move {
                    if let Err(error) = discovery.announce(digest, Some(holding)).await {
                        tracing::debug!(%digest, %error, "announcement failed");
                    }
                });
            }
            Action::Report(peer) => {
                let discovery = Arc::clone(&self.discovery);
                self.spawn(async move {
                    if let Err(error) = discovery.report(peer).await {
                        tracing::debug!(%peer, %error, "peer cannot be reported");
                    }
                });
            }
            Action::Lease(request) => self.spawn(Arc::clone(self).ask_lease(request)),
            Action::Settle(mut settlement) => {
                if inner.blobs.get(&settlement.digest).is_some_and(|blob| lock(&blob.passing).is_used()) {
                    // What is not kept cannot be served: others may fetch it.
                    settlement.fetched = 0;
                }
                let discovery = Arc::clone(&self.discovery);
                self.spawn(async move {
                    if let Err(error) = discovery.settle(settlement).await {
                        tracing::debug!(digest = %settlement.digest, %error, "lease cannot be settled");
                    }
                });
            }
            Action::Transfer { digest, transfer, pieces, delay, leased } => {
                if let Some(blob) = inner.blobs.get(&digest) {
                    let blob = Arc::clone(blob);
                    self.spawn(Arc::clone(self).transfer(blob, transfer, pieces, delay, leased));
                }
            }
            Action::Fail { digest, error } => {
                if let Some(blob) = inner.blobs.get(&digest) {
                    blob.fail(ReadError::Origin { digest, source: error });
                }
            }
            _ => {}
        }
    }

    pub(super) async fn dial(self: Arc<Self>, peer: PeerId, address: SocketAddr) {
        let connected = async {
            let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
                return Err(ConnectionError::TimedOut);
            };
            let channel = connection::dial(address, peer, &self).await?;
            Ok((permit, channel))
        };
        match connected.await {
            Ok((permit, channel)) => {
                self.serve(channel, self.id()).await;
                drop(permit);
            }
            Err(error) => {
                self.tell_unreachable(peer, address, &error);
                self.not_reached(peer);
                self.drive(Event::DialFailed(peer));
            }
        }
    }

    fn tell_unreachable(&self, peer: PeerId, address: SocketAddr, error: &ConnectionError) {
        let speaks_otherwise = matches!(error, ConnectionError::Tls(_) | ConnectionError::Handshake(_));
        if speaks_otherwise && !self.told_otherwise.swap(true, Ordering::Relaxed) {
            // Once: most likely it is the configuration, and then of many peers.
            tracing::warn!(%peer, %address, %error, "peer answers but does not speak like this node");
        } else {
            tracing::debug!(%peer, %address, %error, "peer cannot be reached");
        }
    }

    /// Takes a connection that somebody opened to this node.
    pub(super) async fn accepted(self: Arc<Self>, stream: TcpStream, address: SocketAddr) {
        // Beyond the limit connections are closed at once: the peer tries another. Who has not said who it is takes no place of
        // those who have, nor of those whom this node dials.
        let Ok(greeting) = Arc::clone(&self.greetings).try_acquire_owned() else { return };
        match connection::accept(stream, &self).await {
            Ok(channel) => {
                drop(greeting);
                let Ok(_permit) = Arc::clone(&self.connections).try_acquire_owned() else { return };
                let initiator = channel.peer;
                self.serve(channel, initiator).await;
            }
            Err(error) => tracing::debug!(%address, %error, "connection refused"),
        }
    }

    /// Runs a connection until it ends.
    async fn serve(self: &Arc<Self>, channel: Channel, initiator: PeerId) {
        let (peer, tells) = (channel.peer, channel.tells);
        let Some((id, queues)) = self.link_up(peer, initiator, channel.takes_traces) else { return };
        if tells {
            self.introduce(peer);
        }
        if let Err(error) = connection::run(self, channel, queues).await {
            tracing::debug!(%peer, %error, "connection ended");
        }
        self.link_down(peer, id);
        self.parted(peer, id);
    }
}
