//! Trackers that do not answer: pulls go on without them, through the mirror, and the log names them.

use std::net::{SocketAddr, TcpListener};

use lapwing_lab::{LapwingSettings, Machine, MachineOptions, image, require};

use super::{NEEDS, layer_bytes, logged, mirrored_bytes, network, registry, small};

/// Pulls and runs an image with a tracker at this address. That the mirror gives all layers shows that the delay is small: had a
/// blob's first byte not come within `mirror.first_byte`, containerd would have fetched it from the registry.
fn pulls_without(name: &str, listener: impl FnOnce(SocketAddr) -> Option<TcpListener> + Send) {
    let network = network(name);
    let registry = registry(&network);
    let reference = small(&registry);
    let tracker = network.host("tracker", None).unwrap();
    let address = SocketAddr::from((tracker.address(), 7070));
    let _listener = tracker.within(|| Ok(listener(address))).unwrap();
    let settings = LapwingSettings::node(&[address.to_string()]);
    let machine = Machine::start(&network, "w1", &registry, MachineOptions::lapwing(settings)).unwrap();
    let node = machine.lapwing.as_ref().unwrap();
    machine.containerd.pull(&reference, "lapwing").unwrap();
    let output = machine.containerd.run(&reference, "lapwing", "alone", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    assert!(mirrored_bytes(node) >= layer_bytes(&image::small().unwrap()), "the layers came through the mirror");
    assert!(node.metric("lapwing_origin_unleased_total", "").unwrap() >= 1.0, "a fetch without a lease is counted");
    logged(node, &["WARN", &address.to_string()]);
}

#[test]
fn a_tracker_that_refuses_connections_is_done_without() {
    if require("a_tracker_that_refuses_connections_is_done_without", &NEEDS) {
        pulls_without("nobody", |_| None);
    }
}

/// Connections stand, since the kernel takes them, and nobody ever reads or answers.
#[test]
fn a_tracker_that_never_answers_is_done_without() {
    if require("a_tracker_that_never_answers_is_done_without", &NEEDS) {
        pulls_without("silent", |address| Some(TcpListener::bind(address).unwrap()));
    }
}
