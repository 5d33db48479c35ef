//! One content to one sink: tried until it is whole, or nothing comes any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use futures_util::StreamExt as _;
use lapwing_plugins::http::without_ignored;

use super::limits::MAX_PAUSE;
use super::outcome::{Failed, Split, Via};
use super::part::{Record, Sink};
use super::place::Place;
use super::progress::{Meter, Teller};
use super::ways::{Answer, Ask, Opened, Ways};

const FIRST_PAUSE: Duration = Duration::from_millis(300);
/// How often the node is asked where bytes come from.
const ASK_SOURCES: Duration = Duration::from_millis(500);

/// What holds for all contents of a run.
pub(super) struct Fetcher {
    pub ways: Ways,
    pub teller: Teller,
    pub filter: Vec<String>,
    pub tries: u32,
    pub silence: Duration,
    /// Bytes per second.
    pub rate: Option<u64>,
}

/// How a content came.
#[derive(Debug, Default)]
pub(super) struct Came {
    pub bytes: u64,
    pub resumed: u64,
    pub split: Split,
    pub via: Option<Via>,
    pub shared: bool,
    pub because: Option<String>,
}

impl Fetcher {
    /// What names the content in the record of a part.
    pub(super) fn identity(&self, place: &Place) -> String {
        match place {
            Place::Url(url) => without_ignored(url, &self.filter).into(),
            Place::Blob { .. } => place.shown(),
        }
    }

    /// Fetches all of it; the sink is finished, or left for another run. `came` holds also for what failed.
    pub(super) async fn fetch(
        &self,
        place: &Place,
        headers: &HeaderMap,
        sink: &mut Sink,
        meter: &Arc<Meter>,
        came: &mut Came,
    ) -> Result<(), Failed> {
        let (mut vain, mut straight) = (0, false);
        came.resumed = sink.position();
        loop {
            let before = sink.position();
            let failed = match self.attempt(place, headers, sink, meter, came, straight).await {
                Ok(()) => break,
                Err(failed) => failed,
            };
            came.bytes = sink.position();
            if sink.position() > before {
                vain = 0;
            } else {
                vain += 1;
                straight |= came.via == Some(Via::Node);
            }
            if !failed.again || vain >= self.tries.max(1) {
                sink.give_up();
                return Err(failed);
            }
            self.teller.note(&format!("{failed}: tried again"));
            let pause = FIRST_PAUSE.saturating_mul(1 << vain.min(8)).min(MAX_PAUSE);
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
        came.bytes = sink.position();
        sink.finish().await
    }

    async fn attempt(
        &self,
        place: &Place,
        headers: &HeaderMap,
        sink: &mut Sink,
        meter: &Arc<Meter>,
        came: &mut Came,
        straight: bool,
    ) -> Result<(), Failed> {
        if sink.record().is_none() && sink.position() > 0 {
            begin_anew(sink, came)?;
        }
        let rest = sink.record().filter(|_| sink.position() > 0).cloned();
        let rest = rest.as_ref().map(|record| (sink.position(), record.validator.as_str()));
        let ask = Ask { place, headers, filter: &self.filter, paced: self.rate.is_some(), rest };
        let mut answer = match self.ways.open(&ask, straight).await? {
            Opened::Answer(answer) => *answer,
            Opened::Outdated => {
                begin_anew(sink, came)?;
                return Err(Failed::network(format!("{}: it has changed", place.shown())));
            }
        };
        let same_length = || sink.record().is_none_or(|record| Some(record.length) == answer.length);
        if answer.from > 0 && !same_length() {
            begin_anew(sink, came)?;
            return Err(Failed::network(format!("{}: its length has changed", place.shown())));
        }
        if answer.from != sink.position() {
            begin_anew(sink, came)?;
        }
        (came.via, came.shared, came.because) = (Some(answer.via), answer.shared.is_some(), answer.because.take());
        if let (Some(length), Some(validator)) = (answer.length, answer.validator.clone()) {
            sink.describe(Record { url: self.identity(place), validator, length })?;
        }
        meter.length.store(answer.length.unwrap_or_default(), Ordering::Relaxed);
        let (earlier, began) = (came.split, sink.position());
        let outcome = self.copy(&mut answer, sink, meter, earlier).await;
        came.split = earlier.plus(self.split(&answer, sink.position() - began).await);
        meter.set(sink.position(), came.split);
        outcome
    }

    async fn copy(&self, answer: &mut Answer, sink: &mut Sink, meter: &Meter, earlier: Split) -> Result<(), Failed> {
        let began = sink.position();
        let (mut asked, mut split) = (Instant::now(), Split::default());
        let mut due = tokio::time::Instant::now();
        loop {
            let silent = || Failed::network(format!("nothing came for {:?}", self.silence));
            let chunk = match tokio::time::timeout(self.silence, answer.body.next()).await.map_err(|_| silent())? {
                Some(Ok(chunk)) => chunk,
                Some(Err(reason)) => return Err(Failed::network(format!("the transfer was cut: {reason}"))),
                None => break,
            };
            sink.write(&chunk)?;
            let taken = sink.position() - began;
            if asked.elapsed() >= ASK_SOURCES {
                split = self.split(answer, taken).await;
                asked = Instant::now();
            }
            let shown = Split::of(taken, split.bytes_from_peers, split.bytes_from_origin);
            meter.set(sink.position(), earlier.plus(shown));
            if let Some(rate) = self.rate {
                let now = tokio::time::Instant::now();
                due = due.max(now) + Duration::from_secs_f64(chunk.len() as f64 / rate as f64);
                tokio::time::sleep_until(due).await;
            }
        }
        match answer.length {
            Some(length) if sink.position() < length => {
                Err(Failed::network(format!("the transfer was cut after {} of {length} bytes", sink.position())))
            }
            Some(length) if sink.position() > length => {
                sink.begin_anew()?;
                Err(Failed::network(format!("more came than the {length} bytes that were announced")))
            }
            _ => Ok(()),
        }
    }

    /// Where the bytes of this answer came from, as far as the node knows.
    async fn split(&self, answer: &Answer, taken: u64) -> Split {
        let Some((name, before)) = &answer.shared else { return Split::of(taken, 0, taken) };
        let now = self.ways.came(name).await.unwrap_or(*before);
        let since = |now: u64, before: u64| now.saturating_sub(before);
        Split::of(
            taken,
            since(now.bytes_from_peers, before.bytes_from_peers),
            since(now.bytes_from_origin, before.bytes_from_origin),
        )
    }
}

/// Nothing of what came before counts any more.
fn begin_anew(sink: &mut Sink, came: &mut Came) -> Result<(), Failed> {
    let via = came.via;
    *came = Came { via, ..Came::default() };
    sink.begin_anew()
}
