//! Who may have a blob: asked once for all who ask at the same time, per credential, and never remembered wrongly.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use http::{HeaderValue, Method};
use lapwing_plugins::registry::{Credential, Denied, Grant, RegistryConfig, Right, Witnesses};

use crate::fake::{BLOB, Fake, blob, blob_path, challenge, digest, repo, status, with_body};

const LENGTH: u64 = BLOB.len() as u64;

fn header(text: &'static str) -> Credential {
    Credential::Header(HeaderValue::from_static(text))
}

async fn private() -> Fake {
    Fake::start(|seen| match (seen.path(), seen.header("authorization")) {
        ("/token", _) => status(403, &[]),
        (_, Some("Bearer good")) => blob(seen),
        (_, Some("Bearer weak")) => status(403, &[]),
        _ => challenge(seen),
    })
    .await
}

#[tokio::test]
async fn yes_is_asked_once_and_for_one_credential_only() {
    let fake = private().await;
    let registries = fake.listed();
    let (name, repo) = (fake.name(), repo());
    let good = header("Bearer good");
    for granted in join_all((0..50).map(|_| registries.authorize(&name, &repo, digest(), &good))).await {
        assert_eq!(granted.unwrap(), Grant { length: LENGTH, listed: true });
    }
    registries.authorize(&name, &repo, digest(), &good).await.unwrap();
    assert_eq!(fake.count(&blob_path()), 1);
    assert_eq!(fake.seen()[0].method, Method::HEAD);

    let weak = registries.authorize(&name, &repo, digest(), &header("Bearer weak")).await;
    assert!(matches!(weak, Err(Denied::Refused { status, .. }) if status == 403));
    let anonymous = registries.authorize(&name, &repo, digest(), &Credential::Anonymous).await;
    let Err(Denied::Refused { status, challenges, .. }) = anonymous else {
        panic!("{anonymous:?}");
    };
    assert_eq!(status, 401);
    assert!(challenges[0].to_str().unwrap().starts_with(&format!("Bearer realm=\"http://{}/token\"", fake.address)));
    let elsewhere = registries.authorize(&name, &"team/other".parse().unwrap(), digest(), &good).await;
    assert!(elsewhere.is_ok());
    assert_eq!(fake.count(&format!("/v2/team/other/blobs/{}", digest())), 1, "another repository is another question");
}

#[tokio::test]
async fn no_is_not_remembered() {
    let fake = private().await;
    let registries = fake.listed();
    for _ in 0..3 {
        assert!(registries.authorize(&fake.name(), &repo(), digest(), &header("Bearer weak")).await.is_err());
    }
    assert_eq!(fake.count(&blob_path()), 3);
}

#[tokio::test]
async fn a_yes_to_an_expired_token_is_not_remembered() {
    // {"exp":1}
    let expired = "Bearer e30.eyJleHAiOjF9.c2ln";
    let fake = Fake::start(blob).await;
    let registries = fake.listed();
    for _ in 0..2 {
        registries.authorize(&fake.name(), &repo(), digest(), &header(expired)).await.unwrap();
    }
    assert_eq!(fake.count(&blob_path()), 2);
}

#[tokio::test]
async fn every_other_answer_is_no_grant() {
    type Case = (fn() -> axum::response::Response, fn(&Denied) -> bool);
    let cases: [Case; 6] = [
        (|| status(404, &[]), |denied| matches!(denied, Denied::Missing { status, .. } if *status == 404)),
        (|| status(410, &[]), |denied| matches!(denied, Denied::Missing { .. })),
        (|| status(500, &[]), |denied| matches!(denied, Denied::Unavailable { .. })),
        (|| status(429, &[]), |denied| matches!(denied, Denied::Unavailable { .. })),
        (|| status(302, &[("location", "http://10.0.0.1/")]), |denied| matches!(denied, Denied::Unavailable { .. })),
        (|| status(206, &[("content-range", "bytes 0-0/*")]), |denied| matches!(denied, Denied::Unavailable { .. })),
    ];
    for (behaviour, expected) in cases {
        let fake = Fake::start(move |_| behaviour()).await;
        let denied =
            fake.listed().authorize(&fake.name(), &repo(), digest(), &Credential::Anonymous).await.unwrap_err();
        assert!(expected(&denied), "{denied:?}");
    }
}

#[tokio::test]
async fn a_registry_that_says_0_to_head_is_asked_by_get() {
    let fake = Fake::start(|seen| if seen.method == Method::GET { blob(seen) } else { status(200, &[]) }).await;
    let granted = fake.listed().authorize(&fake.name(), &repo(), digest(), &Credential::Anonymous).await;
    assert_eq!(granted.unwrap().length, LENGTH);
}

#[tokio::test]
async fn a_store_that_signs_for_get_only_still_tells_the_length() {
    let store = Fake::start(|seen| if seen.method == Method::GET { blob(seen) } else { status(403, &[]) }).await;
    let target = format!("http://{}/", store.address);
    let fake = Fake::start(move |_| status(307, &[("location", &target)])).await;
    let registries =
        fake.listed_as(RegistryConfig { redirect_hosts: vec![store.address.to_string()], ..Default::default() });
    let granted = registries.authorize(&fake.name(), &repo(), digest(), &Credential::Anonymous).await;
    assert_eq!(granted.unwrap().length, LENGTH);
    assert_eq!(store.seen().last().unwrap().header("range"), Some("bytes=0-0"));
}

#[tokio::test]
async fn anonymous_clients_share_the_nodes_rights_only_if_the_operator_says_so() {
    let fake = Fake::start(|seen| match (seen.path(), seen.header("authorization")) {
        ("/token", Some("Basic dTpw")) => with_body(200, &[], r#"{"token":"own"}"#),
        ("/token", _) => with_body(200, &[], r#"{"token":"nobody"}"#),
        (_, Some("Bearer own")) => blob(seen),
        _ => challenge(seen),
    })
    .await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "p").unwrap();
    for share_credentials in [false, true] {
        let registries = fake.listed_as(RegistryConfig {
            username: Some("u".to_owned()),
            password_file: Some(file.path().to_owned()),
            share_credentials,
            ..Default::default()
        });
        let credential = registries.client_credential(&fake.name(), None);
        let granted = registries.authorize(&fake.name(), &repo(), digest(), &credential).await;
        assert_eq!(granted.is_ok(), share_credentials);
        let wrong = HeaderValue::from_static("Bearer wrong");
        let credential = registries.client_credential(&fake.name(), Some(&wrong));
        assert!(
            registries.authorize(&fake.name(), &repo(), digest(), &credential).await.is_err(),
            "a bad token is no bye"
        );
    }
}

/// What nodes tell each other, in one place.
#[derive(Default)]
struct Told(Mutex<HashMap<Right, (u64, Duration)>>);

impl Witnesses for Told {
    fn ask<'a>(&'a self, right: &'a Right) -> BoxFuture<'a, Option<(u64, Duration)>> {
        let told = self.0.lock().unwrap().get(right).copied();
        Box::pin(std::future::ready(told))
    }

    fn tell(&self, right: &Right, length: u64, left: Duration) {
        self.0.lock().unwrap().insert(right.clone(), (length, left));
    }
}

#[tokio::test]
async fn what_another_node_was_granted_counts_for_the_same_client_until_it_ends() {
    let fake = private().await;
    let told = Arc::new(Told::default());
    let node = || {
        let registries = fake.listed();
        registries.believe(told.clone());
        registries
    };
    let (name, repo, good) = (fake.name(), repo(), header("Bearer good"));
    let first = node();
    first.authorize(&name, &repo, digest(), &good).await.unwrap();
    let granted = node().authorize(&name, &repo, digest(), &good).await.unwrap();
    assert_eq!((granted, fake.count(&blob_path())), (Grant { length: LENGTH, listed: true }, 1), "asked once for both");
    let left = told.0.lock().unwrap().values().next().unwrap().1;
    assert!(left <= Duration::from_secs(300), "no longer than the first node remembers it: {left:?}");
    for credential in [header("Bearer weak"), header("Bearer other"), Credential::Anonymous, Credential::Configured] {
        let before = fake.count(&blob_path());
        assert!(node().authorize(&name, &repo, digest(), &credential).await.is_err(), "{credential:?}");
        assert!(fake.count(&blob_path()) > before, "{credential:?} was asked about");
    }
    assert_eq!(told.0.lock().unwrap().len(), 1, "a no is told to nobody");

    let (second, before) = (node(), fake.count(&blob_path()));
    told.0.lock().unwrap().values_mut().for_each(|(_, left)| *left = Duration::ZERO);
    second.authorize(&name, &repo, digest(), &good).await.unwrap();
    assert_eq!(fake.count(&blob_path()), before);
    told.0.lock().unwrap().clear();
    second.authorize(&name, &repo, digest(), &good).await.unwrap();
    assert_eq!(fake.count(&blob_path()), before + 1, "what has ended is not remembered");
}

#[tokio::test]
async fn rights_that_are_everybodys_or_the_nodes_own_are_told_to_nobody() {
    let fake = Fake::start(blob).await;
    let told = Arc::new(Told::default());
    let registries = fake.listed();
    registries.believe(told.clone());
    for credential in [Credential::Anonymous, Credential::Configured] {
        registries.authorize(&fake.name(), &repo(), digest(), &credential).await.unwrap();
    }
    assert!(told.0.lock().unwrap().is_empty());
}
