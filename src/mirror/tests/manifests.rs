//! Manifests pass through, and are learnt from.

use axum::http::Method;
use lapwing_p2p::digest::Digest;

use super::fake::{Fake, status, with_body};
use super::rig::{MANIFEST_TYPE, Rig, Sample, header};

#[tokio::test]
async fn an_image_is_known_before_its_config_is_given_out() {
    let sample = Sample::new(1000);
    let fake = Fake::start({
        let sample = sample.clone();
        move |seen| sample.answer(seen)
    })
    .await;
    let rig = Rig::start(&fake).await;
    let head = rig.ask(Method::HEAD, "/v2/team/app/manifests/v1").header("accept", MANIFEST_TYPE).send().await.unwrap();
    let digest = Digest::of(&sample.manifest).to_string();
    assert_eq!(head.status(), 200);
    assert_eq!(header(&head, "docker-content-digest"), Some(digest.as_str()));
    assert_eq!(header(&head, "content-type"), Some(MANIFEST_TYPE));
    assert_eq!(header(&head, "content-length"), Some(sample.manifest.len().to_string().as_str()));
    assert!(rig.witness.images.lock().unwrap().is_empty(), "a HEAD teaches nothing");
    assert_eq!(fake.seen()[0].header("accept"), Some(MANIFEST_TYPE));

    let manifest = rig.get(&sample.manifest_path()).await;
    assert_eq!(header(&manifest, "content-type"), Some(MANIFEST_TYPE));
    assert!(manifest.bytes().await.unwrap() == sample.manifest);
    assert!(rig.get(&sample.config_path()).await.bytes().await.unwrap() == sample.config);
    let records = rig.witness.images.lock().unwrap().clone();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].layer, Digest::of(&sample.layer));
    assert_eq!(records[0].chain_id, Digest::of(b"the tar").to_string());
    assert_eq!((records[0].registry.to_string(), records[0].repo.as_str()), (fake.address.to_string(), "team/app"));
    assert_eq!(
        fake.seen().iter().filter(|seen| seen.method == Method::GET && seen.path() == sample.config_path()).count(),
        1
    );
    rig.stop().await;
}

#[tokio::test]
async fn another_manifest_than_asked_for_is_not_passed_on() {
    let sample = Sample::new(1000);
    let fake = Fake::start(move |seen| {
        let body = if seen.method == Method::HEAD { "" } else { "{}" };
        with_body(200, &[("docker-content-digest", &Digest::of(b"other").to_string())], body)
    })
    .await;
    let rig = Rig::start(&fake).await;
    for path in [sample.manifest_path(), "/v2/team/app/manifests/v1".to_owned()] {
        assert_eq!(rig.get(&path).await.status(), 502, "{path}");
    }
    let head = rig.ask(Method::HEAD, &sample.manifest_path()).send().await.unwrap();
    assert_eq!(head.status(), 502);
    rig.stop().await;
}

/// A registry whose front ends do not know the same: one has the tag, the other not yet what it names.
#[tokio::test]
async fn a_digest_whose_tag_was_answered_is_not_denied() {
    for by_head in [false, true] {
        let sample = Sample::new(1000);
        let fake = Fake::start({
            let sample = sample.clone();
            move |seen| if seen.path().ends_with("/v1") { sample.answer(seen) } else { status(404, &[]) }
        })
        .await;
        let rig = Rig::start(&fake).await;
        assert_eq!(rig.get(&sample.manifest_path()).await.status(), 404, "it was not named yet");
        let method = if by_head { Method::HEAD } else { Method::GET };
        let tag = rig.ask(method, "/v2/team/app/manifests/v1").send().await.unwrap();
        assert_eq!(tag.status(), 200);
        assert_eq!(rig.get(&sample.manifest_path()).await.status(), 502, "the client goes on to its next host");
        let elsewhere = sample.manifest_path().replace("team/app", "other/repo");
        assert_eq!(rig.get(&elsewhere).await.status(), 404, "of that repository only");
        rig.stop().await;
    }
}

#[tokio::test]
async fn answers_of_the_registry_become_what_a_runtime_can_use() {
    for (given, expected) in
        [(404, 404), (401, 401), (403, 403), (400, 400), (429, 502), (408, 502), (500, 502), (503, 502), (418, 502)]
    {
        let fake = Fake::start(move |_| status(given, &[])).await;
        let rig = Rig::start(&fake).await;
        assert_eq!(rig.get("/v2/team/app/manifests/v1").await.status(), expected, "{given}");
        assert_eq!(
            rig.get(&Sample::new(10).layer_path()).await.status(),
            if given == 400 { 502 } else { expected },
            "{given}"
        );
        rig.stop().await;
    }
}
