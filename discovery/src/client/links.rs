//! The trackers in use: a link to each, the task that keeps it up to date, and what moves when the set changes.

use std::collections::HashMap;
use std::sync::Arc;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::membership::Role;
use lapwing_p2p::tls::Expected;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::held::Held;
use super::link::Link;
use super::owners::{Move, Ring};
use super::pace::Pace;
use super::{InvalidConfig, Shared, config};
use crate::{proto, transport};

/// A set of trackers; never changed, but replaced by another.
#[derive(Default)]
pub(super) struct Links {
    ring: Ring,
    pub(super) all: Vec<Arc<Link>>,
}

impl Links {
    fn new(all: Vec<Arc<Link>>) -> Self {
        Self { ring: Ring::new(all.iter().map(|link| link.tracker.clone()).collect()), all }
    }

    /// All of them, in the configured order.
    pub(super) fn all(&self) -> &[Arc<Link>] {
        &self.all
    }

    /// All of them, in the order in which they are to be asked about `digest`.
    pub(super) fn order(&self, digest: &Digest) -> Vec<Arc<Link>> {
        self.ring.order(digest).into_iter().map(|place| Arc::clone(&self.all[place])).collect()
    }

    /// Those that are told of `digest`.
    pub(super) fn owners(&self, digest: &Digest) -> impl Iterator<Item = &Arc<Link>> {
        self.ring.owners(digest).into_iter().map(|place| &self.all[place])
    }

    /// Whether `tracker` is told of `digest`.
    pub(super) fn owns(&self, tracker: &str, digest: &Digest) -> bool {
        self.ring.owns(tracker, digest)
    }

    fn named(&self, tracker: &str) -> Option<&Arc<Link>> {
        self.all.iter().find(|link| link.tracker == tracker)
    }

    /// Notes for the trackers of this set and of the former one what changed its owner.
    fn hand_over(&self, former: &Self, held: &Held) {
        for (&digest, &holding) in &held.holdings {
            for (name, change) in self.ring.changes(&former.ring, &digest) {
                // Who is new is told everything in any case, and who is left out forgets everything.
                if let (Some(link), Some(_)) = (self.named(name), former.named(name)) {
                    link.push_holding(digest, (change == Move::Announce).then_some(holding));
                }
            }
        }
        for statement in held.statements.values() {
            for (name, change) in self.ring.changes(&former.ring, &statement.subject) {
                // A statement cannot be taken back: its old owner keeps it until the next full listing.
                if let (Some(link), Some(_), Move::Announce) = (self.named(name), former.named(name), change) {
                    link.push_statement(*statement);
                }
            }
        }
    }
}

/// The tasks of a client. Those that are dropped end.
#[derive(Default)]
pub(super) struct Tasks {
    /// By tracker.
    links: HashMap<String, JoinHandle<()>>,
    watching: Option<JoinHandle<()>>,
    ended: bool,
}

impl Tasks {
    /// Keeps the task that follows where trackers are named.
    pub(super) fn watch(&mut self, task: JoinHandle<()>) {
        self.watching = Some(task);
    }

    /// Ends all, for good.
    pub(super) fn end_all(&mut self) {
        self.ended = true;
        self.watching.iter().for_each(JoinHandle::abort);
        self.links.drain().for_each(|(_, task)| task.abort());
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.end_all();
    }
}

impl Shared {
    /// Uses these trackers from now on. Those that were in use stay connected; what changed its owner is announced to the
    /// new one and withdrawn from the old one.
    pub(super) fn use_trackers(self: &Arc<Self>, trackers: &[String]) -> Result<(), InvalidConfig> {
        let (former, next) = {
            let held = self.held();
            let former = self.links();
            let next = Arc::new(Links::new(self.linked(trackers, &former)?));
            if next.ring == former.ring {
                return Ok(());
            }
            next.hand_over(&former, &held);
            *super::lock(&self.links) = Arc::clone(&next);
            (former, next)
        };
        let mut tasks = super::lock(&self.tasks);
        if tasks.ended {
            return Ok(());
        }
        for link in next.all().iter().filter(|link| former.named(&link.tracker).is_none()) {
            tracing::info!(tracker = link.tracker, "tracker is used");
            let (link, shared) = (Arc::clone(link), Arc::clone(self));
            let name = link.tracker.clone();
            tasks.links.insert(name, tokio::spawn(async move { link.keep(shared).await }));
        }
        for link in former.all().iter().filter(|link| next.named(&link.tracker).is_none()) {
            tracing::info!(tracker = link.tracker, "tracker is used no longer");
            if let Some(task) = tasks.links.remove(&link.tracker) {
                task.abort();
            }
            let (link, shared) = (Arc::clone(link), Arc::clone(self));
            tokio::spawn(async move {
                if let Err(error) = shared.leave(&link).await {
                    tracing::debug!(%error, "a tracker that is used no longer was not told");
                }
            });
        }
        Ok(())
    }

    /// Links to `trackers`, without any twice; those that are there already are kept.
    fn linked(&self, trackers: &[String], former: &Links) -> Result<Vec<Arc<Link>>, InvalidConfig> {
        let mut links: Vec<Arc<Link>> = Vec::new();
        for tracker in trackers {
            if links.iter().any(|link| link.tracker == *tracker) {
                continue;
            }
            links.push(match former.named(tracker) {
                Some(link) => Arc::clone(link),
                None => {
                    let (endpoint, is_local) = config::endpoint(tracker)?;
                    let budget = Arc::clone(&self.budget);
                    let pace = Pace::new(Instant::now(), self.config.heartbeat);
                    let tls = self.config.tls.as_ref();
                    let channel = transport::channel(&endpoint, tls, Expected::Role(Role::Tracker));
                    Arc::new(Link::new(tracker.clone(), is_local, channel, budget, pace))
                }
            });
        }
        Ok(links)
    }

    /// Takes this node off one tracker's list.
    pub(super) async fn leave(&self, link: &Link) -> Result<(), lapwing_p2p::discovery::DiscoveryError> {
        link.check_open()?;
        let request = proto::LeaveRequest { caller: Some(self.caller.clone()) };
        link.call(self.config.deadline, async { link.client().leave(request).await }).await.map(drop)
    }
}
