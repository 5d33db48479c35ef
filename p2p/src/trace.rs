//! Spans of a trace that follows a pull over nodes (OpenTelemetry), and the context by which they find each other (W3C Trace Context,
//! <https://www.w3.org/TR/trace-context/>).
//!
//! Nothing is recorded until the program has [installed](install) a tracer; until then, and for everything that is not sampled, a [`Span`] is
//! empty and costs a look at a pointer. Only sampled contexts travel to trackers and peers. What others ask this process to record is
//! recorded at a bounded rate ([`REMOTE_SPANS_PER_SECOND`]): nobody can make it flood the collector.
//!
//! Values of attributes are digests, names of repositories, peers, counts and this program's own words: never what a message of somebody
//! else says, which may contain an address with its query.

use std::future::Future;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use opentelemetry::global::{BoxedSpan, BoxedTracer};
pub use opentelemetry::trace::SpanKind;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _,
};
use opentelemetry::{Context, KeyValue, Value};
use prometheus_client::metrics::counter::Counter;

use crate::limits::{
    FAULT_SPANS_AT_ONCE, FAULT_SPANS_PER_SECOND, MAX_TRACE_TEXT, REMOTE_SPANS_AT_ONCE, REMOTE_SPANS_PER_SECOND,
    REQUEST_SPANS_AT_ONCE, REQUEST_SPANS_PER_SECOND,
};

/// Name of the header, and of the metadata of a call, that carries a context (W3C Trace Context, 3.2).
pub const TRACEPARENT: &str = "traceparent";

/// Length of such a header of version 00, in bytes.
const TRACEPARENT_LENGTH: usize = 55;

static TRACING: OnceLock<Tracing> = OnceLock::new();

tokio::task_local! {
    static CURRENT: TraceContext;
}

struct Tracing {
    tracer: BoxedTracer,
    /// Counts spans that others asked for in vain.
    limited: Counter,
    remote: Mutex<Bucket>,
    requests: Mutex<Bucket>,
    faults: Mutex<Bucket>,
}

/// Begins to record. `limited` counts spans that were asked for beyond the rates of [`limits`](crate::limits).
pub fn install(tracer: BoxedTracer, limited: Counter) {
    let bucket = |per_second: u32, at_once: u32| Mutex::new(Bucket::new(Instant::now(), per_second, at_once));
    let remote = bucket(REMOTE_SPANS_PER_SECOND, REMOTE_SPANS_AT_ONCE);
    let requests = bucket(REQUEST_SPANS_PER_SECOND, REQUEST_SPANS_AT_ONCE);
    let faults = bucket(FAULT_SPANS_PER_SECOND, FAULT_SPANS_AT_ONCE);
    // Fails if there is one already: that one stays.
    let _ = TRACING.set(Tracing { tracer, limited, remote, requests, faults });
}

/// Whether anything is recorded at all.
pub fn is_on() -> bool {
    TRACING.get().is_some()
}

/// Names a span in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: TraceId,
    span: SpanId,
    sampled: bool,
}

impl TraceContext {
    /// Reads the header of that name. None if it is not valid, upon which a new trace begins (W3C Trace Context, 3.2.2 and 4.3).
    pub fn from_traceparent(header: &str) -> Option<Self> {
        let bytes = header.as_bytes();
        let known = bytes.get(..TRACEPARENT_LENGTH)?;
        let dashes = [2, 35, 52].iter().all(|&at| known[at] == b'-');
        let hex = known.iter().all(|byte| matches!(byte, b'-' | b'0'..=b'9' | b'a'..=b'f'));
        // A later version may have more behind what this one knows.
        let more = match &known[..2] {
            b"ff" => false,
            b"00" => bytes.len() == TRACEPARENT_LENGTH,
            _ => bytes.get(TRACEPARENT_LENGTH).is_none_or(|&byte| byte == b'-'),
        };
        if !(dashes && hex && more) {
            return None;
        }
        let trace = TraceId::from_hex(&header[3..35]).ok()?;
        let span = SpanId::from_hex(&header[36..52]).ok()?;
        let flags = u8::from_str_radix(&header[53..55], 16).ok()?;
        Self { trace, span, sampled: flags & 1 != 0 }.valid()
    }

    /// The header of version 00.
    pub fn to_traceparent(self) -> String {
        format!("00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }

    /// Reads what [`Self::ids`] gave. None if it names no span.
    pub fn from_ids(trace: [u8; 16], span: [u8; 8]) -> Option<Self> {
        Self { trace: TraceId::from_bytes(trace), span: SpanId::from_bytes(span), sampled: true }.valid()
    }

    /// The trace and the span of a sampled context.
    pub fn ids(self) -> ([u8; 16], [u8; 8]) {
        (self.trace.to_bytes(), self.span.to_bytes())
    }

    /// Whether its spans are recorded.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    fn valid(self) -> Option<Self> {
        (self.trace != TraceId::INVALID && self.span != SpanId::INVALID).then_some(self)
    }

    fn named(self, is_remote: bool) -> SpanContext {
        let flags = if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        SpanContext::new(self.trace, self.span, flags, is_remote, TraceState::default())
    }

    fn parent(self, is_remote: bool) -> Context {
        Context::new().with_remote_span_context(self.named(is_remote))
    }
}

/// The context of what this task does, where somebody set one by [`within`].
pub fn current() -> Option<TraceContext> {
    if is_on() { CURRENT.try_with(|context| *context).ok() } else { None }
}

/// Runs `future` with `context` as the [`current`] one; without one it runs as it is.
pub async fn within<F: Future>(context: Option<TraceContext>, future: F) -> F::Output {
    match context {
        Some(context) => CURRENT.scope(context, future).await,
        None => future.await,
    }
}

/// The same for work that blocks.
pub fn within_blocking<T>(context: Option<TraceContext>, work: impl FnOnce() -> T) -> T {
    match context {
        Some(context) => CURRENT.sync_scope(context, work),
        None => work(),
    }
}

/// Something that is done, from now until this is dropped; empty if it is not recorded.
#[derive(Debug, Default)]
pub struct Span(Option<Box<Recording>>);

#[derive(Debug)]
struct Recording {
    span: BoxedSpan,
    context: TraceContext,
}

impl Span {
    /// One that is not recorded.
    pub const NONE: Self = Self(None);

    /// A client of this machine asks for something: continues its trace if it named one, else the sampler decides.
    pub fn request(name: &'static str, parent: Option<TraceContext>) -> Self {
        let Some(tracing) = TRACING.get() else { return Self::NONE };
        if !tracing.may(&tracing.requests) {
            return Self::NONE;
        }
        tracing.begin(builder(name, SpanKind::Server), &parent.map_or_else(Context::new, |parent| parent.parent(true)))
    }

    /// A read of a lazily mounted layer waits; a trace of its own, if the sampler takes it.
    pub fn fault(name: &'static str) -> Self {
        let Some(tracing) = TRACING.get() else { return Self::NONE };
        if !tracing.may(&tracing.faults) {
            return Self::NONE;
        }
        tracing.begin(builder(name, SpanKind::Internal), &Context::new())
    }

    /// Another machine asks for something on behalf of a span of its own. Nothing is recorded if it named none.
    pub fn serve(name: &'static str, parent: Option<TraceContext>) -> Self {
        let (Some(tracing), Some(parent)) = (TRACING.get(), parent.filter(TraceContext::is_sampled)) else {
            return Self::NONE;
        };
        if !tracing.may(&tracing.remote) {
            return Self::NONE;
        }
        tracing.begin(builder(name, SpanKind::Server), &parent.parent(true))
    }

    /// A step of what `parent` does. Nothing is recorded without one.
    pub fn step(name: &'static str, kind: SpanKind, parent: Option<TraceContext>) -> Self {
        let (Some(tracing), Some(parent)) = (TRACING.get(), parent) else { return Self::NONE };
        tracing.begin(builder(name, kind), &parent.parent(false))
    }

    /// A step that was done from `start` to `end`.
    pub fn done(name: &'static str, parent: Option<TraceContext>, start: SystemTime, end: SystemTime) -> Done {
        let span = match (TRACING.get(), parent) {
            (Some(tracing), Some(parent)) => {
                tracing.begin(builder(name, SpanKind::Internal).with_start_time(start), &parent.parent(false))
            }
            _ => Self::NONE,
        };
        Done { span, end }
    }

    /// Names it; none if it is not recorded.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|recording| recording.context)
    }

    /// Says something of it. Text is cut after [`MAX_TRACE_TEXT`] bytes.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(recording) = &mut self.0 {
            recording.span.set_attribute(KeyValue::new(key, bounded(value.into())));
        }
    }

    /// The same for text that is made only if it is recorded.
    pub fn say(&mut self, key: &'static str, value: &dyn std::fmt::Display) {
        if self.0.is_some() {
            self.set(key, value.to_string());
        }
    }

    /// A number of bytes or things.
    pub fn count(&mut self, key: &'static str, value: u64) {
        self.set(key, i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// What it waits for is done in another span.
    pub fn link(&mut self, other: TraceContext) {
        if let Some(recording) = &mut self.0 {
            recording.span.add_link(other.named(false), Vec::new());
        }
    }

    /// It went wrong. `reason` is one of the program's own words.
    pub fn fail(&mut self, reason: &'static str) {
        if let Some(recording) = &mut self.0 {
            recording.span.set_status(Status::error(reason));
        }
    }

    /// Takes it as the [`current`] context of `future`.
    pub async fn around<F: Future>(&self, future: F) -> F::Output {
        within(self.context(), future).await
    }
}

/// A step that ended before it was told; told when this is dropped.
#[derive(Debug)]
pub struct Done {
    span: Span,
    end: SystemTime,
}

impl Done {
    /// See [`Span::count`].
    #[must_use]
    pub fn count(mut self, key: &'static str, value: u64) -> Self {
        self.span.count(key, value);
        self
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(recording) = &mut self.span.0 {
            recording.span.end_with_timestamp(self.end);
        }
    }
}

fn builder(name: &'static str, kind: SpanKind) -> SpanBuilder {
    SpanBuilder::from_name(name).with_kind(kind)
}

fn bounded(value: Value) -> Value {
    match value {
        Value::String(text) if text.as_str().len() > MAX_TRACE_TEXT => {
            let text = text.as_str();
            text[..text.floor_char_boundary(MAX_TRACE_TEXT)].to_owned().into()
        }
        value => value,
    }
}

impl Tracing {
    fn begin(&self, builder: SpanBuilder, parent: &Context) -> Span {
        let span = self.tracer.build_with_context(builder, parent);
        if !span.is_recording() {
            return Span::NONE;
        }
        let named = span.span_context();
        let context = TraceContext { trace: named.trace_id(), span: named.span_id(), sampled: true };
        Span(Some(Box::new(Recording { span, context })))
    }

    fn may(&self, bucket: &Mutex<Bucket>) -> bool {
        let may = bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        if !may {
            self.limited.inc();
        }
        may
    }
}

/// So many at once, and so many a second in the long run.
struct Bucket {
    left: f64,
    at: Instant,
    per_second: f64,
    at_once: f64,
}

impl Bucket {
    fn new(now: Instant, per_second: u32, at_once: u32) -> Self {
        Self { left: at_once.into(), at: now, per_second: per_second.into(), at_once: at_once.into() }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.left = (self.left + since * self.per_second).min(self.at_once);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn contexts_are_read_as_the_recommendation_says() {
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = TraceContext::from_traceparent(given).unwrap();
        assert_eq!(context.to_traceparent(), given);
        let (trace, span) = context.ids();
        assert_eq!(TraceContext::from_ids(trace, span), Some(context));
        assert_eq!((trace[0], span[7]), (0x0a, 0x31));
        let sampled = |header: &str| TraceContext::from_traceparent(header).map(|context| context.is_sampled());
        let with = |head: &str, tail: &str| format!("{head}{}{tail}", &given[2..53]);
        assert_eq!(sampled(&with("00", "00")), Some(false));
        assert_eq!(sampled(&with("00", "03")), Some(true), "flags that are not known mean nothing");
        assert_eq!(sampled(&with("cc", "01-what-the-future-will-be-like")), Some(true));
        let none = ["", "00", &with("00", "01-more"), &with("cc", "01.more"), &with("ff", "01"), &with("0g", "01")];
        none.iter().for_each(|header| assert_eq!(sampled(header), None, "{header}"));
        assert_eq!(sampled(&given.to_uppercase()), None);
        assert_eq!(sampled("00-00000000000000000000000000000000-b7ad6b7169203331-01"), None);
        assert_eq!(sampled("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"), None);
        assert_eq!(sampled(&"\u{fc}".repeat(40)), None);
        assert_eq!(sampled(&"\u{20ac}".repeat(40)), None, "no character ends after two bytes");
        assert_eq!(TraceContext::from_ids([0; 16], [1; 8]), None);
    }

    #[test]
    fn what_others_ask_for_is_bounded() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now, 10, 3);
        let mut taken = |now| (0..20).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(now), 3);
        assert_eq!(taken(now + Duration::from_millis(200)), 2);
        assert_eq!(taken(now + Duration::from_secs(60)), 3, "what was not used does not add up");
        assert_eq!(taken(now), 0, "a clock that goes back gives nothing");
    }

    #[test]
    fn text_is_cut_between_characters() {
        let Value::String(text) = bounded("\u{fc}".repeat(MAX_TRACE_TEXT).into()) else { panic!("still text") };
        assert!(text.as_str().len() <= MAX_TRACE_TEXT && text.as_str().chars().all(|one| one == '\u{fc}'));
    }

    #[tokio::test]
    async fn nothing_is_recorded_without_a_tracer() {
        let context = TraceContext::from_ids([1; 16], [2; 8]);
        assert!(Span::request("x", context).context().is_none());
        assert!(Span::serve("x", context).context().is_none());
        assert_eq!(within(context, async { current() }).await, None);
    }
}
