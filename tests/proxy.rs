//! The forward proxy as `curl` sees it: blobs out of the swarm, all else passed on, tunnels, TLS ended with the operator's CA, and what is refused.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lapwing_lab::{
    BASIC_PASSWORD, BASIC_USER, Host, Lapwing, LapwingSettings, Need, Process, Registry, RegistryOptions, Site, check,
    image, require, wait,
};
use lapwing_p2p::digest::Digest;

const NEEDS: [Need; 6] = [
    Need::Root,
    Need::Disk,
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("curl"),
    Need::Program("openssl"),
];
const SOON: Duration = Duration::from_secs(90);
const PROXY: &str = "http://127.0.0.1:7084";
const TLS_REGISTRY: &str = "registry.lab:5443";
/// Far below a layer's size, above what manifests and chatter need.
const ALMOST_NOTHING_BYTES: u64 = 200_000;

/// A node of the site with a proxy.
fn settings(site: &Site) -> LapwingSettings {
    site.whole_settings().registry(&site.registry.name()).with("proxy", "listen = \"127.0.0.1:7084\"")
}

fn node(site: &Site, name: &str, settings: LapwingSettings) -> (Host, Lapwing) {
    let host = site.network.host(name, None).unwrap();
    let lapwing = Lapwing::start(&host, settings).unwrap();
    (host, lapwing)
}

/// What `curl` got.
#[derive(Debug)]
struct Got {
    /// Of curl itself; 0 is a whole answer.
    exit: i32,
    status: u16,
    /// Of CONNECT.
    tunnel: u16,
    body: Vec<u8>,
}

fn curl(host: &Host, args: &[&str]) -> Got {
    let file = host.dir().join("body");
    let _ = std::fs::remove_file(&file);
    let mut command = host.command("curl");
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "80",
        "--proxy",
        PROXY,
        "--write-out",
        "%{http_code} %{http_connect}",
    ]);
    let output = lapwing_lab::output(command.arg("--output").arg(&file).args(args)).unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let (status, tunnel) = told.split_once(' ').unwrap();
    let body = std::fs::read(&file).unwrap_or_default();
    Got { exit: output.status.code().unwrap(), status: status.parse().unwrap(), tunnel: tunnel.parse().unwrap(), body }
}

fn answers(node: &Lapwing, way: &str) -> f64 {
    node.metric("lapwing_proxy_answers_total", &format!("way=\"{way}\"")).unwrap()
}

/// The largest layer of the small image: its URL below a registry, and its size.
fn layer() -> (String, String, u64) {
    let layer = image::small().unwrap().layers.into_iter().max_by_key(|layer| layer.size).unwrap();
    (format!("/v2/lab/small/blobs/{}", layer.digest), layer.digest, layer.size)
}

#[test]
fn blobs_come_out_of_the_swarm_and_all_else_is_passed_on() {
    const NAME: &str = "blobs_come_out_of_the_swarm_and_all_else_is_passed_on";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    site.registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let (path, digest, size) = layer();
    let url = format!("{}{path}", site.registry.url());
    let (host, first) = node(&site, "first", settings(&site));

    let got = curl(&host, &[&url]);
    assert_eq!((got.exit, got.status, Digest::of(&got.body).to_string()), (0, 200, digest.clone()));
    assert_eq!(answers(&first, "swarm"), 1.0);
    assert!(first.piece_bytes("origin").unwrap() >= size);
    let part = curl(&host, &["--range", "1000-1999", &url]);
    assert!(part.status == 206 && part.body == got.body[1000..2000], "{} {}", part.status, part.body.len());
    assert_eq!(curl(&host, &["--head", &url]).status, 200);
    assert_eq!(answers(&first, "swarm"), 3.0);

    let manifest = format!("{}/v2/lab/small/manifests/1", site.registry.url());
    assert_eq!(curl(&host, &["--header", "Accept: application/vnd.oci.image.manifest.v1+json", &manifest]).status, 200);
    let upload = format!("{}/v2/lab/new/blobs/uploads/", site.registry.url());
    assert_eq!(curl(&host, &["--data-binary", "x", &upload]).status, 202, "a request with a body");
    assert_eq!((answers(&first, "direct"), answers(&first, "swarm")), (2.0, 3.0));

    // The second node gets them from the first, and a rule keeps what it names out of the swarm.
    let rules = "url = \"[?]direct$\"\naction = \"direct\"\n\n\
                 [[proxy.rules]]\nhost = \"registry.lab\"\nurl = \"/manifests/\"\naction = \"refuse\"";
    let by_rule = settings(&site).with("[proxy.rules]", rules);
    let (host, second) = node(&site, "second", by_rule);
    let before = site.registry.sent_bytes().unwrap();
    let got = curl(&host, &[&url]);
    assert_eq!((got.exit, Digest::of(&got.body).to_string()), (0, digest));
    assert!(site.registry.sent_bytes().unwrap() - before < ALMOST_NOTHING_BYTES);
    assert!(second.piece_bytes("peer").unwrap() >= size);
    assert_eq!(curl(&host, &[&format!("{url}?direct")]).status, 200);
    assert_eq!(curl(&host, &[&manifest]).status, 403);
    assert_eq!((answers(&second, "direct"), answers(&second, "refused")), (1.0, 1.0));
}

#[test]
fn addresses_that_nobody_named_are_not_connected_to() {
    const NAME: &str = "addresses_that_nobody_named_are_not_connected_to";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let (host, node) = node(&site, "first", settings(&site));
    // The cloud's metadata, this machine's own services, and a neighbour, by address and by name.
    let urls = [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:7082/metrics",
        "http://localhost:7082/metrics",
        "http://[::1]:7082/metrics",
        "http://[::ffff:127.0.0.1]:7082/metrics",
        "http://tracker.lab:7070/",
    ];
    for url in urls {
        let got = curl(&host, &[url]);
        assert_eq!(got.status, 403, "{url}: {}", String::from_utf8_lossy(&got.body));
    }
    for tunnel in ["https://169.254.169.254/", "https://tracker.lab/", "https://127.0.0.1/", "https://registry.lab:22/"]
    {
        let got = curl(&host, &[tunnel]);
        assert_eq!((got.tunnel, got.exit != 0), (403, true), "{tunnel}");
    }
    assert_eq!(answers(&node, "refused"), (urls.len() + 4) as f64);
    // Not a proxy's request, and one whose head is too long.
    let plain = node_port(&host, "/v2/");
    assert_eq!(plain.status, 400, "{}", plain.text());
    let long = format!("X-Long: {}", "x".repeat(100_000));
    assert_eq!(curl(&host, &["--header", &long, "--header", &long, &site.registry.url()]).status, 431);
}

fn node_port(host: &Host, path: &str) -> lapwing_lab::Response {
    host.http_get((Ipv4Addr::LOCALHOST, 7084).into(), path).unwrap()
}

#[test]
fn a_private_blob_goes_to_those_whom_its_registry_lets_have_it() {
    const NAME: &str = "a_private_blob_goes_to_those_whom_its_registry_lets_have_it";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let options = RegistryOptions { basic_auth: true, ..RegistryOptions::default() };
    let private = Registry::start(&site.network.host("private", None).unwrap(), options).unwrap();
    private.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let (path, digest, _) = layer();
    let url = format!("{}{path}", private.url());
    let (host, node) = node(&site, "first", settings(&site).registry(&private.name()));
    let user = format!("{BASIC_USER}:{BASIC_PASSWORD}");
    for _ in 0..2 {
        let denied = curl(&host, &[&url]);
        assert_eq!((denied.status, denied.body.len() < 1000), (401, true));
        assert_eq!(curl(&host, &["--user", "lapwing:wrong", &url]).status, 401);
        let got = curl(&host, &["--user", &user, &url]);
        assert_eq!((got.status, Digest::of(&got.body).to_string()), (200, digest.clone()));
    }
    assert_eq!(answers(&node, "swarm"), 6.0);
}

/// A registry whose disk gives other bytes than were pushed.
#[test]
fn wrong_bytes_are_never_a_whole_answer() {
    const NAME: &str = "wrong_bytes_are_never_a_whole_answer";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    site.registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let (path, digest, size) = layer();
    let hex = digest.trim_start_matches("sha256:");
    let storage = site.registry.host().dir().join("registry/storage/docker/registry/v2/blobs/sha256");
    let file = storage.join(&hex[..2]).join(hex).join("data");
    let mut content = std::fs::read(&file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&file, content).unwrap();
    let (host, _node) = node(&site, "first", settings(&site));
    let got = curl(&host, &[&format!("{}{path}", site.registry.url())]);
    assert!(got.exit != 0 || got.status != 200, "{got:?}");
    assert!((got.body.len() as u64) < size, "{} of {size} bytes", got.body.len());
}

/// The same registry by TLS, with a certificate of its own.
fn by_tls(site: &Site) -> (Process, PathBuf) {
    let host = site.registry.host();
    let dir = host.dir().join("tls");
    std::fs::create_dir_all(&dir).unwrap();
    let certificate =
        self_signed(&dir, "registry", &["subjectAltName=DNS:registry.lab", "basicConstraints=critical,CA:FALSE"]);
    let storage = host.dir().join("registry/storage");
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 0.0.0.0:5443\n  tls:\n    certificate: {}\n    key: {}\n",
        storage.display(),
        certificate.display(),
        dir.join("registry.key").display()
    );
    let file = dir.join("config.yml");
    std::fs::write(&file, config).unwrap();
    let process = host.spawn("tls-registry", host.command("docker-registry").arg("serve").arg(&file)).unwrap();
    wait::until_true("the registry to answer by TLS", SOON, || {
        let direct = host.command("curl").args(["--silent", "--insecure", "https://127.0.0.1:5443/v2/"]).output();
        direct.is_ok_and(|output| output.status.success())
    })
    .unwrap();
    (process, certificate)
}

fn self_signed(dir: &Path, name: &str, extensions: &[&str]) -> PathBuf {
    let (key, certificate) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.pem")));
    let mut command = std::process::Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    command
        .arg("-subj")
        .arg(format!("/O=Lapwing's tests/CN={name}"))
        .arg("-keyout")
        .arg(key)
        .arg("-out")
        .arg(&certificate);
    for extension in extensions {
        command.args(["-addext", extension]);
    }
    check(&mut command).unwrap();
    certificate
}

#[test]
fn a_tunnel_is_blind_unless_the_operators_ca_ends_it() {
    const NAME: &str = "a_tunnel_is_blind_unless_the_operators_ca_ends_it";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    site.registry.push(&image::small().unwrap(), "lab/small:1").unwrap();
    let (_registry, certificate) = by_tls(&site);
    let certificate = certificate.to_str().unwrap();
    let (path, digest, size) = layer();
    let url = format!("https://{TLS_REGISTRY}{path}");
    let listed = |settings: LapwingSettings| {
        settings.with("registries.hosts.\"registry.lab:5443\"", &format!("ca_file = {certificate:?}"))
    };

    // Without a CA: the client sees the registry's own certificate, and nothing of it comes out of the swarm.
    let (host, blind) = node(&site, "blind", listed(settings(&site)));
    let got = curl(&host, &["--cacert", certificate, &url]);
    assert_eq!((got.exit, got.tunnel, got.status, Digest::of(&got.body).to_string()), (0, 200, 200, digest.clone()));
    assert_eq!((answers(&blind, "tunnel"), answers(&blind, "swarm"), answers(&blind, "intercept")), (1.0, 0.0, 0.0));

    let ca = self_signed(host.dir(), "ca", &["keyUsage=critical,keyCertSign,cRLSign"]);
    let keys =
        format!("ca_file = {ca:?}\nca_key_file = {:?}\nupstream_ca_file = {certificate:?}", ca.with_extension("key"));
    let ending = listed(settings(&site)).with("proxy", &keys);
    let ending = ending.with("[proxy.rules]", "host = \"*.lab:5443\"\naction = \"swarm\"");
    let (host, ending) = node(&site, "ending", ending);
    let ca = ca.to_str().unwrap();
    let got = curl(
        &host,
        &["--cacert", ca, &url, "--next", "--silent", "--proxy", PROXY, "--cacert", ca, "--output", "/dev/null", &url],
    );
    assert_eq!((got.exit, got.status, Digest::of(&got.body).to_string()), (0, 200, digest));
    let ways = |ways: [&str; 4]| ways.map(|way| answers(&ending, way));
    assert_eq!(ways(["swarm", "tunnel", "direct", "refused"]), [2.0, 0.0, 0.0, 0.0]);
    assert!(answers(&ending, "intercept") >= 1.0);
    assert!(ending.piece_bytes("origin").unwrap() + ending.piece_bytes("peer").unwrap() >= size);
    let part = curl(&host, &["--cacert", ca, "--range", "10-19", &url]);
    assert!(part.status == 206 && part.body == got.body[10..20]);
    // Passed on, by TLS to the real one; and a client that does not trust this CA gets nothing.
    assert_eq!(curl(&host, &["--cacert", ca, &format!("https://{TLS_REGISTRY}/v2/lab/small/tags/list")]).status, 200);
    assert_eq!(curl(&host, &["--cacert", ca, "--header", "Host: elsewhere.lab:5443", &url]).status, 421);
    assert_eq!(curl(&host, &["--cacert", certificate, &url]).exit, 60);
}

/// A server of one answer on a host.
fn listen(host: &Host) -> TcpListener {
    host.within(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8000))?)).unwrap()
}

/// The head of the first request, whose lines are in lower case, and the connection.
fn first_request(listener: &TcpListener) -> (String, std::net::TcpStream) {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut head = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head:?}");
    }
    (head.to_lowercase(), stream)
}

#[test]
fn what_is_meant_for_the_proxy_stays_here() {
    const NAME: &str = "what_is_meant_for_the_proxy_stays_here";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let listener = listen(&site.network.host("origin", None).unwrap());
    let (host, _node) = node(&site, "first", settings(&site).with("proxy", "private_hosts = [\"origin.lab\"]"));
    let origin = std::thread::spawn(move || {
        let (head, mut stream) = first_request(&listener);
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: 3\r\nX-Kept: 1\r\n\r\nok";
        stream.write_all(answer.as_bytes()).unwrap();
        head
    });
    let file = host.dir().join("head");
    let args = [
        "--proxy-user",
        "me:secret",
        "--user",
        "you:other",
        "--header",
        "Connection: x-own",
        "--header",
        "X-Own: 1",
        "--header",
        "X-End: 1",
        "--header",
        "TE: trailers",
        "--dump-header",
        file.to_str().unwrap(),
        "http://origin.lab:8000/x?y=z",
    ];
    let got = curl(&host, &args);
    assert_eq!((got.status, got.body.as_slice()), (200, b"ok".as_slice()));
    let head = origin.join().unwrap();
    for there in
        ["get /x?y=z http/1.1", "host: origin.lab:8000", "authorization: basic", "x-end: 1", "via: 1.1 lapwing-"]
    {
        assert!(head.contains(there), "{there} is not in {head}");
    }
    for not in ["proxy-authorization", "x-own", "proxy-connection", "\r\nte:"] {
        assert!(!head.contains(not), "{not} is in {head}");
    }
    let answer = std::fs::read_to_string(file).unwrap().to_lowercase();
    assert!(answer.contains("x-kept: 1") && !answer.contains("x-hop") && !answer.contains("keep-alive"), "{answer}");
}

/// Nothing is read on from a server once nobody wants it.
#[test]
fn a_client_that_goes_away_takes_its_transfer_along() {
    const NAME: &str = "a_client_that_goes_away_takes_its_transfer_along";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let listener = listen(&site.network.host("origin", None).unwrap());
    let (host, node) = node(&site, "first", settings(&site).with("proxy", "private_hosts = [\"origin.lab\"]"));
    for tunnel in [false, true] {
        let body = host.dir().join("endless");
        let _ = std::fs::remove_file(&body);
        let mut command = host.command("curl");
        command.args(["--silent", "--proxy", PROXY, "--output"]).arg(&body);
        if tunnel {
            command.arg("--proxytunnel");
        }
        let mut client = host.spawn("endless", command.arg("http://origin.lab:8000/endless")).unwrap();
        let (_, mut stream) = first_request(&listener);
        stream.set_write_timeout(Some(SOON)).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n").unwrap();
        let sending = std::thread::spawn(move || {
            let part = [7; 4096];
            let error = loop {
                if let Err(error) = stream.write_all(&part) {
                    break error;
                }
            };
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the connection still stands");
            let _ = stream.read(&mut [0]);
        });
        wait::until_true("the first bytes", SOON, || body.metadata().is_ok_and(|found| found.len() > 0)).unwrap();
        client.kill9().unwrap();
        sending.join().unwrap();
    }
    assert_eq!((answers(&node, "direct"), answers(&node, "tunnel")), (1.0, 1.0));
}
