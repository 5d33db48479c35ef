//! Blobs: every range right, errors in time, cut rather than wrong.

use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use lapwing_p2p::digest::Digest;

use super::fake::{Fake, with_body};
use super::rig::{Rig, Sample, bytes, header, tracker};

const LENGTH: usize = 700_001;

async fn sample_rig() -> (Sample, Fake, Rig) {
    let sample = Sample::new(LENGTH);
    let fake = Fake::start({
        let sample = sample.clone();
        move |seen| sample.answer(seen)
    })
    .await;
    let rig = Rig::start(&fake).await;
    (sample, fake, rig)
}

#[tokio::test]
async fn ranges() {
    let (sample, _fake, rig) = sample_rig().await;
    let whole = || Ok(0..LENGTH);
    let cases = [
        (None, whole()),
        (Some("bytes=0-0".to_owned()), Ok(0..1)),
        (Some("bytes=65535-65536".to_owned()), Ok(65_535..65_537)),
        (Some("bytes=0-".to_owned()), Ok(0..LENGTH)),
        (Some("bytes=700000-".to_owned()), Ok(LENGTH - 1..LENGTH)),
        (Some("bytes=-1".to_owned()), Ok(LENGTH - 1..LENGTH)),
        (Some("bytes=-9999999".to_owned()), Ok(0..LENGTH)),
        (Some("bytes=123456-99999999999999999999".to_owned()), Ok(123_456..LENGTH)),
        (Some("bytes=700001-".to_owned()), Err(())),
        (Some("bytes=-0".to_owned()), Err(())),
        (Some("bytes=9-3".to_owned()), Err(())),
        (Some("bytes=x-y".to_owned()), Err(())),
        (Some("bytes=0-1,5-6".to_owned()), whole()),
        (Some(format!("bytes=0-{}", ",0-".repeat(1000))), whole()),
        (Some("lines=1-2".to_owned()), whole()),
    ];
    for (range, expected) in cases {
        for method in [Method::HEAD, Method::GET] {
            let mut request = rig.ask(method.clone(), &sample.layer_path());
            if let Some(range) = &range {
                request = request.header("range", range);
            }
            let response = request.send().await.unwrap();
            let shown = format!("{method} {:?}", range.as_deref().map(|range| &range[..range.len().min(40)]));
            let Ok(expected) = &expected else {
                assert_eq!(response.status(), 416, "{shown}");
                assert_eq!(header(&response, "content-range"), Some(format!("bytes */{LENGTH}").as_str()), "{shown}");
                continue;
            };
            let is_part = range.as_deref().is_some_and(|range| range.starts_with("bytes=") && !range.contains(','));
            assert_eq!(response.status(), if is_part { 206 } else { 200 }, "{shown}");
            assert_eq!(header(&response, "content-length"), Some(expected.len().to_string().as_str()), "{shown}");
            assert_eq!(header(&response, "accept-ranges"), Some("bytes"));
            let digest = Digest::of(&sample.layer).to_string();
            assert_eq!(header(&response, "docker-content-digest"), Some(digest.as_str()));
            let content_range = format!("bytes {}-{}/{LENGTH}", expected.start, expected.end - 1);
            assert_eq!(header(&response, "content-range"), is_part.then_some(content_range.as_str()), "{shown}");
            let body = response.bytes().await.unwrap();
            let expected = if method == Method::HEAD { 0..0 } else { expected.clone() };
            assert!(body == sample.layer[expected], "{shown}: {} bytes", body.len());
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn many_open_ended_ranges_at_once_cost_one_copy() {
    let (sample, fake, rig) = sample_rig().await;
    let parts = (0..10).map(|part| {
        let request = rig.ask(Method::GET, &sample.layer_path()).header("range", format!("bytes={}-", part * 70_000));
        async move { request.send().await.unwrap().bytes().await.unwrap() }
    });
    for (part, body) in futures_util::future::join_all(parts).await.into_iter().enumerate() {
        assert!(body == sample.layer[part * 70_000..], "part {part}");
    }
    let fetched: usize = fake
        .seen()
        .iter()
        .filter_map(|seen| {
            let (first, last) = seen.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
            Some(last.parse::<usize>().ok()? - first.parse::<usize>().ok()? + 1)
        })
        .sum();
    assert_eq!(fetched, LENGTH);
    assert!(rig.witness.opened.lock().unwrap().contains(&Digest::of(&sample.layer)));
    rig.stop().await;
}

#[tokio::test]
async fn a_second_node_gets_it_from_the_first() {
    let sample = Sample::new(LENGTH);
    let fake = Fake::start({
        let sample = sample.clone();
        move |seen| sample.answer(seen)
    })
    .await;
    let tracker = tracker().await;
    let first = Rig::start_at(&fake, tracker, Duration::from_secs(10)).await;
    assert!(first.get(&sample.layer_path()).await.bytes().await.unwrap() == sample.layer);
    let gets = |fake: &Fake| fake.seen().iter().filter(|seen| seen.method == Method::GET).count();
    let before = gets(&fake);
    let second = Rig::start_at(&fake, tracker, Duration::from_secs(10)).await;
    assert!(second.get(&sample.layer_path()).await.bytes().await.unwrap() == sample.layer);
    assert_eq!(gets(&fake), before, "the registry was asked for nothing but the right");
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn refusals_are_in_the_form_of_the_specification() {
    let (sample, fake, rig) = sample_rig().await;
    let missing = format!("/v2/team/app/blobs/{}", Digest::of(b"nothing"));
    let base = format!("http://{}", rig.address);
    let cases = [
        (rig.ask(Method::GET, &missing), 404, "BLOB_UNKNOWN"),
        (rig.ask(Method::GET, "/v2/Team/app/tags/list"), 400, "NAME_INVALID"),
        (rig.ask(Method::GET, "/v2/team/app/blobs/sha256:1"), 400, "DIGEST_INVALID"),
        (rig.ask(Method::POST, "/v2/team/app/blobs/uploads/"), 405, "UNSUPPORTED"),
        (rig.client.get(format!("{base}/metrics")), 404, "UNSUPPORTED"),
        (rig.client.get(format!("{base}{missing}?ns=169.254.169.254")), 404, "NAME_UNKNOWN"),
        (rig.client.get(format!("{base}{missing}?ns=http://x/")), 400, "NAME_INVALID"),
    ];
    for (request, status, code) in cases {
        let response = request.send().await.unwrap();
        let url = response.url().to_string();
        assert_eq!(response.status(), status, "{url}");
        assert_eq!(header(&response, "content-type"), Some("application/json"));
        let body: serde_json::Value = response.json().await.unwrap();
        assert_eq!(body["errors"][0]["code"], code, "{url}");
        assert!(body["errors"][0]["message"].as_str().unwrap().len() > 10);
    }
    let ping = rig.client.get(format!("{base}/v2/")).send().await.unwrap();
    assert_eq!((ping.status().as_u16(), header(&ping, "docker-distribution-api-version")), (200, Some("registry/2.0")));
    let default = rig.client.get(format!("{base}{}", sample.layer_path())).send().await.unwrap();
    assert!(default.bytes().await.unwrap() == sample.layer, "without ns: the default registry");
    drop(fake);
    rig.stop().await;
}

#[tokio::test]
async fn a_registry_that_never_answers_is_left_in_time() {
    let sample = Sample::new(LENGTH);
    let fake = Fake::start({
        let sample = sample.clone();
        move |seen| match seen.method {
            Method::HEAD => bytes(seen, &sample.layer),
            _ => with_body(
                206,
                &[("content-range", "bytes 0-9/700001")],
                Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>()),
            ),
        }
    })
    .await;
    let rig = Rig::start_at(&fake, tracker().await, Duration::from_millis(300)).await;
    let path = sample.layer_path();
    let asked = rig.get(&path);
    let response = tokio::time::timeout(Duration::from_secs(5), asked).await.expect("no answer in time");
    assert_eq!(response.status(), 502);
    rig.stop().await;
}

#[tokio::test]
async fn wrong_bytes_never_make_a_whole_answer() {
    let sample = Sample::new(LENGTH);
    let fake = Fake::start({
        let sample = sample.clone();
        move |seen| {
            let mut wrong = sample.layer.clone();
            wrong[LENGTH / 2] ^= 1;
            bytes(seen, &wrong)
        }
    })
    .await;
    let rig = Rig::start(&fake).await;
    let response = rig.get(&sample.layer_path()).await;
    if response.status() == 200 {
        assert!(response.bytes().await.is_err(), "a complete body with wrong bytes");
    } else {
        assert_eq!(response.status(), 502);
    }
    rig.stop().await;
}
