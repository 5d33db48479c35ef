//! When each agent was heard from, and for whom a word is due at the registry. Pure: no sockets, no clock.

use std::collections::HashMap;
use std::time::Duration;

use lapwing_p2p::identity::PeerId;

use crate::limits::{AGENT_REFRESH, AGENT_TTL};
use crate::registry::Caller;

/// The agents that the registry took. It bounds how many.
#[derive(Debug, Default)]
pub(super) struct Agents {
    known: HashMap<PeerId, Agent>,
}

#[derive(Debug)]
struct Agent {
    caller: Caller,
    heard: Duration,
    /// When the registry was last told that it lives.
    refreshed: Duration,
}

/// What is to be told to the registry.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) alive: Vec<Caller>,
    pub(super) silent: Vec<Caller>,
}

impl Agents {
    /// The registry took a call of `caller`.
    pub(super) fn heard(&mut self, now: Duration, caller: Caller) {
        self.known.insert(caller.node, Agent { caller, heard: now, refreshed: now });
    }

    /// Forgets those that are silent for too long; each of the others is due from time to time.
    pub(super) fn tick(&mut self, now: Duration) -> Due {
        let mut due = Due::default();
        self.known.retain(|_, agent| {
            if now.saturating_sub(agent.heard) >= AGENT_TTL {
                due.silent.push(agent.caller.clone());
                return false;
            }
            if now.saturating_sub(agent.refreshed) >= AGENT_REFRESH {
                agent.refreshed = now;
                due.alive.push(agent.caller.clone());
            }
            true
        });
        due
    }
}
