//! Plain URLs: one copy for all nodes, the right version or an error, and only what a shared cache may keep.

use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use axum::response::Response;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use lapwing_p2p::digest::Digest;
use tokio::sync::watch;

use super::fake::{Fake, Seen, status, with_body};
use super::rig::{Rig, RigSettings, header, tracker};

const LENGTH: usize = 3_000_001;
const PATH: &str = "/files/release.bin";

/// A web server with one file, which may change.
struct Site {
    version: AtomicUsize,
    /// Status of every answer, if not zero.
    down: AtomicU16,
    serves_ranges: bool,
    length: usize,
    tag: fn(usize) -> String,
    control: Mutex<String>,
    /// From which offset on the bodies of ranges wait, and whether they wait no more.
    gate: (usize, watch::Sender<bool>),
}

impl Site {
    fn new() -> Self {
        Self {
            version: AtomicUsize::new(1),
            down: AtomicU16::new(0),
            serves_ranges: true,
            length: LENGTH,
            tag: |version| format!("\"v{version}\""),
            control: Mutex::new("no-cache".to_owned()),
            gate: (usize::MAX, watch::Sender::new(false)),
        }
    }

    fn content(&self, version: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        fastrand::Rng::with_seed(version as u64).fill(&mut bytes);
        bytes
    }

    fn answer(&self, seen: &Seen) -> Response {
        let down = self.down.load(Ordering::SeqCst);
        if down != 0 {
            return status(down, &[]);
        }
        let version = self.version.load(Ordering::SeqCst);
        let (tag, control) = ((self.tag)(version), self.control.lock().unwrap().clone());
        let base = [("etag", tag.as_str()), ("cache-control", &control), ("content-type", "application/x-release")];
        if seen.header("if-none-match") == Some(&tag) {
            return status(304, &base);
        }
        let bytes = self.content(version);
        let length = bytes.len().to_string();
        if seen.method == Method::HEAD {
            return status(200, &[&base[..], &[("content-length", &length)]].concat());
        }
        let current = seen.header("if-range").is_none_or(|condition| condition == tag);
        let range = seen.header("range").filter(|_| current && self.serves_ranges).and_then(range_of);
        let Some(range) = range else { return with_body(200, &base, bytes) };
        if range.end > bytes.len() {
            return status(416, &[("content-range", &format!("bytes */{length}"))]);
        }
        let sent = format!("bytes {}-{}/{length}", range.start, range.end - 1);
        let waits = range.start >= self.gate.0 && !*self.gate.1.borrow();
        let part = bytes[range].to_vec();
        let body = if waits { self.cut() } else { Body::from(part) };
        with_body(206, &[&base[..], &[("content-range", &sent)]].concat(), body)
    }

    /// A body that waits until it is cut.
    fn cut(&self) -> Body {
        let mut gate = self.gate.1.subscribe();
        Body::from_stream(futures_util::stream::once(async move {
            let _ = gate.wait_for(|cut| *cut).await;
            Err::<bytes::Bytes, _>(std::io::Error::other("the connection is cut"))
        }))
    }
}

fn range_of(text: &str) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<usize>().ok()? + 1)
}

async fn serve(site: Site) -> (Arc<Site>, Fake) {
    let site = Arc::new(site);
    let fake = Fake::start({
        let site = site.clone();
        move |seen| site.answer(seen)
    })
    .await;
    (site, fake)
}

fn url(rig: &Rig, fake: &Fake, path: &str) -> String {
    format!("http://{}/url/http/{}{path}", rig.address, fake.address)
}

async fn get(rig: &Rig, fake: &Fake) -> reqwest::Response {
    rig.client.get(url(rig, fake, PATH)).send().await.unwrap()
}

/// Bytes of content that came from the origin, counted where they were taken in.
fn from_origin(rig: &Rig) -> u64 {
    rig.node.blobs().iter().filter(|blob| blob.digest.is_name()).map(|blob| blob.bytes_from_origin).sum()
}

fn gets(fake: &Fake) -> usize {
    fake.seen().iter().filter(|seen| seen.method == Method::GET).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_share_a_url_at_about_one_copy() {
    for (length, serves_ranges, most) in [(LENGTH, true, 1.05), (LENGTH, false, 2.05), (70_000, true, 1.05)] {
        let (site, fake) = serve(Site { length, serves_ranges, ..Site::new() }).await;
        let tracker = tracker().await;
        let mut rigs = Vec::new();
        for _ in 0..2 {
            let settings = RigSettings { first_byte: Duration::from_secs(60), ..RigSettings::new(&fake, tracker) };
            rigs.push(Rig::start_with(&fake, settings).await);
        }
        let pulls = rigs.iter().map(|rig| async {
            let response = get(rig, &fake).await;
            assert_eq!((response.status().as_u16(), header(&response, "cache-status")), (200, Some("lapwing; hit")));
            response.bytes().await.unwrap()
        });
        for body in join_all(pulls).await {
            assert!(body == site.content(1), "wrong bytes");
        }
        let copies = rigs.iter().map(from_origin).sum::<u64>() as f64 / length as f64;
        assert!(copies <= most, "{copies} copies of {length}");
        let (before, late) = (gets(&fake), Rig::start_at(&fake, tracker, Duration::from_secs(60)).await);
        assert!(get(&late, &fake).await.bytes().await.unwrap() == site.content(1), "wrong bytes");
        // Without ranges both may have streamed, one of them without a lease: its signatures count nowhere, and a
        // latecomer that hears of the metainfo late may stream, too.
        assert!(gets(&fake) == before || !serves_ranges, "a latecomer takes it from the others");
        rigs.push(late);
        for rig in rigs {
            rig.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_ranges_and_conditions() {
    let (site, fake) = serve(Site::new()).await;
    *site.control.lock().unwrap() = "max-age=600".to_owned();
    let rig = Rig::start(&fake).await;
    let content = site.content(1);
    let whole = get(&rig, &fake).await;
    for (name, value) in [
        ("etag", "\"v1\""),
        ("cache-control", "max-age=600"),
        ("content-type", "application/x-release"),
        ("accept-ranges", "bytes"),
        ("content-length", "3000001"),
    ] {
        assert_eq!(header(&whole, name), Some(value), "{name}");
    }
    assert!(header(&whole, "age").unwrap().parse::<u64>().unwrap() < 600);
    assert!(whole.bytes().await.unwrap() == content);
    let ask = |method: Method, headers: &[(&str, &str)]| {
        let request = rig.client.request(method, url(&rig, &fake, PATH));
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send()
    };
    let head = ask(Method::HEAD, &[]).await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, Some("3000001")));
    let part = ask(Method::GET, &[("range", "bytes=100-199")]).await.unwrap();
    assert_eq!((part.status().as_u16(), header(&part, "content-range")), (206, Some("bytes 100-199/3000001")));
    assert!(part.bytes().await.unwrap() == content[100..200]);
    let cases: [(&[(&str, &str)], u16); 7] = [
        (&[("range", "bytes=5-9"), ("if-range", "\"v1\"")], 206),
        (&[("range", "bytes=5-9"), ("if-range", "\"v0\"")], 200),
        (&[("range", "bytes=3000001-")], 416),
        (&[("if-none-match", "\"v1\"")], 304),
        (&[("if-none-match", "\"v0\", W/\"v1\""), ("range", "bytes=5-9")], 304),
        (&[("if-none-match", "\"v0\"")], 200),
        (&[("cache-control", "max-age=30")], 200),
    ];
    for (headers, status) in cases {
        for method in [Method::GET, Method::HEAD] {
            let response = ask(method.clone(), headers).await.unwrap();
            assert_eq!(response.status().as_u16(), status, "{method} {headers:?}");
        }
    }
    let heads = fake.seen().iter().filter(|seen| seen.method == Method::HEAD).count();
    assert_eq!(heads, 1, "all of it was fresh");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_changes_in_the_middle_is_cut_and_never_mixed() {
    let (site, fake) = serve(Site { gate: (256 << 10, watch::Sender::new(false)), ..Site::new() }).await;
    let rig = Rig::start(&fake).await;
    let response = get(&rig, &fake).await;
    assert_eq!((response.status().as_u16(), header(&response, "etag")), (200, Some("\"v1\"")));
    let mut body = response.bytes_stream();
    let mut given = body.next().await.unwrap().unwrap().to_vec();
    site.version.store(2, Ordering::SeqCst);
    site.gate.1.send_replace(true);
    let cut = loop {
        match body.next().await {
            Some(Ok(bytes)) => given.extend_from_slice(&bytes),
            Some(Err(_)) => break true,
            None => break false,
        }
    };
    assert!(cut && given.len() < LENGTH, "{} bytes were given without an error", given.len());
    assert!(given == site.content(1)[..given.len()], "bytes of the new version in the old one");

    let again = get(&rig, &fake).await;
    assert_eq!((again.status().as_u16(), header(&again, "etag")), (200, Some("\"v2\"")));
    assert!(again.bytes().await.unwrap() == site.content(2), "bytes of the old version in the new one");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_current_is_not_fetched_again_and_what_has_changed_is() {
    let (site, fake) = serve(Site::new()).await;
    let rig = Rig::start(&fake).await;
    assert!(get(&rig, &fake).await.bytes().await.unwrap() == site.content(1));
    let fetched = gets(&fake);
    assert!(get(&rig, &fake).await.bytes().await.unwrap() == site.content(1));
    assert_eq!(gets(&fake), fetched, "304 is enough");
    assert_eq!(fake.seen().last().unwrap().header("if-none-match"), Some("\"v1\""));
    site.version.store(2, Ordering::SeqCst);
    let new = get(&rig, &fake).await;
    assert_eq!(header(&new, "etag"), Some("\"v2\""));
    assert!(new.bytes().await.unwrap() == site.content(2));
    assert_eq!(from_origin(&rig), 2 * LENGTH as u64);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_metadata_does_not_show_yet_is_found_at_the_first_byte() {
    let (site, fake) = serve(Site::new()).await;
    *site.control.lock().unwrap() = "max-age=600".to_owned();
    let rig = Rig::start(&fake).await;
    let head = rig.client.head(url(&rig, &fake, PATH)).send().await.unwrap();
    assert_eq!(header(&head, "etag"), Some("\"v1\""));
    site.version.store(2, Ordering::SeqCst);
    let whole = get(&rig, &fake).await;
    assert_eq!((whole.status().as_u16(), header(&whole, "etag")), (200, Some("\"v2\"")));
    assert!(whole.bytes().await.unwrap() == site.content(2));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_content_is_given_only_where_configured() {
    for allowed in [false, true] {
        let (site, fake) = serve(Site::new()).await;
        *site.control.lock().unwrap() = "max-age=0".to_owned();
        let stale_if_error = if allowed { Duration::from_secs(3600) } else { Duration::ZERO };
        let settings = RigSettings { stale_if_error, ..RigSettings::new(&fake, tracker().await) };
        let rig = Rig::start_with(&fake, settings).await;
        assert!(get(&rig, &fake).await.bytes().await.unwrap() == site.content(1));
        site.down.store(503, Ordering::SeqCst);
        let answer = get(&rig, &fake).await;
        if allowed {
            assert_eq!(header(&answer, "cache-status"), Some("lapwing; hit; detail=stale"));
            assert!(answer.bytes().await.unwrap() == site.content(1));
        } else {
            assert_eq!(answer.status(), 502);
            let text = answer.text().await.unwrap();
            assert!(text.contains("503") && text.contains("release.bin"), "{text}");
        }
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_has_content_and_metadata_still() {
    let (site, fake) = serve(Site::new()).await;
    let tracker = tracker().await;
    let rig = Rig::start_with(&fake, RigSettings::new(&fake, tracker)).await;
    assert!(get(&rig, &fake).await.bytes().await.unwrap() == site.content(1));
    let fetched = gets(&fake);
    let directory = rig.stop().await;
    let again = Rig::start_with(&fake, RigSettings { directory, ..RigSettings::new(&fake, tracker) }).await;
    assert!(get(&again, &fake).await.bytes().await.unwrap() == site.content(1));
    assert_eq!(gets(&fake), fetched);
    assert_eq!(fake.seen().last().unwrap().header("if-none-match"), Some("\"v1\""), "revalidated, not asked anew");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shared_is_passed_through() {
    let weak: fn(usize) -> String = |version| format!("W/\"v{version}\"");
    let strong: fn(usize) -> String = |version| format!("\"v{version}\"");
    for (tag, control, request) in [
        (weak, "max-age=600", ("accept", "*/*")),
        (strong, "no-store", ("accept", "*/*")),
        (strong, "private, max-age=600", ("accept", "*/*")),
        (strong, "max-age=600", ("authorization", "Bearer x")),
    ] {
        let (site, fake) = serve(Site { tag, ..Site::new() }).await;
        *site.control.lock().unwrap() = control.to_owned();
        let rig = Rig::start(&fake).await;
        for round in 1..=2 {
            let asked = rig.client.get(url(&rig, &fake, PATH)).header(request.0, request.1);
            let answer = asked.header("range", "bytes=10-19").send().await.unwrap();
            assert_eq!(answer.status(), 206, "{control}");
            let how = header(&answer, "cache-status").unwrap().to_owned();
            assert!(how.starts_with("lapwing; fwd=bypass; detail="), "{how}");
            assert!(answer.bytes().await.unwrap() == site.content(1)[10..20]);
            assert_eq!(gets(&fake), round, "{control}: kept");
            assert_eq!(fake.seen().last().unwrap().header(request.0), Some(request.1));
        }
        assert!(rig.node.blobs().iter().all(|blob| !blob.digest.is_name()), "{control}: in the store");
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_the_remedy() {
    let (site, fake) = serve(Site { length: 0, ..Site::new() }).await;
    let rig = Rig::start(&fake).await;
    let base = format!("http://{}", rig.address);
    let name = Digest::name(b"whatever");
    let cases = [
        (Method::GET, "/url/http/169.254.169.254/latest/meta-data".to_owned(), 403, "http.allow"),
        (Method::GET, "/url/https/files.example/x".to_owned(), 403, "http.allow"),
        (Method::GET, format!("/url/https/{}/x", rig.address), 403, "http.allow"),
        (Method::GET, "/url/ftp/files.example/x".to_owned(), 400, "scheme"),
        (Method::GET, "/url/https".to_owned(), 400, "/url/<http|https>/"),
        (Method::POST, format!("/url/http/{}/x", fake.address), 405, "GET and HEAD"),
        (Method::GET, format!("/v2/a/blobs/{name}"), 400, "not a digest"),
    ];
    for (method, path, status, word) in cases {
        let answer = rig.client.request(method, format!("{base}{path}")).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        let text = answer.text().await.unwrap();
        assert!(text.contains(word), "{path}: {text}");
    }
    assert!(fake.seen().is_empty());
    let empty = get(&rig, &fake).await;
    assert_eq!((empty.status().as_u16(), header(&empty, "content-length")), (200, Some("0")));
    assert!(empty.bytes().await.unwrap().is_empty());
    site.down.store(404, Ordering::SeqCst);
    assert_eq!(get(&rig, &fake).await.status(), 404, "the origin's own word");
    rig.stop().await;
}
