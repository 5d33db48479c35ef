//! What goes between nodes, and from the origin to nodes.

use std::ops::Range;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::PieceIndex;
use lapwing_p2p::swarm::{Event, PieceSource, TransferId};

use super::{Due, Message, Part, World, nanos, node};
use crate::pipe::ps_per_byte;

/// How long a dial takes that nobody answers.
const DIAL_TIMEOUT_NS: u64 = 3_000_000_000;

impl World {
    pub(super) fn say(&mut self, me: u32, peer: PeerId, message: Message) {
        let at_ns = self.now_ns + nanos(self.scenario.latency);
        self.queue.push(at_ns, Due::Message { from: me, to: node::index(peer), message });
    }

    pub(super) fn message(&mut self, from: u32, to: u32, message: Message) {
        let (peer, digests) = (self.ids[from as usize], &self.digests);
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

    pub(super) fn dial(&mut self, from: u32, to: u32) {
        if self.nodes[to as usize].alive {
            self.queue.push(self.now_ns + nanos(self.scenario.latency) * 3, Due::Dialled { from, to });
        } else {
            let failed = Due::Answer(from, Box::new(Event::DialFailed(self.ids[to as usize])));
            self.queue.push(self.now_ns + DIAL_TIMEOUT_NS, failed);
        }
    }

    /// Hands have been shaken. Of two nodes that dial each other at the same time one connection remains.
    pub(super) fn dialled(&mut self, from: u32, to: u32) {
        if !self.nodes[to as usize].alive || !self.nodes[from as usize].alive {
            return self.tell(from, Event::DialFailed(self.ids[to as usize]));
        }
        if self.nodes[from as usize].links.contains(&to) {
            return;
        }
        for (node, peer) in [(from, to), (to, from)] {
            self.nodes[node as usize].links.push(peer);
            self.queue.push(self.now_ns, Due::LinkUp { node, peer });
        }
    }

    pub(super) fn close(&mut self, me: u32, peer: u32) {
        let at_ns = self.now_ns + nanos(self.scenario.latency);
        self.unlink(me, peer);
        self.queue.push(at_ns, Due::LinkDown { node: peer, peer: me });
    }

    fn unlink(&mut self, me: u32, peer: u32) {
        let node = &mut self.nodes[me as usize];
        node.links.retain(|link| *link != peer);
        node.up.drop_flow(peer);
    }

    pub(super) fn link_down(&mut self, me: u32, peer: u32) {
        if self.nodes[me as usize].links.contains(&peer) {
            self.unlink(me, peer);
            self.tell(me, Event::PeerDown(self.ids[peer as usize]));
        }
    }

    /// A machine goes dark: nobody is told, all notice after a while.
    pub(super) fn die(&mut self, me: u32) {
        let at_ns = self.now_ns + nanos(self.scenario.detection);
        let dead = &mut self.nodes[me as usize];
        if !std::mem::replace(&mut dead.alive, false) {
            return;
        }
        self.unfinished -= usize::from(dead.counts && dead.done_ns.is_none());
        for peer in std::mem::take(&mut dead.links) {
            dead.up.drop_flow(peer);
            self.queue.push(at_ns, Due::LinkDown { node: peer, peer: me });
        }
    }

    pub(super) fn upload(&mut self, me: u32, peer: u32, digest: Digest, piece: PieceIndex) {
        let part = self.part(&digest, piece);
        let bytes = self.piece_bytes(part);
        if let Some(at_ns) = self.nodes[me as usize].up.send(self.now_ns, peer, part, bytes) {
            self.queue.push(at_ns, Due::Uplink(me));
        }
    }

    pub(super) fn uplink(&mut self, me: u32) {
        let Some(left) = self.nodes[me as usize].up.timer(self.now_ns) else { return };
        if !self.nodes[me as usize].alive {
            return;
        }
        let mut sent = None;
        if let Some(quantum) = left {
            let to = quantum.key;
            let delivered_ns = self.deliver(self.nodes[me as usize].zone, to, quantum.bytes);
            self.nodes[me as usize].up.delivered(to, delivered_ns);
            if quantum.last {
                self.queue.push(delivered_ns, Due::Piece { from: me, to, part: quantum.job });
                sent = Some(to);
            }
        }
        if let Some(at_ns) = self.nodes[me as usize].up.start(self.now_ns) {
            self.queue.push(at_ns, Due::Uplink(me));
        }
        if let Some(to) = sent {
            self.tell(me, Event::Sent { peer: self.ids[to as usize] });
        }
    }

    /// When bytes that leave a zone now are with `to`.
    fn deliver(&mut self, zone: u8, to: u32, bytes: u64) -> u64 {
        let down_ns = bytes * ps_per_byte(self.scenario.rates.down) / 1000;
        let mut at_ns = self.now_ns + nanos(self.scenario.latency);
        let receiver = &mut self.nodes[to as usize];
        if let Some(link) = self.scenario.zone_link
            && zone != receiver.zone
        {
            let direction = usize::from(zone);
            self.measured.border_bytes[direction] += bytes;
            at_ns = at_ns.max(self.border_free_ns[direction]) + bytes * ps_per_byte(link) / 1000;
            self.border_free_ns[direction] = at_ns;
        }
        at_ns = at_ns.max(receiver.down_free_ns) + down_ns;
        receiver.down_free_ns = at_ns;
        at_ns
    }

    /// A piece that a peer sent has come.
    pub(super) fn piece(&mut self, from: u32, to: u32, part: Part) {
        let (bytes, peer) = (self.piece_bytes(part), self.ids[from as usize]);
        let (digest, piece) = (self.digests[usize::from(part.blob)], PieceIndex(part.piece));
        let receiver = &self.nodes[to as usize];
        if !receiver.alive {
            return;
        }
        self.measured.bytes += bytes;
        let expected = receiver.swarm.expects(peer, &digest, piece);
        let corrupt = self.nodes[from as usize].corrupt;
        if !expected || corrupt {
            self.measured.wasted_bytes += bytes;
        }
        match (expected, corrupt) {
            (false, _) => {}
            (true, true) => self.tell(to, Event::Bad { peer, digest, piece }),
            (true, false) => self.stored(to, part, PieceSource::Peer(peer)),
        }
    }

    pub(super) fn transfer(&mut self, me: u32, transfer: TransferId, blob: u16, pieces: Range<u32>) {
        if !self.nodes[me as usize].alive {
            return;
        }
        let last = pieces.end - 1;
        for piece in pieces {
            let part = Part { blob, piece };
            let bytes = self.piece_bytes(part);
            if let Some(at_ns) = self.origin.send(self.now_ns, (me, transfer), (part, piece == last), bytes) {
                self.queue.push(at_ns, Due::OriginLink);
            }
        }
        self.tell(me, Event::FirstByte { digest: self.digests[usize::from(blob)], transfer });
    }

    pub(super) fn origin_link(&mut self) {
        let Some(left) = self.origin.timer(self.now_ns) else { return };
        if let Some(quantum) = left {
            let (to, transfer) = quantum.key;
            if self.nodes[to as usize].alive {
                self.measured.origin_bytes += quantum.bytes;
                let delivered_ns = self.deliver(0, to, quantum.bytes);
                self.origin.delivered(quantum.key, delivered_ns);
                if quantum.last {
                    let (part, last) = quantum.job;
                    self.queue.push(delivered_ns, Due::Fetched { to, transfer, part, last });
                }
            } else {
                self.origin.drop_flow(quantum.key);
            }
        }
        if let Some(at_ns) = self.origin.start(self.now_ns) {
            self.queue.push(at_ns, Due::OriginLink);
        }
    }

    pub(super) fn fetched(&mut self, to: u32, transfer: TransferId, part: Part, last: bool) {
        let bytes = self.piece_bytes(part);
        self.measured.bytes += bytes;
        if self.nodes[to as usize].have[usize::from(part.blob)].get(PieceIndex(part.piece)) {
            self.measured.wasted_bytes += bytes;
        }
        self.stored(to, part, PieceSource::Origin);
        if last {
            let digest = self.digests[usize::from(part.blob)];
            self.tell(to, Event::TransferEnded { digest, transfer, outcome: Ok(()) });
        }
    }
}
