//! The calls: check the message, take the addresses from the connection, ask the registry.

use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{LeaseReply, LeaseRequest, Replicas};
use lapwing_p2p::layout::PieceLayout;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Tracker;
use crate::limits::{CALL_TIMEOUT, MAX_BLOBS_PER_NODE, MAX_STATEMENTS_PER_NODE, MAX_SYNC_MESSAGES};
use crate::proto::tracker_service_server::TrackerService;
use crate::proto::{self, SyncRequest};
use crate::registry::{Caller, Refusal, Registry};
use crate::transport::Arrival;
use crate::{traced, wire};

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::Full { .. } | Refusal::TooMany { .. } => Code::ResourceExhausted,
            Refusal::Settlement(_) => Code::InvalidArgument,
        };
        Self::new(code, refusal.to_string())
    }
}

/// Replies that can carry a pause.
trait Paced {
    fn paced(self, pause: Duration) -> Self;
}

macro_rules! paced {
    ($($reply:ident),*) => {
        $(impl Paced for proto::$reply {
            fn paced(self, pause: Duration) -> Self {
                Self { pause_ms: u32::try_from(pause.as_millis()).unwrap_or(u32::MAX), ..self }
            }
        })*
    };
}

paced!(AnnounceReply, SyncReply, FindReply, ReplicasReply, SeedsReply, LeaseReply, SettleReply, StateReply);
paced!(HeartbeatReply, ReportReply, OrderReply, OrdersReply, FailOrderReply, TellTrialReply, TrialReportsReply);

impl Paced for proto::LeaveReply {
    fn paced(self, _: Duration) -> Self {
        self
    }
}

/// What answering a call is called in traces.
fn name_of(method: &'static str) -> &'static str {
    match method {
        "find" => "tracker.find",
        "lease" => "tracker.lease",
        _ => "tracker.call",
    }
}

impl Tracker {
    /// Counts the outcome of a call.
    fn counted<T>(&self, method: &'static str, outcome: Result<T, Status>) -> Result<Response<T>, Status> {
        let code = outcome.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.metrics.count_call(method, code);
        outcome.map(Response::new)
    }

    /// Carries out one call: `read` checks the message, then `act` runs under the lock. The reply says how far the caller is to
    /// slow down.
    fn call<T, P, R: Paced>(
        &self,
        method: &'static str,
        request: Request<T>,
        read: impl FnOnce(T) -> Result<(Option<proto::Caller>, P), Status>,
        act: impl FnOnce(&mut Registry, Duration, &Caller, P) -> Result<R, Refusal>,
    ) -> Result<Response<R>, Status> {
        let mut span = traced::answer(name_of(method), &request);
        let outcome = Arrival::of(&request).and_then(|arrival| {
            let (caller, parameters) = read(request.into_inner())?;
            let caller = wire::caller(caller, &arrival)?;
            span.say("lapwing.peer", &caller.node);
            Ok(self.act_paced(&caller, parameters, act)?)
        });
        traced::outcome(&mut span, &outcome);
        self.counted(method, outcome)
    }

    /// The same, after `learn` has looked up what the shared store knows of it.
    async fn call_shared<T, P, R: Paced>(
        &self,
        method: &'static str,
        request: Request<T>,
        read: impl FnOnce(T) -> Result<(Option<proto::Caller>, P), Status>,
        learn: impl AsyncFnOnce(&str, &P),
        act: impl FnOnce(&mut Registry, Duration, &Caller, P) -> Result<R, Refusal>,
    ) -> Result<Response<R>, Status> {
        let mut span = traced::answer(name_of(method), &request);
        let checked = Arrival::of(&request).and_then(|arrival| {
            let (caller, parameters) = read(request.into_inner())?;
            Ok((wire::caller(caller, &arrival)?, parameters))
        });
        let outcome = match checked {
            Ok((caller, parameters)) => {
                span.say("lapwing.peer", &caller.node);
                learn(&caller.group, &parameters).await;
                self.act_paced(&caller, parameters, act).map_err(Status::from)
            }
            Err(refused) => Err(refused),
        };
        traced::outcome(&mut span, &outcome);
        self.counted(method, outcome)
    }

    fn act_paced<P, R: Paced>(
        &self,
        caller: &Caller,
        parameters: P,
        act: impl FnOnce(&mut Registry, Duration, &Caller, P) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        let (reply, newcomer) = self.act(caller, parameters, act)?;
        Ok(reply.paced(self.load().called((self.clock)(), newcomer)))
    }

    /// Does something in a caller's name; says as well whether the caller was not known before.
    pub(crate) fn act<P, R>(
        &self,
        caller: &Caller,
        parameters: P,
        act: impl FnOnce(&mut Registry, Duration, &Caller, P) -> Result<R, Refusal>,
    ) -> Result<(R, bool), Refusal> {
        let mut registry = self.registry();
        let now = (self.clock)();
        let before = registry.registrations();
        let reply = act(&mut registry, now, caller, parameters)?;
        if let Some(shared) = &self.shared {
            shared.heard(caller);
        }
        Ok((reply, registry.registrations() != before))
    }

    async fn read_sync(&self, request: Request<Streaming<SyncRequest>>) -> Result<proto::SyncReply, Status> {
        let arrival = Arrival::of(&request)?;
        let mut stream = request.into_inner();
        let (mut caller, mut holdings, mut statements, mut whole) = (None, Vec::new(), Vec::new(), false);
        let mut messages = 0;
        while let Some(message) = stream.message().await? {
            messages += 1;
            if messages > MAX_SYNC_MESSAGES {
                return Err(Status::resource_exhausted(format!("sync: more than {MAX_SYNC_MESSAGES} messages")));
            }
            let named = wire::caller(message.caller, &arrival)?;
            if caller.get_or_insert_with(|| named.clone()) != &named {
                return Err(Status::invalid_argument("sync: the caller changed within the stream"));
            }
            for (digest, holding) in wire::holdings(&message.holdings)? {
                let holding =
                    holding.ok_or_else(|| Status::invalid_argument("sync: GONE has no place in a listing"))?;
                holdings.push((digest, holding));
            }
            whole |= message.whole;
            statements.extend(wire::statements(&message.statements)?);
            if holdings.len() > MAX_BLOBS_PER_NODE || statements.len() > MAX_STATEMENTS_PER_NODE {
                let text = format!(
                    "sync: a node has at most {MAX_BLOBS_PER_NODE} blobs and {MAX_STATEMENTS_PER_NODE} statements"
                );
                return Err(Status::resource_exhausted(text));
            }
        }
        let caller = caller.ok_or_else(|| Status::invalid_argument("sync: no message came"))?;
        let reply = self.act(&caller, (), |registry, now, caller, ()| {
            let registration = registry.sync(now, caller, &holdings, &statements)?;
            if let Some(shared) = &self.shared {
                shared.synced(caller, whole);
            }
            Ok(registration)
        });
        let registration = reply?.0;
        // Who has just told everything need not do it again, even where it came unannounced.
        let pause = self.load().called((self.clock)(), false);
        Ok(proto::SyncReply { registration, pause_ms: 0 }.paced(pause))
    }
}

#[tonic::async_trait]
impl TrackerService for Tracker {
    async fn announce(
        &self,
        request: Request<proto::AnnounceRequest>,
    ) -> Result<Response<proto::AnnounceReply>, Status> {
        let read = |message: proto::AnnounceRequest| Ok((message.caller, wire::holdings(&message.holdings)?));
        self.call("announce", request, read, |registry, now, caller, holdings| {
            let registration = registry.announce(now, caller, &holdings)?;
            if let Some(shared) = &self.shared {
                shared.announced(caller, &holdings);
            }
            Ok(proto::AnnounceReply { registration, pause_ms: 0, latest_order: registry.latest_order(&caller.group) })
        })
    }

    async fn sync(&self, request: Request<Streaming<SyncRequest>>) -> Result<Response<proto::SyncReply>, Status> {
        let outcome = tokio::time::timeout(CALL_TIMEOUT, self.read_sync(request)).await;
        let late = |_| Err(Status::deadline_exceeded(format!("sync: the listing took more than {CALL_TIMEOUT:?}")));
        self.counted("sync", outcome.unwrap_or_else(late))
    }

    async fn find(&self, request: Request<proto::FindRequest>) -> Result<Response<proto::FindReply>, Status> {
        let read = |message: proto::FindRequest| Ok((message.caller, wire::digest("digest", &message.digest)?));
        let settling = self.load().is_settling((self.clock)());
        let learn = async |group: &str, digest: &Digest| self.learn_holders(group, *digest).await;
        self.call_shared("find", request, read, learn, |registry, now, caller, digest| {
            let (registration, found) = registry.find(now, caller, digest)?;
            Ok(proto::FindReply { settling, ..wire::find_reply(registration, &found) })
        })
        .await
    }

    async fn replicas(
        &self,
        request: Request<proto::ReplicasRequest>,
    ) -> Result<Response<proto::ReplicasReply>, Status> {
        let read = |message: proto::ReplicasRequest| Ok((message.caller, wire::digests("digests", &message.digests)?));
        let learn = async |group: &str, digests: &Vec<Digest>| self.learn_copies(group, digests).await;
        self.call_shared("replicas", request, read, learn, |registry, now, caller, digests| {
            let (registration, counts) = registry.replicas(now, caller, &digests)?;
            let count = |replicas: Replicas| proto::ReplicaCount { zone: replicas.zone, all: replicas.all };
            Ok(proto::ReplicasReply { registration, pause_ms: 0, counts: counts.into_iter().map(count).collect() })
        })
        .await
    }

    async fn seeds(&self, request: Request<proto::SeedsRequest>) -> Result<Response<proto::SeedsReply>, Status> {
        let read = |message: proto::SeedsRequest| Ok((message.caller, ()));
        let learn = async |group: &str, (): &()| self.learn_seeds(group).await;
        self.call_shared("seeds", request, read, learn, |registry, now, caller, ()| {
            let (registration, seeds) = registry.seeds(now, caller)?;
            Ok(wire::seeds_reply(registration, &seeds))
        })
        .await
    }

    async fn lease(&self, request: Request<proto::LeaseRequest>) -> Result<Response<proto::LeaseReply>, Status> {
        let read = |mut message: proto::LeaseRequest| Ok((message.caller.take(), wire::lease::request(&message)?));
        let learn = async |group: &str, (request, _): &(LeaseRequest, PieceLayout)| {
            self.learn_holders(group, request.digest).await;
        };
        self.call_shared("lease", request, read, learn, |registry, now, caller, (request, layout)| {
            let (registration, reply) = registry.lease(now, caller, &request, layout)?;
            if matches!(reply, LeaseReply::Granted(_)) {
                self.metrics.leases_granted.inc();
            }
            Ok(wire::lease::reply_message(registration, &reply))
        })
        .await
    }

    async fn settle(&self, request: Request<proto::SettleRequest>) -> Result<Response<proto::SettleReply>, Status> {
        let read = |mut message: proto::SettleRequest| Ok((message.caller.take(), wire::lease::settlement(&message)?));
        self.call("settle", request, read, |registry, now, caller, settlement| {
            Ok(proto::SettleReply { registration: registry.settle(now, caller, settlement)?, pause_ms: 0 })
        })
    }

    async fn state(&self, request: Request<proto::StateRequest>) -> Result<Response<proto::StateReply>, Status> {
        let read = |message: proto::StateRequest| Ok((message.caller, wire::statements(&message.statements)?));
        self.call("state", request, read, |registry, now, caller, statements| {
            Ok(proto::StateReply { registration: registry.state(now, caller, &statements)?, pause_ms: 0 })
        })
    }

    async fn heartbeat(
        &self,
        request: Request<proto::HeartbeatRequest>,
    ) -> Result<Response<proto::HeartbeatReply>, Status> {
        let read = |message: proto::HeartbeatRequest| Ok((message.caller, ()));
        self.call("heartbeat", request, read, |registry, now, caller, ()| {
            let registration = registry.heartbeat(now, caller)?;
            Ok(proto::HeartbeatReply { registration, pause_ms: 0, latest_order: registry.latest_order(&caller.group) })
        })
    }

    async fn order(&self, request: Request<proto::OrderRequest>) -> Result<Response<proto::OrderReply>, Status> {
        let read = |mut message: proto::OrderRequest| Ok((message.caller.take(), wire::order_request(&message)?));
        self.call("order", request, read, |registry, now, caller, request| {
            let (registration, stand) = registry.order(now, caller, request)?;
            Ok(wire::order_reply(registration, stand))
        })
    }

    async fn orders(&self, request: Request<proto::OrdersRequest>) -> Result<Response<proto::OrdersReply>, Status> {
        let read = |message: proto::OrdersRequest| Ok((message.caller, message.after));
        self.call("orders", request, read, |registry, now, caller, after| {
            let (registration, orders, reaches) = registry.orders(now, caller, after)?;
            let orders = orders.iter().map(wire::ordered_blob).collect();
            Ok(proto::OrdersReply { registration, pause_ms: 0, orders, reaches })
        })
    }

    async fn fail_order(
        &self,
        request: Request<proto::FailOrderRequest>,
    ) -> Result<Response<proto::FailOrderReply>, Status> {
        let read = |mut message: proto::FailOrderRequest| Ok((message.caller.take(), wire::failed_order(&message)?));
        self.call("fail_order", request, read, |registry, now, caller, failed| {
            Ok(proto::FailOrderReply { registration: registry.fail_order(now, caller, failed)?, pause_ms: 0 })
        })
    }

    async fn tell_trial(
        &self,
        request: Request<proto::TellTrialRequest>,
    ) -> Result<Response<proto::TellTrialReply>, Status> {
        let read = |mut message: proto::TellTrialRequest| Ok((message.caller.take(), wire::told_trial(message)?));
        self.call("tell_trial", request, read, |registry, now, caller, told| {
            let (registration, over) = registry.tell_trial(now, caller, told)?;
            Ok(proto::TellTrialReply { registration, pause_ms: 0, over })
        })
    }

    async fn trial_reports(
        &self,
        request: Request<proto::TrialReportsRequest>,
    ) -> Result<Response<proto::TrialReportsReply>, Status> {
        let read =
            |mut message: proto::TrialReportsRequest| Ok((message.caller.take(), wire::trial_question(&message)?));
        self.call("trial_reports", request, read, |registry, now, caller, asked| {
            let (registration, reports, more) = registry.trial_reports(now, caller, asked)?;
            let reports = reports.into_iter().map(wire::trial_report_message).collect();
            Ok(proto::TrialReportsReply { registration, pause_ms: 0, reports, more })
        })
    }

    async fn report(&self, request: Request<proto::ReportRequest>) -> Result<Response<proto::ReportReply>, Status> {
        let read = |message: proto::ReportRequest| Ok((message.caller, wire::peer("peer", &message.peer)?));
        self.call("report", request, read, |registry, now, caller, peer| {
            tracing::debug!(peer = %peer, reporter = %caller.node, "reported");
            Ok(proto::ReportReply { registration: registry.report(now, caller, peer)?, pause_ms: 0 })
        })
    }

    async fn leave(&self, request: Request<proto::LeaveRequest>) -> Result<Response<proto::LeaveReply>, Status> {
        let read = |message: proto::LeaveRequest| Ok((message.caller, ()));
        let mut leaving = None;
        let left = self.call("leave", request, read, |registry, _, caller, ()| {
            registry.leave(caller);
            leaving = Some(caller.clone());
            Ok(proto::LeaveReply {})
        });
        if let (Some(shared), Some(caller)) = (&self.shared, &leaving) {
            shared.left(caller);
        }
        left
    }
}
