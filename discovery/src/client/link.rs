//! The connection to one tracker: a circuit breaker around it, and the task that keeps the tracker up to date.
//!
//! The task tells everything when it starts, after any failure, and whenever the tracker's replies carry another
//! registration than before (it restarted, or forgot this node). Otherwise it sends changes in small batches, and a
//! heartbeat when there is nothing else to say. While the circuit is open, calls fail at once; only the task tries, with
//! growing pauses, and closes the circuit after the tracker has been told everything.
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
use super::{Shared, lock};
use crate::limits::{
    ANNOUNCE_BATCH, BACKOFF_MAX, BACKOFF_MIN, MAX_ENTRIES_PER_MESSAGE, MAX_REPLY_BYTES, MIN_SYNC_INTERVAL, OVERDUE,
};
use crate::proto::tracker_service_client::TrackerServiceClient;
use crate::proto::{self, AnnounceRequest, HeartbeatRequest, StateRequest, SyncRequest};
use crate::registry::Registration;
use crate::wire;

/// What this node holds and states.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) holdings: HashMap<Digest, Holding>,
    pub(super) statements: HashMap<(StatementKind, Digest), Statement>,
}

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
    TellAll,
    TellChanges,
    Rest,
}

impl Link {
    pub(super) fn new(tracker: String, is_local: bool, channel: Channel, budget: Arc<Mutex<RetryBudget>>) -> Self {
        let client = TrackerServiceClient::new(channel).max_decoding_message_size(MAX_REPLY_BYTES);
        let state = State {
            open: None,
            answered_at: None,
            resync: true,
            registration: None,
            pending: Pending::default(),
            telling: false,
        };
        let (state, overdue) = (Mutex::new(state), AtomicUsize::new(0));
        Self { tracker, is_local, client, state, wake: Notify::new(), overdue, budget }
    }

    pub(super) fn client(&self) -> TrackerServiceClient<Channel> {
        self.client.clone()
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

    /// A reply carried this registration.
    pub(super) fn observe(&self, registration: Registration) {
        let mut state = self.state();
        if state.registration.is_some_and(|known| known != registration) && !state.resync {
            tracing::info!(tracker = self.tracker, "tracker has forgotten this node: telling it everything again");
            state.resync = true;
            self.wake.notify_one();
        }
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
        let mut backoff = BACKOFF_MIN;
        let mut heartbeat_at = Instant::now();
        let mut may_tell_all_at = Instant::now();
        loop {
            let outcome = match self.next_step() {
                Step::TellAll => {
                    if self.state().open.is_some() {
                        let turn = lock(&self.budget).reserve(Instant::now());
                        sleep(turn + backoff.mul_f64(fastrand::f64())).await;
                    }
                    // Two nodes with one key would otherwise make each other tell everything all the time.
                    sleep_until(may_tell_all_at).await;
                    may_tell_all_at = Instant::now() + MIN_SYNC_INTERVAL;
                    self.tell_all(&shared).await
                }
                Step::TellChanges => {
                    sleep(ANNOUNCE_BATCH + ANNOUNCE_BATCH.mul_f64(fastrand::f64())).await;
                    self.tell_changes(&shared).await
                }
                Step::Rest => tokio::select! {
                    () = self.wake.notified() => continue,
                    () = sleep_until(heartbeat_at) => self.beat(&shared).await,
                },
            };
            self.state().telling = false;
            match outcome {
                Ok(()) => {
                    backoff = BACKOFF_MIN;
                    heartbeat_at = Instant::now() + jittered(shared.config.heartbeat);
                }
                Err(error) => {
                    tracing::debug!(tracker = self.tracker, %error, "tracker was not told");
                    if matches!(error, DiscoveryError::Refused { .. }) {
                        tracing::warn!(tracker = self.tracker, %error, "tracker refuses what this node announces");
                        sleep(jittered(backoff)).await;
                    }
                    self.state().resync = true;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn unreachable(&self, reason: String) -> DiscoveryError {
        DiscoveryError::Unreachable { tracker: self.tracker.clone(), reason }
    }

    fn next_step(&self) -> Step {
        let state = self.state();
        if state.resync {
            Step::TellAll
        } else if !state.pending.is_empty() {
            Step::TellChanges
        } else {
            Step::Rest
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
            state.pending = Pending::default();
            state.resync = false;
            state.telling = true;
            let links = shared.links();
            listing(&held, &shared.caller, |digest| links.owns(&self.tracker, digest))
        };
        let call = async { self.client().sync(tokio_stream::iter(listing)).await };
        let registration = self.call(2 * shared.config.deadline, call).await?.registration;
        let mut state = self.state();
        state.registration = Some(registration);
        if state.open.take().is_some() {
            tracing::info!(tracker = self.tracker, "tracker answers again and has been told everything");
        }
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
            self.observe(self.call(shared.config.deadline, call).await?.registration);
        }
        let statements: Vec<_> = pending.statements.values().map(wire::statement_message).collect();
        for chunk in statements.chunks(MAX_ENTRIES_PER_MESSAGE) {
            let request = StateRequest { caller: Some(shared.caller.clone()), statements: chunk.to_vec() };
            let call = async { self.client().state(request).await };
            self.observe(self.call(shared.config.deadline, call).await?.registration);
        }
        Ok(())
    }

    async fn beat(&self, shared: &Shared) -> Result<(), DiscoveryError> {
        let request = HeartbeatRequest { caller: Some(shared.caller.clone()) };
        let call = async { self.client().heartbeat(request).await };
        self.observe(self.call(shared.config.deadline, call).await?.registration);
        Ok(())
    }
}

/// Everything of digests that the tracker owns, in messages that are small enough; at least one.
fn listing(held: &Held, caller: &proto::Caller, owns: impl Fn(&Digest) -> bool) -> Vec<SyncRequest> {
    let message = |holdings: Vec<proto::Holding>, statements: Vec<proto::Statement>| SyncRequest {
        caller: Some(caller.clone()),
        holdings,
        statements,
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

/// Codes by which a tracker that is well says no.
const fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
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

    fn link() -> Link {
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        Link::new("t:1".to_owned(), true, channel, Arc::new(Mutex::new(RetryBudget::new(Instant::now()))))
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
