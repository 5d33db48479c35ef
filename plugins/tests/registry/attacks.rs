//! Registry names come from whoever reaches the mirror: they are keys and never make the node dial inside its network.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapwing_evidence::Evidence;
use lapwing_plugins::registry::{
    Credential, Denied, OthersConfig, Registries, RegistriesConfig, RegistryConfig, RegistryName,
};

use crate::fake::{digest, provider, repo};

/// Counts the connections that anybody makes.
async fn trap() -> (u16, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("[::]:0").await.unwrap();
    let (port, count) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, count)
}

#[tokio::test]
async fn unlisted_names_reach_nothing_inside() {
    provider();
    let mut evidence = Evidence::new(20, "registry names of addresses within the network");
    let (port, connections) = trap().await;
    let registries = Registries::new(RegistriesConfig::default()).unwrap();
    let never_names = [
        "http://169.254.169.254/",
        "https://127.0.0.1",
        "../..",
        "a b",
        "a/../b",
        "x@127.0.0.1",
        "127.0.0.1:80/x",
        "127.0.0.1:80#",
        "127.0.0.1:80?x",
        "[::1]:80/",
        "[::1%25lo]:80",
        "a\tb",
        "a\0b",
        "%31%32%37.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:99999",
        "::1",
    ];
    for name in never_names {
        evidence.fault("a name that is none");
        assert!(name.parse::<RegistryName>().is_err(), "{name:?}");
    }
    let names = [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "017700000001",
        "0",
        "0.0.0.0",
        "127.255.255.254",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "10.0.0.1",
        "192.168.0.1",
        "172.16.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "224.0.0.1",
        "255.255.255.255",
    ];
    for host in names {
        let name: RegistryName = format!("{host}:{port}").parse().unwrap();
        let repo = repo();
        let asked = registries.authorize(&name, &repo, digest(), &Credential::Anonymous);
        let begun = std::time::Instant::now();
        let denied = tokio::time::timeout(Duration::from_secs(5), asked).await.expect("at once").unwrap_err();
        evidence.fault("a name within the network");
        evidence.ended(begun.elapsed(), false);
        assert!(matches!(denied, Denied::Unknown(_) | Denied::Unavailable { .. }), "{host}: {denied:?}");
        let reason = denied.to_string();
        assert!(reason.contains("public address") || reason.contains("host"), "{host}: {reason}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_trap_works_where_the_operator_opens_it() {
    provider();
    let (port, connections) = trap().await;
    let others = OthersConfig { allow_private: true, ..OthersConfig::default() };
    let open = Registries::new(RegistriesConfig { others, ..Default::default() }).unwrap();
    let name: RegistryName = format!("127.0.0.1:{port}").parse().unwrap();
    let asked = tokio::spawn(async move { open.authorize(&name, &repo(), digest(), &Credential::Anonymous).await });
    while connections.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    asked.abort();
}

#[tokio::test]
async fn a_closed_list_is_closed() {
    provider();
    let others = OthersConfig { enabled: false, ..OthersConfig::default() };
    let registries = Registries::new(RegistriesConfig { others, ..Default::default() }).unwrap();
    for name in ["docker.io", "reg.example"] {
        let denied = registries.authorize(&name.parse().unwrap(), &repo(), digest(), &Credential::Anonymous).await;
        assert!(matches!(denied, Err(Denied::Unknown(_))));
    }
}

#[test]
fn entries_that_cannot_work_are_refused_and_named() {
    provider();
    let entry = |name: &str, config: RegistryConfig| {
        let hosts = [(name.to_owned(), config)].into();
        Registries::new(RegistriesConfig { hosts, ..Default::default() }).err().expect("refused").to_string()
    };
    let cases = [
        ("https://x", RegistryConfig::default(), "not valid"),
        ("x", RegistryConfig { host: Some("http://y".to_owned()), ..Default::default() }, "http://y"),
        ("x", RegistryConfig { auth_host: Some("y/z".to_owned()), ..Default::default() }, "y/z"),
        ("x", RegistryConfig { redirect_hosts: vec!["*".to_owned()], ..Default::default() }, "*"),
        ("x", RegistryConfig { username: Some("u".to_owned()), ..Default::default() }, "password_file"),
        ("x", RegistryConfig { ca_file: Some("/nonexistent.pem".into()), ..Default::default() }, "/nonexistent.pem"),
    ];
    for (name, config, expected) in cases {
        let error = entry(name, config);
        assert!(error.contains(expected) && error.contains(name), "{error}");
    }
}
