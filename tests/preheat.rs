//! Images are where they will be wanted before anybody pulls them: by a registry's notifications, and by command.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

#[path = "preheat/command.rs"]
mod command;
#[path = "preheat/push.rs"]
mod push;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use lapwing_lab::{Host, Lab, Lapwing, LapwingSettings, Machine, Need, Registry, RegistryOptions, Site, wait};
use serde_json::Value;

const NEEDS: [Need; 7] = Need::LAZY_PULLS;
const DEADLINE: Duration = Duration::from_secs(120);
const ADMIN_PORT: u16 = 7082;

/// A site whose registry runs with these options.
fn site(name: &str, options: RegistryOptions) -> Site {
    let network = Lab::new(name).unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), options).unwrap();
    let tracker = Lapwing::start(&network.host("tracker", None).unwrap(), LapwingSettings::tracker()).unwrap();
    Site { tracker, registry, network }
}

/// A seed that the tracker knows.
fn seed(site: &Site, settings: LapwingSettings) -> (Host, Lapwing) {
    let host = site.network.host("seed", None).unwrap();
    let seed = Lapwing::start(&host, settings.registry(&site.registry.name())).unwrap();
    wait::until_true("the tracker to know the seed", DEADLINE, || {
        site.tracker.metric("lapwing_tracker_nodes", "").unwrap() >= 1.0
    })
    .unwrap();
    (host, seed)
}

fn node(machine: &Machine) -> &Lapwing {
    machine.lapwing.as_ref().unwrap()
}

/// The digests of blobs that are whole there.
fn whole(node: &Lapwing) -> Vec<String> {
    let state: Value = serde_json::from_str(&node.admin("/api/v1/state").unwrap().text()).unwrap();
    let blobs = state["blobs"].as_array().unwrap().iter().filter(|blob| blob["verified"] == true);
    blobs.map(|blob| blob["digest"].as_str().unwrap().to_owned()).collect()
}

fn has_all(node: &Lapwing, digests: &[String]) -> bool {
    let whole = whole(node);
    digests.iter().all(|digest| whole.contains(digest))
}

/// A request as a client on `host` sends it: the status, and the body as it came.
fn send(host: &Host, address: SocketAddr, head: &str, body: &[u8]) -> (u16, String) {
    let answer = host.within(|| {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(stream, "{head}\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len())?;
        // Who refuses a long body does not read it.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Ok(answer)
    });
    let answer = String::from_utf8_lossy(&answer.unwrap()).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (status.unwrap_or_else(|| panic!("no answer to {head}: {answer:?}")), body.to_owned())
}

fn send_admin(host: &Host, head: &str, body: &[u8]) -> (u16, String) {
    send(host, SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT)), head, body)
}
