//! Sends batches of spans to a collector: binary protobuf over HTTP (OTLP specification 1.x, "OTLP/HTTP").

use std::time::Duration;

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::trace::SpanData;
use prost::Message as _;
use reqwest::{StatusCode, Url};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Counters;
use crate::limits::MAX_COLLECTOR_ANSWER;

/// Most spans of one request.
const MAX_BATCH: usize = 512;
/// How long spans are gathered for one request.
const GATHER: Duration = Duration::from_secs(1);
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses before a batch that was not taken is sent again; after the last of them it is dropped.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// See the module's documentation.
pub(super) struct Exporter {
    client: reqwest::Client,
    url: Url,
    resource: ResourceAttributesWithSchema,
    counters: Counters,
    /// Whether the last batch was dropped: said once.
    away: bool,
}

/// Why a batch was not taken.
struct NotTaken {
    reason: String,
    /// Whether it may be another time.
    again: bool,
}

impl Exporter {
    pub(super) fn new(
        url: Url,
        headers: HeaderMap,
        resource: ResourceAttributesWithSchema,
        counters: Counters,
    ) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .default_headers(headers)
            .timeout(TIMEOUT)
            .build()?;
        Ok(Self { client, url, resource, counters, away: false })
    }

    /// Sends until `stop`, then what is left.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<SpanData>, stop: CancellationToken) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                came = queue.recv_many(&mut batch, MAX_BATCH) => if came == 0 { return },
                () = stop.cancelled() => break,
            }
            let gathering = async {
                while batch.len() < MAX_BATCH {
                    let room = MAX_BATCH - batch.len();
                    if queue.recv_many(&mut batch, room).await == 0 {
                        break;
                    }
                }
            };
            tokio::select! {
                _ = tokio::time::timeout(GATHER, gathering) => {}
                () = stop.cancelled() => {}
            }
            self.send(batch, &stop).await;
        }
        queue.close();
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, MAX_BATCH).await > 0 {
            self.send(std::mem::take(&mut batch), &stop).await;
        }
    }

    /// Sends a batch, a few times if need be, or drops it.
    async fn send(&mut self, spans: Vec<SpanData>, stop: &CancellationToken) {
        let count = spans.len();
        let resource_spans = group_spans_by_resource_and_scope(spans, &self.resource);
        let body = bytes::Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
        let mut pauses = PAUSES.into_iter();
        loop {
            let NotTaken { reason, again } = match self.post(body.clone()).await {
                Ok(refused) => return self.taken(count, refused),
                Err(not_taken) => not_taken,
            };
            let pause = pauses.next().filter(|_| again && !stop.is_cancelled());
            let Some(pause) = pause else { return self.dropped(count, &reason) };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// How many spans of the batch the collector did not want.
    async fn post(&self, body: bytes::Bytes) -> Result<usize, NotTaken> {
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/x-protobuf").body(body);
        let again = |error: reqwest::Error| NotTaken { reason: innermost(&error.without_url()), again: true };
        let mut answer = request.send().await.map_err(again)?;
        let status = answer.status();
        if !status.is_success() {
            // Those that the specification names ("Failures"); others would be the same again.
            let again = matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            );
            return Err(NotTaken { reason: format!("it answers {status}"), again });
        }
        let mut read = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            read.extend_from_slice(&chunk);
            if read.len() > MAX_COLLECTOR_ANSWER {
                break;
            }
        }
        let refused = ExportTraceServiceResponse::decode(&*read).ok().and_then(|answer| answer.partial_success);
        Ok(refused.map_or(0, |partial| usize::try_from(partial.rejected_spans).unwrap_or(0)))
    }

    fn taken(&mut self, count: usize, refused: usize) {
        let refused = refused.min(count);
        self.counters.sent.inc_by((count - refused) as u64);
        if refused > 0 {
            self.counters.drop_some("refused", refused);
            tracing::debug!(refused, "the collector of traces did not want some spans");
        }
        if std::mem::take(&mut self.away) {
            tracing::info!(collector = %self.url, "the collector of traces takes spans again");
        }
    }

    fn dropped(&mut self, count: usize, reason: &str) {
        self.counters.drop_some("collector", count);
        if !std::mem::replace(&mut self.away, true) {
            tracing::warn!(
                collector = %self.url,
                reason,
                "the collector of traces takes no spans: they are dropped and counted (lapwing_trace_spans_dropped_total), pulls go on; check that it runs and that traces.endpoint is its HTTP endpoint (usually port 4318)"
            );
        }
    }
}

/// What a chain of errors comes from.
fn innermost(error: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(next) = source.source() {
        source = next;
    }
    source.to_string()
}
