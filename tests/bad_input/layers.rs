//! Layers that are not what they should be: no index is built, the log says why, containerd gets the bytes and judges them itself.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use lapwing_lab::image::{LAYER, LAYER_ZSTD, LayoutWriter};
use lapwing_lab::{LapwingSettings, Machine, MachineOptions, Registry, check, image, output, require};

use super::{NEEDS, image_of, layer_bytes, logged, mirrored_bytes, network, noise, registry, small, tar};

const MEBIBYTE: usize = 1 << 20;

/// A machine with a node, and how its containerd judges an image.
struct Court {
    registry: Registry,
    machine: Machine,
    plain: Machine,
}

/// What came of a pull: its error, if there is one.
type Verdict = Result<(), String>;

impl Court {
    fn open(name: &str) -> Self {
        let network = network(name);
        let registry = registry(&network);
        let machine =
            Machine::start(&network, "w1", &registry, MachineOptions::lapwing(LapwingSettings::up())).unwrap();
        let plain = Machine::start(&network, "plain", &registry, MachineOptions::plain()).unwrap();
        Self { registry, machine, plain }
    }

    fn verdict(machine: &Machine, reference: &str, snapshotter: &str) -> Verdict {
        let mut ctr = machine.containerd.ctr().unwrap();
        ctr.args(["images", "pull", "--snapshotter", snapshotter, "--hosts-dir"]).arg(machine.containerd.hosts_dir());
        let ran = output(ctr.arg(reference)).unwrap();
        if ran.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&ran.stderr).into_owned()) }
    }

    /// Pulls an image of one layer, which must get no index for the reason that holds `parts`, and end as it does without Lapwing.
    fn judge(&self, name: &str, parts: &[&str], fill: impl FnOnce(&mut LayoutWriter)) -> Verdict {
        let layout = image_of(&self.registry, name, fill);
        let digest = layout.layers[0].digest.clone();
        let reference = self.registry.push(&layout, &format!("lab/{name}:1")).unwrap();
        let node = self.machine.lapwing.as_ref().unwrap();
        let before = mirrored_bytes(node);
        let verdict = Self::verdict(&self.machine, &reference, "lapwing");
        let plain = Self::verdict(&self.plain, &reference, "overlayfs");
        assert_eq!(verdict.is_ok(), plain.is_ok(), "{name}: with Lapwing {verdict:?}, without {plain:?}");
        assert!(mirrored_bytes(node) - before >= layer_bytes(&layout), "{name}: the layer came through the mirror");
        let line = logged(node, &["WARN", "no index was built", &digest]);
        assert!(parts.iter().all(|part| line.contains(part)), "{name}: {line}");
        assert!(line.contains("pull") && line.contains("whole"), "the log tells the fallback: {line}");
        assert_eq!(node.admin("/readyz").unwrap().status, 200, "{name}");
        verdict
    }

    /// After all that, an ordinary image is served as ever.
    fn close(&self) {
        let reference = small(&self.registry);
        self.machine.containerd.pull(&reference, "lapwing").unwrap();
        let printed = self.machine.containerd.run(&reference, "lapwing", "after", &[]).unwrap();
        assert_eq!(printed.trim(), image::SMALL_OUTPUT);
        let node = self.machine.lapwing.as_ref().unwrap();
        for layer in image::small().unwrap().layers {
            logged(node, &["built the index of a layer", &layer.digest]);
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn layers_that_are_no_archives_get_no_index_and_containerds_own_verdict() {
    if !require("layers_that_are_no_archives_get_no_index_and_containerds_own_verdict", &NEEDS) {
        return;
    }
    let court = Court::open("damaged");
    let content = noise(1, 3 * MEBIBYTE);
    let tar = tar(&[(b"noise", &content)]);
    let whole = gzip(&tar);

    let verdict = court.judge("random", &["neither gzip nor zstd nor a plain tar"], |image| {
        image.layer_as_it_is(LAYER, &content, &content).unwrap();
    });
    assert!(verdict.is_err(), "noise is no layer");
    let verdict = court.judge("truncated", &["ends at byte"], |image| {
        image.layer_as_it_is(LAYER, &whole[..whole.len() / 2], &tar).unwrap();
    });
    assert!(verdict.is_err(), "half a layer is none");
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle..middle + 64].fill(0x55);
    let verdict =
        court.judge("flipped", &["bad gzip in layer"], |image| image.layer_as_it_is(LAYER, &flipped, &tar).unwrap());
    assert!(verdict.is_err(), "a damaged stream is no layer");
    let text = vec![b'x'; 3 * MEBIBYTE];
    let verdict =
        court.judge("text", &["bad tar in layer"], |image| image.layer_as_it_is(LAYER, &gzip(&text), &text).unwrap());
    assert!(verdict.is_err(), "compressed text is no layer");
    court.close();
}

#[test]
fn hostile_and_unusual_layers_get_no_index_and_are_pulled_whole() {
    if !require("hostile_and_unusual_layers_get_no_index_and_are_pulled_whole", &NEEDS) {
        return;
    }
    let court = Court::open("hostile");
    let escaping = tar(&[(b"../../../escaped", b"out\n"), (b"inside", b"in\n")]);
    let _ = court.judge("dots", &["bad tar in layer", "leaves the root"], |image| {
        image.layer_as_it_is(LAYER, &gzip(&escaping), &escaping).unwrap();
    });
    for machine in [&court.machine, &court.plain] {
        let found = machine.host.check("find", &[machine.host.dir().to_str().unwrap(), "-name", "escaped"]).unwrap();
        let outside = found.lines().find(|path| !path.contains("/snapshots/"));
        assert_eq!(outside, None, "a file left its layer");
    }

    // 40 MiB in one frame: a span of it would be the whole of it.
    let content = b"one line of many in one frame\n".repeat(40 * MEBIBYTE / 30);
    let tall = tar(&[(b"lines", &content)]);
    let file = court.registry.host().dir().join("tall.tar");
    std::fs::write(&file, &tall).unwrap();
    check(std::process::Command::new("zstd").args(["-q", "-f", "--no-progress"]).arg(&file)).unwrap();
    let frame = std::fs::read(file.with_extension("tar.zst")).unwrap();
    let verdict = court.judge("frame", &["for which there is no index"], |image| {
        image.layer_as_it_is(LAYER_ZSTD, &frame, &tall).unwrap();
    });
    assert_eq!(verdict, Ok(()), "containerd reads zstd");

    let zeros = tar(&[(b"zeros", &vec![0; 160 * MEBIBYTE])]);
    let bomb = gzip(&zeros);
    let verdict = court.judge("bomb", &["inflates to more than 1000 times its size"], |image| {
        image.layer_as_it_is(LAYER, &bomb, &zeros).unwrap();
    });
    assert_eq!(verdict, Ok(()), "containerd sets no limit");
    court.close();
}
