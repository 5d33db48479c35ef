//! Piccolo's agents at a real listener, with requests byte for byte as Go's `net/http` forms them for `pkg/sd` of
//! Piccolo 0.0.36, from the addresses that the agents have.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as the test itself may")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapwing_discovery::limits::{AGENT_TTL, MAX_BLOBS_PER_NODE, MAX_PICCOLO_BODY_BYTES};
use lapwing_discovery::piccolo::{Piccolo, group_name, keep_time, router};
use lapwing_discovery::registry::{MemberFilter, Place};
use lapwing_discovery::server::{Keeping, Tracker};
use lapwing_discovery::{ClientConfig, TrackerClient};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Discovery, Holding};
use lapwing_p2p::identity::PeerId;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// A tracker with a listener for agents, on a clock that the test moves.
struct Lab {
    tracker: Tracker,
    piccolo: Piccolo,
    address: SocketAddr,
    seconds: Arc<AtomicU64>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Lab {
    async fn start() -> Self {
        Self::go_on(None).await
    }

    /// A tracker that begins with what another left.
    async fn go_on(kept: Option<&Keeping>) -> Self {
        let seconds = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&seconds);
        let tracker = Tracker::with_clock(Arc::new(move || Duration::from_secs(clock.load(Ordering::SeqCst))));
        if let Some(kept) = kept {
            kept.restore(&tracker);
        }
        let piccolo = Piccolo::new(tracker.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = router(piccolo.clone()).into_make_service_with_connect_info::<SocketAddr>();
        let (serving, ticking) = (axum::serve(listener, service).into_future(), keep_time(piccolo.clone()));
        let task = tokio::spawn(async { tokio::join!(serving, ticking).0 });
        Self { tracker, piccolo, address, seconds, task }
    }

    /// Lets time pass as a tracker sees it: second by second, here in strides that no tick is late by.
    fn pass(&self, time: Duration) {
        for _ in 0..time.as_secs() / 5 {
            self.seconds.fetch_add(5, Ordering::SeqCst);
            self.piccolo.tick();
            self.tracker.tick();
        }
    }

    async fn connect(&self, from: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// Sends a request from an address, and gives the status and the answer.
    async fn send(&self, from: &str, head: String, body: &[u8]) -> (u16, Value) {
        let mut stream = self.connect(from).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        // A listener that refuses early may close before it has read everything.
        let _ = stream.write_all(body).await;
        read_answer(stream).await
    }

    async fn post(&self, from: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
             Accept: application/json\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n",
            self.address,
            body.len()
        );
        self.send(from, head, body).await
    }

    /// `Advertise` and `Sync` of the agent: the struct's fields in their order.
    async fn keys(&self, call: &str, from: &str, group: &str, keys: &[&str]) -> (u16, Value) {
        let body = format!(r#"{{"holder":"{from}:5201","keys":{},"group":"{group}"}}"#, json!(keys));
        self.post(from, &format!("/api/v1/distribution/{call}"), body.as_bytes()).await
    }

    async fn keepalive(&self, from: &str, group: &str) -> (u16, Value) {
        // The field has a tag for forms and none for JSON.
        let body = format!(r#"{{"host":"{from}:5201","Group":"{group}"}}"#);
        self.post(from, "/api/v1/keepalive", body.as_bytes()).await
    }

    async fn find_key(&self, from: &str, group: &str, key: &str) -> (u16, Value) {
        let escaped = key.replace(':', "%3A").replace('/', "%2F");
        let head = format!(
            "GET /api/v1/distribution/findkey?count=3&group={group}&key={escaped}&request_host={from} HTTP/1.1\r\n\
             Host: {}\r\nUser-Agent: Go-http-client/1.1\r\nAccept: application/json\r\nAccept-Encoding: gzip\r\n\r\n",
            self.address
        );
        self.send(from, head, b"").await
    }

    /// The holders named to an agent; none if the answer says so.
    async fn holders(&self, from: &str, group: &str, key: &str) -> Vec<String> {
        let (status, answer) = self.find_key(from, group, key).await;
        if status == 404 {
            assert!(answer["message"].as_str().unwrap().contains(key), "{answer}");
            return Vec::new();
        }
        assert_eq!(status, 200, "{answer}");
        assert_eq!((&answer["key"], &answer["Group"], &answer["total"]), (&json!(key), &json!(group), &json!(0)));
        answer["holders"].as_array().unwrap().iter().map(|holder| holder.as_str().unwrap().to_owned()).collect()
    }
}

async fn read_answer(mut stream: TcpStream) -> (u16, Value) {
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
            if body.len() >= length {
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return (status, serde_json::from_str(body).unwrap_or(Value::Null));
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return (0, Value::String(text)),
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
        }
    }
}

fn digest(name: &str) -> String {
    Digest::of(name.as_bytes()).to_string()
}

const TAG: &str = "reg.example:5000/app/web:1.2";

#[tokio::test]
async fn an_agent_is_found_by_what_it_advertised() {
    let lab = Lab::start().await;
    let layer = digest("layer");
    let (status, answer) = lab.keys("advertise", "127.0.0.2", "pi", &[TAG, &layer]).await;
    assert_eq!((status, answer), (201, json!({"success": true, "message": "Distribution created!"})));
    for key in [TAG, &layer] {
        assert_eq!(lab.holders("127.0.0.3", "pi", key).await, ["127.0.0.2:5201"]);
    }
    assert!(lab.holders("127.0.0.3", "pi", &digest("other")).await.is_empty());
    assert!(lab.holders("127.0.0.3", "other", &layer).await.is_empty(), "groups know nothing of each other");
    let members = lab.tracker.members(&MemberFilter { limit: 10, ..MemberFilter::default() });
    assert_eq!(members.total, 1, "asking registers nobody");
    assert_eq!((members.rows[0].group.as_str(), members.rows[0].blobs), (group_name("pi").as_str(), 2));
}

#[tokio::test]
async fn sync_replaces_what_was_there() {
    let lab = Lab::start().await;
    let (old, kept, new) = (digest("old"), digest("kept"), digest("new"));
    assert_eq!(lab.keys("advertise", "127.0.0.2", "pi", &[&old, &kept]).await.0, 201);
    assert_eq!(lab.keys("advertise", "127.0.0.3", "pi", &[&old]).await.0, 201);
    assert_eq!(lab.keys("sync", "127.0.0.2", "pi", &[&kept, &new, ""]).await.0, 201);
    assert_eq!(lab.holders("127.0.0.4", "pi", &old).await, ["127.0.0.3:5201"], "another's are untouched");
    for key in [&kept, &new] {
        assert_eq!(lab.holders("127.0.0.4", "pi", key).await, ["127.0.0.2:5201"]);
    }
    assert_eq!(lab.keys("sync", "127.0.0.2", "pi", &[]).await.0, 201, "an agent without images says so");
    assert!(lab.holders("127.0.0.4", "pi", &kept).await.is_empty());
}

#[tokio::test]
async fn a_sign_of_life_prolongs_and_silence_ends() {
    let lab = Lab::start().await;
    let layer = digest("layer");
    for from in ["127.0.0.2", "127.0.0.3"] {
        assert_eq!(lab.keys("advertise", from, "pi", &[&layer]).await.0, 201);
    }
    for _ in 0..4 {
        lab.pass(Duration::from_secs(600));
        let (status, answer) = lab.keepalive("127.0.0.2", "pi").await;
        assert_eq!((status, answer), (201, json!({"success": true, "message": "keep alive success"})));
    }
    assert_eq!(lab.holders("127.0.0.4", "pi", &layer).await, ["127.0.0.2:5201"], "the other one was silent");
    lab.pass(AGENT_TTL);
    assert!(lab.holders("127.0.0.4", "pi", &layer).await.is_empty());
    assert_eq!(lab.tracker.members(&MemberFilter::default()).total, 0);
}

#[tokio::test]
async fn a_tracker_that_starts_again_goes_on_with_its_agents() {
    let directory = tempfile::tempdir().unwrap();
    let kept = Keeping::new(directory.path().join("holders"));
    let layer = digest("layer");
    let lab = Lab::start().await;
    assert_eq!(lab.keys("advertise", "127.0.0.2", "pi", &[TAG, &layer]).await.0, 201);
    kept.write(&lab.tracker).unwrap();
    drop(lab);
    let lab = Lab::go_on(Some(&kept)).await;
    lab.pass(Duration::from_secs(600));
    assert_eq!(lab.holders("127.0.0.3", "pi", TAG).await, ["127.0.0.2:5201"], "it was not heard from since");
    lab.pass(AGENT_TTL);
    assert!(lab.holders("127.0.0.3", "pi", &layer).await.is_empty());
}

#[tokio::test]
async fn the_nearest_come_first_and_as_many_as_were_asked_for() {
    let lab = Lab::start().await;
    let layer = digest("layer");
    for from in ["127.9.9.2", "127.0.9.2", "127.0.0.2", "127.9.0.2"] {
        assert_eq!(lab.keys("advertise", from, "pi", &[&layer]).await.0, 201);
    }
    let found = lab.holders("127.0.0.4", "pi", &layer).await;
    assert_eq!(found.len(), 3, "the agent asks for three");
    assert_eq!(found[..2], ["127.0.0.2:5201", "127.0.9.2:5201"]);
}

#[tokio::test]
async fn agents_and_nodes_are_never_named_to_each_other() {
    let lab = Lab::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(lapwing_discovery::server::serve(listener, lab.tracker.clone(), std::future::pending()));
    let node = |number: u8, group: &str| {
        let config = ClientConfig {
            piece_port: 7081,
            group: group.to_owned(),
            ..ClientConfig::new(vec![address.to_string()], PeerId::from_bytes([number; 32]))
        };
        TrackerClient::new(config)
    };
    assert!(node(1, &group_name("pi")).is_err(), "a node cannot be configured to be in a group of agents");
    let (agents, nodes) = (Digest::of(b"agents"), Digest::of(b"nodes"));
    assert_eq!(lab.keys("advertise", "127.0.0.2", "pi", &[&agents.to_string()]).await.0, 201);
    let first = node(1, "pi").unwrap();
    first.announce(nodes, Some(Holding::Complete)).await.unwrap();
    let second = node(2, "pi").unwrap();
    tokio::time::timeout(Duration::from_secs(60), async {
        while second.find(nodes).await.unwrap().holders.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(second.find(agents).await.unwrap().holders.is_empty());
    assert!(lab.holders("127.0.0.3", "pi", &nodes.to_string()).await.is_empty());
    let place = Place { zone: "".into(), rack: "".into(), address: IpAddr::from([127, 0, 0, 3]) };
    assert_eq!(lab.tracker.holders_of(agents, None, &place, 10)[0].group, group_name("pi"));
    serving.abort();
}

#[tokio::test]
async fn what_no_agent_sends_is_refused_and_changes_nothing() {
    let lab = Lab::start().await;
    let advertise = "/api/v1/distribution/advertise";
    let cases: [(&str, &str, &str); 12] = [
        (advertise, "{", "Wrong request format"),
        (advertise, r#"{"holder":"127.0.0.2:5201","keys":["k"]}"#, "group"),
        (advertise, r#"{"holder":"127.0.0.2:5201","group":"pi","keys":null}"#, "keys"),
        (advertise, r#"{"holder":"127.0.0.2:5201","group":"","keys":["k"]}"#, "group"),
        (advertise, r#"{"holder":"127.0.0.2:5201","group":"a b","keys":["k"]}"#, "group"),
        (advertise, r#"{"holder":"127.0.0.2:5201","group":"pi","keys":[""]}"#, "No operation needed"),
        (advertise, r#"{"holder":"","group":"pi","keys":["k"]}"#, "address:port"),
        (advertise, r#"{"holder":"node7:5201","group":"pi","keys":["k"]}"#, "address:port"),
        (advertise, r#"{"holder":"127.0.0.9:5201","group":"pi","keys":["k"]}"#, "--pi-listen-addr 127.0.0.2:5201"),
        (advertise, r#"{"holder":"0.0.0.0:5201","group":"pi","keys":["k"]}"#, "--pi-listen-addr"),
        ("/api/v1/distribution/sync", r#"{"holder":"127.0.0.9:5201","group":"pi","keys":["k"]}"#, "127.0.0.2"),
        ("/api/v1/keepalive", r#"{"host":"127.0.0.9:5201","Group":"pi"}"#, "127.0.0.2"),
    ];
    for (path, body, told) in cases {
        let (status, answer) = lab.post("127.0.0.2", path, body.as_bytes()).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert_eq!(answer["success"], false);
        assert!(answer["message"].as_str().unwrap().contains(told), "{body}: {answer}");
    }
    assert_eq!(lab.find_key("127.0.0.2", "pi", "").await.0, 400);
    assert_eq!(lab.find_key("127.0.0.2", "piccolo:pi", "k").await.0, 400);
    assert_eq!(lab.find_key("127.0.0.2", "pi", &"k".repeat(5000)).await.0, 400);
    assert_eq!(lab.tracker.members(&MemberFilter::default()).total, 0);
    let mut metrics = prometheus_client::registry::Registry::default();
    lab.tracker.metrics().register(&mut metrics);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics).unwrap();
    let counted = r#"calls_total{method="piccolo_advertise",outcome="invalid_argument"} 10"#;
    assert!(text.contains(counted), "{text}");
}

#[tokio::test]
async fn what_an_agent_may_announce_is_bounded() {
    let lab = Lab::start().await;
    let many: Vec<String> = (0..=MAX_BLOBS_PER_NODE).map(|number| number.to_string()).collect();
    let keys: Vec<&str> = many.iter().map(String::as_str).collect();
    let (status, answer) = lab.keys("sync", "127.0.0.2", "pi", &keys).await;
    assert_eq!(status, 400);
    assert!(answer["message"].as_str().unwrap().contains("at most 65536 keys"), "{answer}");
    assert_eq!(lab.keys("sync", "127.0.0.2", "pi", &keys[1..]).await.0, 201, "as many as may be");
    assert_eq!(lab.keys("advertise", "127.0.0.2", "pi", &["one more"]).await.0, 429);
    let head = format!(
        "POST /api/v1/distribution/sync HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n",
        MAX_PICCOLO_BODY_BYTES + 1
    );
    assert_eq!(lab.send("127.0.0.2", head, b"{").await.0, 413, "said before it is sent");
    assert_eq!(lab.holders("127.0.0.3", "pi", "7").await, ["127.0.0.2:5201"]);
}
