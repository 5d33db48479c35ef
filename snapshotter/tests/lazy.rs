//! Lazy layers end to end: EROFS over FUSE over a source that counts, lies and hangs.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, outside of test functions")]

#[path = "lazy/support.rs"]
mod support;

use std::path::PathBuf;
use std::sync::Arc;

use lapwing_snapshotter::lazy::{LazyLayer, LazyMounts, Options, Proof};
use support::{Layer, Scratch, Source, noise, pack};

/// A layer of noise: `count` files, file `i` of `i * 31,337` bytes.
fn noise_layer(scratch: &Scratch, count: usize) -> (Layer, Vec<Vec<u8>>) {
    let directory = scratch.directory("content");
    let contents: Vec<Vec<u8>> = (0..count).map(|i| noise(i * 31_337, i as u64)).collect();
    for (i, content) in contents.iter().enumerate() {
        std::fs::write(directory.join(format!("file-{i:03}")), content).unwrap();
    }
    (pack(&directory), contents)
}

struct Mounted {
    mounts: Arc<LazyMounts>,
    layer: Arc<LazyLayer>,
    at: PathBuf,
}

async fn mounted(scratch: &Scratch, layer: &Layer, source: &Arc<Source>) -> Mounted {
    let mounts = LazyMounts::start(&scratch.path().join("root"), Options::default()).unwrap();
    let lazy = mounts.add(layer.index.clone(), source.clone()).await.unwrap();
    let at = scratch.directory("mnt");
    mounts.mount(&layer.index.layer(), &at, &[]).unwrap();
    Mounted { mounts, layer: lazy, at }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_touched_spans_are_fetched_and_all_bytes_are_right() {
    let Some(scratch) = Scratch::supported() else { return };
    let (layer, contents) = noise_layer(&scratch, 60);
    let source = Source::of(&layer);
    let Mounted { mounts, layer: lazy, at } = mounted(&scratch, &layer, &source).await;
    assert_eq!(source.reads(), 0, "a mount fetches nothing");

    assert_eq!(std::fs::read(at.join("file-001")).unwrap(), contents[1]);
    assert!((1..=2).contains(&source.reads()), "{} spans for one small file", source.reads());
    assert_eq!(lazy.progress().present, source.reads());

    for (i, content) in contents.iter().enumerate() {
        let path = at.join(format!("file-{i:03}"));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), content.len() as u64);
        assert!(std::fs::read(path).unwrap() == *content, "file {i}");
    }
    lazy.complete_all().await.unwrap();
    let progress = lazy.progress();
    assert_eq!((progress.present, progress.proof), (layer.index.spans().len(), Proof::Proved));

    mounts.unmount(&at).unwrap();
    mounts.unmount(&at).unwrap();
    mounts.shutdown().await;
    assert_eq!(scratch.mounts(), Vec::<PathBuf>::new());
}
