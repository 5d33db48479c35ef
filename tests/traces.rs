//! Traces as a collector gets them: a pull at one node, what another node and the tracker did for it, and nothing where they are off.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapwing_lab::{Host, Lab, Lapwing, LapwingSettings, Need, Registry, RegistryOptions, image, require, wait};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;

const SOON: Duration = Duration::from_secs(60);
const PORT: u16 = 4318;
const NEEDS: [Need; 5] =
    [Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("skopeo"), Need::Program("curl")];
/// What the collector wants to see, and what clients show the registry: neither is anybody else's.
const COLLECTORS: &str = "collectors-s3cret";
const CLIENTS: &str = "clients-s3cret";

/// A span, and who sent it.
#[derive(Debug, Clone)]
struct Sent {
    resource: Vec<KeyValue>,
    span: Span,
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    Some(match found {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

impl Sent {
    fn role(&self) -> String {
        text(&self.resource, "lapwing.role").unwrap()
    }

    fn is(&self, name: &str, kind: SpanKind) -> bool {
        self.span.name == name && self.span.kind == kind as i32
    }

    fn number(&self, key: &str) -> u64 {
        self.text(key).parse().unwrap()
    }

    fn text(&self, key: &str) -> String {
        text(&self.span.attributes, key).unwrap_or_else(|| panic!("no {key}: {self:?}"))
    }
}

/// A collector that takes OTLP over HTTP.
#[derive(Clone)]
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Sent>>>,
    raw: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    fn start(host: &Host) -> Self {
        let address = SocketAddr::from((host.address(), PORT));
        let listener = host.within(|| Ok(TcpListener::bind(address)?)).unwrap();
        let started = Self { address, spans: Arc::default(), raw: Arc::default() };
        let collector = started.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let collector = collector.clone();
                std::thread::spawn(move || while collector.take(&stream).is_some() {});
            }
        });
        started
    }

    fn take(&self, stream: &TcpStream) -> Option<()> {
        let (mut reader, mut length, mut authorized) = (BufReader::new(stream), 0, false);
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        assert_eq!(line.trim(), "POST /v1/traces HTTP/1.1");
        loop {
            line.clear();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "content-type" => assert_eq!(value, "application/x-protobuf"),
                "authorization" => authorized = value == format!("Bearer {COLLECTORS}"),
                _ => {}
            }
        }
        assert!(authorized);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        self.raw.lock().unwrap().extend_from_slice(&body);
        for of_one in ExportTraceServiceRequest::decode(&*body).unwrap().resource_spans {
            let resource = of_one.resource.unwrap().attributes;
            let spans = of_one.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let sent = spans.map(|span| Sent { resource: resource.clone(), span });
            self.spans.lock().unwrap().extend(sent);
        }
        (&mut (&*stream)).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()
    }

    fn of(&self, trace: &str) -> Vec<Sent> {
        let all = self.spans.lock().unwrap();
        all.iter().filter(|sent| hex(&sent.span.trace_id) == trace).cloned().collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn traced(settings: LapwingSettings, collector: SocketAddr, headers: &std::path::Path) -> LapwingSettings {
    settings
        .with("traces", &format!("endpoint = \"http://{collector}\"\nheaders_file = {headers:?}"))
        .with("traces", "attributes = { \"deployment.environment.name\" = \"lab\" }")
}

/// As containerd asks for a layer, with its token and the context of its own span.
fn pull(host: &Host, registry: &Registry, layer: &str, traceparent: &str) {
    let url = format!("{}/v2/small/blobs/{layer}?ns={}", Lapwing::mirror_url(), registry.name());
    let (token, context) = (format!("Authorization: Bearer {CLIENTS}"), format!("traceparent: {traceparent}"));
    host.check("curl", &["-sSf", "-o", "/dev/null", "-H", &token, "-H", &context, &url]).unwrap();
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[test]
fn a_pull_is_one_trace_over_two_nodes_and_the_tracker() {
    if !require("a_pull_is_one_trace_over_two_nodes_and_the_tracker", &NEEDS) {
        return;
    }
    let network = Lab::new("traces").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let layout = image::small().unwrap();
    registry.push(&layout, "small:1").unwrap();
    let collecting = network.host("collector", None).unwrap();
    let collector = Collector::start(&collecting);
    let headers = collecting.dir().join("headers");
    std::fs::write(&headers, format!("Authorization: Bearer {COLLECTORS}\n")).unwrap();
    let settings = traced(LapwingSettings::tracker(), collector.address, &headers);
    let tracker = Lapwing::start(&network.host("tracker", None).unwrap(), settings).unwrap();
    let node = |name: &str| {
        let settings = LapwingSettings::node(&[tracker.tracker_address()]).registry(&registry.name());
        let settings = settings.with("lazy", "enabled = false").with("tracker", "zone = \"z1\"").encrypted();
        let host = network.host(name, None).unwrap();
        let node = Lapwing::start(&host, traced(settings, collector.address, &headers)).unwrap();
        (host, node)
    };
    let (first_host, _first) = node("first");
    let [layer, other] = [&layout.layers[0], &layout.layers[1]].map(|layer| layer.digest.as_str());
    pull(&first_host, &registry, layer, "no context at all");
    pull(&first_host, &registry, other, "00-ffffffffffffffffffffffffffffffff-b7ad6b7169203331-00");
    let (second_host, mut second) = node("second");
    pull(&second_host, &registry, layer, &format!("00-{TRACE}-{PARENT}-01"));

    let spans = || collector.of(TRACE);
    let of_layer = |sent: &&Sent| text(&sent.span.attributes, "lapwing.digest").is_some_and(|digest| digest == layer);
    wait::until_true("the trace to be whole", SOON, || {
        let spans = spans();
        let ended = |name: &str, kind| spans.iter().any(|sent| sent.is(name, kind));
        let answered = |question: &Sent| {
            let is_answer = |sent: &Sent| sent.span.parent_span_id == question.span.span_id;
            spans.iter().any(|sent| sent.is("tracker.find", SpanKind::Server) && is_answer(sent))
        };
        ended("mirror.blob", SpanKind::Server)
            && ended("tracker.find", SpanKind::Client)
            && spans.iter().filter(|sent| sent.is("tracker.find", SpanKind::Client)).all(answered)
            && spans.iter().filter(of_layer).any(|sent| sent.is("peer.serve", SpanKind::Server))
    })
    .unwrap();
    let spans = spans();
    let children = |of: &Sent, name: &str, kind| -> Vec<Sent> {
        let below = |sent: &&Sent| sent.is(name, kind) && sent.span.parent_span_id == of.span.span_id;
        spans.iter().filter(below).cloned().collect()
    };
    let one = |of: &Sent, name: &str, kind| -> Sent {
        let found = children(of, name, kind);
        assert_eq!(found.len(), 1, "{name}: {spans:#?}");
        found.into_iter().next().unwrap()
    };
    let request = spans.iter().find(|sent| sent.is("mirror.blob", SpanKind::Server)).unwrap();
    let length = request.number("lapwing.bytes");
    assert_eq!(hex(&request.span.parent_span_id), PARENT, "it is a part of the client's");
    assert_eq!(text(&request.resource, "lapwing.zone").as_deref(), Some("z1"));
    assert_eq!(text(&request.resource, "service.name").as_deref(), Some("lapwing"));
    assert_eq!(text(&request.resource, "deployment.environment.name").as_deref(), Some("lab"));
    assert_eq!(request.number("http.response.status_code"), 200);
    one(request, "registry.authorize", SpanKind::Client);

    let fetch = one(request, "blob.fetch", SpanKind::Internal);
    assert_eq!((fetch.text("lapwing.digest").as_str(), fetch.number("lapwing.length")), (layer, length));
    assert_eq!((fetch.number("lapwing.bytes_from_peers"), fetch.number("lapwing.bytes_from_origin")), (length, 0));
    assert!(one(&fetch, "piece.verify", SpanKind::Internal).number("lapwing.count") > 0);
    assert_eq!(children(&fetch, "origin.fetch", SpanKind::Client).len(), 0);
    let (mut asked, mut named) = (children(&fetch, "tracker.find", SpanKind::Client), 0);
    for question in asked.drain(..) {
        named += question.number("lapwing.holders");
        let answer = one(&question, "tracker.find", SpanKind::Server);
        assert_eq!(answer.role(), "tracker");
        assert_eq!(answer.text("lapwing.peer"), text(&request.resource, "service.instance.id").unwrap());
    }
    assert!(named > 0, "{spans:#?}");

    let taken = one(&fetch, "peer.fetch", SpanKind::Client);
    let given = one(&taken, "peer.serve", SpanKind::Server);
    assert_eq!((taken.number("lapwing.bytes"), given.number("lapwing.bytes")), (length, length));
    assert_eq!(taken.number("lapwing.pieces"), given.number("lapwing.pieces"));
    let (here, there) = (&request.resource, &given.resource);
    assert_eq!(text(there, "service.instance.id"), Some(taken.text("lapwing.peer")));
    assert_eq!(text(here, "service.instance.id"), Some(given.text("lapwing.peer")));
    assert_ne!(text(here, "service.instance.id"), text(there, "service.instance.id"));

    // Spans of what goes on reach the collector before the node ends.
    let last = "11111111111111111111111111111111";
    pull(&second_host, &registry, other, &format!("00-{last}-{PARENT}-01"));
    second.stop().unwrap();
    let at_last: HashSet<String> = collector.of(last).into_iter().map(|sent| sent.span.name).collect();
    assert!(at_last.contains("mirror.blob") && at_last.contains("peer.fetch"), "{at_last:?}");

    assert!(collector.of(&"f".repeat(32)).is_empty(), "its client did not want it recorded");
    let all = collector.spans.lock().unwrap();
    let own = all.iter().find(|sent| sent.is("origin.fetch", SpanKind::Client)).expect("of the first node's own trace");
    assert!(own.number("lapwing.bytes") > 0 && own.text("lapwing.site").contains(&registry.name()), "{own:?}");
    let raw = collector.raw.lock().unwrap();
    for secret in [COLLECTORS, CLIENTS, "Bearer", "?ns="] {
        assert!(!raw.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
    }
}

#[test]
fn a_collector_that_is_away_costs_nothing_but_the_spans() {
    if !require("a_collector_that_is_away_costs_nothing_but_the_spans", &NEEDS) {
        return;
    }
    let network = Lab::new("traces-away").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let layout = image::small().unwrap();
    registry.push(&layout, "small:1").unwrap();
    let tracker = Lapwing::start(&network.host("tracker", None).unwrap(), LapwingSettings::tracker()).unwrap();
    let collecting = network.host("collector", None).unwrap();
    let headers = collecting.dir().join("headers");
    std::fs::write(&headers, format!("Authorization: Bearer {COLLECTORS}\n")).unwrap();
    let settings = LapwingSettings::node(&[tracker.tracker_address()]).registry(&registry.name());
    let settings = settings.with("lazy", "enabled = false");
    let silent_host = network.host("silent", None).unwrap();
    let silent = Lapwing::start(&silent_host, settings.clone()).unwrap();
    let [layer, other] = [&layout.layers[0], &layout.layers[1]].map(|layer| layer.digest.as_str());
    pull(&silent_host, &registry, layer, &format!("00-{TRACE}-{PARENT}-01"));
    pull(&silent_host, &registry, other, &format!("00-{TRACE}-{PARENT}-01"));

    let host = network.host("traced", None).unwrap();
    let address = SocketAddr::from((collecting.address(), PORT));
    let node = Lapwing::start(&host, traced(settings, address, &headers)).unwrap();
    let dropped = || node.metric("lapwing_trace_spans_dropped_total", "reason=\"collector\"").unwrap();
    pull(&host, &registry, layer, &format!("00-{TRACE}-{PARENT}-01"));
    assert!(node.piece_bytes("peer").unwrap() > 0, "of a node that knows nothing of traces");
    wait::until_true("spans to be dropped", SOON, || dropped() > 0.0).unwrap();
    let before = dropped();
    pull(&host, &registry, other, &format!("00-{TRACE}-{PARENT}-01"));
    wait::until_true("more of them", SOON, || dropped() > before).unwrap();
    let log = node.log().unwrap();
    assert_eq!(log.matches("takes no spans").count(), 1, "{log}");
    assert!(log.contains("traces.endpoint"), "{log}");

    let collector = Collector::start(&collecting);
    let back = "22222222222222222222222222222222";
    pull(&host, &registry, layer, &format!("00-{back}-{PARENT}-01"));
    wait::until_true("spans to come", SOON, || collector.of(back).iter().any(|sent| sent.span.name == "mirror.blob"))
        .unwrap();
    wait::until_true("it to be told", SOON, || node.log().unwrap().contains("takes spans again")).unwrap();
    assert!(node.metric("lapwing_trace_spans_sent_total", "").unwrap() > 0.0);

    assert!(collector.spans.lock().unwrap().iter().all(|sent| sent.role() == "node"));
    let name = |sent: &Sent| text(&sent.resource, "service.instance.id").unwrap();
    let senders: HashSet<String> = collector.spans.lock().unwrap().iter().map(name).collect();
    assert_eq!(senders.len(), 1, "off by default");
    for metric in ["lapwing_trace_spans_sent_total", "lapwing_trace_spans_dropped_total"] {
        assert_eq!(silent.metric(metric, "").unwrap(), 0.0, "{metric}");
    }
}
