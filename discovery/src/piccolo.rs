//! Piccolo's agents ("Pi") as nodes of this tracker, so that a cluster that runs Piccolo can exchange its server first.
//!
//! Format: <https://github.com/laixintao/piccolo>, v0.0.36, `pkg/distributionapi` (the server) and `pkg/sd` (the agent).
//! An agent is known by its group and by the address that it announces, which must be that of its connection; what it
//! announces are keys: digests, and the names of tags. Agents serve each other by HTTP and do not know the piece wire, so
//! they live in groups of their own, by names that no gRPC caller can use ([`group_name`]): no agent is ever named to a
//! node, and no node to an agent.
//!
//! * [`Piccolo`]: the calls, and who is silent; `piccolo/agents.rs` is the pure part of that
//! * `piccolo/message.rs`: requests and answers; `piccolo/http.rs`: [`router`], which answers them
//!
//! Agents are heard from every ten minutes, where nodes are heard from every fifteen seconds: this module speaks for an
//! agent to the registry for as long as Piccolo's own server would have believed in it ([`AGENT_TTL`]). A tracker that
//! restarts goes on with the agents and keys of its file; what is not in there it knows again when an agent sends all of its
//! keys the next time, as agents do periodically.
//!
//! [`AGENT_TTL`]: crate::limits::AGENT_TTL

mod agents;
mod http;
mod message;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;

use self::agents::Agents;
pub use self::http::{keep_time, router};
use self::message::{Advertisement, Question, Sign};
use crate::limits::{MAX_AGENTS_PER_LOCK, MAX_PICCOLO_HOLDERS};
use crate::registry::{Caller, Place, Refusal};
use crate::server::Tracker;
use crate::wire;

/// How the names of groups of agents begin: no name that a gRPC caller may give does.
pub(crate) const AGENTS: &str = "piccolo:";

/// What a group of agents is called among the tracker's groups.
pub fn group_name(group: &str) -> String {
    format!("{AGENTS}{group}")
}

/// A request that was not carried out, and changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum PiccoloError {
    #[error("{0}")]
    Group(String),
    #[error("{0:?} is not address:port, as an agent's --pi-listen-addr must be")]
    NoAddress(String),
    #[error(
        "{announced} was announced from {seen}: an agent is known by the address it calls from; start it with \
         --pi-listen-addr {seen}:{}", announced.port()
    )]
    Elsewhere { announced: SocketAddr, seen: IpAddr },
    #[error("No operation needed")]
    NoKeys,
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// The calls of Piccolo's agents, on a tracker. Clones are the same.
#[derive(Debug, Clone)]
pub struct Piccolo {
    tracker: Tracker,
    agents: Arc<Mutex<Agents>>,
}

impl Piccolo {
    /// On this tracker. Agents that it knows from its last life count as heard from now.
    pub fn new(tracker: Tracker) -> Self {
        let mut agents = Agents::default();
        let now = tracker.now();
        for caller in tracker.registry().callers_in(AGENTS) {
            agents.heard(now, caller);
        }
        Self { tracker, agents: Arc::new(Mutex::new(agents)) }
    }

    /// Keeps those agents in the registry that are not silent, and takes the others out; [`serve`] does it once a second.
    pub fn tick(&self) {
        let due = self.agents().tick(self.tracker.now());
        for callers in due.alive.chunks(MAX_AGENTS_PER_LOCK) {
            let now = self.tracker.now();
            let mut registry = self.tracker.registry();
            for caller in callers {
                if let Err(refusal) = registry.heartbeat(now, caller) {
                    tracing::debug!(agent = %caller.place.address, %refusal, "an agent is not kept");
                }
            }
        }
        for caller in &due.silent {
            tracing::debug!(agent = %caller.place.address, "an agent fell silent");
            self.tracker.registry().leave(caller);
        }
    }

    fn keepalive(&self, remote: IpAddr, sign: &Sign) -> Result<(), PiccoloError> {
        let caller = agent(&sign.group, &sign.host, remote)?;
        let now = self.tracker.now();
        self.tracker.registry().heartbeat(now, &caller)?;
        self.agents().heard(now, caller);
        Ok(())
    }

    fn advertise(&self, remote: IpAddr, advertisement: &Advertisement) -> Result<(), PiccoloError> {
        let caller = agent(&advertisement.group, &advertisement.holder, remote)?;
        let keys = &advertisement.keys.0;
        if keys.is_empty() {
            return Err(PiccoloError::NoKeys);
        }
        let holdings: Vec<_> = keys.iter().map(|key| (*key, Some(Holding::Complete))).collect();
        let now = self.tracker.now();
        self.tracker.registry().announce(now, &caller, &holdings)?;
        self.agents().heard(now, caller);
        Ok(())
    }

    fn sync(&self, remote: IpAddr, advertisement: &Advertisement) -> Result<(), PiccoloError> {
        let caller = agent(&advertisement.group, &advertisement.holder, remote)?;
        let holdings: Vec<_> = advertisement.keys.0.iter().map(|key| (*key, Holding::Complete)).collect();
        let now = self.tracker.now();
        self.tracker.registry().sync(now, &caller, &holdings, &[])?;
        self.agents().heard(now, caller);
        Ok(())
    }

    /// The agents that have what `question` asks for, nearest to the asker first.
    fn find_key(&self, remote: IpAddr, question: &Question) -> Result<Vec<SocketAddr>, PiccoloError> {
        wire::check_group(&question.group).map_err(PiccoloError::Group)?;
        let count = usize::try_from(question.count).ok().filter(|count| *count > 0);
        let limit = count.unwrap_or(MAX_PICCOLO_HOLDERS).min(MAX_PICCOLO_HOLDERS);
        let from = Place { zone: "".into(), rack: "".into(), address: remote };
        let now = self.tracker.now();
        let group = group_name(&question.group);
        Ok(self.tracker.registry().nearest(now, &group, key_digest(&question.key), &from, limit))
    }

    fn agents(&self) -> MutexGuard<'_, Agents> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands in the place of a blob's digest for `key`: the digest that it is, or else the hash of its text, which is
/// no digest of any blob.
fn key_digest(key: &str) -> Digest {
    key.parse().unwrap_or_else(|_| Digest::of(format!("piccolo key\0{key}").as_bytes()))
}

/// The agent that says it listens at `announced`.
fn agent(group: &str, announced: &str, remote: IpAddr) -> Result<Caller, PiccoloError> {
    wire::check_group(group).map_err(PiccoloError::Group)?;
    let no_address = || PiccoloError::NoAddress(announced.chars().take(64).collect());
    let listens: SocketAddr = announced.parse().map_err(|_| no_address())?;
    let listens = SocketAddr::new(listens.ip().to_canonical(), listens.port());
    if listens.port() == 0 {
        return Err(no_address());
    }
    if listens.ip() != remote {
        return Err(PiccoloError::Elsewhere { announced: listens, seen: remote });
    }
    let name = Digest::of(format!("piccolo agent\0{group}\0{listens}").as_bytes());
    Ok(Caller {
        node: PeerId::from_bytes(*name.as_bytes()),
        instance: 0,
        group: group_name(group),
        place: Place { zone: "".into(), rack: "".into(), address: remote },
        port: listens.port(),
        seed: false,
        seed_port: 0,
        reached_at: remote,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_grpc_caller_can_be_in_a_group_of_agents() {
        assert!(wire::check_group(&group_name("default")).is_err());
    }

    #[test]
    fn a_tag_is_a_key_of_its_own_and_a_digest_is_itself() {
        let digest = Digest::of(b"layer");
        assert_eq!(key_digest(&digest.to_string()), digest);
        assert_ne!(key_digest("reg.example/app:1"), key_digest("reg.example/app:2"));
    }

    #[test]
    fn an_agent_is_who_calls() {
        let remote = "10.0.0.5".parse().unwrap();
        let caller = agent("g", "10.0.0.5:5201", remote).unwrap();
        assert_eq!((caller.port, caller.place.address), (5201, remote));
        assert_eq!(agent("g", "10.0.0.5:5201", remote).unwrap().node, caller.node, "over restarts of the tracker, too");
        assert_ne!(agent("h", "10.0.0.5:5201", remote).unwrap().node, caller.node);
        assert_eq!(agent("g", "[::ffff:10.0.0.5]:5201", remote).unwrap().node, caller.node);
        let error = agent("g", "10.0.0.6:5201", remote).unwrap_err().to_string();
        assert!(error.contains("--pi-listen-addr 10.0.0.5:5201"), "{error}");
        for (group, announced) in [("", "10.0.0.5:1"), ("a:b", "10.0.0.5:1"), ("g", "host:1"), ("g", "10.0.0.5:0")] {
            assert!(agent(group, announced, remote).is_err(), "{group} {announced}");
        }
    }
}
