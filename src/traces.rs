//! Traces: what [`lapwing_p2p::trace`] records goes to a collector by OTLP over HTTP.
//!
//! Whoever ends a span puts it into a bounded queue and goes on; a task of its own sends batches ([`export`]). A collector that is away costs
//! nothing but the spans: they are dropped, and counted.

mod export;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::trace;
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanProcessor};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use export::Exporter;

/// Most spans that wait to be sent.
const MAX_QUEUED_SPANS: usize = 4096;
/// Longest file of headers, in bytes, and most headers in it.
const MAX_HEADERS_BYTES: u64 = 16 << 10;
const MAX_HEADERS: usize = 16;
/// How long a stop waits for the collector.
const LAST: Duration = Duration::from_secs(3);

/// Labels of the counter of spans that were dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    /// `queue`, `collector`, `refused`, `limit`.
    reason: &'static str,
}

/// What becomes of spans.
#[derive(Debug, Clone, Default)]
struct Counters {
    sent: Counter,
    dropped: Family<ReasonLabel, Counter>,
}

impl Counters {
    fn drop_some(&self, reason: &'static str, spans: usize) {
        self.dropped.get_or_create(&ReasonLabel { reason }).inc_by(spans as u64);
    }
}

/// Traces that are being sent; [`Traces::finish`] sends what is left.
pub(crate) struct Traces {
    stop: CancellationToken,
    sending: JoinHandle<()>,
}

/// Who records: what every span of this process says of it.
pub(crate) struct Recorder<'a> {
    /// `node`, `seed`, `tracker` or `up`.
    pub(crate) role: &'static str,
    /// Its name in the swarm.
    pub(crate) peer: Option<PeerId>,
    pub(crate) config: &'a Config,
}

impl Traces {
    /// Begins, if the configuration or the environment names a collector.
    pub(crate) fn start(recorder: &Recorder<'_>, metrics: &mut Registry) -> anyhow::Result<Option<Self>> {
        let counters = Counters::default();
        metrics.register("trace_spans_sent", "Spans of traces that the collector took", counters.sent.clone());
        metrics.register("trace_spans_dropped", "Spans of traces that did not reach it", counters.dropped.clone());
        let settings = &recorder.config.traces;
        let Some(url) = settings.url()? else { return Ok(None) };
        let headers = match settings.headers_file() {
            Some(file) => headers(file).context("configuration key traces.headers_file")?,
            None => HeaderMap::new(),
        };
        let (queue, queued) = mpsc::channel(MAX_QUEUED_SPANS);
        let resource = recorder.resource();
        let described = ResourceAttributesWithSchema::from(&resource);
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample))))
            .with_span_processor(Queue { queue, counters: counters.clone() })
            .build();
        let scope = InstrumentationScope::builder("lapwing").with_version(env!("CARGO_PKG_VERSION")).build();
        opentelemetry::global::set_tracer_provider(provider);
        let limited = counters.dropped.get_or_create(&ReasonLabel { reason: "limit" }).clone();
        trace::install(opentelemetry::global::tracer_with_scope(scope), limited);
        tracing::info!(collector = %url, sample = settings.sample, "pulls are traced");
        let stop = CancellationToken::new();
        let exporter = Exporter::new(url, headers, described, counters)?;
        let sending = tokio::spawn(exporter.run(queued, stop.clone()));
        Ok(Some(Self { stop, sending }))
    }

    /// Sends what is left, for three seconds at most.
    pub(crate) async fn finish(traces: Option<Self>) {
        let Some(Self { stop, sending }) = traces else { return };
        stop.cancel();
        if tokio::time::timeout(LAST, sending).await.is_err() {
            tracing::info!("the last spans of traces were not sent: the collector takes too long");
        }
    }
}

impl Recorder<'_> {
    /// What the environment says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES), then what is known, then the configuration.
    fn resource(&self) -> Resource {
        let settings = &self.config.traces;
        let mut builder = Resource::builder();
        let named = std::env::var_os("OTEL_SERVICE_NAME").is_some_and(|name| !name.is_empty());
        if !settings.service_name.is_empty() {
            builder = builder.with_service_name(settings.service_name.clone());
        } else if !named {
            builder = builder.with_service_name("lapwing");
        }
        let attribute = |key: &'static str, value: String| (!value.is_empty()).then(|| KeyValue::new(key, value));
        let known = [
            attribute("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            attribute("service.instance.id", self.peer.map(|peer| peer.to_string()).unwrap_or_default()),
            attribute("host.name", host_name()),
            attribute("lapwing.role", self.role.to_owned()),
            attribute("lapwing.zone", self.config.tracker.zone.clone()),
            attribute("lapwing.group", self.config.tracker.group.clone()),
        ];
        let given = settings.attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        builder.with_attributes(known.into_iter().flatten().chain(given)).build()
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// `name: value`, one a line; lines that begin with `#` and empty ones are left out. What they say is never shown.
fn headers(file: &Path) -> anyhow::Result<HeaderMap> {
    let shown = file.display();
    let length = std::fs::metadata(file).with_context(|| format!("{shown} cannot be read"))?.len();
    anyhow::ensure!(length <= MAX_HEADERS_BYTES, "{shown} is longer than {MAX_HEADERS_BYTES} bytes");
    let text = std::fs::read_to_string(file).with_context(|| format!("{shown} cannot be read"))?;
    let mut headers = HeaderMap::new();
    for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || format!("{shown}:{number}: expected `name: value`, as `Authorization: Bearer ...`");
        let (name, value) = line.split_once(':').with_context(wrong)?;
        let name: HeaderName = name.trim().parse().ok().with_context(wrong)?;
        let mut value: HeaderValue = value.trim().parse().ok().with_context(wrong)?;
        value.set_sensitive(true);
        headers.append(name, value);
        anyhow::ensure!(headers.len() <= MAX_HEADERS, "{shown} has more than {MAX_HEADERS} headers");
    }
    Ok(headers)
}

/// Puts spans into the queue, or drops them when it is full.
#[derive(Debug)]
struct Queue {
    queue: mpsc::Sender<SpanData>,
    counters: Counters,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.queue.try_send(span).is_err() {
            self.counters.drop_some("queue", 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_their_values_are_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# ours\nAuthorization: Bearer s3cret\n\nx-scope-orgid: team\n").unwrap();
        let read = headers(file.path()).unwrap();
        assert_eq!((read.len(), read["x-scope-orgid"].to_str().unwrap()), (2, "team"));
        assert!(!format!("{read:?}").contains("s3cret"));
        std::fs::write(file.path(), "ok: 1\nAuthorization s3cret").unwrap();
        let error = format!("{:#}", headers(file.path()).unwrap_err());
        assert!(error.contains(":2: expected") && !error.contains("s3cret"), "{error}");
    }
}
