//! The calls, encoded before they are sent; of answers only the length is looked at, so that the load is light.

use bytes::Bytes;
use lapwing_discovery::proto;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::crowd::Crowd;

/// One call: its path and its message.
pub(crate) struct Call {
    pub(crate) path: &'static str,
    pub(crate) message: Bytes,
}

impl Call {
    fn new(path: &'static str, message: &impl Message) -> Self {
        Self { path, message: message.encode_to_vec().into() }
    }
}

pub(crate) fn find(crowd: &Crowd, random: &mut fastrand::Rng) -> Call {
    let caller = Some(crowd.caller(crowd.any(random)));
    Call::new("/lapwing.tracker.v1.TrackerService/Find", &proto::FindRequest { caller, digest: crowd.wanted(random) })
}

/// The same of a blob that some node has, as likely as it is held.
pub(crate) fn find_held(crowd: &Crowd, random: &mut fastrand::Rng) -> Call {
    let holdings = crowd.holdings(crowd.any(random));
    let digest = holdings[random.usize(..holdings.len())].digest.clone();
    let caller = Some(crowd.caller(crowd.any(random)));
    Call::new("/lapwing.tracker.v1.TrackerService/Find", &proto::FindRequest { caller, digest })
}

/// A node begins to have a blob.
pub(crate) fn announce(crowd: &Crowd, random: &mut fastrand::Rng) -> Call {
    let holding = proto::Holding { digest: crowd.wanted(random), state: proto::HoldingState::Partial.into() };
    let caller = Some(crowd.caller(crowd.any(random)));
    let message = proto::AnnounceRequest { caller, holdings: vec![holding] };
    Call::new("/lapwing.tracker.v1.TrackerService/Announce", &message)
}

pub(crate) fn heartbeat(crowd: &Crowd, node: u64) -> Call {
    let message = proto::HeartbeatRequest { caller: Some(crowd.caller(node)) };
    Call::new("/lapwing.tracker.v1.TrackerService/Heartbeat", &message)
}

/// All that a node holds, and how many entries that is.
pub(crate) fn sync(crowd: &Crowd, node: u64) -> (Call, u64) {
    let holdings = crowd.holdings(node);
    let entries = holdings.len() as u64;
    let message =
        proto::SyncRequest { caller: Some(crowd.caller(node)), holdings, statements: Vec::new(), whole: true };
    (Call::new("/lapwing.tracker.v1.TrackerService/Sync", &message), entries)
}

/// Sends bytes as they are, and gives the length of what comes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = usize;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(target, message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let length = bytes::Buf::remaining(source);
        bytes::Buf::advance(source, length);
        Ok(Some(length))
    }
}
