//! Between messages and types: everything that comes in is checked here, once, and refused in words.

pub(crate) mod lease;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{
    Found, Holder, Holding, Order, OrderRequest, OrderStand, Statement, StatementKind, Trial, TrialReport, Vote,
};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::limits::{MAX_BLOB_LENGTH, MAX_REPLICA_QUESTIONS, MAX_TRIAL_REPORT_BYTES};
use lapwing_p2p::membership::{Role, is_group};
use lapwing_p2p::origin::Locator;
use tonic::Status;

use crate::limits::{
    MAX_ENTRIES_PER_MESSAGE, MAX_GROUP_BYTES, MAX_LABEL_BYTES, MAX_NAMESPACE_BYTES, MAX_NODES, MAX_ORDER_REASON_BYTES,
    MAX_REPOSITORY_BYTES, MAX_TRIAL_WAIT,
};
use crate::proto;
use crate::registry::{Caller, Place};
use crate::seed::{Seed, shortened};
use crate::transport::{Arrival, Claim};

fn invalid(text: impl Into<String>) -> Status {
    Status::invalid_argument(text)
}

fn bytes32(field: &str, bytes: &[u8]) -> Result<[u8; 32], Status> {
    bytes.try_into().map_err(|_| invalid(format!("{field}: expected 32 bytes, got {}", bytes.len())))
}

pub(crate) fn digest(field: &str, bytes: &[u8]) -> Result<Digest, Status> {
    bytes32(field, bytes).map(Digest::from_bytes)
}

/// At most as many digests as one question may name.
pub(crate) fn digests(field: &str, digests: &[Vec<u8>]) -> Result<Vec<Digest>, Status> {
    if digests.len() > MAX_REPLICA_QUESTIONS {
        return Err(Status::resource_exhausted(format!("{field}: more than {MAX_REPLICA_QUESTIONS} in one question")));
    }
    digests.iter().map(|bytes| digest(field, bytes)).collect()
}

pub(crate) fn peer(field: &str, bytes: &[u8]) -> Result<PeerId, Status> {
    bytes32(field, bytes).map(PeerId::from_bytes)
}

/// Checks a group name: letters, digits, `.`, `_`, `-`; not empty.
pub(crate) fn check_group(group: &str) -> Result<(), String> {
    if !is_group(group) {
        let shown: String = group.chars().take(MAX_GROUP_BYTES).collect();
        return Err(format!("group {shown:?}: expected 1 to {MAX_GROUP_BYTES} letters, digits, '.', '_' or '-'"));
    }
    Ok(())
}

/// Checks a zone or rack label: printable ASCII without blanks; may be empty.
pub(crate) fn check_label(field: &str, label: &str) -> Result<(), String> {
    if label.len() > MAX_LABEL_BYTES || !label.bytes().all(|byte| byte.is_ascii_graphic()) {
        let shown: String = label.chars().take(MAX_LABEL_BYTES).collect();
        return Err(format!(
            "{field} {shown:?}: expected at most {MAX_LABEL_BYTES} printable ASCII characters without blanks"
        ));
    }
    Ok(())
}

/// Who calls, if it may say so.
pub(crate) fn caller(message: Option<proto::Caller>, arrival: &Arrival) -> Result<Caller, Status> {
    let message = message.ok_or_else(|| invalid("caller: missing"))?;
    check_group(&message.group).map_err(invalid)?;
    check_label("zone", &message.zone).map_err(invalid)?;
    check_label("rack", &message.rack).map_err(invalid)?;
    let port = u16::try_from(message.piece_port)
        .map_err(|_| invalid(format!("piece_port: {} is no TCP port", message.piece_port)))?;
    let seed_port = u16::try_from(message.seed_port)
        .map_err(|_| invalid(format!("seed_port: {} is no TCP port", message.seed_port)))?;
    let node = peer("caller.node", &message.node)?;
    let role = if message.seed || seed_port != 0 { Role::Seed } else { Role::Node };
    arrival.check(&Claim { group: &message.group, node, role })?;
    Ok(Caller {
        node,
        instance: message.instance,
        group: message.group,
        place: Place { zone: message.zone.into(), rack: message.rack.into(), address: arrival.remote },
        port,
        seed: message.seed,
        seed_port,
        reached_at: arrival.local,
    })
}

fn check_count(field: &str, count: usize, limit: usize) -> Result<(), Status> {
    if count > limit {
        return Err(Status::resource_exhausted(format!("{field}: {count} entries, at most {limit} are taken")));
    }
    Ok(())
}

pub(crate) fn holdings(messages: &[proto::Holding]) -> Result<Vec<(Digest, Option<Holding>)>, Status> {
    check_count("holdings", messages.len(), MAX_ENTRIES_PER_MESSAGE)?;
    let read = |message: &proto::Holding| {
        let holding = match message.state() {
            proto::HoldingState::Partial => Some(Holding::Partial),
            proto::HoldingState::Complete => Some(Holding::Complete),
            proto::HoldingState::Gone => None,
            proto::HoldingState::Unspecified => {
                return Err(invalid(format!("holdings.state: {} is no state", message.state)));
            }
        };
        Ok((digest("holdings.digest", &message.digest)?, holding))
    };
    messages.iter().map(read).collect()
}

/// Those of kinds that this version does not know are left out: whoever sends them is newer, and nothing else of his is worse for it.
pub(crate) fn statements(messages: &[proto::Statement]) -> Result<Vec<Statement>, Status> {
    check_count("statements", messages.len(), MAX_ENTRIES_PER_MESSAGE)?;
    let is_known = |message: &&proto::Statement| proto::StatementKind::try_from(message.kind).is_ok();
    messages.iter().filter(is_known).map(statement).collect()
}

fn statement(message: &proto::Statement) -> Result<Statement, Status> {
    let kind = match message.kind() {
        proto::StatementKind::Metainfo => StatementKind::Metainfo,
        proto::StatementKind::LayerIndex => StatementKind::LayerIndex,
        proto::StatementKind::Referent => StatementKind::Referent,
        proto::StatementKind::Profile => StatementKind::Profile,
        proto::StatementKind::Right => StatementKind::Right,
        proto::StatementKind::Unspecified => {
            return Err(invalid(format!("statement.kind: {} is no kind", message.kind)));
        }
    };
    let statement = Statement {
        subject: digest("statement.subject", &message.subject)?,
        kind,
        object: digest("statement.object", &message.object)?,
        length: message.length,
    };
    if !statement.is_possible() {
        let (length, limit) = (message.length, kind.max_length());
        return Err(invalid(format!("statement.length: {length} is not within 1 to {limit}, as {kind:?} objects are")));
    }
    Ok(statement)
}

pub(crate) fn order_request(message: &proto::OrderRequest) -> Result<OrderRequest, Status> {
    let blob = message.blob.as_ref().ok_or_else(|| invalid("blob: missing"))?;
    if message.nodes as usize > MAX_NODES {
        return Err(invalid(format!("nodes: {} are more than {MAX_NODES}", message.nodes)));
    }
    let nodes = (message.nodes > 0).then_some(message.nodes);
    Ok(OrderRequest { order: order(blob).map_err(invalid)?, job: message.job, nodes, over: message.over })
}

/// What is ordered; a client reads a tracker's word with the same bounds.
pub(crate) fn order(message: &proto::OrderedBlob) -> Result<Order, String> {
    let digest = digest("blob.digest", &message.digest).map_err(|status| status.message().to_owned())?;
    for (field, text, limit) in [
        ("blob.registry", &message.registry, MAX_NAMESPACE_BYTES),
        ("blob.repository", &message.repository, MAX_REPOSITORY_BYTES),
    ] {
        if text.is_empty() || text.len() > limit {
            return Err(format!("{field}: expected 1 to {limit} bytes, got {}", text.len()));
        }
    }
    if message.length > MAX_BLOB_LENGTH {
        return Err(format!("blob.length: {} is more than {MAX_BLOB_LENGTH}", message.length));
    }
    let locator = Locator { namespace: message.registry.clone(), repository: message.repository.clone() };
    let trial = message.trial.as_ref().map(trial).transpose()?;
    Ok(Order { digest, length: message.length, locator, index: message.index, trial })
}

fn trial(message: &proto::Trial) -> Result<Trial, String> {
    let begins_in = Duration::from_millis(message.begins_in_ms.into());
    if begins_in > MAX_TRIAL_WAIT {
        return Err(format!("trial.begins_in_ms: more than {} s", MAX_TRIAL_WAIT.as_secs()));
    }
    Ok(Trial { job: message.job, begins_in, remove: message.remove })
}

/// A trial, and what a node tells of it.
pub(crate) fn told_trial(message: proto::TellTrialRequest) -> Result<(Digest, u64, Vec<u8>), Status> {
    let digest = digest("digest", &message.digest)?;
    if message.report.len() > MAX_TRIAL_REPORT_BYTES {
        return Err(invalid(format!("report: {} bytes, at most {MAX_TRIAL_REPORT_BYTES}", message.report.len())));
    }
    Ok((digest, message.job, message.report))
}

/// A trial, and the node after which its reports are wanted.
pub(crate) fn trial_question(message: &proto::TrialReportsRequest) -> Result<(Digest, u64, Option<PeerId>), Status> {
    let after = if message.after.is_empty() { None } else { Some(peer("after", &message.after)?) };
    Ok((digest("digest", &message.digest)?, message.job, after))
}

pub(crate) fn failed_order(message: &proto::FailOrderRequest) -> Result<(Digest, String), Status> {
    let digest = digest("digest", &message.digest)?;
    let reason: String = message.reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Ok((digest, shortened(reason, MAX_ORDER_REASON_BYTES)))
}

// What goes out, and how a client reads it.

pub(crate) fn ordered_blob(order: &Order) -> proto::OrderedBlob {
    proto::OrderedBlob {
        digest: order.digest.as_bytes().to_vec(),
        length: order.length,
        registry: order.locator.namespace.clone(),
        repository: order.locator.repository.clone(),
        index: order.index,
        trial: order.trial.map(|trial| proto::Trial {
            job: trial.job,
            begins_in_ms: u32::try_from(trial.begins_in.as_millis()).unwrap_or(u32::MAX),
            remove: trial.remove,
        }),
    }
}

pub(crate) fn trial_report_message(report: TrialReport) -> proto::TrialReport {
    proto::TrialReport {
        node: report.peer.as_bytes().to_vec(),
        address: address_bytes(report.address),
        zone: report.zone,
        report: report.report,
    }
}

/// What a node told, as a tracker passes it on, unless it is nonsense.
pub(crate) fn trial_report(message: proto::TrialReport) -> Option<TrialReport> {
    check_label("zone", &message.zone).ok()?;
    Some(TrialReport {
        peer: peer("", &message.node).ok()?,
        address: address(&message.address)?,
        zone: message.zone,
        report: Some(message.report).filter(|report| report.len() <= MAX_TRIAL_REPORT_BYTES)?,
    })
}

pub(crate) fn order_reply(registration: u64, stand: OrderStand) -> proto::OrderReply {
    let OrderStand { nodes, complete, failed, reason } = stand;
    proto::OrderReply { registration, pause_ms: 0, nodes, complete, failed, reason }
}

pub(crate) fn order_stand(reply: proto::OrderReply) -> OrderStand {
    let reason = shortened(reply.reason, MAX_ORDER_REASON_BYTES);
    OrderStand { nodes: reply.nodes, complete: reply.complete, failed: reply.failed, reason }
}

pub(crate) fn holding_message(digest: Digest, holding: Option<Holding>) -> proto::Holding {
    proto::Holding { digest: digest.as_bytes().to_vec(), state: state(holding).into() }
}

const fn state(holding: Option<Holding>) -> proto::HoldingState {
    match holding {
        Some(Holding::Partial) => proto::HoldingState::Partial,
        Some(Holding::Complete) => proto::HoldingState::Complete,
        None => proto::HoldingState::Gone,
    }
}

pub(crate) fn statement_message(statement: &Statement) -> proto::Statement {
    let kind = match statement.kind {
        StatementKind::Metainfo => proto::StatementKind::Metainfo,
        StatementKind::LayerIndex => proto::StatementKind::LayerIndex,
        StatementKind::Referent => proto::StatementKind::Referent,
        StatementKind::Profile => proto::StatementKind::Profile,
        StatementKind::Right => proto::StatementKind::Right,
    };
    proto::Statement {
        subject: statement.subject.as_bytes().to_vec(),
        kind: kind.into(),
        object: statement.object.as_bytes().to_vec(),
        length: statement.length,
    }
}

pub(crate) fn seeds_reply(registration: u64, seeds: &[Seed]) -> proto::SeedsReply {
    let seed = |seed: &Seed| proto::Seed {
        node: seed.peer.as_bytes().to_vec(),
        address: address_bytes(seed.address),
        piece_port: seed.piece_port.into(),
        seed_port: seed.seed_port.into(),
    };
    proto::SeedsReply { registration, pause_ms: 0, seeds: seeds.iter().map(seed).collect() }
}

/// A seed as a tracker names it, unless it is nonsense.
pub(crate) fn seed(message: &proto::Seed) -> Option<Seed> {
    let port = |port: u32| u16::try_from(port).ok().filter(|port| *port != 0);
    Some(Seed {
        peer: peer("", &message.node).ok()?,
        address: address(&message.address)?,
        piece_port: port(message.piece_port)?,
        seed_port: port(message.seed_port)?,
    })
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
        _ => None,
    }
}

pub(crate) fn find_reply(registration: u64, found: &Found) -> proto::FindReply {
    let holder = |holder: &Holder| proto::Holder {
        node: holder.peer.as_bytes().to_vec(),
        address: address_bytes(holder.address.ip()),
        port: holder.address.port().into(),
        state: state(Some(holder.holding)).into(),
        seed: holder.seed,
        far: holder.far,
    };
    let vote = |vote: &Vote| proto::Vote { statement: Some(statement_message(&vote.statement)), nodes: vote.nodes };
    proto::FindReply {
        registration,
        holders: found.holders.iter().map(holder).collect(),
        votes: found.votes.iter().map(vote).collect(),
        lessees: found.lessees.iter().map(|peer| peer.as_bytes().to_vec()).collect(),
        ..proto::FindReply::default()
    }
}

/// A holder as a tracker names it, unless it is nonsense.
pub(crate) fn holder(message: &proto::Holder) -> Option<Holder> {
    let address = address(&message.address)?;
    let port = u16::try_from(message.port).ok().filter(|port| *port != 0)?;
    let holding = match message.state() {
        proto::HoldingState::Partial => Holding::Partial,
        proto::HoldingState::Complete => Holding::Complete,
        proto::HoldingState::Gone | proto::HoldingState::Unspecified => return None,
    };
    Some(Holder {
        peer: peer("", &message.node).ok()?,
        address: SocketAddr::new(address, port),
        holding,
        seed: message.seed,
        far: message.far,
    })
}

/// A vote on `subject` as a tracker names it, unless it is nonsense.
pub(crate) fn vote(subject: Digest, message: &proto::Vote) -> Option<Vote> {
    let statement = statement(message.statement.as_ref()?).ok()?;
    (statement.subject == subject && message.nodes > 0).then_some(Vote { statement, nodes: message.nodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_of_unknown_kinds_are_left_out_and_malformed_ones_refused() {
        let message = |kind: i32| proto::Statement { subject: vec![1; 32], kind, object: vec![2; 32], length: 1 };
        let profile = message(proto::StatementKind::Profile.into());
        let read = statements(&[message(99), profile.clone(), message(-1)]).unwrap();
        assert_eq!(read.iter().map(|statement| statement.kind).collect::<Vec<_>>(), [StatementKind::Profile]);
        for bad in [
            message(0),
            proto::Statement { length: 0, ..profile.clone() },
            proto::Statement { subject: vec![1; 31], ..profile },
        ] {
            assert!(statements(&[bad]).is_err());
        }
    }
}
