//! What a container reads at its start on one node, another has fetched before its own container starts.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::time::Duration;

use lapwing_lab::{Machine, Need, Site, check, image, lapwing_binary, require, wait};

const NEEDS: [Need; 9] = Need::LAZY_STARTS;
const SOON: Duration = Duration::from_secs(120);
const LAYERS: [usize; 2] = [12, 12];
/// Three files of 24, in another order than they lie in.
const READ: [&str; 3] = ["/bin/sh", "-c", "sha256sum /data/01-007 /data/00-009 /data/01-002"];

fn logged(machine: &Machine, what: &str, times: usize) {
    let node = machine.lapwing.as_ref().unwrap();
    wait::until_true(what, SOON, || node.log().unwrap().matches(what).count() >= times).unwrap();
}

fn metric(machine: &Machine, name: &str) -> f64 {
    machine.lapwing.as_ref().unwrap().metric(name, "").unwrap()
}

fn lapwing(machine: &Machine, arguments: &[&str]) -> String {
    check(machine.host.command(lapwing_binary().unwrap()).args(arguments)).unwrap()
}

#[test]
fn what_a_start_reads_is_there_before_the_next_node_starts() {
    const NAME: &str = "what_a_start_reads_is_there_before_the_next_node_starts";
    if !require(NAME, &NEEDS) {
        return;
    }
    let site = Site::new("profile", None).unwrap();
    let noise = image::noise(31, &LAYERS).unwrap();
    let reference = site.registry.push(&noise.layout, "noise:1").unwrap();
    let expected: String = {
        let sum = |file: &str| noise.sums.lines().find(|line| line.ends_with(file)).unwrap().to_owned() + "\n";
        ["01-007", "00-009", "01-002"].map(sum).concat()
    };
    let settings = site.settings().patient().with("lazy", "record_for = \"4s\"");
    let whole = site.worker("whole", None, settings.clone()).unwrap();
    whole.containerd.pull(&reference, "lapwing").unwrap();
    logged(&whole, "built the index of a layer", LAYERS.len());

    let first = site.worker("first", None, settings.clone()).unwrap();
    first.containerd.pull(&reference, "lapwing").unwrap();
    assert_eq!(first.containerd.run(&reference, "lapwing", "first", &READ).unwrap(), expected);
    assert!(metric(&first, "lapwing_lazy_waited_reads_total") > 0.0, "nobody knew what would be read");
    assert_eq!(metric(&first, "lapwing_lazy_prefetched_spans_total"), 0.0);
    logged(&first, "recorded what a container read", 1);

    let shown = lapwing(&first, &["profile", "show", &reference, "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["starts"][0]["program"], &shown["starts"][0]["source"]), (&"sh".into(), &"here".into()));
    assert_eq!(shown["layers"].as_array().unwrap().len(), LAYERS.len());

    // Nothing is started here: what is fetched is fetched ahead.
    let second = site.worker("second", None, settings.clone()).unwrap();
    second.containerd.pull(&reference, "lapwing").unwrap();
    logged(&second, "fetched what containers of an image read", 1);
    let (spans, bytes) = (
        metric(&second, "lapwing_lazy_prefetched_spans_total"),
        metric(&second, "lapwing_lazy_prefetched_bytes_total"),
    );
    assert!(spans >= 3.0, "{spans} spans");
    assert!((3e6..1.2e7).contains(&bytes), "{bytes} bytes for three files of 1 MiB, of 24");
    second.host.set_link(false).unwrap();
    assert_eq!(second.containerd.run(&reference, "lapwing", "second", &READ).unwrap(), expected);
    assert_eq!(metric(&second, "lapwing_lazy_waited_reads_total"), 0.0, "all of it was here");
    let hits = metric(&second, "lapwing_lazy_prefetch_hits_total");
    assert!(hits >= spans * 0.7, "{hits} of {spans} spans were read");
    second.host.set_link(true).unwrap();

    let third = site.worker("third", None, settings.with("lazy", "prefetch = false")).unwrap();
    third.containerd.pull(&reference, "lapwing").unwrap();
    assert_eq!(third.containerd.run(&reference, "lapwing", "third", &READ).unwrap(), expected);
    assert_eq!(metric(&third, "lapwing_lazy_prefetched_spans_total"), 0.0);
    assert!(metric(&third, "lapwing_lazy_waited_reads_total") > 0.0);

    carried_by_hand(&first, &third, &reference);
}

/// Exported on one node and imported on another, a profile is the same; what is none is refused.
fn carried_by_hand(from: &Machine, to: &Machine, reference: &str) {
    let file = from.host.dir().join("profile");
    let path = file.to_str().unwrap();
    lapwing(from, &["profile", "export", reference, "-o", path]);
    let told = lapwing(to, &["profile", "import", path]);
    assert!(told.contains("1 entry points"), "{told}");
    let shown = lapwing(to, &["profile", "show", reference]);
    assert!(shown.lines().any(|line| line.starts_with(" sh ") && line.contains("here")), "{shown}");
    std::fs::write(&file, "LAPWPROF").unwrap();
    let refused = to.host.run(lapwing_binary().unwrap(), &["profile", "import", path]).unwrap();
    assert!(!refused.status.success());
    let unknown = to.host.run(lapwing_binary().unwrap(), &["profile", "show", "registry.lab:5000/other:1"]).unwrap();
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("images ls"), "{unknown:?}");
}
