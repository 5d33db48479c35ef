//! The laboratory's network: limits, counters, authentication, and that nothing stays behind.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use lapwing_lab::{
    BASIC_PASSWORD, BASIC_USER, Host, Lab, Mbit, Need, Rates, Registry, RegistryOptions, http_get, image, require, wait,
};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const NEEDS: [Need; 5] =
    [Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("skopeo"), Need::Program("tc")];

/// The rate is what the test is about, so it is measured over a transfer long enough that the burst does not count, and against the kernel's
/// clock; the bounds are wide.
#[test]
fn a_limited_host_gets_its_rate() {
    if !require("a_limited_host_gets_its_rate", &NEEDS) {
        return;
    }
    let network = Lab::new("rate").unwrap().limited_network(Mbit(200)).unwrap();
    let (server, client) = (network.host("server", None).unwrap(), network.host("client", None).unwrap());
    let address = SocketAddr::from((server.address(), 9000));
    let listener = server.within(|| Ok(std::net::TcpListener::bind(address)?)).unwrap();
    const BYTES: u64 = 64 << 20;
    let sender = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(7), BYTES), &mut stream).unwrap()
    });
    let start = Instant::now();
    let received = client
        .within(|| Ok(std::io::copy(&mut std::net::TcpStream::connect(address)?, &mut std::io::sink())?))
        .unwrap();
    let megabits = received as f64 * 8.0 / 1e6 / start.elapsed().as_secs_f64();
    assert_eq!((received, sender.join().unwrap()), (BYTES, BYTES));
    assert!((150.0..210.0).contains(&megabits), "{megabits:.0} Mbit/s");
    let (sent, counted) = (server.sent_bytes().unwrap(), client.received_bytes().unwrap());
    for bytes in [sent, counted] {
        assert!((BYTES..BYTES * 21 / 20).contains(&bytes), "{bytes} bytes were counted for {BYTES}");
    }
}

/// Each way has its own limit, and what crosses the border is limited and counted by itself. Only that a limit is not passed is held against the clock.
#[test]
fn directions_and_a_border_are_limited_by_themselves() {
    if !require("directions_and_a_border_are_limited_by_themselves", &NEEDS) {
        return;
    }
    const BYTES: u64 = 4 << 20;
    let near = Lab::new("border").unwrap().network().unwrap();
    let far = near.far_segment(Mbit(1000)).unwrap();
    let slow_sender = near.host_at("slow", Rates::of(Mbit(16), Mbit(1000))).unwrap();
    let beyond = far.host("beyond", None).unwrap();
    let seconds = |from: &Host, to: &Host| {
        let address = SocketAddr::from((from.address(), 9000));
        let listener = from.within(|| Ok(std::net::TcpListener::bind(address)?)).unwrap();
        let sender = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::copy(&mut std::io::Read::take(std::io::repeat(7), BYTES), &mut stream).unwrap()
        });
        let start = Instant::now();
        let read = to.within(|| Ok(std::io::copy(&mut std::net::TcpStream::connect(address)?, &mut std::io::sink())?));
        assert_eq!((read.unwrap(), sender.join().unwrap()), (BYTES, BYTES));
        start.elapsed().as_secs_f64()
    };
    assert_eq!(near.border_traffic().unwrap().0.bytes / BYTES, 0);
    let up_s = seconds(&slow_sender, &beyond);
    assert!(up_s > 1.8, "{BYTES} bytes at 16 Mbit/s took {up_s:.2} s");
    seconds(&beyond, &slow_sender);
    let (into, out_of) = far.border_traffic().unwrap();
    for traffic in [into, out_of] {
        let payload = traffic.payload();
        assert!((BYTES..BYTES * 11 / 10).contains(&traffic.bytes), "{traffic:?} was counted for {BYTES}");
        assert!((BYTES..BYTES * 102 / 100).contains(&payload), "{payload} bytes of payload for {BYTES}: {traffic:?}");
    }
}

#[test]
fn a_pulled_cable_cuts_a_host_off() {
    if !require("a_pulled_cable_cuts_a_host_off", &NEEDS) {
        return;
    }
    let network = Lab::new("cable").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let client = network.host("client", None).unwrap();
    let ask = || client.http_get(registry.address(), "/v2/");
    assert_eq!(ask().unwrap().status, 200);
    registry.host().set_link(false).unwrap();
    assert!(ask().is_err());
    registry.host().set_link(true).unwrap();
    wait::until_true("the registry to be back", Duration::from_secs(20), || ask().is_ok()).unwrap();
}

#[test]
fn a_registry_can_ask_for_a_password() {
    if !require("a_registry_can_ask_for_a_password", &NEEDS) {
        return;
    }
    let network = Lab::new("basic").unwrap().network().unwrap();
    let host = network.host("registry", None).unwrap();
    let registry = Registry::start(&host, RegistryOptions { basic_auth: true, ..RegistryOptions::default() }).unwrap();
    assert_eq!(registry.push(&image::pause().unwrap(), "lab/pause:1").unwrap(), "registry.lab:5000/lab/pause:1");
    let path = "/v2/lab/pause/manifests/1";
    let refused = host.http_get(registry.address(), path).unwrap();
    assert_eq!(refused.status, 401);
    assert!(refused.head.contains("Basic realm"), "{}", refused.head);
    assert_eq!((BASIC_USER, BASIC_PASSWORD), ("lapwing", "lapwing-test"), "the header below holds them in base64");
    let headers =
        ["Authorization: Basic bGFwd2luZzpsYXB3aW5nLXRlc3Q=", "Accept: application/vnd.oci.image.manifest.v1+json"];
    let granted = host.within(|| http_get(registry.address(), path, &headers)).unwrap();
    assert_eq!(granted.status, 200, "{}", granted.text());
}

/// Everything that a laboratory made is gone when it is dropped, also what a process detached from its parent.
#[test]
fn nothing_stays_behind() {
    if !require("nothing_stays_behind", &NEEDS) {
        return;
    }
    let lab = Lab::new("traces").unwrap();
    let dir = lab.dir().to_owned();
    let prefix = dir.file_name().unwrap().to_str().unwrap().trim_end_matches("-traces").to_owned();
    let network = lab.network().unwrap();
    let host = network.host("w1", None).unwrap();
    let script = "mkdir -p $0/m && mount -t tmpfs lab $0/m && (setsid sleep 4711 </dev/null >/dev/null 2>&1 & echo $!)";
    let detached = host.check("sh", &["-c", script, host.dir().to_str().unwrap()]).unwrap();
    let detached = Path::new("/proc").join(detached.trim());
    let running = host.spawn("sleep", host.command("sleep").arg("4712")).unwrap();
    let pid = Path::new("/proc").join(running.pid().to_string());
    assert!(detached.exists() && pid.exists());
    let namespaces =
        || std::fs::read_dir("/run/netns").unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    assert_eq!(namespaces().filter(|name| name.starts_with(&prefix)).count(), 2);

    drop((lab, network, running));
    assert!(!pid.exists(), "a dropped process is killed");
    assert!(detached.exists(), "the host is still held");
    drop(host);
    // A killed child of init is a zombie until init waits for it.
    let ended = |path: &Path| std::fs::read_to_string(path.join("stat")).map_or(true, |stat| stat.contains(") Z "));
    assert!(ended(&detached));
    assert_eq!(namespaces().filter(|name| name.starts_with(&prefix)).count(), 0);
    assert!(!dir.exists());
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains(&prefix));
}
