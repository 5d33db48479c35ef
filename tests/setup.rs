//! A machine whose containerd was told of Lapwing by `lapwing setup` alone, and given back.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use lapwing_lab::{
    Containerd, ContainerdOptions, Flavour, Host, Lapwing, LapwingSettings, Machine, Need, Site, image, lapwing_binary,
    require, wait,
};

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(90);

fn settings(site: &Site) -> LapwingSettings {
    site.settings().patient()
}

/// What an operator has: comments, nothing of Lapwing, and no directory with hosts.toml files.
fn operators_config(host: &Host, options: &ContainerdOptions) -> PathBuf {
    let file = Containerd::configure(host, options).unwrap();
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(!written.contains("proxy_plugins") && written.contains("overlayfs"), "{written}");
    let kept: String =
        written.lines().filter(|line| !line.contains("config_path")).map(|line| format!("{line} # mine\n")).collect();
    std::fs::write(&file, format!("# The operator's own.\n{kept}")).unwrap();
    file
}

/// Every file below a directory, and what it holds.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found
}

fn setup(host: &Host, config: &Path, more: &[&str]) -> Output {
    let mut command = host.command(lapwing_binary().unwrap());
    command.args(["setup", "containerd", "--config"]).arg(config);
    lapwing_lab::output(command.args(more)).unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// `lapwing setup containerd` on a machine where Lapwing runs; then a lazy pull by CRI, and `--undo`.
fn set_up_pull_and_undo(name: &str, flavour: Flavour, version: &str) {
    if !require(name, &NEEDS) {
        return;
    }
    let site = Site::new(name, None).unwrap();
    let small = image::small().unwrap();
    let image = site.registry.push(&small, "lab/small:1").unwrap();
    let pause = site.registry.push(&image::pause().unwrap(), "lab/pause:1").unwrap();
    let _seed = seeded(&site, &image);

    let host = site.network.host("second", None).unwrap();
    let options = ContainerdOptions { flavour, pause: Some(pause), ..ContainerdOptions::default() };
    let config = operators_config(&host, &options);
    let certs = host.dir().join("certs.d");
    let own = certs.join(site.registry.name()).join("hosts.toml");
    std::fs::create_dir_all(own.parent().unwrap()).unwrap();
    std::fs::write(&own, format!("server = {:?} # ours\n", site.registry.url())).unwrap();
    let before = (std::fs::read(&config).unwrap(), files(&certs));
    let lapwing = Lapwing::start(&host, settings(&site).registry(&site.registry.name())).unwrap();

    let certs_dir = certs.to_str().unwrap();
    let lapwing_config = lapwing.config().to_str().unwrap().to_owned();
    let arguments = ["--certs-dir", certs_dir, "--lapwing-config", &lapwing_config, "--containerd-version", version];
    let run = |how: &[&str]| setup(&host, &config, &[&arguments[..], how].concat());
    let dry = run(&["--dry-run"]);
    assert!(dry.status.success() && text(&dry.stdout).contains("+++ "), "{dry:?}");
    assert_eq!(run(&["--check"]).status.code(), Some(1));
    assert_eq!((std::fs::read(&config).unwrap(), files(&certs)), before, "neither writes");
    let written = run(&[]);
    assert!(written.status.success(), "{written:?}");
    assert_eq!(run(&["--check"]).status.code(), Some(0));
    assert!(text(&run(&[]).stdout).contains("nothing to do"));

    let containerd = Containerd::start_configured(&host, options).unwrap();
    let mut machine = Machine { containerd, lapwing: Some(lapwing), host: host.clone() };
    pulls_lazily_through_the_mirror(&machine, &image);
    // A port that nobody listens on refuses, and containerd goes on to the registry.
    let other = site.registry.push(&image::noise(2, &[1]).unwrap().layout, "lab/noise:1").unwrap();
    machine.lapwing.as_mut().unwrap().kill9().unwrap();
    machine.containerd.pull(&other, "overlayfs").unwrap();
    machine.containerd.process().stop(SOON).unwrap();

    let undone = setup(&host, &config, &["--undo"]);
    assert!(undone.status.success(), "{undone:?}");
    assert_eq!((std::fs::read(&config).unwrap(), files(&certs)), before);
    let left: Vec<_> = std::fs::read_dir(host.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".lapwing")), "{left:?}");
}

/// A node that has pulled the image whole and published its indexes.
fn seeded(site: &Site, image: &str) -> Machine {
    let machine = site.worker("seed", None, settings(site)).unwrap();
    machine.containerd.pull(image, "overlayfs").unwrap();
    let layers = image::small().unwrap().layers;
    wait::until_true("both layers to be indexed", SOON, || {
        let log = machine.lapwing.as_ref().unwrap().log().unwrap();
        let built = |digest: &str| log.lines().any(|line| line.contains("built the index") && line.contains(digest));
        layers.iter().all(|layer| built(&layer.digest))
    })
    .unwrap();
    machine
}

fn pulls_lazily_through_the_mirror(machine: &Machine, image: &str) {
    let metric = |name: &str, labels: &str| machine.lapwing.as_ref().unwrap().metric(name, labels).unwrap();
    machine.containerd.cri_pull(image).unwrap();
    assert_eq!(metric("lapwing_snapshot_layers_claimed_total", ""), 2.0, "both layers are lazy");
    assert!(metric("lapwing_mirror_answers_total", "kind=\"manifest\"") > 0.0, "the mirror was asked");
    let pod = machine.containerd.cri_pod("one").unwrap();
    let container = machine.containerd.cri_container("one", &pod, image, &[]).unwrap();
    assert_eq!(machine.containerd.cri_output(&container, SOON).unwrap().trim(), image::SMALL_OUTPUT);
    machine.containerd.cri_remove_pod(&pod).unwrap();
}

#[test]
fn containerd_2_set_up_by_lapwing_pulls_lazily_and_is_given_back() {
    set_up_pull_and_undo("containerd_2_set_up_by_lapwing_pulls_lazily_and_is_given_back", Flavour::V2, "2.3");
}

#[test]
fn containerd_17_set_up_by_lapwing_pulls_lazily_and_is_given_back() {
    const NAME: &str = "containerd_17_set_up_by_lapwing_pulls_lazily_and_is_given_back";
    if require(NAME, &[Need::Containerd17]) {
        set_up_pull_and_undo(NAME, Flavour::V17, "1.7");
    }
}

#[test]
fn debian_containerd_set_up_by_lapwing_pulls_lazily_and_is_given_back() {
    set_up_pull_and_undo("debian_containerd_set_up_by_lapwing_pulls_lazily_and_is_given_back", Flavour::Debian, "1.6");
}

/// What cannot be done is code 2, with the reason; nothing is written then.
#[test]
fn what_cannot_be_set_up_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "disabled_plugins = [\"cri\"]\n").unwrap();
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(lapwing_binary().unwrap());
        command.args(["setup", "containerd", "--containerd-version", "1.7", "--config"]).arg(&config).args(args);
        lapwing_lab::output(&mut command).unwrap()
    };
    for (args, told) in [
        (&[][..], "version = 2"),
        (&["--check"], "version = 2"),
        (&["--undo"], "no record"),
        (&["--check", "--undo"], "--undo"),
    ] {
        let refused = run(args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}");
        assert!(text(&refused.stderr).contains(told), "{args:?}: {}", text(&refused.stderr));
    }
    assert_eq!(files(dir.path()).len(), 1);
}

/// `containerd config dump` of 2.x says what it makes of a file: also of files of version 2, which it migrates.
#[test]
fn containerd_2_reads_what_is_written_as_it_is_meant() {
    if !require("containerd_2_reads_what_is_written_as_it_is_meant", &[Need::Tools]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (file, certs) = (dir.path().join("config.toml"), dir.path().join("certs.d"));
    let cri = "[plugins.\"io.containerd.grpc.v1.cri\"";
    let files = [
        String::new(),
        "version = 3\n".to_owned(),
        include_str!("../src/commands/setup/fixtures/default-2.3.toml").to_owned(),
        format!("version = 2\n{cri}.cni]\n  bin_dir = \"/usr/lib/cni\"\n"),
        format!("version = 2\n{cri}.containerd]\n  snapshotter = \"native\"\n"),
        format!("version = 2\n{cri}.containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n"),
    ];
    for text in files {
        std::fs::write(&file, &text).unwrap();
        let mut command = std::process::Command::new(lapwing_binary().unwrap());
        command.args(["setup", "containerd", "--containerd-version", "2.3", "--config"]).arg(&file);
        lapwing_lab::check(command.arg("--certs-dir").arg(&certs)).unwrap();
        let mut dump = std::process::Command::new(lapwing_lab::tools_dir().unwrap().join("containerd"));
        let read = lapwing_lab::check(dump.arg("--config").arg(&file).args(["config", "dump"])).unwrap();
        let read: toml::Table = toml::from_str(&read).unwrap();
        let images = &read["plugins"]["io.containerd.cri.v1.images"];
        assert_eq!(images["snapshotter"].as_str(), Some("lapwing"), "{text}");
        assert_eq!(images["disable_snapshot_annotations"].as_bool(), Some(true), "{text}");
        assert_eq!(images["registry"]["config_path"].as_str(), certs.to_str(), "{text}");
        let exports = &read["proxy_plugins"]["lapwing"]["exports"];
        assert_eq!(exports["enable_remote_snapshot_annotations"].as_str(), Some("true"), "{text}");
        let list = read["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"].as_array().unwrap();
        assert_eq!(list.len(), 3, "{text}");
        std::fs::remove_dir_all(dir.path().join("config.toml.lapwing")).unwrap();
    }
}
