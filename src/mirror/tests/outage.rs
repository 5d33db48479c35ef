//! A registry goes away, and what it said stands in for it where the operator wants that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use axum::http::Method;
use axum::http::header::AUTHORIZATION;
use lapwing_p2p::digest::Digest;

use super::fake::{Fake, challenge, status};
use super::rig::{Rig, RigSettings, Sample, header, tracker};

const TAG: &str = "/v2/team/app/manifests/v1";
const STALE: &str = "lapwing; hit; detail=outage";

/// A registry with an image, that answers everything with the status in `away` once that is set.
struct Site {
    sample: Sample,
    fake: Fake,
    away: Arc<AtomicU16>,
    tracker: SocketAddr,
}

impl Site {
    /// `private`: to `Bearer good` alone.
    async fn new(private: bool) -> Self {
        let (sample, away) = (Sample::new(300_000), Arc::new(AtomicU16::new(0)));
        let fake = Fake::start({
            let (sample, away) = (sample.clone(), away.clone());
            move |seen| match (away.load(Ordering::SeqCst), seen.header("authorization")) {
                (0, Some("Bearer good")) => sample.answer(seen),
                (0, _) if seen.path() == "/token" => status(401, &[]),
                (0, _) if private => challenge(seen),
                (0, _) => sample.answer(seen),
                (code, _) => status(code, &[]),
            }
        })
        .await;
        Self { sample, fake, away, tracker: tracker().await }
    }

    async fn node(&self, max_stale: Duration) -> Rig {
        let settings = RigSettings { max_stale, ..RigSettings::new(&self.fake, self.tracker) };
        Rig::start_with(&self.fake, settings).await
    }

    fn goes_away(&self, code: u16) {
        self.away.store(code, Ordering::SeqCst);
    }

    /// As containerd pulls: what the tag stands for, that, and its blobs.
    async fn pull(&self, rig: &Rig, token: Option<&'static str>) -> Result<(), (String, u16)> {
        let head = ask(rig, Method::HEAD, TAG, token).await?;
        assert_eq!(header(&head, "docker-content-digest").unwrap(), Digest::of(&self.sample.manifest).to_string());
        assert_eq!(header(&head, "content-length").unwrap(), self.sample.manifest.len().to_string());
        assert_eq!(header(&head, "content-type").unwrap(), super::rig::MANIFEST_TYPE);
        let parts = [
            (self.sample.manifest_path(), &self.sample.manifest),
            (self.sample.config_path(), &self.sample.config),
            (self.sample.layer_path(), &self.sample.layer),
        ];
        for (path, expected) in parts {
            let bytes = ask(rig, Method::GET, &path, token).await?.bytes().await.unwrap();
            assert!(bytes == *expected, "{path}");
        }
        Ok(())
    }

    /// Until what a pull left at its node is known to the tracker.
    async fn until_told(&self, rig: &Rig) {
        rig.node.open(Digest::of(&self.sample.layer), 300_000, None).unwrap().verified().await.unwrap();
        let other = self.node(HOUR).await;
        self.goes_away(503);
        let told = async { while self.pull(&other, None).await.is_err() {} };
        tokio::time::timeout(Duration::from_secs(60), told).await.unwrap();
        self.goes_away(0);
        other.stop().await;
    }
}

const HOUR: Duration = Duration::from_secs(3600);

async fn ask(
    rig: &Rig,
    method: Method,
    path: &str,
    token: Option<&'static str>,
) -> Result<reqwest::Response, (String, u16)> {
    let request = rig.ask(method, path);
    let request = match token {
        Some(token) => request.header(AUTHORIZATION, token),
        None => request,
    };
    let response = request.send().await.unwrap();
    match response.status().as_u16() {
        200 => Ok(response),
        status => Err((path.to_owned(), status)),
    }
}

#[tokio::test]
async fn without_the_operators_word_a_registry_that_is_away_is_away() {
    let site = Site::new(false).await;
    let rig = site.node(Duration::ZERO).await;
    site.pull(&rig, None).await.unwrap();
    site.goes_away(503);
    assert_eq!(site.pull(&rig, None).await, Err((TAG.to_owned(), 502)));
    rig.stop().await;
}

#[tokio::test]
async fn a_node_that_never_asked_the_registry_pulls_what_another_was_given() {
    let site = Site::new(false).await;
    let first = site.node(HOUR).await;
    site.pull(&first, None).await.unwrap();
    site.until_told(&first).await;

    for code in [503, 429] {
        site.goes_away(code);
        let second = site.node(HOUR).await;
        site.pull(&second, None).await.unwrap();
        let head = ask(&second, Method::HEAD, TAG, None).await.unwrap();
        assert_eq!(header(&head, "cache-status"), Some(STALE));
        assert!(header(&head, "age").unwrap().parse::<u64>().unwrap() < 3600);
        let by_digest = site.sample.manifest_path();
        for unknown in ["/v2/team/app/manifests/v2", "/v2/team/other/manifests/v1", &by_digest.replace("app", "other")]
        {
            assert_eq!(ask(&second, Method::GET, unknown, None).await.unwrap_err().1, 502, "{unknown}");
        }
        let elsewhere = site.sample.layer_path().replace("app", "other");
        assert_eq!(ask(&second, Method::GET, &elsewhere, None).await.unwrap_err().1, 502);
        let picky = second.ask(Method::GET, TAG).header("accept", "application/x-other").send().await.unwrap();
        assert_eq!(picky.status(), 502, "of another type than the client takes");
        second.stop().await;
    }
    first.stop().await;
}

#[tokio::test]
async fn a_tag_stands_for_what_it_was_last_said_to_stand_for() {
    let (old, new, tracker) = (Sample::new(1000), Sample::new(2000), tracker().await);
    let state = Arc::new(AtomicU16::new(0));
    let fake = Fake::start({
        let (old, new, state) = (old.clone(), new.clone(), state.clone());
        move |seen| match state.load(Ordering::SeqCst) {
            0 => old.answer(seen),
            1 => new.answer(seen),
            _ => status(503, &[]),
        }
    })
    .await;
    let start = || Rig::start_with(&fake, RigSettings { max_stale: HOUR, ..RigSettings::new(&fake, tracker) });
    let (first, second) = (start().await, start().await);
    let manifest = |rig: &Rig| {
        let asking = rig.ask(Method::GET, TAG).send();
        async move { asking.await.unwrap().bytes().await.unwrap() }
    };
    for (now, sample) in [(0, &old), (1, &new)] {
        state.store(now, Ordering::SeqCst);
        assert!(manifest(&first).await == sample.manifest);
        state.store(2, Ordering::SeqCst);
        assert!(manifest(&first).await == sample.manifest);
        let told = async { while manifest(&second).await != sample.manifest {} };
        tokio::time::timeout(Duration::from_secs(60), told).await.unwrap();
    }
    for rig in [first, second] {
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_registry_that_answers_is_heard() {
    let site = Site::new(false).await;
    let rig = site.node(HOUR).await;
    site.pull(&rig, None).await.unwrap();
    for code in [401, 403, 404] {
        site.goes_away(code);
        assert_eq!(ask(&rig, Method::GET, TAG, None).await.unwrap_err().1, code);
    }
    rig.stop().await;
}

#[tokio::test]
async fn what_is_public_survives_a_restart() {
    let site = Site::new(false).await;
    let rig = site.node(HOUR).await;
    site.pull(&rig, None).await.unwrap();
    site.until_told(&rig).await;
    let directory = rig.stop().await;
    site.goes_away(502);
    let settings = RigSettings { max_stale: HOUR, directory, ..RigSettings::new(&site.fake, site.tracker) };
    let rig = Rig::start_with(&site.fake, settings).await;
    site.pull(&rig, None).await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn what_was_given_with_credentials_is_given_to_the_same_alone() {
    let site = Site::new(true).await;
    let (rig, other) = (site.node(HOUR).await, site.node(HOUR).await);
    site.pull(&rig, Some("Bearer good")).await.unwrap();
    rig.node.open(Digest::of(&site.sample.layer), 300_000, None).unwrap().verified().await.unwrap();
    site.goes_away(503);
    site.pull(&rig, Some("Bearer good")).await.unwrap();
    for token in [None, Some("Bearer other")] {
        for path in [TAG, &site.sample.manifest_path(), &site.sample.layer_path(), &site.sample.config_path()] {
            assert_eq!(ask(&rig, Method::GET, path, token).await.unwrap_err().1, 502, "{path} {token:?}");
        }
    }
    assert_eq!(site.pull(&other, Some("Bearer good")).await, Err((TAG.to_owned(), 502)), "another node");
    rig.stop().await;
    other.stop().await;
}
