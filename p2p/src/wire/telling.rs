//! What one peer tells another of who has a blob, when no tracker can be asked.
//!
//! ```text
//! Holders  digest: 32 | own: u8 | stated: u8, [object: 32, length: u64] | count: u8 | holder ...
//! holder   peer: 32 | complete: u8 | address: 16 (IPv4 as mapped) | port: u16
//! ```
//!
//! `own` is what the teller itself has (0 nothing, 1 a part, 2 all), `stated` whether it names metainfo that it has
//! proven. All of it is hearsay: who is named proves itself when it is dialled, and pieces are checked as any.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{HOLDERS, WireError, digest, flag};
use crate::digest::Digest;
use crate::discovery::Holding;
use crate::identity::PeerId;
use crate::limits::MAX_TOLD_HOLDERS;

/// Feature bit of the handshake: asks who has a blob, and tells.
pub const TELLS_HOLDERS: u16 = 2;

const HOLDER_LENGTH: usize = 32 + 1 + 16 + 2;
/// Longest body of the frame.
pub(super) const MAX_LENGTH: usize = 32 + 1 + 1 + 40 + 1 + MAX_TOLD_HOLDERS * HOLDER_LENGTH;

/// Body of a `Holders` frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// The blob that was asked for.
    pub digest: Digest,
    /// What the teller has of it.
    pub own: Option<Holding>,
    /// Its metainfo, as the teller has proven it: digest and length.
    pub metainfo: Option<(Digest, u64)>,
    /// Others that the teller knows to have some or all of it, at most [`MAX_TOLD_HOLDERS`].
    pub others: Vec<ToldHolder>,
}

/// Another holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToldHolder {
    /// Its key.
    pub peer: PeerId,
    /// Where it listens, as far as the teller knows.
    pub address: SocketAddr,
    /// What it has.
    pub holding: Holding,
}

impl Telling {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_slice(self.digest.as_bytes());
        out.put_u8(match self.own {
            None => 0,
            Some(Holding::Partial) => 1,
            Some(Holding::Complete) => 2,
        });
        out.put_u8(u8::from(self.metainfo.is_some()));
        if let Some((object, length)) = &self.metainfo {
            out.put_slice(object.as_bytes());
            out.put_u64(*length);
        }
        let others = &self.others[..self.others.len().min(MAX_TOLD_HOLDERS)];
        out.put_u8(others.len() as u8);
        for ToldHolder { peer, address, holding } in others {
            out.put_slice(peer.as_bytes());
            out.put_u8(u8::from(*holding == Holding::Complete));
            let ip = match address.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            out.put_slice(&ip.octets());
            out.put_u16(address.port());
        }
    }

    pub(super) fn decode(mut body: Bytes) -> Result<Self, WireError> {
        let short = WireError::Length(HOLDERS);
        let name = digest(&mut body).ok_or(short)?;
        let own = match body.try_get_u8().map_err(|_| short)? {
            0 => None,
            1 => Some(Holding::Partial),
            2 => Some(Holding::Complete),
            _ => return Err(WireError::Flag),
        };
        let metainfo = match flag(&mut body)? {
            true => Some((digest(&mut body).ok_or(short)?, body.try_get_u64().map_err(|_| short)?)),
            false => None,
        };
        let count = usize::from(body.try_get_u8().map_err(|_| short)?);
        if count > MAX_TOLD_HOLDERS || body.len() != count * HOLDER_LENGTH {
            return Err(short);
        }
        let others = (0..count).map(|_| holder(&mut body).ok_or(short)?).collect::<Result<_, _>>()?;
        Ok(Self { digest: name, own, metainfo, others })
    }
}

/// None if the body ends before it does.
fn holder(body: &mut Bytes) -> Option<Result<ToldHolder, WireError>> {
    let peer = PeerId::from_bytes(*body.first_chunk()?);
    body.advance(32);
    let complete = match flag(body) {
        Ok(complete) => complete,
        Err(error) => return Some(Err(error)),
    };
    let ip = Ipv6Addr::from(*body.first_chunk::<16>()?);
    body.advance(16);
    let address = SocketAddr::new(IpAddr::V6(ip).to_canonical(), body.try_get_u16().ok()?);
    let holding = if complete { Holding::Complete } else { Holding::Partial };
    Some(Ok(ToldHolder { peer, address, holding }))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holding() -> impl Strategy<Value = Holding> {
        any::<bool>().prop_map(|complete| if complete { Holding::Complete } else { Holding::Partial })
    }

    pub(in crate::wire) fn tellings() -> impl Strategy<Value = Telling> {
        let digest = || any::<[u8; 32]>().prop_map(Digest::from_bytes);
        let ip = any::<IpAddr>().prop_map(|ip| ip.to_canonical());
        let other = (any::<[u8; 32]>(), ip, any::<u16>(), holding()).prop_map(|(peer, ip, port, holding)| ToldHolder {
            peer: PeerId::from_bytes(peer),
            address: SocketAddr::new(ip, port),
            holding,
        });
        let others = prop::collection::vec(other, 0..=MAX_TOLD_HOLDERS);
        let metainfo = prop::option::of((digest(), any::<u64>()));
        (digest(), prop::option::of(holding()), metainfo, others).prop_map(|(digest, own, metainfo, others)| Telling {
            digest,
            own,
            metainfo,
            others,
        })
    }

    #[test]
    fn more_than_may_be_told_is_no_telling() {
        let mut body = BytesMut::new();
        Telling { digest: Digest::of(b""), own: None, metainfo: None, others: Vec::new() }.put(&mut body);
        let at = body.len() - 1;
        body[at] = MAX_TOLD_HOLDERS as u8 + 1;
        body.resize(body.len() + (MAX_TOLD_HOLDERS + 1) * HOLDER_LENGTH, 0);
        assert_eq!(Telling::decode(body.freeze()), Err(WireError::Length(HOLDERS)));
    }
}
