//! Requests that no honest client sends.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapwing_evidence::{count, seed};
use lapwing_lab::{LapwingSettings, require, wait};

use super::*;

/// One request, and the statuses that it may be answered with; none if the connection may just end.
struct Case {
    name: String,
    address: &'static str,
    bytes: Vec<u8>,
    may: &'static [u16],
}

fn case(name: &str, address: &'static str, text: impl AsRef<[u8]>, may: &'static [u16]) -> Case {
    Case { name: name.to_owned(), address, bytes: text.as_ref().to_vec(), may }
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Connection: close\r\n\r\n")
}

/// The last where the proxy had begun to pass on what turned out to be none.
const BAD: &[u16] = &[400, 404, 405, 414, 416, 431, 501, 505, 502];
/// What a range may give: the whole, the part, or the word that there is none.
const RANGED: &[u16] = &[200, 206, 400, 416, 431];
/// After that a connection is taken to be kept for another request.
const WAITS_ON: Duration = Duration::from_millis(300);
/// Names of the network's inside.
const REFUSED: &[u16] = &[400, 403, 404, 502, 503];

fn ranges(path: &str) -> Vec<Case> {
    let many = |count: u32, range: &str| vec![range; count as usize].join(",");
    let odd = [
        "bytes=0-".to_owned(),
        "bytes=5-2".to_owned(),
        "bytes=-0".to_owned(),
        "bytes=-1".to_owned(),
        "bytes=-99999999999".to_owned(),
        "bytes=99999999999-".to_owned(),
        "bytes=18446744073709551615-".to_owned(),
        "bytes=0-18446744073709551616".to_owned(),
        "bytes=-18446744073709551616".to_owned(),
        "bytes=a-b".to_owned(),
        "bytes=-".to_owned(),
        "bytes=".to_owned(),
        "bytes=1-2-3".to_owned(),
        "bytes=0x1-0x2".to_owned(),
        "bytes = 1 - 2".to_owned(),
        "octets=0-1".to_owned(),
        "bytes=0-0\r\nRange: bytes=5-9".to_owned(),
        format!("bytes={}", many(2, "0-1")),
        format!("bytes={}", many(3000, "0-")),
        format!("bytes={}", many(5000, "1-2")),
    ];
    odd.iter().map(|range| case(range, MIRROR, get(path, &format!("Range: {range}\r\n")), RANGED)).collect()
}

/// Heads in which two readers may see different requests.
fn smuggling(path: &str, address: &'static str) -> Vec<Case> {
    let hidden = "GET /hidden HTTP/1.1\r\nHost: hidden\r\n\r\n";
    let of = |name: &str, headers: &str, body: &str| {
        let text = format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\r\n{body}");
        case(name, address, text, BAD)
    };
    let length = hidden.len();
    vec![
        of("two lengths", &format!("Content-Length: 0\r\nContent-Length: {length}\r\n"), hidden),
        of("two lengths in one", &format!("Content-Length: 0, {length}\r\n"), hidden),
        of("a signed length", &format!("Content-Length: +{length}\r\n"), hidden),
        of("a negative length", "Content-Length: -1\r\n", hidden),
        of("an endless length", "Content-Length: 99999999999999999999999\r\n", hidden),
        of("a length that is none", "Content-Length: x\r\n", hidden),
        of("an encoding that is none", "Transfer-Encoding: xchunked\r\n", hidden),
        of("chunked before another", "Transfer-Encoding: chunked, identity\r\n", hidden),
        of("a space before the colon", &format!("Content-Length : {length}\r\n"), hidden),
        of("a folded line", &format!("X: 1\r\n Content-Length: {length}\r\n"), hidden),
        of("a chunk's length too long", "Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\n"),
        of("a chunk's length that is none", "Transfer-Encoding: chunked\r\n", "zz\r\n"),
        of("a NUL in a header", "X: a\0b\r\n", ""),
        of("a line without a colon", "Nothing\r\n", ""),
        case("a version of the future", address, format!("GET {path} HTTP/9.9\r\n\r\n"), BAD),
        case("a version of the past", address, format!("GET {path}\r\n\r\n"), BAD),
        case("a method of nobody", address, format!("\x01\x02 {path} HTTP/1.1\r\n\r\n"), BAD),
        case("a space in the path", address, format!("GET {path} x HTTP/1.1\r\nHost: x\r\n\r\n"), BAD),
        case("TLS", address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", BAD),
        case("zeros", address, vec![0; 100_000], BAD),
    ]
}

fn floods(path: &str, address: &'static str) -> Vec<Case> {
    let many = |count: u32| (0..count).map(|number| format!("X-{number}: 1\r\n")).collect::<String>();
    vec![
        case("200 headers", address, get(path, &many(200)), BAD),
        case("20,000 headers", address, get(path, &many(20_000)), BAD),
        case("a header of 4 MiB", address, get(path, &format!("X: {}\r\n", "x".repeat(4 << 20))), BAD),
        case("a header without end", address, format!("GET {path} HTTP/1.1\r\nX: {}", "x".repeat(1 << 20)), BAD),
        case("a URL of 1 MiB", address, get(&format!("{path}{}", "x".repeat(1 << 20)), ""), BAD),
    ]
}

/// Where the trap is, by all the names that somebody may think of.
fn inside(port: u16) -> Vec<Case> {
    let names = [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
    ];
    let mut cases = Vec::new();
    let digest = format!("sha256:{}", "a".repeat(64));
    let others = ["169.254.169.254", "[fd00:ec2::254]", "10.0.0.1", "http://127.0.0.1", "127.0.0.1/x", "x@127.0.0.1"];
    for name in names.map(|name| format!("{name}:{port}")).into_iter().chain(others.map(str::to_owned)) {
        let shown = name.replace('@', "%40").replace('/', "%2f");
        let manifest = get(&format!("/v2/{REPOSITORY}/manifests/1?ns={shown}"), "");
        cases.push(case(&format!("ns={name}, a manifest"), MIRROR, manifest, REFUSED));
        let blob = get(&format!("/v2/{REPOSITORY}/blobs/{digest}?ns={shown}"), "");
        cases.push(case(&format!("ns={name}, a blob"), MIRROR, blob, REFUSED));
        cases.push(case(&format!("/url/ of {name}"), MIRROR, get(&format!("/url/http/{name}/x"), ""), REFUSED));
        cases.push(case(&format!("proxy to {name}"), PROXY, get(&format!("http://{name}/"), ""), REFUSED));
        let tunnel = format!("CONNECT {name} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        cases.push(case(&format!("tunnel to {name}"), PROXY, tunnel, REFUSED));
        let body = format!("{{\"image\": \"{name}/x:1\"}}");
        let order = format!(
            "POST /api/v1/preheat/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // Whether there is such an order at all is not asked here: the trap tells.
        cases.push(case(&format!("preheat of {name}"), ADMIN, order, &[200, 201, 202, 400, 403, 404, 405, 415, 422]));
    }
    cases
}

/// The first status of an answer, and how many answers there are.
fn statuses(answer: &[u8]) -> (Option<u16>, usize) {
    let text = String::from_utf8_lossy(answer);
    let first = text.strip_prefix("HTTP/1.1 ").or(text.strip_prefix("HTTP/1.0 "));
    (first.and_then(|text| text.get(..3)?.parse().ok()), answer.windows(9).filter(|part| part == b"HTTP/1.1 ").count())
}

/// The part of the layer that an answer says it is, and the bytes that it has. What follows them on the connection is another answer.
fn told<'a>(answer: &'a [u8], whole: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    let body = &answer[end + 4..];
    let body = &body[..body.len().min(length)];
    let Some(range) = head.lines().find_map(|line| line.strip_prefix("content-range: bytes ")) else {
        return Some((whole, body));
    };
    let (first, last) = range.split_once('/')?.0.split_once('-')?;
    Some((whole.get(first.parse().ok()?..=last.parse().ok()?)?, body))
}

/// What each case is answered with, and after which time; several at once.
fn all(host: &Host, cases: &[Case]) -> Vec<(Option<Vec<u8>>, Duration)> {
    let ask = |case: &Case| {
        let begun = Instant::now();
        let answer = host.within(|| Ok(exchange(case.address, &case.bytes, PATIENCE))).unwrap();
        (answer, begun.elapsed())
    };
    let together = |some: &[Case]| {
        std::thread::scope(|scope| {
            let asking: Vec<_> = some.iter().map(|case| scope.spawn(move || ask(case))).collect();
            asking.into_iter().map(|asked| asked.join().unwrap()).collect::<Vec<_>>()
        })
    };
    cases.chunks(16).flat_map(together).collect()
}

#[test]
fn hostile_requests_are_refused_and_lead_nowhere() {
    const NAME: &str = "hostile_requests_are_refused_and_lead_nowhere";
    if !require(NAME, &NEEDS) {
        return;
    }
    let mut evidence = Evidence::new(
        19,
        "hostile requests to the mirror, the proxy, the admin listener and a tracker's for Piccolo's agents",
    );
    let mut rig = Rig::new("hostile-http", 191);
    rig.begin(&mut evidence);
    let before = held(rig.pid());
    let trapped = Arc::new(AtomicUsize::new(0));
    let trap = rig.host.within(|| Ok(TcpListener::bind("[::]:0")?)).unwrap();
    let port = trap.local_addr().unwrap().port();
    let counted = Arc::clone(&trapped);
    std::thread::spawn(move || {
        for _ in trap.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let path = rig.path();
    let registry = format!("http://{}/v2/", rig.site.registry.name());
    let mut cases = ranges(&path);
    let agents = rig.site.network.host("agents", None).unwrap();
    let listen: &'static str = format!("{}:7789", agents.address()).leak();
    let settings = LapwingSettings::tracker().with("tracker", &format!("piccolo_listen = {listen:?}"));
    let tracker = Lapwing::start(&agents, settings).unwrap();
    let find = "/api/v1/distribution/findkey?group=g&key=x";
    let asked = rig.host.within(|| Ok(exchange(listen, get(find, "").as_bytes(), PATIENCE))).unwrap().unwrap();
    assert_eq!(statuses(&asked).0, Some(404), "{}", String::from_utf8_lossy(&asked));
    let paths = [(path.as_str(), MIRROR), ("/api/v1/limits", ADMIN), (registry.as_str(), PROXY), (find, listen)];
    for (path, address) in paths {
        cases.extend(smuggling(path, address));
        cases.extend(floods(path, address));
    }
    cases.extend(inside(port));
    for round in 0..count(1, 20) {
        for ((number, case), (answer, took)) in cases.iter().enumerate().zip(all(&rig.host, &cases)) {
            let answer = answer.unwrap_or_else(|| panic!("{} to {}: not over in time", case.name, case.address));
            let (status, answers) = statuses(&answer);
            evidence.ended(took, status.is_some_and(|status| status < 300));
            evidence.fault(if number < 20 { "an odd range" } else { "a hostile request" });
            let shown: String = String::from_utf8_lossy(&answer).chars().take(300).collect();
            let may = status.is_none_or(|status| case.may.contains(&status));
            assert!(may, "{round}: {} to {}: {shown}", case.name, case.address);
            assert!(answers <= 1, "{}: a hidden request was answered: {shown}", case.name);
            if case.address == MIRROR && matches!(status, Some(200 | 206)) {
                let (right, served) = told(&answer, &rig.bytes).unwrap();
                assert!(evidence.compare(right, served) && right.len() == served.len(), "{}", case.name);
            }
        }
        rig.goes_on(&mut evidence);
    }
    assert_eq!(trapped.load(Ordering::SeqCst), 0, "somebody was sent inside");
    rig.host.within(|| Ok(TcpStream::connect(("127.0.0.1", port))?)).unwrap();
    let caught = || trapped.load(Ordering::SeqCst) == 1;
    wait::until_true("the trap to catch who does come", PATIENCE, caught).unwrap();

    // Good requests with a few bytes changed.
    let mut random = fastrand::Rng::with_seed(seed());
    let good = [
        (MIRROR, get(&path, "Range: bytes=100-2099\r\n")),
        (PROXY, get(&registry, "Accept: */*\r\n")),
        (ADMIN, get("/metrics", "")),
    ];
    for _ in 0..count(50, 5000) {
        let (address, text) = &good[random.usize(..good.len())];
        let mut bytes = text.clone().into_bytes();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        // So that the node does not wait for the rest. It may wait for the next request, if the last line was changed.
        bytes.extend_from_slice(b"\r\n\r\n");
        evidence.fault("a changed request");
        let begun = Instant::now();
        let answer = rig.host.within(|| Ok(exchange(address, &bytes, WAITS_ON))).unwrap().unwrap_or_default();
        let status = statuses(&answer).0;
        evidence.ended(begun.elapsed(), status == Some(200));
        if *address == MIRROR && status == Some(206) {
            let (right, served) = told(&answer, &rig.bytes).unwrap();
            assert!(evidence.compare(right, served), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }
    rig.goes_on(&mut evidence);
    let after = held(rig.pid());
    eprintln!("memory and descriptors: {before:?}, then {after:?}");
    assert!(after.0 < before.0 + (256 << 20), "{} MiB more", (after.0 - before.0) >> 20);
    assert!(after.1 < before.1 + 100, "{} descriptors more", after.1 - before.1);
    assert!(!tracker.log().unwrap().contains("panicked"));
    evidence.figure("memory more, MiB", (after.0.saturating_sub(before.0) >> 20) as f64);
}
