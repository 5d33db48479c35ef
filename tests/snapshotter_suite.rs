//! containerd's own conformance suite for snapshotters (`core/snapshots/testsuite`), run by `tests/testsuite` over the socket, as it
//! is and below containerd's metadata store: once against the plain snapshotter, once against a whole node.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use lapwing_lab::{Host, Lab, Need, check, lapwing_binary, output, require};

const NEEDS: [Need; 3] = [Need::Root, Need::Disk, Need::Program("go")];
/// Cases in the suite of containerd 2.3, each of which runs twice.
const CASES: usize = 21;
const TESTS: [&str; 2] = ["TestSnapshotter", "TestSnapshotterBelowMetadata"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds the suite. Go's own build cache, outside the tree, makes every time but the first short.
fn suite(dir: &Path) -> PathBuf {
    let program = dir.join("suite");
    let mut go = Command::new("go");
    go.args(["test", "-mod=readonly", "-c", "-o"]).arg(&program).arg(".");
    check(go.current_dir(repository().join("tests/testsuite")).env("CGO_ENABLED", "0")).unwrap();
    program
}

/// Runs all cases on `host` against what `command` serves, and holds the outcome against what is expected.
fn passes(host: &Host, command: &str) {
    let suite = suite(host.dir());
    // A disk under a short name: the path of a unix socket has at most 107 bytes.
    let scratch = host.dir().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    host.check("mkdir", &["/run/t"]).unwrap();
    host.check("mount", &["--bind", scratch.to_str().unwrap(), "/run/t"]).unwrap();
    let mut run = host.command(suite);
    run.args(["-test.v", "-test.root", "-test.timeout=10m", "-test.parallel=4"]).env("TMPDIR", "/run/t");
    let ran = output(run.env("LAPWING_SNAPSHOTTER_CMD", command)).unwrap();
    let shown = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    let outcomes = |outcome: &str| -> BTreeSet<&str> {
        let lines = shown.lines().filter_map(|line| line.trim_start().strip_prefix(outcome));
        lines.filter_map(|line| line.split_whitespace().next()).filter(|name| name.contains('/')).collect()
    };
    let (passed, failed, skipped) = (outcomes("--- PASS: "), outcomes("--- FAIL: "), outcomes("--- SKIP: "));
    let tail: Vec<&str> = shown.lines().rev().take(200).collect();
    let tail = || tail.iter().rev().copied().collect::<Vec<_>>().join("\n");
    assert!(failed.is_empty() && skipped.is_empty(), "failed: {failed:#?}\nskipped: {skipped:#?}\n{}", tail());
    assert!(ran.status.success(), "{}: {}", ran.status, tail());
    for test in TESTS {
        let own = passed.iter().filter(|name| name.split('/').next() == Some(test)).count();
        assert_eq!(own, CASES, "cases of {test} that passed: {passed:#?}");
    }
}

#[test]
fn the_plain_snapshotter_passes_containerds_suite() {
    if !require("the_plain_snapshotter_passes_containerds_suite", &NEEDS) {
        return;
    }
    let host = Lab::new("suite").unwrap().network().unwrap().host("plain", None).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(repository()).args(["build", "--quiet", "--workspace", "--example", "plain-snapshotter"]);
    check(&mut cargo).unwrap();
    let program = lapwing_binary().unwrap().parent().unwrap().join("examples/plain-snapshotter");
    passes(&host, &format!("{} --root {{root}} --socket {{socket}}", program.display()));
}

#[test]
fn a_whole_node_passes_containerds_suite() {
    if !require("a_whole_node_passes_containerds_suite", &[&NEEDS[..], &[Need::Fuse, Need::Erofs]].concat()) {
        return;
    }
    let host = Lab::new("suite").unwrap().network().unwrap().host("node", None).unwrap();
    let (script, base) = (host.dir().join("serve.sh"), host.dir().join("base.toml"));
    // Cases run side by side, so every listener takes a port of its own.
    let listen = |table| format!("[{table}]\nlisten = \"127.0.0.1:0\"\n");
    std::fs::write(&base, ["admin", "mirror", "peer"].map(listen).concat()).unwrap();
    let text = format!(
        "{{ printf 'root = \"%s\"\\n' \"$1\"; cat {}; printf '[snapshotter]\\nsocket = \"%s\"\\n' \"$2\"; }} >\"$1.toml\"\n\
         exec {} node --config \"$1.toml\"\n",
        base.display(),
        lapwing_binary().unwrap().display()
    );
    std::fs::write(&script, text).unwrap();
    passes(&host, &format!("sh {} {{root}} {{socket}}", script.display()));
}
