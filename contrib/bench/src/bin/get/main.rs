//! `make bench-get`: how long `lapwing get` takes for a file of nginx', against `curl`: without a node, by the first node, and by the
//! second, which finds the file at the first. Hosts are network namespaces, and the web server's link is limited, so that it and
//! not the machine's cores decides. Prints JSON: seconds of each run, and the medians' ratios (above 1: `lapwing get` was faster).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lapwing_lab::{Host, Lab, Lapwing, LapwingSettings, Mbit, Need, Process, interrupt, lapwing_binary, wait};
use serde_json::json;

const RATE: Mbit = Mbit(400);
const FILE_MIB: usize = 256;
const PORT: u16 = 8080;
const READY: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let missing = lapwing_lab::missing(&[Need::Root, Need::Program("tc"), Need::Program("ip"), Need::Program("curl")]);
    ensure!(missing.is_empty(), "this machine cannot do it: {}", missing.join("; "));
    interrupt::watch("make bench-get")?;
    let repeat = std::env::var("REPEAT").ok().and_then(|text| text.parse().ok()).unwrap_or(3).max(1);
    let network = Lab::new("bench-get")?.network()?;
    let web = network.host("web", Some(RATE))?;
    let mut server = nginx(&web, repeat)?;
    let tracker = Lapwing::start(&network.host("tracker", None)?, LapwingSettings::tracker())?;
    let settings = LapwingSettings::node(&[tracker.tracker_address()])
        .with("lazy", "enabled = false")
        .with("http", &format!("allow = [\"web.lab:{PORT}\"]"));
    let (first, second) = (network.host("first", None)?, network.host("second", None)?);
    let _nodes = (Lapwing::start(&first, settings.clone())?, Lapwing::start(&second, settings)?);

    let lapwing = lapwing_binary()?;
    let (mut curl, mut straight, mut alone, mut peer) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut sent = 0;
    for number in 0..repeat {
        interrupt::check()?;
        server.expect_running()?;
        // Another name each time: what a node has seen it has.
        let url = format!("http://web.lab:{PORT}/file{number}");
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

/// nginx with as many files of noise as there are runs: each is one inode, by another name.
fn nginx(host: &Host, files: usize) -> Result<Process> {
    let home = host.dir().join("nginx");
    std::fs::create_dir_all(home.join("logs"))?;
    let mut content = vec![0; FILE_MIB << 20];
    fastrand::Rng::with_seed(1).fill(&mut content);
    std::fs::write(home.join("file0"), content)?;
    for number in 1..files {
        std::fs::hard_link(home.join("file0"), home.join(format!("file{number}")))?;
    }
    let home = home.display().to_string();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {home}/{name};\n"))
        .collect();
    let config = format!(
        "user root;\ndaemon off;\nmaster_process off;\nerror_log {home}/logs/error.log;\npid {home}/pid;\nevents {{}}\nhttp {{\n\
         {paths}access_log off;\nsendfile on;\ntcp_nopush on;\nserver {{\nroot {home};\nlisten {PORT};\n}}\n}}\n"
    );
    std::fs::write(host.dir().join("nginx/nginx.conf"), config)?;
    let program = std::env::var("LAPWING_NGINX").unwrap_or_else(|_| "nginx".to_owned());
    let mut command = host.command(&program);
    let mut process = host
        .spawn("web", command.args(["-p", &home, "-c", "nginx.conf", "-e", "logs/error.log"]))
        .with_context(|| format!("cannot start {program}; contrib/setup/nginx.sh fetches it"))?;
    let url = format!("http://127.0.0.1:{PORT}/file0");
    wait::until_true("nginx to answer", READY, || {
        process.expect_running().is_ok() && host.check("curl", &["-sfI", &url]).is_ok()
    })?;
    Ok(process)
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
