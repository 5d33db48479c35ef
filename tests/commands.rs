//! What the operator types, and what the operator's tools read: every command, its exit code, and the admin listener.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Output;

use lapwing_lab::{
    Host, Lab, Lapwing, LapwingSettings, Machine, MachineOptions, Need, Registry, RegistryOptions, image,
    lapwing_binary, output, require, wait,
};
use serde_json::Value;

const COMMANDS: [&str; 21] = [
    "index", "node", "tracker", "up", "ls", "hydrate", "nodes", "find", "pin", "unpin", "limits", "doctor", "setup",
    "config", "generate", "get", "preheat", "explain", "rm", "gc", "bench",
];
const NEEDS: [Need; 2] = [Need::Root, Need::Disk];

fn lapwing(args: &[&str]) -> Output {
    output(std::process::Command::new(lapwing_binary().unwrap()).args(args)).unwrap()
}

fn lapwing_on(host: &Host, args: &[&str]) -> Output {
    host.run(lapwing_binary().unwrap(), args).unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A configuration file of its own, removed with the directory that is returned.
fn config_file(content: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lapwing.toml");
    std::fs::write(&file, content).unwrap();
    (dir, file)
}

#[test]
fn every_command_explains_itself() {
    let all = lapwing(&["--help"]);
    assert!(all.status.success());
    for command in COMMANDS {
        let listed = text(&all.stdout).lines().any(|line| line.trim_start().starts_with(&format!("{command} ")));
        assert!(listed, "{command} is not in lapwing --help:\n{}", text(&all.stdout));
        let own = lapwing(&[command, "--help"]);
        assert!(own.status.success() && own.stderr.is_empty(), "lapwing {command} --help: {}", own.status);
        assert!(text(&own.stdout).contains(&format!("Usage: lapwing {command}")), "{}", text(&own.stdout));
    }
    let version = lapwing(&["--version"]);
    assert_eq!(text(&version.stdout).trim(), concat!("lapwing ", env!("CARGO_PKG_VERSION")));
}

/// A layer of two files in a directory of its own.
fn layer_file() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("content")).unwrap();
    std::fs::write(dir.path().join("content/a"), "a".repeat(70_000)).unwrap();
    std::os::unix::fs::symlink("a\x1b[2J", dir.path().join("content/link")).unwrap();
    let layer = dir.path().join("layer.tar.gz");
    let packed =
        output(std::process::Command::new("tar").arg("-czf").arg(&layer).arg("-C").arg(dir.path()).arg("content"));
    assert!(packed.unwrap().status.success());
    (dir, layer)
}

#[test]
fn an_index_is_built_shown_and_verified() {
    let (dir, layer) = layer_file();
    let (layer, index) = (layer.to_str().unwrap(), dir.path().join("layer.index"));
    let index = index.to_str().unwrap();
    let built = lapwing(&["index", "build", layer, "-o", index, "--json"]);
    assert!(built.status.success(), "{}", text(&built.stderr));
    let sum = output(std::process::Command::new("sha256sum").arg(layer)).unwrap().stdout;
    let said: Value = serde_json::from_slice(&built.stdout).unwrap();
    assert_eq!(said["layer"], format!("sha256:{}", &text(&sum)[..64]));
    assert_eq!((&said["compression"], &said["entries"]), (&"gzip".into(), &3.into()));

    let shown = lapwing(&["index", "show", index, "--files"]);
    let lines = text(&shown.stdout);
    assert!(lines.contains("70000") && lines.contains("content/a") && lines.contains("a\\u{1b}[2J"), "{lines}");
    let verified = lapwing(&["index", "verify", index, layer]);
    assert!(verified.status.success(), "{}", text(&verified.stdout));

    let (other_dir, other) = layer_file();
    std::fs::write(other_dir.path().join("content/a"), "b").unwrap();
    let tar = output(
        std::process::Command::new("tar").arg("-czf").arg(&other).arg("-C").arg(other_dir.path()).arg("content"),
    );
    assert!(tar.unwrap().status.success());
    let of_another = lapwing(&["index", "verify", index, other.to_str().unwrap()]);
    assert_eq!(of_another.status.code(), Some(1));
    assert!(text(&of_another.stderr).contains("is the index of"), "{}", text(&of_another.stderr));

    // The diffID, at its place in the format.
    let mut bytes = std::fs::read(index).unwrap();
    bytes[56] ^= 1;
    std::fs::write(index, &bytes).unwrap();
    let lying = lapwing(&["index", "verify", index, layer]);
    assert_eq!((lying.status.code(), text(&lying.stdout).starts_with("diffID: ")), (Some(1), true));
    std::fs::write(index, &bytes[..100]).unwrap();
    let cut = lapwing(&["index", "show", index]);
    assert_eq!(cut.status.code(), Some(1));
    assert!(text(&cut.stderr).contains("is no index"), "{}", text(&cut.stderr));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut command = std::process::Command::new(lapwing_binary().unwrap());
    // What `| head` does when it has seen enough.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = command.arg("config").stdout(writer).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut told).unwrap();
    assert_eq!((child.wait().unwrap().code(), told.as_str()), (Some(141), ""));
}

#[test]
fn an_unknown_command_or_option_is_a_usage_error() {
    for (args, named) in [(&["pull"][..], "pull"), (&["ls", "--yaml"], "--yaml"), (&["ls", "--admin", "here"], "here")]
    {
        let refused = lapwing(args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}");
        assert!(text(&refused.stderr).contains(named), "{args:?}: {}", text(&refused.stderr));
        assert!(refused.stdout.is_empty());
    }
}

#[test]
fn the_printed_configuration_is_one_that_can_be_used() {
    let printed = lapwing(&["config"]);
    assert!(printed.status.success());
    let (_dir, file) = config_file(text(&printed.stdout));
    let checked = lapwing(&["config", "--check", file.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    assert_eq!(text(&checked.stdout).trim(), format!("{}: usable", file.display()));
}

#[test]
fn a_configuration_that_cannot_be_used_is_refused_by_name() {
    let cases = [
        ("[store]\nquota = \"1GiB\"\nquotas = \"2GiB\"\n", "lapwing.toml:3: ", "quotas"),
        ("[store]\nquota = 7\n", "lapwing.toml:2: ", "7"),
        ("[store]\nquota = \"1 elephant\"\n", "lapwing.toml:2: ", "elephant"),
        ("root = \"/x\"\nroot = \"/y\"\n", "lapwing.toml:2: ", "duplicate"),
        ("[peer\n", "lapwing.toml:1: ", "config"),
        ("root = \"var/lapwing\"\n", "root", "absolute"),
        ("[tracker]\naddresses = [\"tracker\"]\n", "tracker.addresses", "host:port"),
        ("[tracker]\nlisten = \"0.0.0.0:7070\"\n", "tracker.listen", "tracker.insecure = true"),
        ("[registries.hosts.\"http://reg/\"]\n", "registries.hosts", "image references"),
    ];
    for (content, place, named) in cases {
        let (_dir, file) = config_file(content);
        let refused = lapwing(&["config", "--check", file.to_str().unwrap()]);
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{content}");
        assert!(error.contains(place) && error.contains(named), "{content}: {error}");
        assert!(refused.stdout.is_empty(), "{content}");
    }
    let secret = "[registries.hosts.\"registry.example\"]\nusername = \"u\"\npassword_file = \"/nowhere/secret\"\n";
    let (_dir, file) = config_file(secret);
    let told = lapwing(&["config", "--check", file.to_str().unwrap()]);
    assert_eq!(told.status.code(), Some(0), "it may be for another machine");
    let named = "registries.hosts.\"registry.example\".password_file: /nowhere/secret";
    assert!(text(&told.stderr).contains(named), "{}", text(&told.stderr));
    let missing = lapwing(&["config", "--check", "/nowhere/lapwing.toml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nowhere/lapwing.toml"));
}

/// The table and the JSON tell the same, in the same order; what is not well has a remedy; only a failure fails.
#[test]
fn doctor_tells_the_same_as_table_and_as_json() {
    // Reserved, by nobody listened on.
    let (_dir, file) = config_file("[tracker]\naddresses = [\"127.0.0.1:1\"]\n");
    let config = file.to_str().unwrap();
    let json = lapwing(&["doctor", "--json", "--config", config]);
    let findings: Vec<BTreeMap<String, String>> = serde_json::from_slice(&json.stdout).unwrap();
    let table = lapwing(&["doctor", "--config", config]);
    let shown = text(&table.stdout);
    let failed = findings.iter().any(|finding| finding["verdict"] == "fail");
    assert_eq!((json.status.success(), table.status.success()), (!failed, !failed), "{shown}");
    for check in ["user", "kernel", "overlay", "erofs", "fuse", "root", "containerd", "tracker"] {
        let finding = findings.iter().find(|finding| finding["check"] == check).unwrap();
        let verdict = if finding["verdict"] == "fail" { "FAIL" } else { &finding["verdict"] };
        let row = |line: &str| {
            let mut words = line.split_whitespace();
            words.next() == Some(verdict) && words.next() == Some(check)
        };
        assert!(shown.lines().any(row), "no row for {finding:?} in\n{shown}");
        assert_eq!(finding["verdict"] == "ok", !finding.contains_key("remedy"), "{finding:?}");
    }
    let tracker = findings.iter().find(|finding| finding["check"] == "tracker").unwrap();
    assert_eq!(tracker["verdict"], "warn");
    assert!(tracker["found"].contains("127.0.0.1:1") && tracker["remedy"].contains("tracker.addresses"));
}

#[test]
fn doctor_fails_where_the_root_cannot_be() {
    if !require("doctor_fails_where_the_root_cannot_be", &NEEDS) {
        return;
    }
    let host = Lab::new("doctor").unwrap().network().unwrap().host("w1", None).unwrap();
    let file = host.dir().join("lapwing.toml");
    // A host's /run is a tmpfs.
    std::fs::write(&file, "root = \"/run/lapwing/root\"\n").unwrap();
    let found = lapwing_on(&host, &["doctor", "--json", "--config", file.to_str().unwrap()]);
    assert_eq!(found.status.code(), Some(1));
    let findings: Value = serde_json::from_slice(&found.stdout).unwrap();
    let root = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "root").unwrap();
    assert_eq!(root["verdict"], "fail");
    assert!(root["found"].as_str().unwrap().contains("/run/lapwing/root"), "{root}");
    assert!(root["remedy"].as_str().unwrap().contains("ext4"), "{root}");
}

#[test]
fn ls_without_a_node_names_the_address_and_the_remedy() {
    for json in [false, true] {
        let mut args = vec!["ls", "--admin", "127.0.0.1:1"];
        args.extend(json.then_some("--json"));
        let refused = lapwing(&args);
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1));
        assert!(error.contains("127.0.0.1:1"), "{error}");
        assert!(error.contains("is `lapwing node` running") && error.contains("admin.listen"), "{error}");
        assert!(refused.stdout.is_empty());
    }
}

/// The first field of each row of the table that begins with `header`.
fn column(table: &str, header: &str) -> BTreeSet<String> {
    let rows = table.lines().skip_while(|line| !line.trim_start().starts_with(header)).skip(1);
    let first = |line: &str| line.split_whitespace().next().unwrap().to_owned();
    rows.take_while(|line| !line.trim().is_empty()).map(first).collect()
}

#[test]
fn ls_lists_what_was_pulled() {
    const NAME: &str = "ls_lists_what_was_pulled";
    if !require(NAME, &[&NEEDS[..], &[Need::Tools, Need::Program("docker-registry"), Need::Program("skopeo")]].concat())
    {
        return;
    }
    let network = Lab::new("ls").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let layout = image::small().unwrap();
    let reference = registry.push(&layout, "lab/small:1").unwrap();
    let machine = Machine::start(&network, "w1", &registry, MachineOptions::lapwing(LapwingSettings::up())).unwrap();
    let empty = lapwing_on(&machine.host, &["ls"]);
    assert!(empty.status.success() && column(text(&empty.stdout), "BLOB").is_empty(), "{}", text(&empty.stdout));
    machine.containerd.pull(&reference, "lapwing").unwrap();

    let json = lapwing_on(&machine.host, &["ls", "--json"]);
    assert!(json.status.success());
    let state: Value = serde_json::from_slice(&json.stdout).unwrap();
    for blob in layout.layers.iter().chain([&layout.config]) {
        let found = state["blobs"].as_array().unwrap().iter().find(|found| found["digest"] == blob.digest.as_str());
        let found = found.unwrap_or_else(|| panic!("{} is not listed: {state}", blob.digest));
        assert_eq!(found["length_bytes"], blob.size);
        assert_eq!(found["held_bytes"], blob.size);
        assert_eq!(found["bytes_from_origin"], blob.size);
    }
    let layers = state["layers"].as_array().unwrap();
    for layer in &layout.layers {
        let found = layers.iter().find(|found| found["digest"] == layer.digest.as_str()).unwrap();
        assert_eq!(found["image"], format!("{}/lab/small", registry.name()));
    }

    let table = lapwing_on(&machine.host, &["ls"]);
    assert!(table.status.success());
    let short = |digest: &str| digest["sha256:".len()..][..12].to_owned();
    let shown = text(&table.stdout);
    let blobs = column(shown, "BLOB");
    assert!(layout.layers.iter().chain([&layout.config]).all(|blob| blobs.contains(&short(&blob.digest))), "{shown}");
    let layers: BTreeSet<String> = layout.layers.iter().map(|layer| short(&layer.digest)).collect();
    assert_eq!(column(shown, "LAYER"), layers, "{shown}");
    the_admin_listener_of(machine.lapwing.as_ref().unwrap());
    a_layer_is_pinned_and_unpinned(&machine.host, layout.layers[0].digest.as_str());
}

fn a_layer_is_pinned_and_unpinned(host: &Host, digest: &str) {
    let is_pinned = || {
        let json = lapwing_on(host, &["ls", "--json"]);
        let state: Value = serde_json::from_slice(&json.stdout).unwrap();
        let found = state["blobs"].as_array().unwrap().iter().find(|found| found["digest"] == digest).cloned();
        found.unwrap()["pinned"].as_bool().unwrap()
    };
    assert!(!is_pinned());
    for (command, said, then) in [("pin", "is pinned", true), ("unpin", "is not pinned any more", false)] {
        let done = lapwing_on(host, &[command, digest]);
        assert!(done.status.success() && text(&done.stdout).contains(said), "{command}: {}", text(&done.stderr));
        assert_eq!(is_pinned(), then, "{command}");
    }
    let refused = lapwing_on(host, &["pin", "latest"]);
    assert_eq!(refused.status.code(), Some(2), "a tag is no digest");
}

#[test]
fn limits_are_shown_and_changed_while_the_node_runs() {
    if !require("limits_are_shown_and_changed_while_the_node_runs", &NEEDS) {
        return;
    }
    let host = Lab::new("limits").unwrap().network().unwrap().host("w1", None).unwrap();
    let mut node = Lapwing::start(&host, LapwingSettings::up().with("limits.upload", "node = \"10MiB\"")).unwrap();
    let limits = |args: &[&str]| {
        let shown = lapwing_on(&host, &[&["limits", "--json"], args].concat());
        assert!(shown.status.success(), "{}", text(&shown.stderr));
        serde_json::from_slice::<Value>(&shown.stdout).unwrap()
    };
    assert_eq!(limits(&[])["upload"]["node"], "10MiB", "as configured");
    let changed = limits(&["--download-per-peer", "2MiB", "--origin", "5MiB"]);
    assert_eq!((&changed["download"]["per_peer"], &changed["origin"]["node"]), (&"2MiB".into(), &"5MiB".into()));
    assert_eq!(changed["upload"]["node"], "10MiB", "what is not named stays");
    assert_eq!(limits(&["--upload", "0"])["upload"]["node"], "0");
    assert_eq!(limits(&[])["origin"]["node"], "5MiB");
    let table = lapwing_on(&host, &["limits"]);
    let shown = text(&table.stdout);
    assert!(shown.lines().any(|line| line.split_whitespace().eq(["origin", "5MiB", "no", "limit"])), "{shown}");

    let refused = lapwing_on(&host, &["limits", "--upload", "1KiB"]);
    let error = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(error.contains("limits.upload.node") && error.contains("64KiB"), "{error}");
    assert_eq!(limits(&[])["upload"]["node"], "0", "nothing was changed");
    node.stop().unwrap();
}

#[test]
fn a_tracker_has_an_admin_listener_too() {
    if !require("a_tracker_has_an_admin_listener_too", &NEEDS) {
        return;
    }
    let host = Lab::new("admin").unwrap().network().unwrap().host("tracker", None).unwrap();
    let mut tracker = Lapwing::start(&host, LapwingSettings::tracker()).unwrap();
    the_admin_listener_of(&tracker);
    let refused = lapwing_on(&host, &["limits"]);
    assert_eq!(refused.status.code(), Some(1), "a tracker has no limits to show");
    let empty = lapwing_on(&host, &["nodes"]);
    assert!(empty.status.success() && text(&empty.stdout).contains("0 nodes in 0 groups"), "{}", text(&empty.stdout));
    let refused = lapwing_on(&host, &["ls"]);
    assert_eq!(refused.status.code(), Some(1), "a tracker has no blobs to list");
    assert!(text(&refused.stderr).contains("127.0.0.1:7082"), "{}", text(&refused.stderr));
    tracker.stop().unwrap();
}

#[test]
fn nodes_and_find_without_a_tracker_name_the_address_and_the_remedy() {
    let digest = format!("sha256:{}", "5".repeat(64));
    for args in [&["nodes", "--admin", "127.0.0.1:1"][..], &["find", &digest, "--json", "--admin", "127.0.0.1:1"]] {
        let refused = lapwing(args);
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{args:?}");
        assert!(error.contains("127.0.0.1:1") && error.contains("is `lapwing tracker`"), "{error}");
        assert!(refused.stdout.is_empty());
    }
    let refused = lapwing(&["find", "latest"]);
    assert_eq!(refused.status.code(), Some(2), "a tag is no digest");
}

#[test]
fn nodes_and_find_tell_what_the_tracker_knows() {
    const NAME: &str = "nodes_and_find_tell_what_the_tracker_knows";
    if !require(NAME, &[&NEEDS[..], &[Need::Program("docker-registry"), Need::Program("skopeo")]].concat()) {
        return;
    }
    let network = Lab::new("nodes").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let layout = image::small().unwrap();
    registry.push(&layout, "lab/small:1").unwrap();
    let host = network.host("tracker", None).unwrap();
    let tracker = Lapwing::start(&host, LapwingSettings::tracker()).unwrap();
    let nodes: Vec<(Host, Lapwing)> = ["z1", "z2", "z2"]
        .into_iter()
        .enumerate()
        .map(|(number, zone)| {
            let settings = LapwingSettings::node(&[tracker.tracker_address()])
                .registry(&registry.name())
                .with("tracker", &format!("zone = {zone:?}"))
                .with("lazy", "enabled = false");
            let host = network.host(&format!("w{number}"), None).unwrap();
            let node = Lapwing::start(&host, settings).unwrap();
            (host, node)
        })
        .collect();
    let digest = layout.layers[0].digest.as_str();
    for (_, node) in &nodes[..2] {
        assert_eq!(node.mirror_blob(&registry.name(), "lab/small", digest).unwrap().status, 200);
    }
    let ask = |args: &[&str]| -> Value {
        let told = lapwing_on(&host, args);
        assert!(told.status.success(), "{args:?}: {}", text(&told.stderr));
        serde_json::from_slice(&told.stdout).unwrap()
    };
    let deadline = std::time::Duration::from_secs(60);
    wait::until_true("both to have told the tracker that they hold the blob", deadline, || {
        ask(&["find", digest, "--json"])[0]["complete"] == 2 && ask(&["nodes", "--json"])["total"] == 3
    })
    .unwrap();
    the_nodes_are_told(&host, &ask);
    for (zone, other) in [("z1", "z2"), ("z2", "z1")] {
        let found = ask(&["find", digest, "--json", "--zone", zone]);
        let zones: Vec<&str> =
            found[0]["holders"].as_array().unwrap().iter().map(|holder| holder["zone"].as_str().unwrap()).collect();
        assert_eq!(zones, [zone, other], "nearest first: {found}");
        assert!(found[0]["holders"].as_array().unwrap().iter().all(|holder| holder["complete"] == true), "{found}");
    }
    let table = lapwing_on(&host, &["find", digest]);
    let shown = text(&table.stdout);
    assert!(shown.contains("2 nodes hold some or all of it") && column(shown, "PEER").len() == 2, "{shown}");
    let nobody = lapwing_on(&host, &["find", &format!("sha256:{}", "5".repeat(64))]);
    assert!(nobody.status.success() && text(&nobody.stdout).contains("no node holds"), "{}", text(&nobody.stdout));
    let refused = lapwing_on(&nodes[0].0, &["nodes"]);
    assert_eq!(refused.status.code(), Some(1), "a node knows nobody's nodes");
    assert!(text(&refused.stderr).contains("is no tracker of this version"), "{}", text(&refused.stderr));
    assert_eq!(tracker.admin("/api/v1/holders/sha256:0").unwrap().status, 400, "not a digest");
    assert_eq!(tracker.admin("/api/v1/nodes?everything=1").unwrap().status, 400, "not a question");
}

fn the_nodes_are_told(host: &Host, ask: &dyn Fn(&[&str]) -> Value) {
    let far = ask(&["nodes", "--json", "--zone", "z2"]);
    assert_eq!((far["total"].as_u64(), far["tracker"]["nodes"].as_u64()), (Some(2), Some(3)), "{far}");
    assert!(far["nodes"].as_array().unwrap().iter().all(|node| node["state"] == "live" && node["group"] == "default"));
    assert_eq!(far["tracker"]["groups"][0]["nodes"], 3, "{far}");
    wait::until_true("the rates to be known", std::time::Duration::from_secs(60), || {
        ask(&["nodes", "--json"])["tracker"]["calls_per_second"]["find"].is_number()
    })
    .unwrap();
    let table = lapwing_on(host, &["nodes", "--limit", "2"]);
    let shown = text(&table.stdout);
    assert_eq!(column(shown, "PEER").len(), 2, "{shown}");
    assert!(shown.contains("2 of 3 nodes shown, 0 before them and 1 after left out"), "{shown}");
    assert!(shown.contains("finds/s") && shown.contains("leases/s"), "{shown}");
    let rest = lapwing_on(host, &["nodes", "--skip", "2"]);
    assert!(text(&rest.stdout).contains("1 of 3 nodes shown, 2 before"), "{}", text(&rest.stdout));
}

fn the_admin_listener_of(lapwing: &Lapwing) {
    let health = lapwing.admin("/healthz").unwrap();
    assert_eq!((health.status, health.text().as_str()), (200, "ok\n"));
    let ready = lapwing.admin("/readyz").unwrap();
    assert_eq!((ready.status, ready.text().as_str()), (200, "ready\n"));
    assert_eq!(lapwing.admin("/nothing").unwrap().status, 404);
    let metrics = lapwing.admin("/metrics").unwrap();
    assert_eq!(metrics.status, 200);
    let head = metrics.head.to_ascii_lowercase();
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    let exposed = families(&metrics.text());
    let undocumented: Vec<_> = exposed.keys().filter(|name| !documented().contains_key(*name)).collect();
    assert!(undocumented.is_empty(), "not in docs/metrics.md: {undocumented:?}");
}

/// The families of an OpenMetrics text with their types (OpenMetrics 1.0, "Text format"), after a check of every line.
fn families(metrics: &str) -> BTreeMap<String, String> {
    assert!(metrics.ends_with("# EOF\n"), "no # EOF at the end:\n{metrics}");
    let (mut types, mut units, mut series) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let mut current = String::new();
    for line in metrics.lines().take_while(|line| *line != "# EOF") {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            let [keyword, name, rest] = words[..] else { panic!("{line}") };
            assert!(!rest.is_empty() && name.starts_with("lapwing_"), "{line}");
            match keyword {
                "HELP" => current = name.to_owned(),
                "TYPE" => assert!(types.insert(name.to_owned(), rest.to_owned()).is_none(), "twice: {line}"),
                "UNIT" => assert!(name.ends_with(&format!("_{rest}")) && units.insert(name, rest).is_none(), "{line}"),
                _ => panic!("neither HELP nor TYPE nor UNIT: {line}"),
            }
            assert_eq!(current, name, "a family's lines stand together: {line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
        assert!(series.insert(name.to_owned()), "twice: {line}");
        let plain = name.split('{').next().unwrap();
        assert!(plain == name || name.ends_with("\"}"), "{line}");
        let family = if types[&current] == "counter" { plain.strip_suffix("_total") } else { Some(plain) };
        assert_eq!(family, Some(current.as_str()), "{line}");
    }
    assert!(!types.is_empty());
    types
}

/// The table of docs/metrics.md: family, and its type and labels.
fn documented() -> BTreeMap<String, (String, String)> {
    let rows = include_str!("../docs/metrics.md").lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[0].trim_end_matches('`');
        let family = if cells[1] == "counter" { name.strip_suffix("_total").unwrap() } else { name };
        (family.to_owned(), (cells[1].to_owned(), cells[2].to_owned()))
    })
    .collect()
}

/// Families with labels appear with their first event; all others are there from the start.
#[test]
fn the_documented_metrics_are_those_of_the_endpoint() {
    if !require("the_documented_metrics_are_those_of_the_endpoint", &NEEDS) {
        return;
    }
    let host = Lab::new("metrics").unwrap().network().unwrap().host("w1", None).unwrap();
    // A tracker that shares a store has more to count, also while the store is away.
    let away = "kind = \"redis\"\nurls = [\"redis://127.0.0.1:1/0\"]";
    let up = Lapwing::start(&host, LapwingSettings::up().with("tracker.store", away)).unwrap();
    let mut exposed = families(&up.admin("/metrics").unwrap().text());
    drop(up);
    let seed = Lapwing::start(&host, LapwingSettings::seed(&["127.0.0.1:7070".to_owned()])).unwrap();
    let of_seeds = families(&seed.admin("/metrics").unwrap().text());
    exposed.extend(of_seeds.into_iter().filter(|(name, _)| name.starts_with("lapwing_seed_")));
    for (name, (kind, labels)) in documented() {
        match exposed.get(&name) {
            Some(found) => assert_eq!(*found, kind, "{name}"),
            None => assert!(!labels.is_empty(), "{name} is documented and not there"),
        }
    }
    for name in exposed.keys() {
        assert!(documented().contains_key(name), "{name} is not in docs/metrics.md");
    }
}
