//! Plain URLs: what is asked of web servers, what is kept, and what of it survives a restart.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

#[path = "registry/fake.rs"]
#[allow(dead_code, reason = "shared with the tests of registries, which use the rest")]
mod fake;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::response::Response;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, Method};
use lapwing_p2p::origin::OriginError;
use lapwing_plugins::http::cache::Obstacle;
use lapwing_plugins::http::{BadTarget, Opened, Passing, Target, UrlError, Urls, UrlsConfig, Version};

use fake::{BLOB, Fake, Seen, status, with_body};

fn config(allow: &[&str]) -> UrlsConfig {
    UrlsConfig {
        allow: allow.iter().map(|&host| host.to_owned()).collect(),
        stale_if_error: Duration::ZERO,
        ignore_query: Vec::new(),
        max_parallel: 4,
        connect_timeout: Duration::from_secs(5),
        read_timeout: Duration::from_secs(5),
    }
}

fn urls(server: &Fake, directory: &Path) -> Arc<Urls> {
    Urls::new(config(&[&server.address.to_string()]), directory.join("urls")).unwrap()
}

fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
    all.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

fn target(server: &Fake, path: &str, request: &HeaderMap) -> Target {
    Target::parse(&format!("http/{}{path}", server.address), None, request).unwrap()
}

async fn open(urls: &Arc<Urls>, server: &Fake, request: &HeaderMap) -> Result<Opened, UrlError> {
    urls.open(&target(server, "/file", request), request).await
}

async fn version(urls: &Arc<Urls>, server: &Fake) -> Version {
    match open(urls, server, &HeaderMap::new()).await.unwrap() {
        Opened::Shared(version) => version,
        Opened::Passed(passing) => panic!("{passing}"),
    }
}

async fn read(version: &Version, range: std::ops::Range<u64>) -> Result<Vec<u8>, OriginError> {
    let mut stream = version.origin.fetch(range).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    Ok(bytes)
}

/// A file as a good server serves it, in this version, with these further headers.
fn file(seen: &Seen, tag: &str, more: &[(&str, &str)]) -> Response {
    let mut response = if seen.header("if-none-match") == Some(tag) { status(304, &[]) } else { fake::blob(seen) };
    if seen.header("if-range").is_some_and(|condition| condition != tag) {
        response = with_body(200, &[("content-length", &BLOB.len().to_string())], BLOB);
    }
    let all = response.headers_mut();
    all.insert("etag", tag.parse().unwrap());
    for (name, value) in more {
        all.insert(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    response
}

#[tokio::test]
async fn a_fresh_version_is_not_asked_for_again_and_a_stale_one_by_condition() {
    for (control, asked_again) in [("max-age=600", false), ("max-age=600, no-cache", true), ("", true)] {
        let server = Fake::start(move |seen| file(seen, "\"v1\"", &[("cache-control", control)])).await;
        let directory = tempfile::tempdir().unwrap();
        let urls = urls(&server, directory.path());
        let first = version(&urls, &server).await;
        assert_eq!(read(&first, 3..7).await.unwrap(), &BLOB[3..7]);
        assert_eq!(read(&first, 0..36).await.unwrap(), BLOB);
        let second = version(&urls, &server).await;
        assert_eq!(first.name, second.name);
        assert!(first.name.is_name() && first.metadata.length == 36);
        let seen = server.seen();
        let heads: Vec<_> = seen.iter().filter(|seen| seen.method == Method::HEAD).collect();
        assert_eq!(heads.len(), 1 + usize::from(asked_again), "{control}");
        assert_eq!(heads[0].header("if-none-match"), None);
        if asked_again {
            assert_eq!(heads[1].header("if-none-match"), Some("\"v1\""));
        }
        let range = seen.iter().find(|seen| seen.header("range").is_some()).unwrap();
        assert_eq!((range.header("range"), range.header("if-range")), (Some("bytes=3-6"), Some("\"v1\"")));
        assert!(seen.iter().all(|seen| seen.header("accept-encoding") == Some("identity")));
    }
}

#[tokio::test]
async fn a_changed_url_is_another_version_and_the_old_one_gives_nothing_more() {
    let number = Arc::new(AtomicU64::new(1));
    let server = Fake::start({
        let number = number.clone();
        move |seen| file(seen, &format!("\"v{}\"", number.load(Ordering::SeqCst)), &[("cache-control", "max-age=600")])
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let urls = urls(&server, directory.path());
    let old = version(&urls, &server).await;
    number.store(2, Ordering::SeqCst);
    assert_eq!(version(&urls, &server).await.name, old.name, "fresh still, as its server said");
    for range in [3..7, 0..36] {
        let gone = read(&old, range).await;
        assert!(matches!(gone, Err(OriginError::Changed { .. })), "{gone:?}");
    }
    let new = version(&urls, &server).await;
    assert_ne!(new.name, old.name);
    assert_eq!(read(&new, 3..7).await.unwrap(), &BLOB[3..7]);
}

#[tokio::test]
async fn what_is_not_for_a_shared_cache_is_passed_through_as_it_is() {
    type Case = (&'static [(&'static str, &'static str)], &'static [(&'static str, &'static str)], Obstacle);
    let cases: [Case; 6] = [
        (&[], &[("cache-control", "no-store")], Obstacle::NoStore),
        (&[], &[("cache-control", "private")], Obstacle::Private),
        (&[], &[("etag", "W/\"v1\"")], Obstacle::NoValidator),
        (&[], &[("vary", "cookie")], Obstacle::Varies),
        (&[("authorization", "Bearer x")], &[], Obstacle::Credentials),
        (&[("x-api-key", "k")], &[], Obstacle::Credentials),
    ];
    for (request, answer, expected) in cases {
        let server = Fake::start(move |seen| file(seen, "\"v1\"", answer)).await;
        let directory = tempfile::tempdir().unwrap();
        let urls = urls(&server, directory.path());
        let mut request = headers(request);
        match open(&urls, &server, &request).await.unwrap() {
            Opened::Passed(passing) => assert_eq!(passing, Passing::Obstacle(expected), "{answer:?}"),
            Opened::Shared(_) => panic!("shared: {request:?} {answer:?}"),
        }
        request.insert("range", "bytes=3-6".parse().unwrap());
        request.insert("connection", "keep-alive".parse().unwrap());
        let passed = urls.pass(&target(&server, "/file", &request), &Method::GET, &request).await.unwrap();
        assert_eq!(passed.status, 206);
        assert_eq!(passed.body.bytes().await.unwrap(), &BLOB[3..7]);
        let last = server.seen().pop().unwrap();
        for (name, value) in &request {
            let sent = last.headers.get(name);
            assert_eq!(sent, (name != "connection").then_some(value), "{name}");
        }
    }
}

#[tokio::test]
async fn public_content_may_be_shared_though_credentials_went_along() {
    let server = Fake::start(|seen| match seen.header("authorization") {
        Some("Bearer x") => file(seen, "\"v1\"", &[("cache-control", "public, max-age=600")]),
        _ => status(401, &[("www-authenticate", "Bearer realm=\"x\"")]),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let urls = urls(&server, directory.path());
    let with = headers(&[("authorization", "Bearer x")]);
    let Opened::Shared(version) = open(&urls, &server, &with).await.unwrap() else { panic!("not shared") };
    assert_eq!(read(&version, 0..4).await.unwrap(), &BLOB[..4], "the client's header went along");
    let without = open(&urls, &server, &HeaderMap::new()).await.unwrap();
    assert!(matches!(without, Opened::Passed(Passing::Status(401))), "another client is judged by the origin");
}

#[tokio::test]
async fn many_who_ask_at_once_ask_the_origin_once() {
    let server = Fake::start(|seen| file(seen, "\"v1\"", &[])).await;
    let directory = tempfile::tempdir().unwrap();
    let urls = urls(&server, directory.path());
    let all = futures_util::future::join_all((0..50).map(|_| version(&urls, &server))).await;
    assert!(all.iter().all(|version| version.name == all[0].name));
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn stale_content_bridges_a_failure_only_where_configured() {
    let down = Arc::new(AtomicU64::new(0));
    let server = Fake::start({
        let down = down.clone();
        move |seen| match down.load(Ordering::SeqCst) {
            0 => file(seen, "\"v1\"", &[]),
            code => status(code as u16, &[]),
        }
    })
    .await;
    for allowed in [false, true] {
        down.store(0, Ordering::SeqCst);
        let directory = tempfile::tempdir().unwrap();
        let stale_if_error = if allowed { Duration::from_secs(3600) } else { Duration::ZERO };
        let config = UrlsConfig { stale_if_error, ..config(&[&server.address.to_string()]) };
        let urls = Urls::new(config, directory.path().join("urls")).unwrap();
        let first = version(&urls, &server).await;
        assert!(!first.stale);
        for code in [500, 503, 429] {
            down.store(code, Ordering::SeqCst);
            match open(&urls, &server, &HeaderMap::new()).await {
                Ok(Opened::Shared(version)) if allowed => assert!(version.stale && version.name == first.name),
                Err(UrlError::Unavailable { reason, .. }) if !allowed => assert!(reason.contains(&code.to_string())),
                other => panic!("{code}: {}", other.is_ok()),
            }
        }
        down.store(404, Ordering::SeqCst);
        let gone = open(&urls, &server, &HeaderMap::new()).await.unwrap();
        assert!(matches!(gone, Opened::Passed(Passing::Status(404))), "gone is no failure");
    }
}

#[tokio::test]
async fn metadata_outlives_the_process_without_secrets() {
    let server = Fake::start(|seen| file(seen, "\"v1\"", &[("cache-control", "max-age=600")])).await;
    let directory = tempfile::tempdir().unwrap();
    let at = format!("http/{}/file", server.address);
    let secret = Target::parse(&at, Some("signature=hunter2"), &HeaderMap::new()).unwrap();
    let first = urls(&server, directory.path());
    let Opened::Shared(before) = first.open(&secret, &HeaderMap::new()).await.unwrap() else { panic!("not shared") };
    drop(first);
    let kept = directory.path().join("urls");
    let files = || -> Vec<_> { std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect() };
    while !files().iter().any(|path| path.file_name().unwrap().len() == 64) {
        tokio::task::yield_now().await;
    }
    for path in files() {
        assert!(!std::fs::read_to_string(path).unwrap().contains("hunter2"));
    }
    let again = urls(&server, directory.path());
    let Opened::Shared(after) = again.open(&secret, &HeaderMap::new()).await.unwrap() else { panic!("not shared") };
    assert_eq!(after.name, before.name);
    assert_eq!(server.seen().len(), 1, "what was fresh is fresh after a restart");
    let other = Target::parse(&at, Some("signature=guess"), &HeaderMap::new()).unwrap();
    again.open(&other, &HeaderMap::new()).await.unwrap();
    assert_eq!(server.seen().len(), 2, "another signature is for the origin to judge");
}

#[tokio::test]
async fn only_allowed_hosts_are_asked_and_nobody_leads_inside() {
    let inside = Fake::start(|seen| file(seen, "\"v1\"", &[])).await;
    let directory = tempfile::tempdir().unwrap();
    let none = Urls::new(config(&["files.example", "*"]), directory.path().join("none")).unwrap();
    for host in [inside.address.to_string(), "169.254.169.254".to_owned(), "localhost:1".to_owned()] {
        let target = Target::parse(&format!("http/{host}/x"), None, &HeaderMap::new()).unwrap();
        let opened = none.open(&target, &HeaderMap::new()).await;
        let refused = matches!(opened, Err(UrlError::Target(BadTarget::NotAllowed(_)) | UrlError::Unavailable { .. }));
        assert!(refused, "{host}");
        assert!(none.pass(&target, &Method::GET, &HeaderMap::new()).await.is_err(), "{host}");
    }
    let port = inside.address.port();
    for location in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "file:///etc/passwd".to_owned(),
        format!("http://u:p@127.0.0.1:{port}/"),
    ] {
        let shown = location.clone();
        let outside = Fake::start(move |_| status(302, &[("location", &location)])).await;
        let opened = open(&urls(&outside, &directory.path().join("outside")), &outside, &HeaderMap::new()).await;
        assert!(matches!(opened, Err(UrlError::Unavailable { .. })), "{shown}");
    }
    assert!(inside.seen().is_empty());
}

#[tokio::test]
async fn redirects_are_followed_anew_each_time_and_carry_no_credentials_away() {
    let store = Fake::start(|seen| file(seen, "\"v1\"", &[("cache-control", "public")])).await;
    let place = store.address;
    let count = AtomicU64::new(0);
    let server = Fake::start(move |_| {
        let next = format!("http://{place}/file?signature={}", count.fetch_add(1, Ordering::SeqCst));
        status(307, &[("location", &next)])
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let allow = [server.address.to_string(), store.address.to_string()];
    let urls = Urls::new(config(&[&allow[0], &allow[1]]), directory.path().join("urls")).unwrap();
    let with = headers(&[("authorization", "Bearer secret"), ("cookie", "a=b")]);
    let Opened::Shared(version) = open(&urls, &server, &with).await.unwrap() else { panic!("not shared") };
    assert_eq!(read(&version, 1..3).await.unwrap(), &BLOB[1..3]);
    assert!(server.seen().iter().all(|seen| seen.header("authorization") == Some("Bearer secret")));
    let uris: Vec<_> = store.seen().iter().map(|seen| seen.uri.clone()).collect();
    assert_eq!(uris, ["/file?signature=0", "/file?signature=1"]);
    for seen in store.seen() {
        assert_eq!((seen.header("authorization"), seen.header("cookie")), (None, None));
    }
}

#[tokio::test]
async fn servers_that_know_no_head_or_say_zero_are_asked_for_the_first_byte() {
    for (code, length) in [(405, None), (501, None), (403, None), (200, Some("0")), (200, None)] {
        let server = Fake::start(move |seen| {
            if seen.method == Method::HEAD {
                let mut answer = status(code, &[("etag", "\"v1\"")]);
                if let Some(length) = length {
                    answer.headers_mut().insert("content-length", length.parse().unwrap());
                }
                return answer;
            }
            file(seen, "\"v1\"", &[])
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let version = version(&urls(&server, directory.path()), &server).await;
        assert_eq!(version.metadata.length, 36, "{code} {length:?}");
        assert_eq!(server.seen()[1].header("range"), Some("bytes=0-0"));
    }
}

#[tokio::test]
async fn a_date_is_a_validator_once_it_is_old() {
    let modified = Arc::new(Mutex::new(String::new()));
    let server = Fake::start({
        let modified = modified.clone();
        move |seen| {
            let modified = modified.lock().unwrap().clone();
            let mut response = fake::blob(seen);
            response.headers_mut().insert("last-modified", modified.parse().unwrap());
            response
        }
    })
    .await;
    for (age, shared) in [(3600, true), (5, false)] {
        let directory = tempfile::tempdir().unwrap();
        *modified.lock().unwrap() = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(age));
        let opened = open(&urls(&server, directory.path()), &server, &HeaderMap::new()).await.unwrap();
        match opened {
            Opened::Shared(version) if shared => {
                assert_eq!(read(&version, 3..7).await.unwrap(), &BLOB[3..7]);
                *modified.lock().unwrap() = httpdate::fmt_http_date(SystemTime::now());
                assert!(matches!(read(&version, 3..7).await, Err(OriginError::Changed { .. })));
            }
            Opened::Passed(passing) if !shared => assert_eq!(passing, Passing::Obstacle(Obstacle::NoValidator)),
            _ => panic!("{age}"),
        }
    }
}
