//! What a killed run leaves behind, the next one removes.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use lapwing_lab::{Lab, Need, require, wait};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Runs one of the parts below in a process of its own.
fn part(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]);
    command
}

#[test]
#[ignore = "the part of the test below that is killed"]
fn part_that_is_killed() {
    let host = Lab::new("killed").unwrap().network().unwrap().host("w1", None).unwrap();
    let sleep = host.spawn("sleep", host.command("sleep").arg("4713")).unwrap();
    println!("\nmade {} {}", sleep.pid(), host.dir().parent().unwrap().display());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
#[ignore = "the part of the test below that cleans up"]
fn part_that_cleans_up() {
    Lab::new("next").unwrap();
}

#[test]
fn the_next_run_removes_what_a_killed_one_left() {
    if !require("the_next_run_removes_what_a_killed_one_left", &[Need::Root, Need::Disk, Need::Program("ip")]) {
        return;
    }
    let mut first = part("part_that_is_killed").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines().map(Result::unwrap);
    let made = lines.find(|line| line.starts_with("made ")).unwrap();
    let (pid, dir) = made["made ".len()..].split_once(' ').unwrap();
    let process = Path::new("/proc").join(pid);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(process.exists() && Path::new(dir).exists());
    let prefix = Path::new(dir).file_name().unwrap().to_str().unwrap().trim_end_matches("-killed").to_owned();
    let namespaces = || {
        let names = std::fs::read_dir("/run/netns").unwrap().flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_str().unwrap().starts_with(&prefix)).count()
    };
    assert_eq!(namespaces(), 2);

    // Laboratories of tests that run at the same time may have done it already, or be about to.
    assert!(part("part_that_cleans_up").stdout(Stdio::null()).status().unwrap().success());
    wait::until_true("the traces to be gone", Duration::from_secs(20), || {
        !Path::new(dir).exists() && namespaces() == 0
    })
    .unwrap();
    let ended = std::fs::read_to_string(process.join("stat")).map_or(true, |stat| stat.contains(") Z "));
    assert!(ended, "{pid} still runs");
}
