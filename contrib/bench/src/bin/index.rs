//! `make bench-index`: CPU and size of building a layer's index, against plain decompression of the same layer in the
//! same run. Prints JSON; quote the ratios, since machines differ and are shared.
//!
//! The layer is a file given as the argument, or a tar of /usr/bin and /usr/share/doc compressed with gzip -6.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::{Index, IndexBuilder};
use serde_json::json;

const ROUNDS: usize = 5;
const CHUNK: usize = 256 * 1024;

fn main() -> anyhow::Result<()> {
    let layer = match std::env::args_os().nth(1) {
        Some(path) => std::fs::read(&path).with_context(|| format!("{}", path.display()))?,
        None => sample()?,
    };
    let digest = Digest::of(&layer);
    let (mut ratios, mut index) = (Vec::new(), None);
    let (mut plain_total, mut build_total) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let plain = timed(|| inflate(&layer))?;
        let build = timed(|| {
            index = Some(build(digest, &layer)?);
            Ok(())
        })?;
        ratios.push(build.as_secs_f64() / plain.as_secs_f64());
        plain_total += plain;
        build_total += build;
    }
    ratios.sort_by(f64::total_cmp);
    let index = index.context("no round ran")?;
    let encoded = index.encode();
    let tar_bytes = index.tar_length() as f64 * ROUNDS as f64;
    let report = json!({
        "layer_bytes": layer.len(),
        "tar_bytes": index.tar_length(),
        "entries": index.entries().len(),
        "spans": index.spans().len(),
        "index_bytes": encoded.len(),
        "index_share_of_layer": encoded.len() as f64 / layer.len() as f64,
        "build_to_inflate_ratio": { "min": ratios[0], "median": ratios[ROUNDS / 2], "max": ratios[ROUNDS - 1] },
        "inflate_mb_per_s": tar_bytes / 1e6 / plain_total.as_secs_f64(),
        "build_mb_per_s": tar_bytes / 1e6 / build_total.as_secs_f64(),
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    Ok(())
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn inflate(layer: &[u8]) -> anyhow::Result<()> {
    let mut reader = flate2::read::MultiGzDecoder::new(layer);
    let mut buffer = vec![0; CHUNK];
    while reader.read(&mut buffer)? > 0 {}
    Ok(())
}

fn build(digest: Digest, layer: &[u8]) -> anyhow::Result<Index> {
    let mut builder = IndexBuilder::new(digest, layer.len() as u64);
    for chunk in layer.chunks(CHUNK) {
        builder.push(chunk)?;
    }
    Ok(builder.finish()?)
}

fn sample() -> anyhow::Result<Vec<u8>> {
    let mut tar =
        Command::new("tar").args(["-C", "/", "-cf", "-", "usr/bin", "usr/share"]).stdout(Stdio::piped()).spawn()?;
    let tar_output = tar.stdout.take().context("tar has no output")?;
    let output = Command::new("gzip").arg("-6").stdin(tar_output).output()?;
    tar.wait()?;
    anyhow::ensure!(output.status.success(), "gzip failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
