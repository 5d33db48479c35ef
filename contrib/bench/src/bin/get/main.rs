//! `make bench-get`: how long `lapwing get` takes for a file of nginx', against `curl`: without a node, by the first node, and by the
//! second, which finds the file at the first. Hosts are network namespaces, and the web server's link is limited, so that it and
//! not the machine's cores decides. Prints JSON: seconds of each run, and the medians' ratios (above 1: `lapwing get` was faster).

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use lapwing_lab::{Host, Lab, Lapwing, LapwingSettings, Mbit, Need, WebServer, interrupt, lapwing_binary};
use serde_json::json;

const RATE: Mbit = Mbit(400);
const FILE_MIB: usize = 256;

fn main() -> Result<()> {
    let missing = lapwing_lab::missing(&[Need::Root, Need::Program("tc"), Need::Program("ip"), Need::Program("curl")]);
    ensure!(missing.is_empty(), "this machine cannot do it: {}", missing.join("; "));
    interrupt::watch("make bench-get")?;
    let repeat = std::env::var("REPEAT").ok().and_then(|text| text.parse().ok()).unwrap_or(3).max(1);
    let network = Lab::new("bench-get")?.network()?;
    let web = network.host("web", Some(RATE))?;
    let files = web.dir().join("files");
    write_files(&files, repeat)?;
    let mut server = WebServer::start(&web, &files)?;
    let tracker = Lapwing::start(&network.host("tracker", None)?, LapwingSettings::tracker())?;
    let settings = LapwingSettings::node(&[tracker.tracker_address()])
        .with("lazy", "enabled = false")
        .with("http", &format!("allow = [{:?}]", WebServer::name_of(web.name())));
    let (first, second) = (network.host("first", None)?, network.host("second", None)?);
    let _nodes = (Lapwing::start(&first, settings.clone())?, Lapwing::start(&second, settings)?);

    let lapwing = lapwing_binary()?;
    let (mut curl, mut straight, mut alone, mut peer) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut sent = 0;
    for number in 0..repeat {
        interrupt::check()?;
        server.expect_running()?;
        // Another name each time: what a node has seen it has.
        let url = server.url(&format!("file{number}"));
        let get = |host: &Host, way: &[&str]| timed(host, &lapwing, &[&["get", "-q"], way, &["-O"]].concat(), &url);
        curl.push(timed(&first, Path::new("curl"), &["-sfo"], &url)?);
        straight.push(get(&first, &["--no-p2p"])?);
        alone.push(get(&first, &[])?);
        let before = web.sent_bytes()?;
        peer.push(get(&second, &[])?);
        sent = web.sent_bytes()? - before;
        eprintln!("{} of {repeat}", number + 1);
    }
    let ratio = |other: &[f64]| median(&curl) / median(other);
    let result = json!({
        "file_bytes": FILE_MIB << 20,
        "link_mbit": RATE.0,
        "seconds": { "curl": curl, "no_node": straight, "first_node": alone, "second_node": peer },
        "times_as_fast_as_curl": {
            "no_node": ratio(&straight),
            "first_node": ratio(&alone),
            "second_node": ratio(&peer),
        },
        "bytes_from_source_for_second_node": sent,
    });
    println(&serde_json::to_string_pretty(&result)?)
}

/// As many files of noise as there are runs: each is one inode, by another name.
fn write_files(dir: &Path, files: usize) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut content = vec![0; FILE_MIB << 20];
    fastrand::Rng::with_seed(1).fill(&mut content);
    std::fs::write(dir.join("file0"), content)?;
    for number in 1..files {
        std::fs::hard_link(dir.join("file0"), dir.join(format!("file{number}")))?;
    }
    Ok(())
}

/// Seconds that it takes until the file is there; it is removed then.
fn timed(host: &Host, program: &Path, args: &[&str], url: &str) -> Result<f64> {
    let file = host.dir().join("fetched");
    let name = file.display().to_string();
    let began = Instant::now();
    host.check(program, &[args, &[&name, url]].concat())?;
    let took = began.elapsed().as_secs_f64();
    ensure!(std::fs::metadata(&file)?.len() == (FILE_MIB << 20) as u64, "{url} did not come whole");
    std::fs::remove_file(&file)?;
    Ok(took)
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn println(text: &str) -> Result<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
