//! `lapwing get`, as who types it sees it: files and exit codes, with a node and without one, and what the source was asked.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::path::Path;
use std::time::{Duration, Instant};

use lapwing_lab::{Host, Lapwing, Mbit, Need, ObjectStore, Site, image, lapwing_binary, require, wait};
use lapwing_p2p::digest::Digest;
use serde_json::Value;

#[path = "get/web.rs"]
mod web;

use web::{PORT, Page, Web};

const NEEDS: [Need; 4] = [Need::Root, Need::Disk, Need::Program("docker-registry"), Need::Program("curl")];
const SOON: Duration = Duration::from_secs(90);
const MIB: usize = 1 << 20;

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut content = vec![0; bytes];
    random.fill(&mut content);
    content
}

fn node(site: &Site, name: &str, rate: Option<Mbit>) -> (Host, Lapwing) {
    let host = site.network.host(name, rate).unwrap();
    let allow = format!("allow = [\"web.lab:{PORT}\", \"other.lab:{PORT}\"]");
    let lapwing = Lapwing::start(&host, site.whole_settings().with("http", &allow)).unwrap();
    (host, lapwing)
}

struct Got {
    code: i32,
    out: Vec<u8>,
    told: String,
}

impl Got {
    /// The lines of `--json`.
    fn reports(&self) -> Vec<Value> {
        let lines = String::from_utf8_lossy(&self.out).into_owned();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn get(host: &Host, args: &[&str]) -> Got {
    let mut command = host.command(lapwing_binary().unwrap());
    let output = lapwing_lab::output(command.arg("get").args(args)).unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    Got { code: output.status.code().unwrap(), out: output.stdout, told }
}

fn path(host: &Host, name: &str) -> String {
    host.dir().join(name).display().to_string()
}

/// What the stranger's server says of requests.
fn stranger_log(host: &Host) -> String {
    std::fs::read_to_string(host.dir().join("stranger.log")).unwrap()
}

/// Neither the file nor a part of it is there.
fn assert_nothing(file: &str) {
    for end in ["", ".part", ".part.json"] {
        assert!(!Path::new(&format!("{file}{end}")).exists(), "{file}{end} is there");
    }
}

#[test]
fn the_second_node_takes_the_file_from_the_first() {
    const NAME: &str = "the_second_node_takes_the_file_from_the_first";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let web = Web::start(&site.network.host("web", None).unwrap());
    let content = noise(1, 24 * MIB);
    web.put("/model.bin", Page::of(&content));
    let (first, _first) = node(&site, "first", None);
    let (second, _second) = node(&site, "second", None);
    let url = web.url("/model.bin");
    let digest = Digest::of(&content).to_string();
    let length = content.len() as u64;

    let file = path(&first, "model.bin");
    let got = get(&first, &["-P", &first.dir().display().to_string(), "--json", "--digest", &digest, &url]);
    assert_eq!(got.code, 0, "{}", got.told);
    assert!(std::fs::read(&file).unwrap() == content);
    let report = &got.reports()[0];
    assert_eq!((&report["ok"], &report["shared"], &report["via"]), (&true.into(), &true.into(), &"node".into()));
    assert_eq!(report["bytes_from_origin"], length, "{report}");
    assert!(!Path::new(&format!("{file}.part")).exists() && !Path::new(&format!("{file}.part.json")).exists());

    let before = web.sent();
    let got = get(&second, &["-O", "-", "--json", &url]);
    assert_eq!(got.code, 0, "{}", got.told);
    assert!(got.out == content, "standard output has the content and nothing else");
    assert!(web.sent() - before < MIB as u64, "the source sent {} bytes again", web.sent() - before);
    let line = got.told.lines().find(|line| line.starts_with('{')).unwrap();
    let report: Value = serde_json::from_str(line).unwrap();
    assert!(report["bytes_from_peers"].as_u64().unwrap() > length - MIB as u64, "{report}");

    // Once more on the same node: from its disk.
    let got = get(&second, &["-O", &path(&second, "again"), "--json", &url]);
    assert_eq!(got.reports()[0]["bytes_from_disk"], length, "{}", got.told);
    assert!(got.told.contains("disk 24.0 MiB"), "{}", got.told);

    // Several: what fails is told, and the others are there.
    web.put("/small", Page::of(b"small"));
    let (missing, small) = (web.url("/missing"), web.url("/small"));
    let directory = path(&second, "several");
    let got = get(&second, &["-P", &directory, "--quiet", "--json", &missing, &small]);
    assert_eq!(got.code, 8, "{}", got.told);
    assert_eq!(std::fs::read(Path::new(&directory).join("small")).unwrap(), b"small");
    assert_nothing(&format!("{directory}/missing"));
    let reports = got.reports();
    assert_eq!((&reports[0]["exit_code"], &reports[1]["exit_code"]), (&8.into(), &0.into()));
    assert!(got.told.contains("HTTP 404") && got.told.lines().count() == 1, "{}", got.told);
}

#[test]
fn a_run_that_was_killed_is_gone_on_with() {
    const NAME: &str = "a_run_that_was_killed_is_gone_on_with";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let web = Web::start(&site.network.host("web", None).unwrap());
    let content = noise(2, 32 * MIB);
    web.put("/file", Page::of(&content));
    let (host, _node) = node(&site, "first", None);
    let url = web.url("/file");
    let promised = Digest::of(&content).to_string();
    for (name, way) in [("straight", "--no-p2p"), ("by-node", "--tries=5")] {
        let file = path(&host, name);
        let part = format!("{file}.part");
        let mut slow = host.command(lapwing_binary().unwrap());
        slow.args(["get", "--limit-rate", "4MiB", way, "-O", &file, &url]);
        let mut slow = host.spawn(name, &mut slow).unwrap();
        let length = || std::fs::metadata(&part).map_or(0, |metadata| metadata.len());
        wait::until_true("a part of the file", SOON, || length() > 4 * MIB as u64).unwrap();
        let busy = get(&host, &[way, "-O", &file, &url]);
        assert!(busy.code == 3 && busy.told.contains("another lapwing get"), "{} {}", busy.code, busy.told);
        slow.kill9().unwrap();
        let had = length();
        assert!(had < content.len() as u64 && !Path::new(&file).exists());
        web.asked().clear();

        let got = get(&host, &[way, "-O", &file, "--json", "--digest", &promised, &url]);
        assert_eq!(got.code, 0, "{}", got.told);
        assert_eq!(got.reports()[0]["resumed_bytes"], had, "{}", got.told);
        assert!(std::fs::read(&file).unwrap() == content);
        if way == "--no-p2p" {
            let asked = web.asked();
            let range = asked[0].headers.get("range").cloned();
            assert_eq!((asked.len(), range), (1, Some(format!("bytes={had}-"))));
        }
    }

    // Another version since: none of the old bytes stay, even if the source takes no notice of If-Range.
    let file = path(&host, "changed");
    let newer = noise(3, 3 * MIB);
    for heedless in [false, true] {
        std::fs::write(format!("{file}.part"), &content[..MIB]).unwrap();
        let record = serde_json::json!({ "url": url, "validator": "\"v1\"", "length": newer.len() });
        std::fs::write(format!("{file}.part.json"), record.to_string()).unwrap();
        web.put("/file", Page { heedless, ..Page::of(&newer) });
        let got = get(&host, &["--no-p2p", "-O", &file, "--json", &url]);
        assert_eq!((got.code, &got.reports()[0]["resumed_bytes"]), (0, &0.into()), "{}", got.told);
        assert!(std::fs::read(&file).unwrap() == newer);
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn without_a_node_it_comes_straight_and_what_is_wrong_is_refused() {
    const NAME: &str = "without_a_node_it_comes_straight_and_what_is_wrong_is_refused";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let web = Web::start(&site.network.host("web", None).unwrap());
    let host = site.network.host("alone", None).unwrap();
    let content = noise(4, 6 * MIB);
    web.put("/file", Page::of(&content));
    let (file, url) = (path(&host, "file"), web.url("/file"));

    let got = get(&host, &["-O", &file, "--json", &url]);
    assert!(got.code == 0 && std::fs::read(&file).unwrap() == content, "{}", got.told);
    assert!(got.told.contains("no node answers at 127.0.0.1:7080: fetched straight from the source"), "{}", got.told);
    assert_eq!((&got.reports()[0]["via"], &got.reports()[0]["shared"]), (&"source".into(), &false.into()));
    std::fs::remove_file(&file).unwrap();

    // Promises: sums by other programs, right and wrong.
    let md5 = |content: &[u8]| {
        let copy = host.dir().join("copy");
        std::fs::write(&copy, content).unwrap();
        host.check("md5sum", &[&copy.display().to_string()]).unwrap()[..32].to_owned()
    };
    let wrong = format!("sha256:{}", "0".repeat(64));
    for promise in [["--digest", wrong.as_str()], ["--md5", &md5(b"other")]] {
        let got = get(&host, &[&["-O", &file][..], &promise, &[&url]].concat());
        assert!(got.code == 9 && got.told.contains("not what was promised"), "{} {}", got.code, got.told);
        assert_nothing(&file);
    }
    let got = get(&host, &["-O", &file, "--md5", &md5(&content), &url]);
    assert_eq!(got.code, 0, "{}", got.told);

    // Cut in the middle: gone on with where there is a version, begun anew where there is none.
    for (etag, asked) in [(Some("\"x\"".to_owned()), 1), (None, 0)] {
        web.put("/cut", Page { etag, cut_after: Some(3 * MIB), ..Page::of(&content) });
        web.asked().clear();
        let got = get(&host, &["-O", &file, &web.url("/cut")]);
        assert!(got.code == 0 && std::fs::read(&file).unwrap() == content, "{}", got.told);
        let ranges = web.asked().iter().filter(|asked| asked.headers.contains_key("range")).count();
        assert_eq!((web.asked().len(), ranges), (2, asked), "{}", got.told);
    }

    // The rate: a lower bound of the time, whatever the machine does.
    let began = Instant::now();
    let got = get(&host, &["-O", &file, "--limit-rate", "3MiB", &url]);
    assert!(got.code == 0 && began.elapsed() > Duration::from_millis(1700), "{:?}", began.elapsed());

    // What is no file is written to, not replaced.
    let got = get(&host, &["-O", "/dev/null", &url]);
    assert!(got.code == 0 && !Path::new("/dev/null").is_file(), "{}", got.told);

    // Another user in the node's place is told nothing.
    let mut stranger = host.command("setpriv");
    stranger.args(["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-m", "http.server"]);
    let mut stranger = host.spawn("stranger", stranger.args(["--bind", "127.0.0.1", "7080"])).unwrap();
    let heard = || stranger_log(&host);
    wait::until_true("the stranger to listen", SOON, || {
        host.run("curl", &["-s", "127.0.0.1:7080"]).unwrap().status.success()
    })
    .unwrap();
    let before = heard();
    let got = get(&host, &["-O", &file, "--header", "Authorization: secret", &url]);
    assert!(got.code == 0 && got.told.contains("is another user"), "{}", got.told);
    assert_eq!(heard(), before);
    let got = get(&host, &["-O", &file, "--node", "127.0.0.1:7080", &url]);
    assert!(got.code == 0 && got.told.contains("is not a node"), "{}", got.told);
    assert_ne!(heard(), before);
    stranger.kill9().unwrap();

    // Exit codes.
    let nobody = format!("http://{}:1/x", host.address());
    let cases: [(&[&str], i32); 7] = [
        (&[&web.url("/missing")], 8),
        (&["--tries=1", &nobody], 4),
        (&["ftp://web.lab/x"], 2),
        (&["--digest", "sha256:0", &url], 2),
        (&["--header", "Range: bytes=0-1", &url], 2),
        (&["-O", "/proc/nowhere/x", &url], 3),
        (&["--no-such-option", &url], 2),
    ];
    for (args, code) in cases {
        let got = get(&host, &[&["-P", "/tmp"], args].concat()[if args.contains(&"-O") { 2 } else { 0 }..]);
        assert_eq!(got.code, code, "{args:?}: {}", got.told);
    }
}

#[test]
fn credentials_stay_with_their_host_and_private_content_with_its_reader() {
    const NAME: &str = "credentials_stay_with_their_host_and_private_content_with_its_reader";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let web = Web::start(&site.network.host("web", None).unwrap());
    let other = Web::start(&site.network.host("other", None).unwrap());
    let (host, _node) = node(&site, "first", None);
    let content = noise(5, 2 * MIB);
    other.put("/blob", Page::of(&content));
    let away = Page { authorization: Some("Bearer secret".into()), ..Page::redirect(&other.url("/blob")) };
    web.put("/resolve/main/blob", away);
    let url = web.url("/resolve/main/blob");
    for way in ["--no-p2p", "--tries=5"] {
        let file = path(&host, "blob");
        let token = ["--header", "Authorization: Bearer secret", "--header", "X-Team: a"];
        let got = get(&host, &[&token[..], &[way, "-O", &file, &url]].concat());
        assert!(got.code == 0 && std::fs::read(&file).unwrap() == content, "{}", got.told);
        assert!(web.asked().iter().all(|asked| asked.headers["authorization"] == "Bearer secret"));
        let leaked =
            |asked: &web::Asked| ["authorization", "x-team"].iter().any(|name| asked.headers.contains_key(*name));
        assert!(!other.asked().is_empty() && !other.asked().iter().any(leaked), "{:?}", other.asked());
        web.asked().clear();
    }

    // What the source gave to one, another does not get from the node.
    web.put("/private", Page { authorization: Some("Bearer one".into()), ..Page::of(&content) });
    let (url, file) = (web.url("/private"), path(&host, "private"));
    let got = get(&host, &["--header", "Authorization: Bearer one", "-O", &file, "--json", &url]);
    assert!(got.code == 0 && std::fs::read(&file).unwrap() == content, "{}", got.told);
    let report = &got.reports()[0];
    assert_eq!(report["shared"], false);
    assert!(report["not_shared_because"].as_str().unwrap().contains("credentials"), "{report}");
    let theirs = path(&host, "theirs");
    for header in [&[][..], &["--header", "Authorization: Bearer two"]] {
        let got = get(&host, &[header, &["-O", &theirs, &url]].concat());
        assert_eq!(got.code, 6, "{}", got.told);
        assert_nothing(&theirs);
    }

    // A host that http.allow does not name is not the node's to fetch from.
    let third = Web::start(&site.network.host("third", None).unwrap());
    third.put("/x", Page::of(b"x"));
    let got = get(&host, &["-O", &file, &third.url("/x")]);
    assert!(got.code == 0 && got.told.contains("add it to http.allow"), "{}", got.told);
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
}

#[test]
fn signatures_do_not_part_those_who_fetch_the_same() {
    const NAME: &str = "signatures_do_not_part_those_who_fetch_the_same";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let web = Web::start(&site.network.host("web", None).unwrap());
    let content = noise(6, 8 * MIB);
    web.put("/file", Page::of(&content));
    let (host, _node) = node(&site, "first", None);
    let file = path(&host, "file");
    let mut sent = Vec::new();
    for (query, filter) in [("sig=1", "sig,x-*"), ("sig=2", "x-*,sig"), ("sig=3", "")] {
        let before = web.sent();
        let url = web.url(&format!("/file?{query}"));
        let got = get(&host, &["--filter-query", filter, "-O", &file, &url]);
        assert!(got.code == 0 && std::fs::read(&file).unwrap() == content, "{}", got.told);
        sent.push((web.sent() - before) / MIB as u64);
    }
    assert_eq!(sent, [8, 0, 8], "MiB that the source sent");
    // The node's own headers do not reach the source.
    let asked = web.asked();
    assert!(!asked.iter().any(|asked| asked.headers.keys().any(|name| name.starts_with("lapwing-"))), "{asked:?}");
}

#[test]
fn listings_and_buckets_come_whole() {
    const NAME: &str = "listings_and_buckets_come_whole";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let served = site.network.host("web", None).unwrap();
    let (host, _node) = node(&site, "first", None);
    // A real listing: Python's.
    let tree = served.dir().join("tree");
    let files = [("a b.bin", 3 * MIB), ("sub/deep/c.bin", MIB), ("sub/d&e.txt", 10), ("empty", 0)];
    for (number, (name, length)) in files.iter().enumerate() {
        let file = tree.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, noise(number as u64, *length)).unwrap();
    }
    let mut server = served.command("python3");
    server.args(["-m", "http.server", "--directory", &tree.display().to_string(), &PORT.to_string()]);
    let _server = served.spawn("python", &mut server).unwrap();
    let url = format!("http://web.lab:{PORT}/");
    wait::until_true("the server to answer", SOON, || host.run("curl", &["-sf", &url]).unwrap().status.success())
        .unwrap();
    let copy = path(&host, "copy");
    let got = get(&host, &["-r", "-O", &copy, &url]);
    assert_eq!(got.code, 0, "{}", got.told);
    let same = host.run("diff", &["-r", &tree.display().to_string(), &copy]).unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    assert_eq!(get(&host, &["-r", "-O", &copy, &format!("{url}nothing")]).code, 8);

    // A real bucket, with another user's eyes: signed for one, refused to who has no secret.
    let store = ObjectStore::start_on(&site.network.host("objects", None).unwrap()).unwrap();
    let s3 = |secret: &str, args: &[&str]| {
        let mut command = host.command(lapwing_binary().unwrap());
        command.env("AWS_ENDPOINT_URL", store.endpoint()).env("AWS_REGION", ObjectStore::REGION);
        command.env("AWS_ACCESS_KEY_ID", ObjectStore::ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", secret);
        let output = lapwing_lab::output(command.arg("get").args(args)).unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let objects = store.directory().join("models");
    let copied = host.run("cp", &["-r", &tree.display().to_string(), &objects.display().to_string()]).unwrap();
    assert!(copied.status.success());
    let place = format!("s3://{}/models", ObjectStore::BUCKET);
    let copy = path(&host, "objects");
    let (code, told) = s3(ObjectStore::SECRET_KEY, &["-r", "-O", &copy, &place]);
    assert_eq!(code, 0, "{told}");
    let same = host.run("diff", &["-r", &tree.display().to_string(), &copy]).unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    let one = path(&host, "one");
    let object = format!("{place}/sub/deep/c.bin");
    let (code, told) = s3(ObjectStore::SECRET_KEY, &["-O", &one, &object]);
    assert!(code == 0 && std::fs::read(&one).unwrap() == noise(1, MIB), "{told}");
    std::fs::remove_file(&one).unwrap();
    let (code, told) = s3("wrong", &["-O", &one, &object]);
    assert_eq!(code, 6, "{told}");
    assert_nothing(&one);
}

#[test]
fn an_image_becomes_a_layout_that_containerd_imports() {
    const NAME: &str = "an_image_becomes_a_layout_that_containerd_imports";
    if !require(NAME, &Need::LAZY_PULLS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let small = image::small().unwrap();
    site.registry.push(&small, "lab/small:1").unwrap();
    let name = format!("oci://{}/lab/small:1", site.registry.name());
    let registry = site.registry.name();
    let first = site.worker("first", None, site.whole_settings()).unwrap();
    let second = site.worker("second", None, site.whole_settings()).unwrap();
    let layers: u64 = small.layers.iter().map(|layer| layer.size).sum();

    let layout = path(&first.host, "layout");
    let got = get(&first.host, &["-O", &layout, &name]);
    assert_eq!(got.code, 0, "{}", got.told);
    let before = site.registry.sent_bytes().unwrap();
    let layout = path(&second.host, "layout");
    let got = get(&second.host, &["-O", &layout, "--json", &name]);
    assert_eq!(got.code, 0, "{}", got.told);
    assert!(site.registry.sent_bytes().unwrap() - before < layers / 10, "the registry sent the layers again");
    let from_peers: u64 = got.reports().iter().map(|report| report["bytes_from_peers"].as_u64().unwrap()).sum();
    assert!(from_peers >= layers, "{from_peers} of {layers}");

    // containerd takes it, and runs it.
    let archive = path(&second.host, "layout.tar");
    second.host.check("tar", &["-C", &layout, "-cf", &archive, "."]).unwrap();
    let reference = format!("{registry}/lab/small:1");
    let mut import = second.containerd.ctr().unwrap();
    lapwing_lab::check(import.args(["images", "import", "--snapshotter", "overlayfs", &archive])).unwrap();
    let output = second.containerd.run(&reference, "overlayfs", "main", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);

    // Without a node, and what is there already is not fetched again.
    let alone = site.network.host("alone", None).unwrap();
    let layout = path(&alone, "layout");
    let args = ["--no-p2p", "--plain-http", "-O", &layout, "--json", &name];
    let got = get(&alone, &args);
    assert_eq!((got.code, got.reports().len()), (0, small.layers.len() + 1), "{}", got.told);
    let inspected = alone.check("skopeo", &["inspect", &format!("oci:{layout}:1")]).unwrap();
    assert!(inspected.contains(&small.layers[0].digest), "{inspected}");
    let again = get(&alone, &args);
    assert_eq!((again.code, again.reports().len()), (0, 0), "{}", again.told);
    let got = get(&alone, &["--no-p2p", "--plain-http", "-O", &layout, &format!("oci://{registry}/lab/none:1")]);
    assert_eq!(got.code, 8, "{}", got.told);
}

/// Seconds that a command takes, and what it is.
fn timed(host: &Host, program: &Path, args: &[&str]) -> f64 {
    let began = Instant::now();
    host.check(program, args).unwrap();
    began.elapsed().as_secs_f64()
}

/// Prints how long `curl` and `lapwing get` take for the same file, alone and on the second node; other machines, other figures.
#[test]
fn as_fast_as_curl_alone_and_faster_on_the_second_node() {
    const NAME: &str = "as_fast_as_curl_alone_and_faster_on_the_second_node";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new(NAME, None).unwrap();
    let web = Web::start(&site.network.host("web", Some(Mbit(200))).unwrap());
    let content = noise(7, 64 * MIB);
    web.put("/file", Page::of(&content));
    let (first, _first) = node(&site, "first", None);
    let (second, _second) = node(&site, "second", None);
    let (url, lapwing) = (web.url("/file"), lapwing_binary().unwrap());
    let curl = |host: &Host| timed(host, Path::new("curl"), &["-sfo", &path(host, "curled"), &url]);
    let lapwing = |host: &Host, way: &str| timed(host, &lapwing, &["get", "-q", way, "-O", &path(host, "got"), &url]);

    let (with_curl, straight) = (curl(&first), lapwing(&first, "--no-p2p"));
    eprintln!(
        "straight from the source: curl {with_curl:.2} s, lapwing get {straight:.2} s: {:.3}",
        with_curl / straight
    );
    let node_alone = lapwing(&first, "-c");
    eprintln!("by the first node: {node_alone:.2} s: {:.3}", with_curl / node_alone);
    let before = web.sent();
    let by_peer = lapwing(&second, "-c");
    let sent = web.sent() - before;
    let with_curl = curl(&second);
    eprintln!("by the second node: curl {with_curl:.2} s, lapwing get {by_peer:.2} s: {:.3}", with_curl / by_peer);
    assert!(sent < MIB as u64, "the second node took {sent} bytes from the source");
    assert!(std::fs::read(path(&second, "got")).unwrap() == content);
}
