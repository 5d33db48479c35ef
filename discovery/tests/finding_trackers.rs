//! Trackers named by DNS and by a file, which change while a node runs. The name server is a real one on loopback, if small.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as the test itself may")]

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapwing_discovery::server::{Tracker, serve};
use lapwing_discovery::{ClientConfig, TrackerClient};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Discovery, Holding};
use lapwing_p2p::identity::PeerId;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;

/// Data of records, by name and kind.
type Records = HashMap<(String, u16), Vec<Vec<u8>>>;

/// A name server that answers as RFC 1035 says, from a table that tests change.
struct NameServer {
    address: SocketAddr,
    records: Arc<Mutex<Records>>,
    questions: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NameServer {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let records: Arc<Mutex<Records>> = Arc::default();
        let questions: Arc<AtomicUsize> = Arc::default();
        let (table, count) = (Arc::clone(&records), Arc::clone(&questions));
        let task = tokio::spawn(async move {
            let mut packet = [0; 1500];
            while let Ok((length, asker)) = socket.recv_from(&mut packet).await {
                let answer = answer(&packet[..length], &table.lock().unwrap());
                count.fetch_add(1, Ordering::SeqCst);
                let _ = socket.send_to(&answer, asker).await;
            }
        });
        Self { address, records, questions, task }
    }

    fn set(&self, name: &str, kind: u16, records: &[Vec<u8>]) {
        self.records.lock().unwrap().insert((name.to_owned(), kind), records.to_vec());
    }

    /// Forgets all names, and answers that there are none.
    fn clear(&self) {
        self.records.lock().unwrap().clear();
    }

    /// Waits for some further questions to have been asked.
    async fn until_asked(&self, times: usize) {
        let before = self.questions.load(Ordering::SeqCst);
        until("the name server to be asked", || async { self.questions.load(Ordering::SeqCst) >= before + times })
            .await;
    }
}

/// The name and the kind that a query asks for, and where its question ends.
fn question(query: &[u8]) -> (String, u16, usize) {
    let (mut name, mut at) = (String::new(), 12);
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        name.push_str(std::str::from_utf8(&query[at + 1..end]).unwrap());
        name.push('.');
        at = end;
    }
    (name.to_lowercase(), u16::from_be_bytes([query[at + 1], query[at + 2]]), at + 5)
}

fn answer(query: &[u8], table: &Records) -> Vec<u8> {
    const AUTHORITATIVE_ANSWER: u8 = 0x84;
    const NO_SUCH_NAME: u8 = 3;
    let (name, kind, end) = question(query);
    let records = table.get(&(name.clone(), kind)).cloned().unwrap_or_default();
    let known = table.keys().any(|(other, _)| *other == name);
    let mut reply = query[..2].to_vec();
    reply.extend([AUTHORITATIVE_ANSWER | (query[2] & 1), if known { 0 } else { NO_SUCH_NAME }, 0, 1]);
    reply.extend(u16::try_from(records.len()).unwrap().to_be_bytes());
    reply.extend([0; 4]);
    reply.extend(&query[12..end]);
    for data in records {
        // The name of the question, class IN, a second to live.
        reply.extend([0xc0, 12]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1, 0, 0, 0, 1]);
        reply.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        reply.extend(data);
    }
    reply
}

fn address_record(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn service_record(host: &str, port: u16) -> Vec<u8> {
    let mut data = vec![0, 10, 0, 5];
    data.extend(port.to_be_bytes());
    for label in host.split('.') {
        data.push(u8::try_from(label.len()).unwrap());
        data.extend(label.bytes());
    }
    data.push(0);
    data
}

/// A tracker that runs until it is dropped.
struct Running {
    tracker: Tracker,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let tracker = Tracker::new();
        let serving = serve(listener, tracker.clone(), std::future::pending());
        Ok(Self { tracker, address, task: tokio::spawn(async move { serving.await.unwrap() }) })
    }

    async fn any() -> Self {
        Self::start("127.0.0.1:0".parse().unwrap()).await.unwrap()
    }

    fn knows(&self, nodes: usize, holders: usize) -> bool {
        let counts = self.tracker.snapshot();
        (counts.nodes, counts.holders) == (nodes, holders)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits for something to become so.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let poll = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), poll).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn client(source: &str, resolver: Option<SocketAddr>) -> Arc<TrackerClient> {
    let named = ClientConfig::new(vec![source.to_owned()], PeerId::from_bytes([1; 32]));
    let refresh = Duration::from_millis(20);
    TrackerClient::new(ClientConfig { resolver, refresh, piece_port: 7081, ..named }).unwrap()
}

fn blob() -> Digest {
    Digest::of(b"blob")
}

#[tokio::test]
async fn every_address_of_a_name_is_a_tracker_for_as_long_as_it_has_it() {
    let first = Running::any().await;
    let port = first.address.port();
    let on = |ip: IpAddr| SocketAddr::new(ip, port);
    let second = Running::start(on(Ipv4Addr::new(127, 0, 0, 2).into())).await.unwrap();
    let dns = NameServer::start().await;
    let client = client(&format!("dns:trackers.test.:{port}"), Some(dns.address));
    client.announce(blob(), Some(Holding::Complete)).await.unwrap();

    dns.until_asked(3).await;
    let error = client.find(blob()).await.unwrap_err().to_string();
    assert!(error.contains("tracker.addresses"), "{error}");

    dns.set("trackers.test.", A, &[address_record(first.address.ip())]);
    until("the first to be found", || async { first.knows(1, 1) }).await;
    dns.set("trackers.test.", A, &[address_record(second.address.ip()), address_record(first.address.ip())]);
    until("the second to be found", || async { second.knows(1, 1) }).await;
    dns.set("trackers.test.", A, &[address_record(second.address.ip())]);
    until("the first to be left", || async { first.knows(0, 0) }).await;

    // A name server without the name, or without an answer, takes no tracker away.
    dns.clear();
    dns.until_asked(5).await;
    assert!(client.is_current() && second.knows(1, 1));
    dns.set("trackers.test.", A, &[]);
    dns.until_asked(5).await;
    assert!(client.is_current() && second.knows(1, 1));

    // Not every machine has IPv6, even to itself.
    let localhost: IpAddr = "::1".parse().unwrap();
    if let Ok(third) = Running::start(on(localhost)).await {
        dns.set("trackers.test.", AAAA, &[address_record(localhost)]);
        until("the one on IPv6 to be found", || async { third.knows(1, 1) }).await;
    }
}

#[tokio::test]
async fn every_target_of_a_service_record_is_a_tracker_on_its_port() {
    let trackers = [Running::any().await, Running::any().await, Running::any().await];
    let dns = NameServer::start().await;
    let records: Vec<_> = trackers.iter().map(|running| service_record("localhost", running.address.port())).collect();
    dns.set("_lapwing._tcp.example.test.", SRV, &records[..2]);
    let client = client("srv:_lapwing._tcp.example.test.", Some(dns.address));
    client.announce(blob(), Some(Holding::Complete)).await.unwrap();
    until("both to be found", || async { trackers[0].knows(1, 1) && trackers[1].knows(1, 1) }).await;
    dns.set("_lapwing._tcp.example.test.", SRV, &records[1..]);
    until("one to be left", || async { trackers[0].knows(0, 0) }).await;
    until("another to be found", || async { trackers[1].knows(1, 1) && trackers[2].knows(1, 1) }).await;
    // The service is said not to be there: those that it was last stay in use.
    let mut none = service_record("x", 0);
    none.truncate(6);
    none.push(0);
    dns.set("_lapwing._tcp.example.test.", SRV, &[none]);
    dns.until_asked(5).await;
    assert!(client.is_current() && trackers[1].knows(1, 1));
}

#[tokio::test]
async fn a_file_of_trackers_may_be_changed_replaced_and_lost() {
    let trackers = [Running::any().await, Running::any().await];
    let dir = std::env::temp_dir().join(format!("lapwing-trackers-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("trackers");
    std::fs::write(&path, format!("# east\n{} # rack 1\n", trackers[0].address)).unwrap();
    let client = client(&format!("file:{}", path.display()), None);
    client.announce(blob(), Some(Holding::Complete)).await.unwrap();
    until("the first to be found", || async { trackers[0].knows(1, 1) }).await;

    // In the way of editors and of mounted Kubernetes ConfigMaps: another file takes the name.
    let new = dir.join("new");
    std::fs::write(&new, format!("nonsense\n{}\n", trackers[1].address)).unwrap();
    std::fs::rename(&new, &path).unwrap();
    until("the second to take its place", || async { trackers[0].knows(0, 0) && trackers[1].knows(1, 1) }).await;

    std::fs::remove_file(&path).unwrap();
    client.announce(blob(), None).await.unwrap();
    until("the second to be told still", || async { trackers[1].knows(1, 0) }).await;
    std::fs::write(&path, format!("{}\n{}\n", trackers[0].address, trackers[1].address)).unwrap();
    client.announce(blob(), Some(Holding::Partial)).await.unwrap();
    until("both to be told", || async { trackers.iter().all(|running| running.knows(1, 1)) }).await;
    std::fs::remove_dir_all(&dir).unwrap();
}
