//! Pulls by two nodes at once, from a registry that has a bad day: every one survives, at about one copy in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::Method;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{Registries, RegistryConfig};

use super::fake::{Fake, Seen, challenge, status, with_body};
use super::rig::{Rig, RigSettings, Sample, bytes, tracker};

const LENGTH: usize = 3_000_001;
/// Longer than any of the pauses that are asked for here.
const FIRST_BYTE: Duration = Duration::from_secs(120);

/// A registry with the sample, whose answers to ranged GETs go through `fault` with their number, from 0.
async fn registry(
    sample: &Sample,
    fault: impl Fn(usize, &Seen, Response) -> Response + Send + Sync + 'static,
) -> (Fake, Arc<AtomicUsize>) {
    let (sample, gets) = (sample.clone(), Arc::new(AtomicUsize::new(0)));
    let count = gets.clone();
    let fake = Fake::start(move |seen| {
        if seen.method == Method::GET && seen.path() == sample.layer_path() {
            let number = count.fetch_add(1, Ordering::SeqCst);
            return fault(number, seen, sample.answer(seen));
        }
        sample.answer(seen)
    })
    .await;
    (fake, gets)
}

/// Two nodes pull the layer at the same time, each for two clients; gives the copies that came from the registry.
async fn pull_by_two(fake: &Fake, sample: &Sample, registries: impl Fn() -> Arc<Registries>) -> f64 {
    let tracker = tracker().await;
    let mut rigs = Vec::new();
    for _ in 0..2 {
        let settings =
            RigSettings { registries: registries(), first_byte: FIRST_BYTE, ..RigSettings::new(fake, tracker) };
        rigs.push(Rig::start_with(fake, settings).await);
    }
    let pulls = rigs.iter().flat_map(|rig| [rig, rig]).map(|rig| async {
        let response = rig.get(&sample.layer_path()).await;
        assert_eq!(response.status(), 200);
        response.bytes().await.unwrap()
    });
    for body in join_all(pulls).await {
        assert!(body == sample.layer, "wrong bytes");
    }
    let layer = Digest::of(&sample.layer);
    let mut from_origin = 0;
    for rig in rigs {
        let blobs = rig.node.blobs();
        from_origin += blobs.iter().find(|blob| blob.digest == layer).unwrap().bytes_from_origin;
        rig.stop().await;
    }
    from_origin as f64 / sample.layer.len() as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_runs_out_in_the_middle_is_renewed_once_by_each_node() {
    let sample = Sample::new(LENGTH);
    let (gets, good) = (AtomicUsize::new(0), AtomicUsize::new(1));
    let fake = Fake::start({
        let sample = sample.clone();
        move |seen| {
            let is_blob = seen.method == Method::GET && seen.path() == sample.layer_path();
            if is_blob && gets.fetch_add(1, Ordering::SeqCst) == 8 {
                good.store(2, Ordering::SeqCst);
            }
            let token = format!("t{}", good.load(Ordering::SeqCst));
            match (seen.path(), seen.header("authorization")) {
                ("/token", _) => with_body(200, &[], format!(r#"{{"token":"{token}","expires_in":300}}"#)),
                (_, Some(header)) if header == format!("Bearer {token}") => sample.answer(seen),
                _ => challenge(seen),
            }
        }
    })
    .await;
    let copies = pull_by_two(&fake, &sample, || fake.listed()).await;
    assert!(copies <= 1.05, "{copies} copies");
    assert_eq!(fake.count("/token"), 4, "each node: one at the start, one renewal for all its transfers");
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_asked_for_in_seconds_or_as_a_date_are_kept() {
    for (code, as_date) in [(429, false), (503, false), (429, true)] {
        let sample = Sample::new(LENGTH);
        let turned_away = Arc::new(AtomicUsize::new(0));
        let until = std::sync::Mutex::new(None);
        let (fake, _) = registry(&sample, {
            let turned_away = turned_away.clone();
            move |number, _, right| {
                let mut until = until.lock().unwrap();
                if number == 6 {
                    *until = Some(SystemTime::now() + Duration::from_secs(2));
                }
                match *until {
                    Some(at) if SystemTime::now() < at => {
                        turned_away.fetch_add(1, Ordering::SeqCst);
                        // A date has no fractions: round up.
                        let date = httpdate::fmt_http_date(at + Duration::from_secs(1));
                        status(code, &[("retry-after", if as_date { &date } else { "2" })])
                    }
                    _ => right,
                }
            }
        })
        .await;
        let copies = pull_by_two(&fake, &sample, || fake.listed()).await;
        assert!(copies <= 1.05, "{copies} copies");
        let turned_away = turned_away.load(Ordering::SeqCst);
        // Each of the two transfers of each node may be under way when the first one is told to wait.
        assert!((1..=4).contains(&turned_away), "asked {turned_away} times within the pause");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_end_early_cost_what_was_lost() {
    let sample = Sample::new(LENGTH);
    let (fake, _) = registry(&sample, |number, seen, right| {
        if number % 6 != 3 {
            return right;
        }
        let (parts, _) = right.into_parts();
        let (first, last) = seen.header("range").unwrap()["bytes=".len()..].split_once('-').unwrap();
        let half = (last.parse::<usize>().unwrap() + 1 - first.parse::<usize>().unwrap()) / 2;
        let first: usize = first.parse().unwrap();
        let given = Bytes::copy_from_slice(&Sample::new(LENGTH).layer[first..first + half]);
        let cut = std::io::Error::other("the connection is cut");
        Response::from_parts(parts, Body::from_stream(futures_util::stream::iter([Ok(given), Err(cut)])))
    })
    .await;
    let copies = pull_by_two(&fake, &sample, || fake.listed()).await;
    assert!(copies <= 1.25, "{copies} copies");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_ranges_than_asked_for_are_not_taken() {
    let sample = Sample::new(LENGTH);
    let (fake, gets) = registry(&sample, |number, _, right| match number % 6 {
        2 => {
            let wrong = format!("bytes 0-9/{LENGTH}");
            with_body(206, &[("content-range", &wrong)], "0123456789")
        }
        4 => with_body(500, &[], "no"),
        _ => right,
    })
    .await;
    let copies = pull_by_two(&fake, &sample, || fake.listed()).await;
    assert!(copies <= 1.05, "{copies} copies");
    assert!(gets.load(Ordering::SeqCst) > 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_is_asked_for_the_whole() {
    let sample = Sample::new(LENGTH);
    let (fake, _) = registry(&sample, |_, _, _| with_body(200, &[], Sample::new(LENGTH).layer)).await;
    let copies = pull_by_two(&fake, &sample, || fake.listed()).await;
    // Both may begin before either knows that ranges are not served.
    assert!(copies <= 2.05, "{copies} copies");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_slow_to_answer_only_takes_longer() {
    let sample = Sample::new(1_000_001);
    let (fake, _) = registry(&sample, |_, _, right| {
        let (parts, body) = right.into_parts();
        let late = async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            body.into_data_stream()
        };
        Response::from_parts(parts, Body::from_stream(futures_util::stream::once(late).flatten()))
    })
    .await;
    let copies = pull_by_two(&fake, &sample, || fake.listed()).await;
    assert!(copies <= 1.05, "{copies} copies");
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_that_a_registry_redirects_to_may_expire_at_once() {
    let sample = Sample::new(LENGTH);
    let expired = Arc::new(AtomicUsize::new(0));
    let store = Fake::start({
        let (sample, used) = (sample.clone(), std::sync::Mutex::new(std::collections::HashSet::new()));
        let expired = expired.clone();
        move |seen| {
            let number: usize = seen.uri.rsplit('=').next().unwrap().parse().unwrap();
            let fresh = used.lock().unwrap().insert(number);
            assert!(fresh, "a URL that was good for one request was used again");
            if number % 7 == 5 {
                expired.fetch_add(1, Ordering::SeqCst);
                return status(403, &[]);
            }
            bytes(seen, &sample.layer)
        }
    })
    .await;
    let place = store.address;
    let number = AtomicUsize::new(0);
    let (registry, _) = registry(&sample, move |_, _, _| {
        let target = format!("http://{place}/bucket/layer?signature={}", number.fetch_add(1, Ordering::SeqCst));
        status(307, &[("location", &target)])
    })
    .await;
    let config = RegistryConfig { redirect_hosts: vec![store.address.to_string()], ..Default::default() };
    let copies = pull_by_two(&registry, &sample, || registry.listed_as(config.clone())).await;
    assert!(copies <= 1.05, "{copies} copies");
    assert!(expired.load(Ordering::SeqCst) > 0);
}

/// Nodes that start together get the rarest pieces first, and an image's layers wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_first_byte_comes_last_is_not_sent_to_the_registry() {
    const WAIT: Duration = Duration::from_millis(400);
    let sample = Sample::new(8 << 20);
    let (fake, _) = registry(&sample, |_, seen, right| {
        let is_first = seen.header("range").is_some_and(|range| range.starts_with("bytes=0-"));
        let slow = move |chunk: Bytes| async move {
            tokio::time::sleep(if is_first { 5 * WAIT } else { WAIT / 4 }).await;
            Ok::<_, std::io::Error>(chunk)
        };
        let whole = futures_util::stream::once(axum::body::to_bytes(right.into_body(), usize::MAX));
        let parts = whole.map(Result::unwrap).flat_map(move |whole| {
            let mut parts: Vec<_> = whole.chunks(64 << 10).map(Bytes::copy_from_slice).collect();
            if is_first {
                parts = vec![whole];
            }
            futures_util::stream::iter(parts)
        });
        let range = seen.header("range").unwrap().replace("bytes=", "bytes ");
        let sent = format!("{range}/{}", 8 << 20);
        with_body(206, &[("content-range", &sent)], Body::from_stream(parts.then(slow)))
    })
    .await;
    let rig = Rig::start_at(&fake, tracker().await, WAIT).await;
    let response = rig.get(&sample.layer_path()).await;
    assert_eq!(response.status(), 200);
    assert!(response.bytes().await.unwrap() == sample.layer, "wrong bytes");
    rig.stop().await;
}
