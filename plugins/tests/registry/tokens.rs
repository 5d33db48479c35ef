//! Tokens: one request for all who need one, renewed once, credentials only where they belong.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use lapwing_p2p::origin::{Origin as _, OriginError};
use lapwing_plugins::registry::{Credential, RegistryConfig};

use crate::fake::{BLOB, Failure, Fake, blob, challenge, digest, repo, status, with_body};

/// A registry whose tokens are `t1`, `t2`, ...; only the newest `issued` is good.
async fn with_tokens() -> (Fake, Arc<AtomicUsize>) {
    let good = Arc::new(AtomicUsize::new(1));
    let fake = Fake::start({
        let good = good.clone();
        move |seen| {
            let token = format!("t{}", good.load(Ordering::SeqCst));
            match (seen.path(), seen.header("authorization")) {
                ("/token", _) => with_body(200, &[], format!(r#"{{"token":"{token}","expires_in":300}}"#)),
                (_, Some(header)) if header == format!("Bearer {token}") => blob(seen),
                _ => challenge(seen),
            }
        }
    })
    .await;
    (fake, good)
}

#[tokio::test]
async fn a_hundred_fetches_share_one_token_and_one_renewal() {
    let (fake, good) = with_tokens().await;
    let registries = fake.listed();
    let all = || join_all((0..100).map(|at| fake.fetch(&registries, Credential::Anonymous, at % 36..at % 36 + 1)));
    for fetched in all().await {
        assert_eq!(fetched.unwrap().len(), 1);
    }
    assert_eq!(fake.count("/token"), 1);
    let asked = &fake.seen().into_iter().find(|seen| seen.path() == "/token").unwrap();
    assert_eq!(asked.uri, "/token?scope=repository%3Ateam%2Fapp%3Apull&service=fake", "never more than pull");
    assert_eq!(asked.header("authorization"), None);

    good.store(2, Ordering::SeqCst);
    for fetched in all().await {
        assert_eq!(fetched.unwrap().len(), 1);
    }
    assert_eq!(fake.count("/token"), 2, "one renewal for all");
}

#[tokio::test]
async fn a_token_that_never_works_is_renewed_once_per_fetch() {
    let fake = Fake::start(|seen| match seen.path() {
        "/token" => with_body(200, &[], r#"{"token":"bad"}"#),
        _ => challenge(seen),
    })
    .await;
    let fetched = fake.fetch(&fake.listed(), Credential::Anonymous, 0..1).await;
    assert!(matches!(fetched, Err(Failure::Origin(OriginError::Unauthorized { status: 401, .. }))), "{fetched:?}");
    assert_eq!(fake.seen().len(), 3, "without token, token, with token");
}

#[tokio::test]
async fn a_stale_token_refused_without_a_challenge_is_replaced() {
    let stage = Arc::new(AtomicUsize::new(0));
    let fake = Fake::start({
        let stage = stage.clone();
        move |seen| match (seen.path(), seen.header("authorization"), stage.load(Ordering::SeqCst)) {
            ("/token", ..) => with_body(200, &[], format!(r#"{{"token":"t{}"}}"#, stage.load(Ordering::SeqCst))),
            (_, None, _) => challenge(seen),
            (_, Some("Bearer t0"), 0) | (_, Some("Bearer t1"), 1) => blob(seen),
            _ => status(403, &[]),
        }
    })
    .await;
    let registries = fake.listed();
    fake.fetch(&registries, Credential::Anonymous, 0..1).await.unwrap();
    stage.store(1, Ordering::SeqCst);
    assert_eq!(fake.fetch(&registries, Credential::Anonymous, 0..1).await.unwrap(), b"0");
}

#[tokio::test]
async fn configured_credentials_are_read_at_each_token() {
    let fake = Fake::start(|seen| match (seen.path(), seen.header("authorization")) {
        // dXNlcjpvbmU= is user:one
        ("/token", Some("Basic dXNlcjpvbmU=")) => with_body(200, &[], r#"{"token":"one"}"#),
        ("/token", Some("Basic dXNlcjp0d28=")) => with_body(200, &[], r#"{"token":"two"}"#),
        ("/token", _) => status(401, &[]),
        (_, Some("Bearer two")) => blob(seen),
        _ => challenge(seen),
    })
    .await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "one").unwrap();
    let config = RegistryConfig {
        username: Some("user".to_owned()),
        password_file: Some(file.path().to_owned()),
        ..Default::default()
    };
    let registries = fake.listed_as(config);
    assert!(fake.fetch(&registries, Credential::Configured, 0..1).await.is_err());
    std::fs::write(file.path(), "two\n").unwrap();
    assert_eq!(fake.fetch(&registries, Credential::Configured, 0..1).await.unwrap(), b"0");
    assert!(fake.fetch(&registries, Credential::Anonymous, 0..1).await.is_err(), "nobody else's token is used");
    let gone = file.path().to_owned();
    drop(file);
    let fresh = fake.listed_as(RegistryConfig {
        username: Some("user".to_owned()),
        password_file: Some(gone.clone()),
        ..Default::default()
    });
    let error = format!("{:?}", fake.fetch(&fresh, Credential::Configured, 0..1).await.unwrap_err());
    assert!(error.contains(gone.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_dockers_identity_token_is_exchanged() {
    let fake = Fake::start(|seen| match (seen.path(), seen.header("authorization")) {
        ("/token", None) if seen.method == http::Method::POST => with_body(200, &[], r#"{"access_token":"t"}"#),
        (_, Some("Bearer t")) => blob(seen),
        _ => challenge(seen),
    })
    .await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, r#"{{"auths":{{"{}":{{"identitytoken":"refresh me"}}}}}}"#, fake.address).unwrap();
    let own = RegistryConfig { docker_config: Some(file.path().to_owned()), ..Default::default() };
    assert_eq!(fake.fetch(&fake.listed_as(own), Credential::Configured, 0..1).await.unwrap(), b"0");
    let asked = fake.seen().into_iter().find(|seen| seen.path() == "/token").unwrap();
    let form = "scope=repository%3Ateam%2Fapp%3Apull&service=fake&grant_type=refresh_token&refresh_token=refresh+me";
    assert_eq!(std::str::from_utf8(&asked.body).unwrap(), format!("{form}&client_id=lapwing"));
    assert_eq!(asked.uri, "/token", "not in a URL that logs keep");
}

#[tokio::test]
async fn basic_without_tokens() {
    let fake = Fake::start(|seen| match seen.header("authorization") {
        Some("Basic dTpw") => blob(seen),
        _ => status(401, &[("www-authenticate", "Basic realm=\"x\"")]),
    })
    .await;
    let basic = Credential::Basic { username: "u".to_owned(), password: "p".to_owned() };
    let registries = fake.listed();
    for _ in 0..3 {
        assert_eq!(fake.fetch(&registries, basic.clone(), 0..36).await.unwrap(), BLOB);
    }
    assert_eq!(fake.seen().len(), 4, "challenged once");
    assert!(fake.fetch(&registries, Credential::Anonymous, 0..1).await.is_err());
}

#[tokio::test]
async fn credentials_go_to_no_other_token_service() {
    let thief = Fake::start(|_| with_body(200, &[], r#"{"token":"t"}"#)).await;
    let port = thief.address.port();
    let basic = Credential::Basic { username: "u".to_owned(), password: "p".to_owned() };
    let realms = [
        format!("http://{}/token", thief.address),
        format!("http://localhost:{port}/token"),
        format!("https://{}/token", thief.address),
        "https://auth.docker.io/token".to_owned(),
        "file:///etc/passwd".to_owned(),
        "not a url".to_owned(),
    ];
    for realm in realms {
        let shown = realm.clone();
        let fake =
            Fake::start(move |_| status(401, &[("www-authenticate", &format!("Bearer realm=\"{realm}\""))])).await;
        for credential in [basic.clone(), Credential::Anonymous] {
            let fetched = fake.fetch(&fake.listed(), credential, 0..1).await;
            assert!(matches!(fetched, Err(Failure::Origin(OriginError::Unavailable { .. }))), "{shown}: {fetched:?}");
        }
    }
    assert!(thief.seen().is_empty());

    let realm = format!("http://{}/token", thief.address);
    let fake = Fake::start(move |seen| match seen.header("authorization") {
        Some("Bearer t") => blob(seen),
        _ => status(401, &[("www-authenticate", &format!("Bearer realm=\"{realm}\""))]),
    })
    .await;
    let named = fake.listed_as(RegistryConfig { auth_host: Some(thief.address.to_string()), ..Default::default() });
    assert_eq!(fake.fetch(&named, basic, 0..1).await.unwrap(), b"0", "the operator named it");
    assert_eq!(thief.seen()[0].header("authorization"), Some("Basic dTpw"));
}

#[tokio::test]
async fn a_redirecting_token_service_is_not_followed() {
    let thief = Fake::start(|_| with_body(200, &[], r#"{"token":"t"}"#)).await;
    let target = format!("http://{}/", thief.address);
    let fake = Fake::start(move |seen| match seen.path() {
        "/token" => status(307, &[("location", &target)]),
        _ => challenge(seen),
    })
    .await;
    let basic = Credential::Basic { username: "u".to_owned(), password: "p".to_owned() };
    let config = RegistryConfig { redirect_hosts: vec![thief.address.to_string()], ..Default::default() };
    assert!(fake.fetch(&fake.listed_as(config), basic, 0..1).await.is_err());
    assert!(thief.seen().is_empty());
}

#[tokio::test]
async fn a_clients_header_is_used_as_it_is_and_then_the_nodes_own() {
    let fake = Fake::start(|seen| match (seen.path(), seen.header("authorization")) {
        ("/token", Some("Basic dTpw")) => with_body(200, &[], r#"{"token":"own"}"#),
        (_, Some("Bearer client" | "Bearer own")) => blob(seen),
        ("/token", _) => status(401, &[]),
        _ => challenge(seen),
    })
    .await;
    let header = |text: &'static str| Credential::Header(http::HeaderValue::from_static(text));
    fake.fetch(&fake.listed(), header("Bearer client"), 0..1).await.unwrap();
    assert_eq!(fake.seen().len(), 1);
    assert!(fake.fetch(&fake.listed(), header("Bearer expired"), 0..1).await.is_err());

    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, fake.address).unwrap();
    let own = RegistryConfig { docker_config: Some(file.path().to_owned()), ..Default::default() };
    assert_eq!(fake.fetch(&fake.listed_as(own), header("Bearer expired"), 0..1).await.unwrap(), b"0");
}

#[tokio::test]
async fn a_clients_header_that_ran_out_is_not_tried_again() {
    let fake = Fake::start(|seen| match seen.header("authorization") {
        Some("Basic dTpw") => blob(seen),
        _ => status(401, &[("www-authenticate", "Basic realm=\"x\"")]),
    })
    .await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, fake.address).unwrap();
    let own = RegistryConfig { docker_config: Some(file.path().to_owned()), ..Default::default() };
    let registries = fake.listed_as(own);
    let header = Credential::Header(http::HeaderValue::from_static("Bearer expired"));
    let origin = registries.origin(&fake.name(), &repo(), digest(), BLOB.len() as u64, header).unwrap();
    for _ in 0..5 {
        assert!(origin.fetch(0..1).await.is_ok());
    }
    let expired = fake.seen().iter().filter(|seen| seen.header("authorization") == Some("Bearer expired")).count();
    assert_eq!(expired, 1);
}

#[tokio::test]
async fn a_busy_token_service_is_left_alone() {
    let fake = Fake::start(|seen| match seen.path() {
        "/token" => status(429, &[("retry-after", "60")]),
        _ => challenge(seen),
    })
    .await;
    let registries = fake.listed();
    for _ in 0..5 {
        let fetched = fake.fetch(&registries, Credential::Anonymous, 0..1).await;
        let Err(Failure::Origin(OriginError::Busy { retry_after, .. })) = fetched else { panic!("{fetched:?}") };
        assert!(retry_after <= Duration::from_secs(60) && retry_after > Duration::from_secs(30), "{retry_after:?}");
    }
    assert_eq!((fake.count("/token"), fake.seen().len()), (1, 2));
}
