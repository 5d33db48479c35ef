//! A registry that does everything wrong that one can over HTTP, at random, under a node that pulls from it: the pull ends right or in an error
//! that names the blob or the registry, in time, and never with a wrong byte; and it ends right once the registry does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use lapwing_evidence::{Evidence, count, seed};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::{Blob, Priority};
use lapwing_plugins::registry::{Credential, Registries, RegistriesConfig, RegistryConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::fake::{provider, repo};
use crate::support::{Tracker, content, start};

const LENGTH: usize = 2 << 20;
/// Far longer than any pull may take, a deadline of its own included.
const PATIENCE: Duration = Duration::from_secs(90);
const READ_DEADLINE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    TooMany,
    Unavailable,
    BadGateway,
    ClosedWithoutAnswer,
    ResetInBody,
    ErrorInBody,
    Silent,
    LengthTooLong,
    LengthTooShort,
    GoesOn,
    WrongRange,
    WrongTotal,
    WholeInsteadOfRange,
    WrongBytes,
}

const FAULTS: [Fault; 14] = [
    Fault::TooMany,
    Fault::Unavailable,
    Fault::BadGateway,
    Fault::ClosedWithoutAnswer,
    Fault::ResetInBody,
    Fault::ErrorInBody,
    Fault::Silent,
    Fault::LengthTooLong,
    Fault::LengthTooShort,
    Fault::GoesOn,
    Fault::WrongRange,
    Fault::WrongTotal,
    Fault::WholeInsteadOfRange,
    Fault::WrongBytes,
];

/// A server that has one blob, and of that many answers in a hundred makes something else.
struct Hostile {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    blob: Bytes,
    percent: AtomicU32,
    random: Mutex<fastrand::Rng>,
    made: Mutex<BTreeMap<Fault, u64>>,
}

impl Hostile {
    async fn start(blob: Bytes, percent: u32, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        let state = Arc::new(State { blob, percent: percent.into(), random, made: Mutex::default() });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                // Whoever breaks a connection breaks it.
                tokio::spawn(async move { while state.answer(&mut stream).await.is_some() {} });
            }
        });
        Self { address, state }
    }

    fn registries(&self) -> Arc<Registries> {
        let own = RegistryConfig { plain_http: true, ..RegistryConfig::default() };
        let hosts = [(self.address.to_string(), own)].into();
        Registries::new(RegistriesConfig { read_timeout_seconds: 1, hosts, ..RegistriesConfig::default() }).unwrap()
    }
}

impl State {
    fn fault(&self) -> Option<Fault> {
        let mut random = self.random.lock().unwrap();
        let fault =
            (random.u32(0..100) < self.percent.load(Ordering::Relaxed)).then(|| FAULTS[random.usize(0..FAULTS.len())]);
        if let Some(fault) = fault {
            *self.made.lock().unwrap().entry(fault).or_default() += 1;
        }
        fault
    }

    /// Answers a request; nothing when the connection is to be closed.
    async fn answer(&self, socket: &mut TcpStream) -> Option<()> {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(socket.read_u8().await.ok()?);
        }
        let request = String::from_utf8(request).ok()?.to_lowercase();
        let total = self.blob.len();
        let asked = request.lines().find_map(|line| line.strip_prefix("range: bytes="));
        let (first, last) = asked.map_or(Some((0, total - 1)), |asked| {
            let (first, last) = asked.split_once('-')?;
            Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
        })?;
        let body = self.blob.slice(first..=last);
        let range =
            |first: usize, last: usize, total: usize| format!("content-range: bytes {first}-{last}/{total}\r\n");
        let partial = |range: &str, length: usize| {
            format!("HTTP/1.1 206 Partial Content\r\n{range}content-length: {length}\r\n\r\n")
        };
        let right = range(first, last, total);
        let half = body.len() / 2;
        let empty = |status: &str| format!("HTTP/1.1 {status}\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n");
        let mut send = async |head: String, body: &[u8]| {
            socket.write_all(head.as_bytes()).await.ok()?;
            socket.write_all(body).await.ok()
        };
        let chunked = format!("HTTP/1.1 206 Partial Content\r\n{right}transfer-encoding: chunked\r\n\r\n");
        match self.fault() {
            None => return send(partial(&right, body.len()), &body).await,
            Some(Fault::TooMany) => return send(empty("429 Too Many Requests"), &[]).await,
            Some(Fault::Unavailable) => return send(empty("503 Service Unavailable"), &[]).await,
            Some(Fault::BadGateway) => {
                return send("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\n".into(), b"oops").await;
            }
            Some(Fault::WrongBytes) => {
                let wrong: Vec<u8> = body.iter().map(|byte| !byte).collect();
                return send(partial(&right, body.len()), &wrong).await;
            }
            Some(Fault::WrongTotal) => return send(partial(&range(first, last, total + 1), body.len()), &body).await,
            Some(Fault::WrongRange) => {
                let length = body.len();
                let elsewhere = if first == 0 { total - length } else { 0 };
                let head = partial(&range(elsewhere, elsewhere + length - 1, total), length);
                return send(head, &self.blob[elsewhere..elsewhere + length]).await;
            }
            Some(Fault::WholeInsteadOfRange) => {
                return send(format!("HTTP/1.1 200 OK\r\ncontent-length: {total}\r\n\r\n"), &self.blob).await;
            }
            Some(Fault::ClosedWithoutAnswer) => {}
            Some(Fault::ResetInBody) => {
                send(partial(&right, body.len()), &body[..half]).await;
                let _ = rustix::net::sockopt::set_socket_linger(&*socket, Some(Duration::ZERO));
            }
            Some(Fault::ErrorInBody) => {
                let head = format!("{chunked}{half:x}\r\n");
                send(head, &body[..half]).await;
                send("\r\nHTTP/1.1 503 Service Unavailable\r\n\r\n".into(), &[]).await;
            }
            Some(Fault::Silent) => {
                send(partial(&right, body.len()), &body[..half]).await;
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            Some(Fault::LengthTooLong) => drop(send(partial(&right, body.len() + 7), &body).await),
            Some(Fault::LengthTooShort) => drop(send(partial(&right, half), &body).await),
            Some(Fault::GoesOn) => {
                send(format!("{chunked}{:x}\r\n", body.len() + 5), &body).await;
                send(String::new(), b"wrong\r\n0\r\n\r\n").await;
            }
        }
        None
    }
}

/// Everything of the blob, as a client gets it.
async fn pulled(blob: &Arc<Blob>) -> Result<Vec<u8>, String> {
    let all = blob.stream(0..blob.length(), Priority::Bulk).try_collect::<Vec<Bytes>>();
    let all = tokio::time::timeout(PATIENCE, all).await.expect("a pull ends in time");
    all.map(|chunks| chunks.concat()).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_everything_wrong_costs_time_or_an_error_and_no_byte() {
    provider();
    let mut evidence = Evidence::new(9, "a registry that answers wrongly in every way, at random");
    let mut ended = [0_u32; 2];
    for round in 0..count(5, 160) {
        let seed = seed().wrapping_mul(1_000_000).wrapping_add(round.into());
        let bytes = content(LENGTH, seed);
        let digest = Digest::of(&bytes);
        // The first one behaves.
        let percent = if round == 0 { 0 } else { [100, 10, 40, 80][round as usize % 4] };
        let server = Hostile::start(bytes.clone(), percent, seed).await;
        let (directory, registries) = (tempfile::tempdir().unwrap(), server.registries());
        let node =
            start(&Arc::new(Tracker::default()), directory.path(), |config| config.read_deadline = READ_DEADLINE).await;
        let name = server.address.to_string().parse().unwrap();
        let origin = || registries.origin(&name, &repo(), digest, LENGTH as u64, Credential::Anonymous).unwrap();
        let blob = node.open(digest, LENGTH as u64, Some(Arc::new(origin()))).unwrap();
        let begun = Instant::now();
        let pull = pulled(&blob).await;
        evidence.ended(begun.elapsed(), pull.is_ok());
        ended[usize::from(pull.is_ok())] += 1;
        match &pull {
            Ok(given) if round == 0 => {
                assert!(*given == bytes);
                evidence.served_before(given.len() as u64);
            }
            Ok(given) => assert!(evidence.compare(&bytes, given), "seed {seed}: wrong bytes"),
            Err(error) => {
                let named = [digest.to_string(), server.address.to_string()].iter().any(|name| error.contains(name));
                assert!(named, "seed {seed}: it does not say what failed: {error}");
            }
        }
        server.state.percent.store(0, Ordering::Relaxed);
        if let Err(first) = pull {
            let again = node.open(digest, LENGTH as u64, Some(Arc::new(origin()))).unwrap();
            let begun = Instant::now();
            let mut pull = pulled(&again).await;
            // What the registry did last may still be what a reader hears first.
            while pull.is_err() && begun.elapsed() < PATIENCE {
                pull = pulled(&node.open(digest, LENGTH as u64, Some(Arc::new(origin()))).unwrap()).await;
            }
            evidence.ended(begun.elapsed(), pull.is_ok());
            let given =
                pull.unwrap_or_else(|error| panic!("seed {seed}: first {first}, then, by a sound registry, {error}"));
            assert!(evidence.compare(&bytes, &given), "seed {seed}: wrong bytes after {first}");
        }
        for (fault, times) in std::mem::take(&mut *server.state.made.lock().unwrap()) {
            evidence.faults(&format!("{fault:?}"), times);
        }
        drop(blob);
        node.shutdown().await;
    }
    assert!(ended[1] > 1 && ended[0] > 0, "{ended:?} pulls failed and succeeded: too few of one to say anything");
}
