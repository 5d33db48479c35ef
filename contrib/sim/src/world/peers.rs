//! What goes between nodes: messages, connections, bytes.

use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::PieceIndex;
use lapwing_p2p::swarm::{Event, PieceSource};

use super::due::{Due, HubDue, Load, Message, Part};
use super::node;
use super::plan::nanos;
use super::region::Region;
use crate::pipe::ps_per_byte;

/// How long a dial takes that nobody answers.
const DIAL_TIMEOUT_NS: u64 = 3_000_000_000;

impl Region {
    pub(super) fn say(&mut self, me: u32, peer: PeerId, message: Message) {
        let (at_ns, to) = (self.now_ns + self.plan.latency_ns, node::index(peer));
        self.post(at_ns, to, Due::Message { from: me, to, message });
    }

    pub(super) fn message(&mut self, from: u32, to: u32, message: Message) {
        let (peer, digests) = (self.plan.ids[from as usize], &self.plan.digests);
        let digest = |blob: u16| digests[usize::from(blob)];
        let event = match message {
            Message::Hello(blob, have) => Event::Hello { peer, digest: digest(blob), have: *have },
            Message::Have(blob, pieces) => Event::Have { peer, digest: digest(blob), pieces },
            Message::Request(part, urgent) => {
                Event::Request { peer, digest: digest(part.blob), piece: PieceIndex(part.piece), urgent }
            }
            Message::Cancel(part) => Event::Cancel { peer, digest: digest(part.blob), piece: PieceIndex(part.piece) },
            Message::Free(blob) => Event::Free { peer, digest: digest(blob) },
            Message::NotHere(blob, piece) => {
                Event::NotHere { peer, digest: digest(blob), piece: piece.map(PieceIndex) }
            }
        };
        self.tell(to, event);
    }

    /// Connects, shakes hands.
    pub(super) fn dial(&mut self, from: u32, to: u32) {
        self.post(self.now_ns + self.plan.latency_ns * 2, to, Due::Dialled { from, to });
    }

    /// A peer dials. Of two nodes that dial each other at the same time one connection remains.
    pub(super) fn dialled(&mut self, from: u32, to: u32) {
        let at_ns = self.now_ns + self.plan.latency_ns;
        if !self.node(to).alive {
            let failed = Event::DialFailed(self.plan.ids[to as usize]);
            return self.post(at_ns + DIAL_TIMEOUT_NS, from, Due::Answer(from, Box::new(failed)));
        }
        self.post(at_ns, from, Due::Linked { node: from, peer: to });
        self.link(to, from);
    }

    /// A peer has answered.
    pub(super) fn linked(&mut self, me: u32, peer: u32) {
        if self.node(me).alive {
            return self.link(me, peer);
        }
        let at_ns = self.now_ns + self.plan.latency_ns + nanos(self.plan.scenario.detection);
        self.post(at_ns, peer, Due::LinkDown { node: peer, peer: me });
    }

    fn link(&mut self, me: u32, peer: u32) {
        let links = &mut self.node_mut(me).links;
        if !links.contains(&peer) {
            links.push(peer);
            self.tell(me, Event::PeerUp(self.plan.ids[peer as usize]));
        }
    }

    pub(super) fn close(&mut self, me: u32, peer: u32) {
        self.unlink(me, peer);
        self.post(self.now_ns + self.plan.latency_ns, peer, Due::LinkDown { node: peer, peer: me });
    }

    fn unlink(&mut self, me: u32, peer: u32) {
        let node = self.node_mut(me);
        node.links.retain(|link| *link != peer);
        node.up.drop_flow(peer);
    }

    pub(super) fn link_down(&mut self, me: u32, peer: u32) {
        if self.node(me).links.contains(&peer) {
            self.unlink(me, peer);
            self.tell(me, Event::PeerDown(self.plan.ids[peer as usize]));
        }
    }

    /// A machine goes dark: nobody is told, all notice after a while.
    pub(super) fn die(&mut self, me: u32) {
        let at_ns = self.now_ns + self.plan.latency_ns + nanos(self.plan.scenario.detection);
        let dead = self.node_mut(me);
        if !std::mem::replace(&mut dead.alive, false) {
            return;
        }
        let peers = std::mem::take(&mut dead.links);
        peers.iter().for_each(|peer| dead.up.drop_flow(*peer));
        let counts = dead.counts && dead.done_ns.is_none();
        self.unfinished -= usize::from(counts);
        for peer in peers {
            self.post(at_ns, peer, Due::LinkDown { node: peer, peer: me });
        }
    }

    pub(super) fn upload(&mut self, me: u32, peer: u32, part: Part) {
        let (now_ns, bytes) = (self.now_ns, self.plan.piece_bytes(part));
        if let Some(at_ns) = self.node_mut(me).up.send(now_ns, peer, part, bytes) {
            self.queue.push(at_ns, Due::Uplink(me));
        }
    }

    pub(super) fn uplink(&mut self, me: u32) {
        let (now_ns, latency_ns) = (self.now_ns, self.plan.latency_ns);
        let node = self.node_mut(me);
        let Some(left) = node.up.timer(now_ns).filter(|_| node.alive) else { return };
        let corrupt = node.corrupt;
        if let Some(quantum) = left {
            let (to, bytes) = (quantum.key, quantum.bytes);
            let expected_ns = now_ns + latency_ns + self.plan.down_ns(bytes);
            self.node_mut(me).up.delivered(to, expected_ns);
            let load = Load::Piece { from: me, part: quantum.job, corrupt };
            self.post(now_ns + latency_ns, to, Due::Arrives { to, bytes: bytes as u32, load, last: quantum.last });
        }
        if let Some(at_ns) = self.node_mut(me).up.start(now_ns) {
            self.queue.push(at_ns, Due::Uplink(me));
        }
        if let Some(quantum) = left.filter(|quantum| quantum.last) {
            self.tell(me, Event::Sent { peer: self.plan.ids[quantum.key as usize] });
        }
    }

    /// Bytes are there, but for the downlink, and the border before it.
    pub(super) fn arrives(&mut self, to: u32, bytes: u32, load: Load, last: bool) {
        let (now_ns, bytes) = (self.now_ns, u64::from(bytes));
        let own_zone = match load {
            Load::Piece { from, .. } => self.plan.zone(from) == self.plan.zone(to),
            Load::Fetched { .. } => self.plan.zone(to) == 0,
        };
        let mut at_ns = now_ns;
        if let Some(link) = self.plan.scenario.zone_link.filter(|_| !own_zone) {
            // Zones are halves.
            self.measured.border_bytes[1 - usize::from(self.plan.zone(to))] += bytes;
            at_ns = at_ns.max(self.border_free_ns) + bytes * ps_per_byte(link) / 1000;
            self.border_free_ns = at_ns;
        }
        let own_ns = self.plan.down_ns(bytes);
        let node = self.node_mut(to);
        at_ns = at_ns.max(node.down_free_ns) + own_ns;
        node.down_free_ns = at_ns;
        if last {
            self.queue.push(at_ns, Due::Complete { to, load });
        }
        // Less is not worth a message.
        if at_ns > now_ns + 2 * own_ns {
            self.say_late(to, load, now_ns + own_ns, at_ns);
        }
    }

    fn say_late(&mut self, to: u32, load: Load, expected_ns: u64, at_ns: u64) {
        let heard_ns = self.now_ns + self.plan.latency_ns;
        match load {
            Load::Piece { from, .. } => self.post(heard_ns, from, Due::Late { node: from, to, expected_ns, at_ns }),
            Load::Fetched { transfer, .. } => {
                self.to_hub.push((heard_ns, HubDue::Late { to, transfer, expected_ns, at_ns }));
            }
        }
    }

    /// All of a piece has come.
    pub(super) fn complete(&mut self, to: u32, load: Load) {
        let (Load::Piece { part, .. } | Load::Fetched { part, .. }) = load;
        let (digest, piece) = (self.plan.digests[usize::from(part.blob)], PieceIndex(part.piece));
        let bytes = self.plan.piece_bytes(part);
        if !self.node(to).alive {
            return;
        }
        self.measured.bytes += bytes;
        match load {
            Load::Piece { from, corrupt, .. } => {
                let peer = self.plan.ids[from as usize];
                let expected = self.node(to).swarm.expects(peer, &digest, piece);
                self.measured.wasted_bytes += if expected && !corrupt { 0 } else { bytes };
                match (expected, corrupt) {
                    (false, _) => {}
                    (true, true) => self.tell(to, Event::Bad { peer, digest, piece }),
                    (true, false) => self.stored(to, part, PieceSource::Peer(peer)),
                }
            }
            Load::Fetched { transfer, last, .. } => {
                let known = self.node(to).have[usize::from(part.blob)].get(piece);
                self.measured.wasted_bytes += if known { bytes } else { 0 };
                self.stored(to, part, PieceSource::Origin);
                if last {
                    self.tell(to, Event::TransferEnded { digest, transfer, outcome: Ok(()) });
                }
            }
        }
    }
}
