//! Against a real registry: Docker Distribution, as Debian packages it (`docker-registry`), with basic authentication.

use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use futures_util::StreamExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::origin::Origin as _;
use lapwing_plugins::registry::{
    Credential, Denied, ForwardMethod, ForwardRequest, Reference, Registries, RegistriesConfig, RegistryConfig,
    Resource,
};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::fake::{provider, repo};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// `user` with the password `correct horse`.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n";

struct Real {
    address: String,
    _child: Child,
    directory: tempfile::TempDir,
}

/// `None`, with a word on why, where the program is not installed. `tls`: options of its `http.tls` section.
async fn start(tls: impl FnOnce(&Path) -> String) -> Option<Real> {
    provider();
    if !Path::new("/usr/bin/docker-registry").exists() {
        eprintln!("skipped: /usr/bin/docker-registry is not installed (Debian package docker-registry)");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let (root, passwords) = (directory.path().join("data"), directory.path().join("htpasswd"));
    std::fs::write(&passwords, HTPASSWD).unwrap();
    let config = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: '127.0.0.1:0', secret: s{}}}\nauth: {{htpasswd: {{realm: test, path: {}}}}}\n",
        root.display(),
        tls(directory.path()),
        passwords.display()
    );
    let file = directory.path().join("config.yml");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new("/usr/bin/docker-registry");
    let mut child = command
        .arg("serve")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = loop {
        let line = lines.next_line().await.unwrap().expect("the registry ended");
        if let Some((_, rest)) = line.split_once("listening on ") {
            break rest.split(['"', ',', ' ']).next().unwrap().to_owned();
        }
    };
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Some(Real { address, _child: child, directory })
}

async fn push(address: &str, blob: &[u8]) -> Digest {
    let digest = Digest::of(blob);
    let client = reqwest::Client::new();
    let password = Some("correct horse");
    let begun = client.post(format!("http://{address}/v2/team/app/blobs/uploads/")).basic_auth("user", password);
    let begun = begun.send().await.unwrap();
    let place = begun.headers()["location"].to_str().unwrap().to_owned();
    let put = client.put(format!("{place}&digest={digest}")).basic_auth("user", password);
    let put = put.header("content-type", "application/octet-stream").body(blob.to_vec()).send().await.unwrap();
    assert_eq!(put.status(), 201, "{}", put.text().await.unwrap());
    digest
}

fn listed(address: &str, password: &Path) -> std::sync::Arc<Registries> {
    let entry = RegistryConfig {
        plain_http: true,
        username: Some("user".to_owned()),
        password_file: Some(password.to_owned()),
        ..Default::default()
    };
    Registries::new(RegistriesConfig { hosts: [(address.to_owned(), entry)].into(), ..Default::default() }).unwrap()
}

#[tokio::test]
async fn blobs_and_manifests_of_a_real_registry() {
    let Some(real) = start(|_| String::new()).await else { return };
    let password = real.directory.path().join("password");
    std::fs::write(&password, "correct horse\n").unwrap();
    let registries = listed(&real.address, &password);
    let (name, repo) = (real.address.parse().unwrap(), repo());
    let blob: Vec<u8> =
        (0..1_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let (digest, length) = (push(&real.address, &blob).await, blob.len() as u64);

    let header = base64::engine::general_purpose::STANDARD.encode("user:correct horse");
    let client = Credential::Header(format!("Basic {header}").parse().unwrap());
    for credential in [&client, &Credential::Configured] {
        assert_eq!(registries.authorize(&name, &repo, digest, credential).await.unwrap().length, length);
    }
    let refused = registries.authorize(&name, &repo, digest, &Credential::Anonymous).await;
    let Err(Denied::Refused { status, challenges, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!((status.as_u16(), challenges[0].to_str().unwrap()), (401, "Basic realm=\"test\""));
    let missing = registries.authorize(&name, &repo, Digest::of(b"never pushed"), &client).await;
    assert!(matches!(missing, Err(Denied::Missing { .. })), "{missing:?}");

    let origin = registries.origin(&name, &repo, digest, length, client.clone()).unwrap();
    for range in [0..length, 0..1, length - 1..length, 65_536..1_065_536] {
        let mut stream = origin.fetch(range.clone()).await.unwrap();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.unwrap());
        }
        assert!(bytes == blob[range.start as usize..range.end as usize], "{range:?}");
    }

    let config = push(&real.address, b"{}").await;
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{length}}}]}}"#
    );
    let put = reqwest::Client::new().put(format!("http://{}/v2/team/app/manifests/v1", real.address));
    let put = put.basic_auth("user", Some("correct horse")).header("content-type", MANIFEST).body(manifest.clone());
    assert_eq!(put.send().await.unwrap().status(), 201);
    let mut request = ForwardRequest {
        method: ForwardMethod::Get,
        registry: name,
        repository: repo,
        resource: Resource::Manifest(Reference::Tag("v1".to_owned())),
        query: None,
        accept: vec![MANIFEST.parse().unwrap()],
        credential: client,
    };
    let forwarded = registries.forward(&request).await.unwrap();
    assert_eq!((forwarded.status.as_u16(), forwarded.body.as_ref()), (200, manifest.as_bytes()));
    assert_eq!(forwarded.headers["docker-content-digest"], Digest::of(manifest.as_bytes()).to_string().as_str());
    request.method = ForwardMethod::Head;
    let head = registries.forward(&request).await.unwrap();
    assert_eq!(head.headers["content-length"], manifest.len().to_string().as_str());
    request.resource = Resource::Tags;
    request.method = ForwardMethod::Get;
    let tags = registries.forward(&request).await.unwrap();
    assert_eq!(tags.body.trim_ascii(), br#"{"name":"team/app","tags":["v1"]}"#);
}

/// A certificate for 127.0.0.1 that only `ca_file` makes good.
fn certificate(directory: &Path) -> String {
    let (key, certificate) = (directory.join("key.pem"), directory.join("cert.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=registry of a test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    format!(", tls: {{certificate: {}, key: {}}}", certificate.display(), key.display())
}

#[tokio::test]
async fn a_registry_with_its_own_certificate_needs_ca_file() {
    if !Path::new("/usr/bin/openssl").exists() {
        eprintln!("skipped: /usr/bin/openssl is not installed (Debian package openssl)");
        return;
    }
    let Some(real) = start(certificate).await else { return };
    let client = Credential::Basic { username: "user".to_owned(), password: "correct horse".to_owned() };
    for trusted in [true, false] {
        let ca_file = trusted.then(|| real.directory.path().join("cert.pem"));
        let entry = RegistryConfig { ca_file, ..Default::default() };
        let hosts = [(real.address.clone(), entry)].into();
        let registries = Registries::new(RegistriesConfig { hosts, ..Default::default() }).unwrap();
        let name = real.address.parse().unwrap();
        let answer = registries.authorize(&name, &repo(), Digest::of(b"never pushed"), &client).await.unwrap_err();
        if trusted {
            assert!(matches!(answer, Denied::Missing { .. }), "{answer:?}");
        } else {
            assert!(matches!(answer, Denied::Unavailable { .. }), "{answer:?}");
            assert!(answer.to_string().to_lowercase().contains("certificate"), "{answer}");
        }
    }
}
