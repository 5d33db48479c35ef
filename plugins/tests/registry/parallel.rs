//! No more transfers at once than the operator allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use lapwing_p2p::origin::Origin as _;
use lapwing_plugins::registry::{Credential, RegistryConfig};

use crate::fake::{BLOB, Fake, digest, repo, with_body};

/// A registry that counts the bodies under way.
#[derive(Default)]
struct Running {
    now: AtomicUsize,
    most: AtomicUsize,
}

struct One(Arc<Running>);

impl One {
    fn begin(running: &Arc<Running>) -> Self {
        let now = running.now.fetch_add(1, Ordering::SeqCst) + 1;
        running.most.fetch_max(now, Ordering::SeqCst);
        Self(running.clone())
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn counting() -> (Fake, Arc<Running>) {
    let running = Arc::new(Running::default());
    let fake = Fake::start({
        let running = running.clone();
        move |_| {
            let one = One::begin(&running);
            let bytes = BLOB.iter().map(|byte| Bytes::copy_from_slice(&[*byte])).collect::<Vec<_>>();
            let body = futures_util::stream::iter(bytes).then(move |byte| {
                // The body holds its count until it has been sent.
                let _ = &one;
                async move {
                    tokio::task::yield_now().await;
                    Ok::<_, std::io::Error>(byte)
                }
            });
            with_body(200, &[("content-length", &BLOB.len().to_string())], Body::from_stream(body))
        }
    })
    .await;
    (fake, running)
}

#[tokio::test]
async fn transfers_beyond_the_limit_wait_for_their_turn() {
    for limit in [1, 3] {
        let (fake, running) = counting().await;
        let registries = fake.listed_as(RegistryConfig { max_parallel: Some(limit), ..Default::default() });
        let all = (0..20).map(|_| fake.fetch(&registries, Credential::Anonymous, 0..BLOB.len() as u64));
        for fetched in join_all(all).await {
            assert_eq!(fetched.unwrap(), BLOB);
        }
        let most = running.most.load(Ordering::SeqCst);
        // The server drops a body a moment after the client has its last byte.
        assert!(most <= 2 * limit as usize, "{most} at once, {limit} allowed");
        assert_eq!(fake.seen().len(), 20);
    }
}

#[tokio::test]
async fn a_transfer_that_is_given_up_makes_room() {
    let (fake, _) = counting().await;
    let registries = fake.listed_as(RegistryConfig { max_parallel: Some(1), ..Default::default() });
    let length = BLOB.len() as u64;
    let origin = registries.origin(&fake.name(), &repo(), digest(), length, Credential::Anonymous).unwrap();
    for _ in 0..5 {
        let mut stream = origin.fetch(0..length).await.unwrap();
        stream.next().await.unwrap().unwrap();
    }
    let held = origin.fetch(0..length).await.unwrap();
    let waiting = fake.fetch(&registries, Credential::Anonymous, 0..length);
    let mut waiting = std::pin::pin!(waiting);
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    let asked = fake.seen().len();
    tokio::task::yield_now().await;
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    assert_eq!(fake.seen().len(), asked, "the second transfer did not wait");
    drop(held);
    assert_eq!(waiting.await.unwrap(), BLOB);
}
