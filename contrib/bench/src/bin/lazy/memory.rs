//! Memory of a node with a hundred lazily mounted layers that nobody reads.

use anyhow::{Context, Result};
use lapwing_lab::{Site, image, interrupt, wait};
use serde_json::{Value, json};
use std::time::Duration;

const LAYERS: usize = 100;
/// 50,000 in all.
const FILES_OF_A_LAYER: usize = 500;
const LONGEST: Duration = Duration::from_secs(300);
/// A node gives memory back some time after the burst of a pull.
const SETTLED: Duration = Duration::from_secs(30);

pub(crate) fn measure() -> Result<Value> {
    eprintln!("memory: {LAYERS} layers mounted lazily, {} files", LAYERS * FILES_OF_A_LAYER);
    let directory = tempfile::tempdir()?;
    let layout = image::many_layers(directory.path(), LAYERS, FILES_OF_A_LAYER)?;
    let site = Site::new("bench-memory", None)?;
    let reference = site.registry.push(&layout, "layers:1")?;
    let first = site.worker("first", None, site.settings())?;
    first.containerd.pull(&reference, "lapwing")?;
    let first = first.lapwing.as_ref().context("a worker without Lapwing")?;
    let indexed = || first.log().is_ok_and(|log| log.matches("built the index of a layer").count() == LAYERS);
    wait::until_true("the layers to be indexed", LONGEST, indexed)?;
    let mut rows = Vec::new();
    for backend in ["erofs", "fuse"] {
        interrupt::check()?;
        let settings = site.settings().with("lazy", &format!("backend = {backend:?}"));
        let mut worker = site.worker(backend, None, settings.patient())?;
        worker.containerd.pull(&reference, "lapwing")?;
        let node = worker.lapwing.as_mut().context("a worker without Lapwing")?;
        let lazy = node.metric("lapwing_snapshot_layers_claimed_total", "")?;
        std::thread::sleep(SETTLED);
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.process().pid()))?;
        let kib = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        rows.push(json!({
            "backend": backend,
            "layers_lazy": lazy,
            "files": LAYERS * FILES_OF_A_LAYER,
            "resident_kib": kib("VmRSS"),
            "resident_of_its_own_kib": kib("RssAnon"),
            "resident_at_most_kib": kib("VmHWM"),
        }));
    }
    Ok(Value::Array(rows))
}
