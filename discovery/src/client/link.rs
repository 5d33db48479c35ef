//! The connection to one tracker: a circuit breaker around it, and the task that keeps the tracker up to date.
//!
//! The task registers the node with a heartbeat, and then tells everything; again after any failure, and whenever the
//! tracker's replies carry another registration than before (it restarted, or forgot this node). A tracker that has many
//! nodes to hear names a pause: then what this node is pulling is told at once, and the full listing later
//! (`client/pace.rs`). Otherwise the task sends changes in small batches, and a heartbeat when there is nothing else to say.
//! While the circuit is open, calls fail at once; only the task tries, with growing pauses and within the budget of
//! `client/budget.rs`, and closes the circuit with the first answer.
//!
//! A tracker that owes an answer for a moment is not taken for dead: others are asked before it until it answers. The
//! circuit opens when a connection fails, or when a whole deadline passes without an answer to any call.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{DiscoveryError, Holding, Statement, StatementKind};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::budget::RetryBudget;
use super::held::Held;
use super::orders::KnownOrders;
use super::pace::Pace;
use super::{Shared, lock};
use crate::limits::{MAX_ENTRIES_PER_MESSAGE, MAX_REPLY_BYTES, MAX_STATEMENTS_PER_NODE, OVERDUE};
use crate::proto::tracker_service_client::TrackerServiceClient;
use crate::proto::{self, AnnounceRequest, HeartbeatRequest, StateRequest, SyncRequest};
use crate::registry::Registration;
use crate::wire;

/// What a tracker has yet to be told.
#[derive(Debug, Default)]
struct Pending {
    holdings: HashMap<Digest, Option<Holding>>,
    statements: HashMap<(StatementKind, Digest), Statement>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.holdings.is_empty() && self.statements.is_empty()
    }
}

#[derive(Debug)]
struct State {
    /// Why calls fail at once, while they do.
    open: Option<String>,
    /// When it answered last.
    answered_at: Option<Instant>,
    /// Everything must be told.
    resync: bool,
    /// What this node is pulling must be told before.
    tell_pulls: bool,
    pace: Pace,
    /// What the tracker called this node when it had last been told everything.
    registration: Option<Registration>,
    pending: Pending,
    /// Whether some of it is on its way.
    telling: bool,
}

/// One tracker.
pub(super) struct Link {
    /// As configured.
    pub(super) tracker: String,
    /// Whether it runs on this machine.
    pub(super) is_local: bool,
    client: TrackerServiceClient<Channel>,
    state: Mutex<State>,
    wake: Notify,
    /// Calls that it has owed an answer for longer than usual.
    overdue: AtomicUsize,
    orders: Mutex<KnownOrders>,
    budget: Arc<Mutex<RetryBudget>>,
}

/// Counts a call as overdue for as long as it lives.
struct Overdue<'a>(&'a AtomicUsize);

impl<'a> Overdue<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Overdue<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the task does next.
enum Step {
    Knock,
    TellAll,
    TellChanges,
    Rest { until: Instant },
}

impl Link {
    pub(super) fn new(
        tracker: String,
        is_local: bool,
        channel: Channel,
        budget: Arc<Mutex<RetryBudget>>,
        pace: Pace,
    ) -> Self {
        let client = TrackerServiceClient::new(channel).max_decoding_message_size(MAX_REPLY_BYTES);
        let state = State {
            open: None,
            answered_at: None,
            resync: true,
            tell_pulls: false,
            pace,
            registration: None,
            pending: Pending::default(),
            telling: false,
        };
        let (state, overdue, orders) = (Mutex::new(state), AtomicUsize::new(0), Mutex::default());
        Self { tracker, is_local, client, state, wake: Notify::new(), overdue, orders, budget }
    }

    pub(super) fn client(&self) -> TrackerServiceClient<Channel> {
        self.client.clone()
    }

    /// What is known of its orders.
    pub(super) fn orders(&self) -> MutexGuard<'_, KnownOrders> {
        lock(&self.orders)
    }

    /// Notes a change; the task sends it soon.
    pub(super) fn push_holding(&self, digest: Digest, holding: Option<Holding>) {
        self.state().pending.holdings.insert(digest, holding);
        self.wake.notify_one();
    }

    /// Notes a statement; the task sends it soon.
    pub(super) fn push_statement(&self, statement: Statement) {
        self.state().pending.statements.insert((statement.kind, statement.subject), statement);
        self.wake.notify_one();
    }

    /// Notes a right; the task sends it soon, unless the tracker is not there. It is soft: nothing is told again for its sake.
    pub(super) fn push_right(&self, right: Statement) {
        let mut state = self.state();
        if state.open.is_some() || state.pending.statements.len() >= MAX_STATEMENTS_PER_NODE {
            return;
        }
        state.pending.statements.insert((right.kind, right.subject), right);
        self.wake.notify_one();
    }

    /// Whether the tracker knows all that this node holds and states.
    pub(super) fn is_current(&self) -> bool {
        let state = self.state();
        state.open.is_none() && !state.resync && !state.telling && state.pending.is_empty()
    }

    /// The error of a call while the circuit is open.
    pub(super) fn check_open(&self) -> Result<(), DiscoveryError> {
        match &self.state().open {
            Some(reason) => Err(self.unreachable(reason.clone())),
            None => Ok(()),
        }
    }

    /// Whether it owes an answer.
    pub(super) fn is_overdue(&self) -> bool {
        self.overdue.load(Ordering::Relaxed) > 0
    }

    /// Whether an answer may be expected from it at once.
    pub(super) fn is_ready(&self) -> bool {
        self.check_open().is_ok() && !self.is_overdue()
    }

    /// Whether it has lost what it knew, so that others may know more.
    pub(super) fn is_forgetful(&self) -> bool {
        self.state().resync
    }

    /// Has the tracker told everything once more, for it to forget the rest.
    pub(super) fn tell_all_again(&self) {
        self.state().resync = true;
        self.wake.notify_one();
    }

    /// A reply carried this registration, and this pause.
    pub(super) fn observe(&self, registration: Registration, pause_ms: u32) {
        let mut state = self.state();
        state.pace.asked(Duration::from_millis(pause_ms.into()));
        let known = state.registration.replace(registration);
        if known == Some(registration) {
            return;
        }
        if known.is_some() && !state.resync {
            tracing::info!(tracker = self.tracker, "tracker has forgotten this node: telling it everything again");
        }
        state.resync = true;
        state.tell_pulls = state.pace.postpone_listing(Instant::now());
        self.wake.notify_one();
    }

    /// One call, which opens the circuit if the tracker does not answer.
    pub(super) async fn call<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, DiscoveryError> {
        let began = Instant::now();
        let mut call = pin!(call);
        let outcome = match timeout(OVERDUE.min(deadline), &mut call).await {
            Ok(outcome) => Ok(outcome),
            Err(_) => {
                let _overdue = Overdue::new(&self.overdue);
                timeout_at(began + deadline, call).await
            }
        };
        let reason = match outcome {
            Ok(Ok(response)) => {
                self.answered();
                return Ok(response.into_inner());
            }
            Ok(Err(status)) if is_refusal(status.code()) => {
                self.answered();
                let reason = format!("{} ({:?})", status.message(), status.code());
                return Err(DiscoveryError::Refused { tracker: self.tracker.clone(), reason });
            }
            Ok(Err(status)) => deepest(&status),
            Err(_) => format!("no answer within {deadline:?}"),
        };
        // Calls that began later were answered: it lives, and was unlucky with this one.
        if self.state().answered_at.is_none_or(|at| at < began) {
            self.open(&reason);
        }
        Err(self.unreachable(reason))
    }

    fn answered(&self) {
        let now = Instant::now();
        self.state().answered_at = Some(now);
        lock(&self.budget).answered(now);
    }

    /// Keeps the tracker up to date for as long as it is polled.
    pub(super) async fn keep(&self, shared: Arc<Shared>) {
        loop {
            self.note_pulls(&shared);
            let outcome = match self.next_step() {
                Step::Knock => self.beat(&shared).await,
                Step::TellAll => self.tell_all(&shared).await,
                Step::TellChanges => {
                    let batch = self.state().pace.batch();
                    sleep(batch).await;
                    self.tell_changes(&shared).await
                }
                Step::Rest { until } => tokio::select! {
                    () = self.wake.notified() => continue,
                    () = sleep_until(until) => {
                        if self.state().pace.heartbeat_at() > Instant::now() {
                            continue;
                        }
                        self.beat(&shared).await
                    }
                },
            };
            self.state().telling = false;
            let outcome = match outcome {
                Ok(()) => self.hear_orders(&shared).await,
                failed => failed,
            };
            match outcome {
                Ok(()) => self.was_told(),
                Err(error) => {
                    let wait = self.was_not_told(&error);
                    sleep(wait).await;
                }
            }
        }
    }

    /// Where the full listing has to wait, what this node is pulling is announced before.
    fn note_pulls(&self, shared: &Shared) {
        if !std::mem::take(&mut self.state().tell_pulls) {
            return;
        }
        let held = shared.held();
        let links = shared.links();
        let pulled = held.holdings.iter().filter(|(_, holding)| **holding == Holding::Partial);
        for (&digest, &holding) in pulled.filter(|(digest, _)| links.owns(&self.tracker, digest)) {
            self.push_holding(digest, Some(holding));
        }
    }

    /// The tracker answers: the circuit closes.
    fn was_told(&self) {
        let mut state = self.state();
        state.pace.told(Instant::now());
        if state.open.take().is_some() {
            tracing::info!(tracker = self.tracker, "tracker answers again");
        }
    }

    /// Returns how long to wait before it is tried again.
    fn was_not_told(&self, error: &DiscoveryError) -> Duration {
        tracing::debug!(tracker = self.tracker, %error, "tracker was not told");
        if matches!(error, DiscoveryError::Refused { .. }) {
            tracing::warn!(tracker = self.tracker, %error, "tracker refuses what this node announces");
        }
        let turn = lock(&self.budget).reserve(Instant::now());
        let mut state = self.state();
        state.resync = true;
        turn + state.pace.failed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn unreachable(&self, reason: String) -> DiscoveryError {
        DiscoveryError::Unreachable { tracker: self.tracker.clone(), reason }
    }

    fn next_step(&self) -> Step {
        let state = self.state();
        let (heartbeat_at, listing_at) = (state.pace.heartbeat_at(), state.pace.listing_at());
        if state.open.is_some() || state.registration.is_none() {
            Step::Knock
        } else if state.resync && listing_at <= Instant::now() {
            Step::TellAll
        } else if !state.pending.is_empty() {
            Step::TellChanges
        } else if state.resync {
            Step::Rest { until: heartbeat_at.min(listing_at) }
        } else {
            Step::Rest { until: heartbeat_at }
        }
    }

    fn open(&self, reason: &str) {
        let mut state = self.state();
        if state.open.is_none() {
            tracing::warn!(tracker = self.tracker, reason, "tracker does not answer: going on without it");
        }
        state.open = Some(reason.to_owned());
        state.resync = true;
        self.wake.notify_one();
    }

    async fn tell_all(&self, shared: &Shared) -> Result<(), DiscoveryError> {
        let listing = {
            let held = shared.held();
            let mut state = self.state();
            state.pending.holdings.clear();
            // Rights have no place in the listing, and are told after it.
            state.pending.statements.retain(|(kind, _), _| *kind == StatementKind::Right);
            state.resync = false;
            state.telling = true;
            let links = shared.links();
            listing(&held, &shared.caller, |digest| links.owns(&self.tracker, digest))
        };
        let call = async { self.client().sync(tokio_stream::iter(listing)).await };
        let reply = self.call(2 * shared.config.deadline, call).await?;
        let mut state = self.state();
        state.pace.asked(Duration::from_millis(reply.pause_ms.into()));
        // Whatever it was before, this is the one that was told everything.
        state.registration = Some(reply.registration);
        state.pace.listed(Instant::now());
        Ok(())
    }

    async fn tell_changes(&self, shared: &Shared) -> Result<(), DiscoveryError> {
        let pending = {
            let mut state = self.state();
            state.telling = true;
            std::mem::take(&mut state.pending)
        };
        let holdings: Vec<_> =
            pending.holdings.into_iter().map(|(digest, holding)| wire::holding_message(digest, holding)).collect();
        for chunk in holdings.chunks(MAX_ENTRIES_PER_MESSAGE) {
            let request = AnnounceRequest { caller: Some(shared.caller.clone()), holdings: chunk.to_vec() };
            let call = async { self.client().announce(request).await };
            let reply = self.call(shared.config.deadline, call).await?;
            self.observe(reply.registration, reply.pause_ms);
            self.orders().told(reply.registration, reply.latest_order);
        }
        let (rights, others): (Vec<&Statement>, Vec<&Statement>) =
            pending.statements.values().partition(|statement| statement.kind == StatementKind::Right);
        self.tell_statements(shared, &others).await?;
        match self.tell_statements(shared, &rights).await {
            Err(error @ DiscoveryError::Refused { .. }) => {
                tracing::debug!(tracker = self.tracker, %error, "tracker takes no rights; it may be too old");
                Ok(())
            }
            told => told,
        }
    }

    async fn tell_statements(&self, shared: &Shared, statements: &[&Statement]) -> Result<(), DiscoveryError> {
        for chunk in statements.chunks(MAX_ENTRIES_PER_MESSAGE) {
            let statements = chunk.iter().map(|statement| wire::statement_message(statement)).collect();
            let request = StateRequest { caller: Some(shared.caller.clone()), statements };
            let call = async { self.client().state(request).await };
            let reply = self.call(shared.config.deadline, call).await?;
            self.observe(reply.registration, reply.pause_ms);
        }
        Ok(())
    }

    async fn beat(&self, shared: &Shared) -> Result<(), DiscoveryError> {
        let request = HeartbeatRequest { caller: Some(shared.caller.clone()) };
        let call = async { self.client().heartbeat(request).await };
        let reply = self.call(shared.config.deadline, call).await?;
        self.observe(reply.registration, reply.pause_ms);
        self.orders().told(reply.registration, reply.latest_order);
        Ok(())
    }
}

/// Everything of digests that the tracker owns, in messages that are small enough; at least one.
fn listing(held: &Held, caller: &proto::Caller, owns: impl Fn(&Digest) -> bool) -> Vec<SyncRequest> {
    let whole = held.holdings.keys().all(&owns);
    let message = |holdings: Vec<proto::Holding>, statements: Vec<proto::Statement>| SyncRequest {
        caller: Some(caller.clone()),
        holdings,
        statements,
        whole,
    };
    let holdings = held.holdings.iter().filter(|(digest, _)| owns(digest));
    let holdings: Vec<_> = holdings.map(|(digest, holding)| wire::holding_message(*digest, Some(*holding))).collect();
    let statements = held.statements.values().filter(|statement| owns(&statement.subject));
    let statements: Vec<_> = statements.map(wire::statement_message).collect();
    let mut messages = vec![message(Vec::new(), Vec::new())];
    messages.extend(holdings.chunks(MAX_ENTRIES_PER_MESSAGE).map(|chunk| message(chunk.to_vec(), Vec::new())));
    messages.extend(statements.chunks(MAX_ENTRIES_PER_MESSAGE).map(|chunk| message(Vec::new(), chunk.to_vec())));
    messages
}

/// Codes by which a tracker that is well says no to what all nodes would be told. Who is no member of its cluster is told so by others:
/// that node has no tracker, and goes on as if there were none.
const fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::NotFound
    )
}

/// The cause at the bottom of an error: "Connection refused" rather than "transport error".
fn deepest(status: &Status) -> String {
    let mut error: &dyn std::error::Error = status;
    while let Some(source) = error.source() {
        error = source;
    }
    if std::ptr::addr_eq(error, status) {
        return format!("{} ({:?})", status.message(), status.code());
    }
    error.to_string()
}

/// Within a fifth of `period`.
pub(super) fn jittered(period: Duration) -> Duration {
    period.mul_f64(0.8 + 0.4 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;
    use crate::limits::HEARTBEAT;

    fn link() -> Link {
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let now = Instant::now();
        let budget = Arc::new(Mutex::new(RetryBudget::new(now)));
        Link::new("t:1".to_owned(), true, channel, budget, Pace::new(now, HEARTBEAT))
    }

    #[tokio::test]
    async fn a_slow_answer_is_taken_and_others_are_asked_first_until_it_comes() {
        let link = link();
        let (answer, answered) = tokio::sync::oneshot::channel();
        let slow = link.call(Duration::from_secs(600), async { Ok(answered.await.unwrap()) });
        let watch = async {
            assert!(link.is_ready());
            while !link.is_overdue() {
                sleep(OVERDUE / 10).await;
            }
            link.check_open().unwrap();
            answer.send(Response::new(())).unwrap();
        };
        tokio::join!(slow, watch).0.unwrap();
        assert!(link.is_ready());
    }

    #[tokio::test]
    async fn silence_for_a_deadline_opens_the_circuit_unless_others_were_answered() {
        let link = link();
        let silent = || link.call(Duration::from_millis(20), std::future::pending::<Result<Response<()>, Status>>());
        let quick = link.call(Duration::from_secs(600), async { Ok(Response::new(())) });
        let (silence, answer) = tokio::join!(silent(), quick);
        assert!(silence.is_err() && answer.is_ok());
        assert!(link.is_ready(), "it lives");
        silent().await.unwrap_err();
        assert!(link.check_open().unwrap_err().to_string().contains("no answer within 20ms"));
    }
}
