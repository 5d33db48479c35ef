//! Load over gRPC: closed loops, a fixed rate, heartbeats, and all nodes joining.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::uri::PathAndQuery;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};

use crate::calls::{self, Call, Raw};
use crate::crowd::{Crowd, HEARTBEAT};

/// Heartbeats that are due are sent so often: as short as timers are, since those of a cluster do not come in bursts.
const BEATS_TICK: Duration = Duration::from_millis(1);
/// A timer may be late by that.
const TIMER_STEP: Duration = Duration::from_millis(2);

/// Connections to the tracker.
pub(crate) struct Load {
    clients: Vec<Grpc<Channel>>,
}

/// What came of many calls.
#[derive(Default)]
pub(crate) struct Outcome {
    took: Duration,
    latencies: Vec<Duration>,
    bytes: u64,
    pub(crate) failed: u64,
}

impl Outcome {
    fn note(&mut self, began: Instant, answer: Option<usize>) {
        match answer {
            Some(bytes) => {
                self.latencies.push(began.elapsed());
                self.bytes += bytes as u64;
            }
            None => self.failed += 1,
        }
    }

    pub(crate) fn per_s(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    pub(crate) fn mean_bytes(&self) -> f64 {
        self.bytes as f64 / self.latencies.len().max(1) as f64
    }

    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let at = (sorted.len().saturating_sub(1) as f64 * quantile) as usize;
        sorted.get(at).map_or(f64::NAN, |latency| (latency.as_secs_f64() * 1e5).round() / 100.0)
    }
}

/// All nodes are there.
pub(crate) struct Joined {
    pub(crate) took: Duration,
    pub(crate) entries: u64,
    pub(crate) failed: u64,
}

impl Load {
    pub(crate) async fn connect(address: &str, clients: usize) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
        let mut connected = Vec::new();
        for _ in 0..clients {
            connected.push(Grpc::new(endpoint.connect().await.with_context(|| address.to_owned())?));
        }
        Ok(Self { clients: connected })
    }

    /// Every connection asks as soon as it has been answered.
    pub(crate) async fn closed(
        &self,
        length: Duration,
        next: impl Fn(&mut fastrand::Rng) -> Call,
    ) -> anyhow::Result<Outcome> {
        let (began, outcome) = (Instant::now(), RefCell::new(Outcome::default()));
        let loops: FuturesUnordered<_> = self
            .clients
            .iter()
            .enumerate()
            .map(|(number, client)| {
                let (mut client, mut random) = (client.clone(), fastrand::Rng::with_seed(number as u64));
                let (outcome, next) = (&outcome, &next);
                async move {
                    while began.elapsed() < length {
                        let call = next(&mut random);
                        let asked = Instant::now();
                        let answer = ask(&mut client, call).await;
                        outcome.borrow_mut().note(asked, answer);
                    }
                }
            })
            .collect();
        loops.collect::<Vec<()>>().await;
        Ok(Outcome { took: began.elapsed(), ..outcome.into_inner() })
    }

    /// So many calls a second, whether or not the earlier ones have been answered; a call counts from when it was due.
    pub(crate) async fn paced(
        &self,
        length: Duration,
        per_s: u32,
        next: impl Fn(&mut fastrand::Rng) -> Call,
    ) -> anyhow::Result<Outcome> {
        let (began, outcome) = (Instant::now(), Rc::new(RefCell::new(Outcome::default())));
        let (mut random, mut under_way) = (fastrand::Rng::with_seed(1), FuturesUnordered::new());
        let calls = (length.as_secs_f64() * f64::from(per_s)) as u32;
        for number in 0..calls {
            let due = began + number * (Duration::from_secs(1) / per_s);
            let call = next(&mut random);
            let pause = tokio::time::sleep_until((due - TIMER_STEP).into());
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(()) = under_way.next() => {}
                }
            }
            // The timer counts in milliseconds, and the calls would wait for it.
            while Instant::now() < due {
                tokio::select! {
                    biased;
                    Some(()) = under_way.next() => {}
                    () = tokio::task::yield_now() => {}
                }
            }
            let (mut client, outcome) =
                (self.clients[number as usize % self.clients.len()].clone(), Rc::clone(&outcome));
            under_way.push(async move {
                let answer = ask(&mut client, call).await;
                outcome.borrow_mut().note(due, answer);
            });
        }
        while under_way.next().await.is_some() {}
        drop(under_way);
        let outcome = Rc::into_inner(outcome).context("every call has ended")?.into_inner();
        Ok(Outcome { took: began.elapsed(), ..outcome })
    }

    /// Of so many answers, how many are longer than that.
    pub(crate) async fn share_longer_than(&self, calls: usize, bytes: usize, mut next: impl FnMut() -> Call) -> f64 {
        let mut longer = 0;
        for _ in 0..calls {
            let mut client = self.clients[0].clone();
            longer += usize::from(ask(&mut client, next()).await.is_some_and(|length| length > bytes));
        }
        longer as f64 / calls as f64
    }

    /// Every node's heartbeats, until it is aborted.
    pub(crate) fn beat(&self, crowd: &Crowd) -> JoinHandle<()> {
        let (crowd, client) = (Crowd::new(crowd.nodes), self.clients[0].clone());
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(BEATS_TICK);
            let per_tick = crowd.nodes as f64 * BEATS_TICK.as_secs_f64() / HEARTBEAT.as_secs_f64();
            let (mut due, mut node) = (0.0, 0);
            loop {
                ticks.tick().await;
                due += per_tick;
                while due >= 1.0 {
                    due -= 1.0;
                    node = (node + 1) % crowd.nodes;
                    let (mut client, call) = (client.clone(), calls::heartbeat(&crowd, node));
                    tokio::spawn(async move { ask(&mut client, call).await });
                }
            }
        })
    }

    /// Every node tells all that it holds, at a random moment of `window`, or as fast as it is taken.
    pub(crate) async fn join(&self, crowd: &Crowd, window: Duration) -> anyhow::Result<Joined> {
        let began = Instant::now();
        let (mut entries, mut failed) = (0, 0);
        let mut under_way = FuturesUnordered::new();
        for node in 0..crowd.nodes {
            let due = began + window.mul_f64(node as f64 / crowd.nodes as f64);
            tokio::time::sleep_until(due.into()).await;
            let (call, listed) = calls::sync(crowd, node);
            entries += listed;
            let mut client = self.clients[node as usize % self.clients.len()].clone();
            under_way.push(async move { ask(&mut client, call).await });
            while under_way.len() >= self.clients.len() {
                failed += u64::from(under_way.next().await == Some(None));
            }
        }
        while let Some(answer) = under_way.next().await {
            failed += u64::from(answer.is_none());
        }
        Ok(Joined { took: began.elapsed(), entries, failed })
    }
}

/// The length of the answer; none if it was refused or did not come.
async fn ask(client: &mut Grpc<Channel>, call: Call) -> Option<usize> {
    client.ready().await.ok()?;
    let path = PathAndQuery::from_static(call.path);
    client.unary(tonic::Request::new(call.message), path, Raw).await.ok().map(tonic::Response::into_inner)
}
