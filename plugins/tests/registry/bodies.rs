//! What the origin takes for a blob's bytes, and what it makes of every other answer.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use lapwing_evidence::Evidence;
use lapwing_p2p::origin::OriginError;
use lapwing_plugins::registry::{Credential, RegistryConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fake::{BLOB, Failure, Fake, blob, status, with_body};

/// Short names for what a fetch gives.
async fn outcome(behaviour: fn() -> axum::response::Response) -> String {
    let fake = Fake::start(move |_| behaviour()).await;
    match fake.fetch(&fake.listed(), Credential::Anonymous, 10..20).await {
        Ok(bytes) => format!("ok {}", String::from_utf8_lossy(&bytes)),
        Err(Failure::Body(_, given)) => format!("cut after {}", String::from_utf8_lossy(&given)),
        Err(Failure::Origin(OriginError::NotFound { status, .. })) => format!("not found {status}"),
        Err(Failure::Origin(OriginError::Unauthorized { status, .. })) => format!("unauthorized {status}"),
        Err(Failure::Origin(OriginError::Busy { retry_after, .. })) => format!("busy {}", retry_after.as_secs()),
        Err(Failure::Origin(OriginError::NoRanges { .. })) => "no ranges".to_owned(),
        Err(Failure::Origin(OriginError::Changed { .. })) => "changed".to_owned(),
        Err(Failure::Origin(OriginError::Unavailable { .. })) => "unavailable".to_owned(),
    }
}

fn part(range: &str, body: impl Into<Body>) -> axum::response::Response {
    with_body(206, &[("content-range", range)], body)
}

fn chunks(pieces: &'static [&'static str]) -> Body {
    Body::from_stream(futures_util::stream::iter(
        pieces.iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece.as_bytes()))),
    ))
}

#[tokio::test]
async fn every_answer_to_a_range() {
    type Case = (&'static str, fn() -> axum::response::Response, &'static str);
    let cases: [Case; 24] = [
        ("the range", || part("bytes 10-19/36", "abcdefghij"), "ok abcdefghij"),
        ("of unknown total", || part("bytes 10-19/*", "abcdefghij"), "ok abcdefghij"),
        ("in chunks without a length", || part("bytes 10-19/36", chunks(&["abc", "", "defghij"])), "ok abcdefghij"),
        ("another range", || part("bytes 0-9/36", "0123456789"), "unavailable"),
        ("a shorter range", || part("bytes 10-18/36", "abcdefghi"), "unavailable"),
        ("of another total", || part("bytes 10-19/37", "abcdefghij"), "unavailable"),
        ("without Content-Range", || with_body(206, &[], "abcdefghij"), "unavailable"),
        ("multipart", || with_body(206, &[("content-type", "multipart/byteranges")], "--x"), "unavailable"),
        ("a length that differs", || part("bytes 10-19/36", "abc"), "unavailable"),
        ("chunks that end early", || part("bytes 10-19/36", chunks(&["abc", "def"])), "cut after abcdef"),
        ("chunks that go on", || part("bytes 10-19/36", chunks(&["abcdefghij", "k"])), "cut after abcdefghij"),
        ("one chunk too long", || part("bytes 10-19/36", chunks(&["abcdefghijk"])), "cut after "),
        (
            "encoded",
            || with_body(206, &[("content-range", "bytes 10-19/36"), ("content-encoding", "gzip")], "abcdefghij"),
            "unavailable",
        ),
        ("the whole blob", || with_body(200, &[], BLOB), "no ranges"),
        ("a lying 200", || with_body(200, &[], "abcdefghij"), "no ranges"),
        ("no content", || status(204, &[]), "unavailable"),
        ("not there", || status(404, &[]), "not found 404"),
        ("gone", || status(410, &[]), "not found 410"),
        ("unauthorized", || status(401, &[]), "unauthorized 401"),
        ("forbidden", || status(403, &[]), "unauthorized 403"),
        ("busy", || status(429, &[("retry-after", "17")]), "busy 17"),
        ("down for a while", || status(503, &[("retry-after", "3")]), "busy 3"),
        ("down", || status(503, &[]), "unavailable"),
        ("not modified", || status(304, &[]), "unavailable"),
    ];
    let mut evidence = Evidence::new(19, "registries that answer a range with something else");
    for (name, behaviour, expected) in cases {
        evidence.fault("an answer to a range");
        assert_eq!(outcome(behaviour).await, expected, "{name}");
    }
}

#[tokio::test]
async fn the_whole_blob_may_come_as_200() {
    let fake = Fake::start(|_| with_body(200, &[], BLOB)).await;
    let length = BLOB.len() as u64;
    assert_eq!(fake.fetch(&fake.listed(), Credential::Anonymous, 0..length).await.unwrap(), BLOB);
    let start = fake.fetch(&fake.listed(), Credential::Anonymous, 0..length - 1).await;
    assert!(matches!(start, Err(Failure::Origin(OriginError::NoRanges { .. }))));
}

#[tokio::test]
async fn a_connection_cut_in_the_body_is_an_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(socket.read_u8().await.unwrap());
        }
        let answer = "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 10-19/36\r\ncontent-length: 10\r\n\r\nabc";
        socket.write_all(answer.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap();
    });
    let fake = Fake::start(blob).await;
    let registries = fake.listed_as(RegistryConfig { host: Some(address.to_string()), ..Default::default() });
    let cut = fake.fetch(&registries, Credential::Anonymous, 10..20).await;
    let Err(Failure::Body(error, given)) = cut else { panic!("{cut:?}") };
    assert_eq!(given, b"abc");
    assert!(error.to_string().contains("team/app"), "{error}");
}

#[tokio::test]
async fn silence_ends_in_time() {
    let fake = Fake::start(|_| {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"abc"))]);
        let silent = futures_util::StreamExt::chain(first, futures_util::stream::pending());
        part("bytes 10-19/36", Body::from_stream(silent))
    })
    .await;
    let registries = fake.listed();
    let fetched = fake.fetch(&registries, Credential::Anonymous, 10..20);
    let fetched = tokio::time::timeout(Duration::from_secs(30), fetched).await.expect("ended by its own time-out");
    assert!(matches!(fetched, Err(Failure::Body(_, given)) if given == b"abc"));
}

#[tokio::test]
async fn ranges_outside_the_blob_are_not_asked() {
    let fake = Fake::start(blob).await;
    for range in [5..5, 30..37, 36..37] {
        assert!(fake.fetch(&fake.listed(), Credential::Anonymous, range).await.is_err());
    }
    assert!(fake.seen().is_empty());
}

#[tokio::test]
async fn a_pause_is_kept() {
    let fake = Fake::start(|_| status(429, &[("retry-after", "60")])).await;
    let registries = fake.listed();
    for _ in 0..5 {
        let fetched = fake.fetch(&registries, Credential::Anonymous, 0..1).await;
        let Err(Failure::Origin(OriginError::Busy { retry_after, .. })) = fetched else {
            panic!("{fetched:?}");
        };
        assert!(retry_after <= Duration::from_secs(60) && retry_after > Duration::from_secs(50));
    }
    assert_eq!(fake.seen().len(), 1, "asked again within the pause");
}

#[tokio::test]
async fn an_unreachable_registry_is_unavailable_and_named() {
    let fake = Fake::start(blob).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let registries = fake.listed_as(RegistryConfig { host: Some(free.to_string()), ..Default::default() });
    let Err(Failure::Origin(error)) = fake.fetch(&registries, Credential::Anonymous, 0..1).await else {
        panic!("fetched from nowhere");
    };
    let text = error.to_string();
    assert!(text.contains(&fake.address.to_string()) && text.contains("team/app"), "{text}");
    assert!(text.to_lowercase().contains("refused"), "{text}");
}
