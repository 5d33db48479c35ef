//! `make bench-files`: reading the files of a lazily mounted layer, by each way of mounting, against the same files on this machine's own
//! filesystem, all as the lower directory of an overlayfs, as a container sees them. Needs root; prints JSON.
//!
//! Every measurement is taken on all of them in turn, in each of several rounds; ratios are of the same round. *Warm* is what the page
//! cache has; *cold* is right after it was dropped, with the layer's spans on the local disk, so that no network is in it.

mod content;
mod measure;
mod mounts;

use std::collections::BTreeMap;
use std::io::Write as _;

use serde_json::{Value, json};

use content::Content;
use measure::Measurement;
use mounts::Subject;

const ROUNDS: usize = 5;
/// The subject that the others are compared with.
const YARDSTICK: &str = "local";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let known: Vec<_> = Measurement::all().map(|measurement| measurement.name).collect();
    let unknown: Vec<_> = names.iter().filter(|name| !known.contains(&name.as_str())).collect();
    anyhow::ensure!(unknown.is_empty(), "there is no {unknown:?}; there are {known:?}");
    let asked = || Measurement::all().filter(|it| names.is_empty() || names.iter().any(|name| name == it.name));
    // Images cannot be on tmpfs, which /tmp may be.
    let scratch = tempfile::tempdir_in(std::env::var_os("LAPWING_BENCH_DIR").unwrap_or_else(|| "/var/tmp".into()))?;
    let content = Content::make(&scratch.path().join("content"))?;
    let subjects = mounts::all(scratch.path(), &content).await?;
    let mut taken: BTreeMap<(&'static str, &'static str), Vec<f64>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for measurement in asked() {
            for number in 0..subjects.len() {
                // Who goes first takes turns.
                let subject = &subjects[(number + round) % subjects.len()];
                let rate = measurement.take(&subject.root, &content)?;
                taken.entry((measurement.name, subject.name)).or_default().push(rate);
            }
        }
    }
    let report = json!({
        "kernel": rustix::system::uname().release().to_string_lossy(),
        "rounds": ROUNDS,
        "files": content.small.len(),
        "large_bytes": content::LARGE_BYTES,
        "measurements": asked().map(|measurement| reported(&measurement, &subjects, &taken)).collect::<Vec<_>>(),
    });
    writeln!(std::io::stdout(), "{report:#}")?;
    for subject in subjects {
        subject.end().await?;
    }
    Ok(())
}

fn reported(
    measurement: &Measurement,
    subjects: &[Subject],
    taken: &BTreeMap<(&'static str, &'static str), Vec<f64>>,
) -> Value {
    let of = |name: &'static str| &taken[&(measurement.name, name)];
    let rows = subjects.iter().map(|subject| {
        let ratios: Vec<f64> =
            of(subject.name).iter().zip(of(YARDSTICK)).map(|(rate, yardstick)| rate / yardstick).collect();
        let row = json!({ "rate": middle(of(subject.name)), "ratio": middle(&ratios), "ratio_range": range(&ratios) });
        (subject.name.to_owned(), row)
    });
    json!({ "name": measurement.name, "unit": measurement.unit, "subjects": rows.collect::<serde_json::Map<_, _>>() })
}

fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn range(values: &[f64]) -> [f64; 2] {
    [values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(0.0, f64::max)]
}
