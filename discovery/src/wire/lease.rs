//! Messages about leases.

use std::ops::Range;
use std::time::Duration;

use lapwing_p2p::discovery::{Lease, LeaseKind, LeaseReply, LeaseRequest, Settlement, Trouble};
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::limits::{MAX_RUNS, MAX_SITE_BYTES, MAX_USELESS};
use tonic::Status;

use super::{check_count, digest, invalid, peer};
use crate::limits::MAX_BELIEVED;
use crate::proto;
use crate::registry::are_runs;

pub(crate) fn request(message: &proto::LeaseRequest) -> Result<(LeaseRequest, PieceLayout), Status> {
    let layout = PieceLayout::new(message.length).map_err(|error| invalid(format!("length: {error}")))?;
    check_count("rare", message.rare.len(), MAX_RUNS)?;
    check_count("useless", message.useless.len(), MAX_USELESS)?;
    if message.site.len() > MAX_SITE_BYTES || !message.site.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(invalid(format!("site: expected at most {MAX_SITE_BYTES} printable ASCII characters")));
    }
    if let Some(piece) = message.rare.iter().find(|piece| **piece >= layout.piece_count()) {
        return Err(invalid(format!("rare: piece {piece} is not within {} pieces", layout.piece_count())));
    }
    let request = LeaseRequest {
        site: message.site.clone(),
        missing: runs("missing", &message.missing, layout)?,
        urgent: runs("urgent", &message.urgent, layout)?,
        importable: runs("importable", &message.importable, layout)?,
        rare: message.rare.iter().copied().map(PieceIndex).collect(),
        remaining: (message.remaining_ms > 0).then(|| Duration::from_millis(message.remaining_ms)),
        unshared: message.unshared.min(layout.piece_count()),
        useless: message.useless.iter().map(|node| peer("useless", node)).collect::<Result<_, _>>()?,
        ..LeaseRequest::new(digest("digest", &message.digest)?, message.length)
    };
    Ok((request, layout))
}

fn runs(field: &str, messages: &[proto::Run], layout: PieceLayout) -> Result<Vec<Range<u32>>, Status> {
    check_count(field, messages.len(), MAX_RUNS)?;
    let runs: Vec<Range<u32>> = messages.iter().map(|run| run.first..run.end).collect();
    if !are_runs(&runs, layout.piece_count()) {
        let pieces = layout.piece_count();
        return Err(invalid(format!("{field}: expected ascending, disjoint, non-empty runs within {pieces} pieces")));
    }
    Ok(runs)
}

pub(crate) fn request_message(caller: proto::Caller, request: &LeaseRequest) -> proto::LeaseRequest {
    let run = |run: &Range<u32>| proto::Run { first: run.start, end: run.end };
    let runs = |runs: &[Range<u32>]| runs.iter().map(run).collect();
    proto::LeaseRequest {
        caller: Some(caller),
        digest: request.digest.as_bytes().to_vec(),
        length: request.length,
        missing: runs(&request.missing),
        urgent: runs(&request.urgent),
        site: request.site.clone(),
        importable: runs(&request.importable),
        rare: request.rare.iter().map(|piece| piece.0).collect(),
        remaining_ms: request.remaining.map_or(0, |remaining| millis(remaining).max(1).into()),
        unshared: request.unshared,
        useless: request.useless.iter().map(|peer| peer.as_bytes().to_vec()).collect(),
    }
}

pub(crate) fn reply_message(registration: u64, reply: &LeaseReply) -> proto::LeaseReply {
    use proto::lease_reply::{Exhausted, Grant, Outcome, Wait};
    let outcome = match reply {
        LeaseReply::Granted(lease) => Outcome::Grant(Grant {
            lease: lease.id,
            first: lease.first.0,
            count: lease.count,
            term_ms: millis(lease.term),
            kind: match lease.kind {
                LeaseKind::Origin => proto::LeaseKind::Unspecified,
                LeaseKind::Whole => proto::LeaseKind::Whole,
                LeaseKind::Import => proto::LeaseKind::Import,
            }
            .into(),
        }),
        LeaseReply::Wait(pause) => Outcome::Wait(Wait { pause_ms: millis(*pause) }),
        LeaseReply::Exhausted => Outcome::Exhausted(Exhausted {}),
    };
    proto::LeaseReply { registration, pause_ms: 0, outcome: Some(outcome) }
}

/// The lease that a tracker grants, whatever it is worth.
pub(crate) fn grant(message: &proto::lease_reply::Grant) -> Lease {
    Lease {
        id: message.lease,
        first: PieceIndex(message.first),
        count: message.count,
        term: Duration::from_millis(message.term_ms.into()).min(MAX_BELIEVED),
        kind: match message.kind() {
            proto::LeaseKind::Unspecified => LeaseKind::Origin,
            proto::LeaseKind::Whole => LeaseKind::Whole,
            proto::LeaseKind::Import => LeaseKind::Import,
        },
    }
}

pub(crate) fn settlement(message: &proto::SettleRequest) -> Result<Settlement, Status> {
    Ok(Settlement {
        lease: message.lease,
        digest: digest("digest", &message.digest)?,
        fetched: message.fetched,
        first_byte: message.first_byte_ms.map(|millis| Duration::from_millis(millis.into())),
        trouble: match message.trouble() {
            proto::Trouble::Unspecified => None,
            proto::Trouble::Busy => Some(Trouble::Busy(Duration::from_millis(message.pause_ms.into()))),
            proto::Trouble::NoRanges => Some(Trouble::NoRanges),
            proto::Trouble::Refused => Some(Trouble::Refused),
            proto::Trouble::Unavailable => Some(Trouble::Unavailable),
        },
    })
}

pub(crate) fn settlement_message(caller: proto::Caller, settlement: &Settlement) -> proto::SettleRequest {
    let (trouble, pause) = match settlement.trouble {
        None => (proto::Trouble::Unspecified, Duration::ZERO),
        Some(Trouble::Busy(pause)) => (proto::Trouble::Busy, pause),
        Some(Trouble::NoRanges) => (proto::Trouble::NoRanges, Duration::ZERO),
        Some(Trouble::Refused) => (proto::Trouble::Refused, Duration::ZERO),
        Some(Trouble::Unavailable) => (proto::Trouble::Unavailable, Duration::ZERO),
    };
    proto::SettleRequest {
        caller: Some(caller),
        digest: settlement.digest.as_bytes().to_vec(),
        lease: settlement.lease,
        fetched: settlement.fetched,
        first_byte_ms: settlement.first_byte.map(millis),
        trouble: trouble.into(),
        pause_ms: millis(pause),
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
