//! Names of images and registries as nobody should send them: refused in the registry's own form, and nobody is connected to.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use lapwing_lab::{Host, Lapwing, LapwingSettings, Need, Response, require};
use serde_json::Value;

use super::network;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn ask(host: &Host, path: &str) -> Response {
    host.http_get(SocketAddr::from(([127, 0, 0, 1], 7080)), path).unwrap()
}

/// The message of a refusal, which must be in the form of the distribution specification.
fn message(answer: &Response, path: &str) -> String {
    assert!(answer.head.to_ascii_lowercase().contains("content-type: application/json"), "{path}: {}", answer.head);
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    let error = &body["errors"][0];
    assert!(error["code"].as_str().is_some_and(|code| !code.is_empty()), "{path}: {body}");
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn bad_image_names_are_refused_by_name() {
    if !require("bad_image_names_are_refused_by_name", &[Need::Root, Need::Disk]) {
        return;
    }
    let host = network("names").host("w1", None).unwrap();
    let mut node = Lapwing::start(&host, LapwingSettings::up()).unwrap();
    let long = format!("/v2/{}/manifests/1", "a".repeat(256));
    let cases = [
        ("/v2/Upper/manifests/1", 400, "Upper"),
        ("/v2/a//b/manifests/1", 400, "a//b"),
        ("/v2/../../etc/manifests/1", 400, ".."),
        ("/v2/a/%2e%2e/manifests/1", 400, "%2e%2e"),
        ("/v2/a%00b/manifests/1", 400, "a%00b"),
        ("/v2/-a/manifests/1", 400, "-a"),
        (&long, 400, "1 to 255"),
        ("/v2/a/manifests/.hidden", 400, ".hidden"),
        ("/v2/a/manifests/sha256:0", 400, "sha256:0"),
        ("/v2/a/blobs/sha256:0", 400, "sha256:0"),
        ("/v2/a/blobs/../../../etc/shadow", 404, "no such endpoint"),
        ("/v2/_catalog", 404, "no such endpoint"),
        ("/etc/shadow", 404, "no such endpoint"),
    ];
    for (path, status, named) in cases {
        let answer = ask(&host, path);
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        let message = message(&answer, path);
        assert!(message.contains(named), "{path}: {message}");
    }
    assert_eq!(ask(&host, "/v2/").status, 200);
    node.stop().unwrap();
}

/// Whoever reaches the mirror's port can name any registry. Names that are none are refused; names of private places are not asked,
/// whether they are written as addresses or resolve to them.
#[test]
fn hostile_registry_names_connect_to_nobody() {
    if !require("hostile_registry_names_connect_to_nobody", &[Need::Root, Need::Disk]) {
        return;
    }
    let network = network("hostile");
    let (host, canary) = (network.host("w1", None).unwrap(), network.host("canary", None).unwrap());
    let node = Lapwing::start(&host, LapwingSettings::up()).unwrap();
    let listen = |host: &Host, address: SocketAddr| {
        let listener = host.within(|| Ok(TcpListener::bind(address)?)).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let ports = [80, 443, 5000];
    let mut traps: Vec<_> =
        ports.iter().map(|port| listen(&canary, SocketAddr::from((canary.address(), *port)))).collect();
    traps.extend(ports.iter().map(|port| listen(&host, SocketAddr::from(([127, 0, 0, 1], *port)))));
    let address = canary.address();

    let malformed = [
        "",
        "http://canary.lab/",
        "https://canary.lab",
        "canary.lab/x",
        "user@canary.lab",
        "canary.lab:0",
        "canary.lab:99999",
        "canary.lab:80:80",
        "canary.lab%23",
        "canary.lab%3Fx",
        "canary%20lab",
        "canary.lab%0d%0aHost:x",
        "..",
        "-x",
        "[::1",
        "%00",
    ];
    let private = [
        "canary.lab".to_owned(),
        "canary.lab:5000".to_owned(),
        "CANARY.lab:443".to_owned(),
        address.to_string(),
        format!("{address}:5000"),
        format!("[::ffff:{address}]:5000"),
        "localhost".to_owned(),
        "localhost:5000".to_owned(),
        "127.0.0.1:80".to_owned(),
        "127.1:5000".to_owned(),
        "2130706433:5000".to_owned(),
        "0.0.0.0:5000".to_owned(),
        "[::1]:5000".to_owned(),
        "169.254.169.254".to_owned(),
    ];
    for path in ["/v2/a/manifests/1".to_owned(), format!("/v2/a/blobs/{DIGEST}"), "/v2/a/tags/list".to_owned()] {
        for name in malformed {
            let path = format!("{path}?ns={name}");
            let answer = ask(&host, &path);
            assert_eq!(answer.status, 400, "{path}: {}", answer.text());
            assert!(message(&answer, &path).contains("registry"), "{path}: {}", answer.text());
        }
        let twice = format!("{path}?ns=canary.lab&ns=canary.lab");
        assert_eq!(ask(&host, &twice).status, 400);
        for name in &private {
            let path = format!("{path}?ns={name}");
            let answer = ask(&host, &path);
            assert!([404, 502].contains(&answer.status), "{path}: {}", answer.head);
            let host_name = name.to_ascii_lowercase();
            assert!(message(&answer, &path).contains(&host_name), "{path}: {}", answer.text());
        }
    }
    for trap in &traps {
        let error = trap.accept().map(|(_, from)| panic!("{from} connected to {trap:?}")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    // The traps work: who does connect is seen.
    host.within(|| Ok(std::net::TcpStream::connect((address, 5000))?)).unwrap();
    assert!(traps[2].accept().is_ok());
    assert_eq!(node.admin("/readyz").unwrap().status, 200);
}
