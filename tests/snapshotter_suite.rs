//! containerd's own conformance suite for snapshotters (`core/snapshots/testsuite`), run by `tests/testsuite` over the socket, as it
//! is and below containerd's metadata store: against the plain snapshotter, against a whole node, and on lazily mounted layers, which
//! `tests/testsuite/lazy_test.go` lays below all snapshots of all cases, by each backend.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use lapwing_lab::image::{Entry, EntryKind, ImageConfig, Layout, LayoutWriter, TarWriter};
use lapwing_lab::{Host, Lab, Need, Registry, RegistryOptions, check, lapwing_binary, output, require};

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

/// Runs all cases on `host` against what `command` serves, with these more variables, and holds the outcome against what is expected.
fn passes(host: &Host, command: &str, more: &[(&str, &str)]) {
    let suite = suite(host.dir());
    // A disk under a short name: the path of a unix socket has at most 107 bytes.
    let scratch = host.dir().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    host.check("mkdir", &["/run/t"]).unwrap();
    host.check("mount", &["--bind", scratch.to_str().unwrap(), "/run/t"]).unwrap();
    let mut run = host.command(suite);
    run.args(["-test.v", "-test.root", "-test.timeout=10m", "-test.parallel=4"]).env("TMPDIR", "/run/t");
    let ran = output(run.env("LAPWING_SNAPSHOTTER_CMD", command).envs(more.iter().copied())).unwrap();
    let shown = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    let outcomes = |outcome: &str| -> BTreeSet<&str> {
        let lines = shown.lines().filter_map(|line| line.trim_start().strip_prefix(outcome));
        lines.filter_map(|line| line.split_whitespace().next()).filter(|name| name.contains('/')).collect()
    };
    let (passed, failed, skipped) = (outcomes("--- PASS: "), outcomes("--- FAIL: "), outcomes("--- SKIP: "));
    let tail: Vec<&str> = shown.lines().rev().take(200).collect();
    let tail = || tail.iter().rev().copied().collect::<Vec<_>>().join("\n");
    // What the cases say stands before what the snapshotters said.
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(failed.is_empty() && skipped.is_empty(), "failed: {failed:#?}\nskipped: {skipped:#?}\n{said}\n{}", tail());
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
    passes(&host, &format!("{} --root {{root}} --socket {{socket}}", program.display()), &[]);
}

/// The command that serves a whole node with these settings besides those of every case. Cases run side by side, so every listener takes a
/// port of its own.
fn node_command(host: &Host, settings: &str) -> String {
    let (script, base) = (host.dir().join("serve.sh"), host.dir().join("base.toml"));
    let listen = |table| format!("[{table}]\nlisten = \"127.0.0.1:0\"\n");
    std::fs::write(&base, ["admin", "peer"].map(listen).concat() + settings).unwrap();
    let text = format!(
        "{{ printf 'root = \"%s\"\\n' \"$1\"; cat {}; printf '[snapshotter]\\nsocket = \"%s\"\\n[mirror]\\nlisten = \"%s\"\\n' \"$2\" \"$3\"; }} >\"$1.toml\"\n\
         exec {} node --config \"$1.toml\"\n",
        base.display(),
        lapwing_binary().unwrap().display()
    );
    std::fs::write(&script, text).unwrap();
    format!("sh {} {{root}} {{socket}} {{mirror}}", script.display())
}

#[test]
fn a_whole_node_passes_containerds_suite() {
    if !require("a_whole_node_passes_containerds_suite", &[&NEEDS[..], &[Need::Fuse, Need::Erofs]].concat()) {
        return;
    }
    let host = Lab::new("suite").unwrap().network().unwrap().host("node", None).unwrap();
    let command = node_command(&host, "");
    passes(&host, &command, &[]);
}

/// Two layers that leave nothing: the upper one takes away what the lower one has. So a case finds the empty directory that it expects,
/// while all of it lies on both.
fn nothing_in_two_layers(dir: &Path) -> Layout {
    let mut image = LayoutWriter::new(dir).unwrap();
    let root = || Entry::new(b"./", EntryKind::Directory);
    let content = vec![7; 100_000];
    let lower = image.layer(|out| {
        let mut tar = TarWriter::new(out);
        tar.add(&root())?;
        tar.add(&Entry::new(b"below/", EntryKind::Directory))?;
        tar.add(&Entry::new(b"below/file", EntryKind::File(&content)))?;
        tar.add(&Entry::new(b"file", EntryKind::File(&content)))?;
        tar.finish().map(drop)
    });
    lower.unwrap();
    let upper = image.layer(|out| {
        let mut tar = TarWriter::new(out);
        tar.add(&root())?;
        tar.add(&Entry::new(b".wh.below", EntryKind::File(b"")))?;
        tar.add(&Entry::new(b".wh.file", EntryKind::File(b"")))?;
        tar.finish().map(drop)
    });
    upper.unwrap();
    image.finish(&ImageConfig::default()).unwrap()
}

#[test]
fn a_whole_node_passes_containerds_suite_on_lazy_layers_by_erofs() {
    passes_on_lazy_layers("a_whole_node_passes_containerds_suite_on_lazy_layers_by_erofs", "erofs");
}

#[test]
fn a_whole_node_passes_containerds_suite_on_lazy_layers_by_fuse() {
    passes_on_lazy_layers("a_whole_node_passes_containerds_suite_on_lazy_layers_by_fuse", "fuse");
}

fn passes_on_lazy_layers(test: &str, backend: &str) {
    let registry = [Need::Program("docker-registry"), Need::Program("skopeo")];
    if !require(test, &[&NEEDS[..], &[Need::Fuse, Need::Erofs], &registry].concat()) {
        return;
    }
    let network = Lab::new(test).unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let host = network.host("node", None).unwrap();
    let image = registry.push(&nothing_in_two_layers(&host.dir().join("image")), "lab/nothing:1").unwrap();
    let settings = format!(
        "[lazy]\nbackend = {backend:?}\n[containerd]\nenabled = false\n[registries.hosts.{:?}]\nplain_http = true\n",
        registry.name()
    );
    let command = node_command(&host, &settings);
    let end = format!("{} detach --config {{root}}.toml", lapwing_binary().unwrap().display());
    let more = [("LAPWING_SUITE_IMAGE", &*image), ("LAPWING_SUITE_FILESYSTEM", backend), ("LAPWING_SUITE_END", &end)];
    passes(&host, &command, &more);
}
