//! Names that resolve to somewhere within the network, at once or the second time they are asked for ("DNS rebinding"), by a name server
//! and a cloud's metadata service in a network namespace of their own.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use lapwing_evidence::{Evidence, count};
use lapwing_plugins::registry::{Credential, Registries, RegistriesConfig, RegistryName};
use tokio::net::TcpListener;

use crate::fake::{digest, provider, repo};

/// Set in the namespace.
const WITHIN: &str = "LAPWING_TEST_WITHIN";
/// An address of the internet's, which the namespace has.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
const INSIDE: [Ipv4Addr; 3] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(10, 9, 8, 7)];

/// What a name means, by its first letter.
fn meaning(name: u8, asked: usize) -> Vec<Ipv4Addr> {
    let inside = INSIDE[asked % INSIDE.len()];
    match name {
        b'p' => vec![PUBLIC],
        b'i' => vec![inside],
        b'm' => vec![inside, PUBLIC],
        // Public when it is looked at, and inside when it is dialled.
        _ if asked.is_multiple_of(2) => vec![PUBLIC],
        _ => vec![inside],
    }
}

/// Answers questions for addresses (RFC 1035) until the process ends.
fn name_server(socket: &UdpSocket) {
    let mut asked = [0; 256];
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question) {
        let end = question[12..length].iter().position(|byte| *byte == 0).unwrap() + 12 + 5;
        let (name, is_v4) = (question[13], question[end - 3] == 1);
        let addresses = if is_v4 { meaning(name, asked[usize::from(name)]) } else { Vec::new() };
        asked[usize::from(name)] += usize::from(is_v4);
        let mut answer = question[..end].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
        for address in addresses {
            // A pointer to the name, type A, class IN, no time to live, four bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
            answer.extend(address.octets());
        }
        socket.send_to(&answer, from).unwrap();
    }
}

/// Counts those who come to an address.
async fn counted(address: Ipv4Addr) -> Arc<AtomicUsize> {
    let listener = TcpListener::bind((address, 443)).await.unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    count
}

#[test]
fn a_name_that_leads_inside_is_not_dialled_whenever_it_does() {
    const NAME: &str = "rebinding::a_name_that_leads_inside_is_not_dialled_whenever_it_does";
    if std::env::var_os(WITHIN).is_none() {
        let resolver = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(resolver.path(), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
        let script = format!(
            "ip link set lo up && for a in {PUBLIC} {} {}; do ip address add $a/32 dev lo; done && \
             mount --bind \"$1\" /etc/resolv.conf && exec \"$0\" --exact {NAME} --nocapture --test-threads=1",
            INSIDE[1], INSIDE[2]
        );
        let status = Command::new("unshare")
            .args(["--map-root-user", "--net", "--mount", "--", "sh", "-c", &script])
            .arg(std::env::current_exe().unwrap())
            .arg(resolver.path())
            .env(WITHIN, "1")
            .status()
            .unwrap();
        assert!(status.success(), "within the namespace: {status}");
        return;
    }
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    std::thread::spawn(move || name_server(&socket));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(led_inside());
}

async fn led_inside() {
    provider();
    let mut evidence = Evidence::new(20, "registry names that resolve to addresses within the network");
    let public = counted(PUBLIC).await;
    let mut inside = Vec::new();
    for address in INSIDE {
        inside.push(counted(address).await);
    }
    for round in 0..count(5, 200) {
        for kind in ["public", "inside", "mixed", "rebound"] {
            // A node of its own each time, which remembers nothing.
            let registries = Registries::new(RegistriesConfig::default()).unwrap();
            let name: RegistryName = format!("{kind}-{round}.example").parse().unwrap();
            let begun = Instant::now();
            let asked = registries.authorize(&name, &repo(), digest(), &Credential::Anonymous).await;
            evidence.ended(begun.elapsed(), asked.is_ok());
            if kind != "public" {
                evidence.fault(&format!("a name that is {kind}"));
            }
            assert!(asked.is_err(), "{name}: nobody there speaks TLS");
        }
    }
    assert!(public.load(Ordering::SeqCst) > 0, "what is public is dialled");
    for (count, address) in inside.iter().zip(INSIDE) {
        assert_eq!(count.load(Ordering::SeqCst), 0, "{address} was dialled");
    }
}
