//! Nodes that begin to pull the same image at the same moment, none of which has any of it: the registry sends about one copy.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::image::{self, Noise};
use lapwing_lab::{Machine, Mbit, Need, Process, Site, require};

const NEEDS: [Need; 7] = Need::LAZY_PULLS;
/// How the nodes speak with each other.
#[derive(Clone, Copy)]
enum Wire {
    Plaintext,
    Tls,
}

const DEADLINE: Duration = Duration::from_secs(180);
/// What the registry may send, as copies of the image, headers of all protocols included.
const COPIES: f64 = 1.15;

/// Lets `nodes` workers pull `image` at once, and checks what they got and what the registry sent.
fn cold_start(name: &str, nodes: usize, rate: Mbit, image: &Noise, wire: Wire) {
    let site = Site::new(name, Some(rate)).unwrap();
    let reference = site.registry.push(&image.layout, "noise:1").unwrap();
    let settings = || match wire {
        Wire::Plaintext => site.settings(),
        Wire::Tls => site.settings().encrypted(),
    };
    let start = |number: usize| site.worker(&format!("w{number}"), Some(rate), settings()).unwrap();
    let workers: Vec<Machine> = (0..nodes).map(start).collect();
    let sent = site.registry.sent_bytes().unwrap();
    let mut pulls: Vec<Process> =
        workers.iter().map(|worker| worker.containerd.start_pull(&reference, "lapwing").unwrap()).collect();
    for (number, pull) in pulls.iter_mut().enumerate() {
        let status = pull.wait(DEADLINE).unwrap();
        assert!(status.success(), "w{number}: {status}: {}", pull.log_tail());
    }
    let sent = site.registry.sent_bytes().unwrap() - sent;
    let copies = sent as f64 / image.layout.compressed_bytes() as f64;
    for (number, worker) in workers.iter().enumerate() {
        let output = worker.containerd.run(&reference, "lapwing", "content", &[]).unwrap();
        assert_eq!(output, image.sums, "w{number}");
    }
    assert!((1.0..=COPIES).contains(&copies), "registry sent {copies:.3} copies to {nodes} nodes");
    eprintln!("{name}: registry sent {copies:.3} copies to {nodes} nodes");
}

#[test]
fn three_nodes_share_one_copy() {
    if require("three_nodes_share_one_copy", &NEEDS) {
        cold_start("three", 3, Mbit(200), &image::noise(21, &[40, 30]).unwrap(), Wire::Plaintext);
    }
}

#[test]
fn three_nodes_share_one_copy_within_tls() {
    if require("three_nodes_share_one_copy_within_tls", &NEEDS) {
        cold_start("tls", 3, Mbit(200), &image::noise(24, &[20]).unwrap(), Wire::Tls);
    }
}

#[test]
fn eight_nodes_share_one_copy() {
    if require("eight_nodes_share_one_copy", &NEEDS) {
        cold_start("eight", 8, Mbit(40), &image::noise(22, &[30]).unwrap(), Wire::Plaintext);
    }
}

#[test]
fn eight_small_layers_at_once_are_fetched_about_once() {
    if require("eight_small_layers_at_once_are_fetched_about_once", &NEEDS) {
        cold_start("layers", 3, Mbit(100), &image::noise(23, &[3; 8]).unwrap(), Wire::Plaintext);
    }
}
