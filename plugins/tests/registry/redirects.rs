//! Redirects: followed by hand, without credentials, and not to where a stranger should not send us.

use lapwing_evidence::Evidence;
use lapwing_p2p::origin::OriginError;
use lapwing_plugins::registry::{Credential, RegistryConfig};

use crate::fake::{BLOB, Failure, Fake, blob, status};

fn header() -> Credential {
    Credential::Header("Bearer secret".parse().unwrap())
}

async fn redirecting(location: String) -> Fake {
    Fake::start(move |_| status(307, &[("location", &location)])).await
}

#[tokio::test]
async fn credentials_stay_with_the_registry() {
    let store = Fake::start(blob).await;
    let registry = redirecting(format!("http://{}/bucket/x?signature=1", store.address)).await;
    let registries =
        registry.listed_as(RegistryConfig { redirect_hosts: vec![store.address.to_string()], ..Default::default() });
    assert_eq!(registry.fetch(&registries, header(), 3..7).await.unwrap(), &BLOB[3..7]);
    assert_eq!(registry.seen()[0].header("authorization"), Some("Bearer secret"));
    let seen = store.seen();
    assert_eq!((seen.len(), seen[0].uri.as_str()), (1, "/bucket/x?signature=1"));
    assert_eq!(seen[0].header("range"), Some("bytes=3-6"));
    for name in ["authorization", "cookie", "referer"] {
        assert_eq!(seen[0].header(name), None, "{name}");
    }
}

#[tokio::test]
async fn a_way_back_to_the_registry_carries_no_credentials_either() {
    let there = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let registry = Fake::start({
        let there = there.clone();
        move |seen| match seen.path() {
            "/back" => blob(seen),
            _ => status(302, &[("location", there.get().unwrap())]),
        }
    })
    .await;
    let back = format!("http://{}/back", registry.address);
    let store = redirecting(back).await;
    there.set(format!("http://{}/", store.address)).unwrap();
    let registries =
        registry.listed_as(RegistryConfig { redirect_hosts: vec![store.address.to_string()], ..Default::default() });
    assert_eq!(registry.fetch(&registries, header(), 0..1).await.unwrap(), b"0");
    assert_eq!(registry.seen().last().unwrap().header("authorization"), None);
}

#[tokio::test]
async fn within_the_registry_credentials_go_along() {
    let registry = Fake::start(|seen| match seen.path() {
        "/elsewhere" => blob(seen),
        _ => status(307, &[("location", "/elsewhere")]),
    })
    .await;
    assert_eq!(registry.fetch(&registry.listed(), header(), 0..2).await.unwrap(), b"01");
    assert_eq!(registry.seen()[1].header("authorization"), Some("Bearer secret"));
}

#[tokio::test]
async fn strangers_cannot_send_us_inside() {
    let mut evidence = Evidence::new(19, "registries that redirect into the network");
    let inside = Fake::start(blob).await;
    let port = inside.address.port();
    let targets = [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://0x7f.1:{port}/"),
        format!("http://0177.0.0.1:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://0.0.0.0:{port}/"),
        format!("//127.0.0.1:{port}/"),
        format!("http://user:pass@127.0.0.1:{port}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://[fd00:ec2::254]/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "ftp://example.com/".to_owned(),
        "gopher://127.0.0.1/".to_owned(),
        "http://".to_owned(),
        String::new(),
        "x".repeat(20_000),
    ];
    for target in targets {
        let registry = redirecting(target.clone()).await;
        evidence.fault("a redirect into the network");
        let fetched = registry.fetch(&registry.listed(), header(), 0..1).await;
        assert!(matches!(fetched, Err(Failure::Origin(OriginError::Unavailable { .. }))), "{target}: {fetched:?}");
    }
    assert!(inside.seen().is_empty(), "{:?}", inside.seen());
}

#[tokio::test]
async fn three_redirects_are_followed_and_no_more() {
    let hops = |most: usize| {
        Fake::start(move |seen| {
            let hop = seen.path().strip_prefix("/hop/").map_or(0, |hop| hop.parse::<usize>().unwrap());
            if hop == most { blob(seen) } else { status(308, &[("location", &format!("/hop/{}", hop + 1))]) }
        })
    };
    let three = hops(3).await;
    assert_eq!(three.fetch(&three.listed(), header(), 0..1).await.unwrap(), b"0");
    let four = hops(4).await;
    assert!(four.fetch(&four.listed(), header(), 0..1).await.is_err());
    assert_eq!(four.seen().len(), 4);
}

#[tokio::test]
async fn where_a_redirect_led_is_not_remembered() {
    let store = Fake::start(blob).await;
    let registry = redirecting(format!("http://{}/", store.address)).await;
    let registries =
        registry.listed_as(RegistryConfig { redirect_hosts: vec![store.address.to_string()], ..Default::default() });
    for _ in 0..3 {
        registry.fetch(&registries, header(), 0..1).await.unwrap();
    }
    assert_eq!(registry.seen().len(), 3);
}

#[tokio::test]
async fn a_store_that_refuses_is_not_the_registry_refusing() {
    let store = Fake::start(|_| status(403, &[])).await;
    let registry = redirecting(format!("http://{}/", store.address)).await;
    let registries =
        registry.listed_as(RegistryConfig { redirect_hosts: vec![store.address.to_string()], ..Default::default() });
    let fetched = registry.fetch(&registries, header(), 0..1).await;
    assert!(matches!(fetched, Err(Failure::Origin(OriginError::Unavailable { .. }))), "{fetched:?}");
    assert_eq!(registry.seen().len(), 1, "no other credential was tried");
}
