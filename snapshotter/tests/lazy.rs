//! Lazy layers end to end: EROFS over FUSE over a source that counts, lies and hangs.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, outside of test functions")]

#[path = "lazy/support.rs"]
mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::{Index, IndexBuilder};
use lapwing_snapshotter::lazy::{Backend, Common, LazyError, LazyLayer, LazyMounts, MountError, Named, Options, Proof};
use lapwing_snapshotter::source::Urgency;
use support::{Layer, Scratch, Source, drop_caches, noise, on_both_backends, options, pack, wait_for};

on_both_backends! {
    only_touched_spans_are_fetched_and_all_bytes_are_right,
    wrong_bytes_are_an_error_and_right_ones_are_taken_later,
    a_read_that_waits_blocks_no_other,
    a_missed_deadline_is_an_error_for_every_waiting_page,
    a_layer_that_is_not_the_images_is_quarantined_for_good,
    after_a_restart_dead_mounts_are_replaced_and_spans_are_kept,
    adding_is_idempotent_and_removing_waits_for_unmounting,
    a_large_real_layer_reads_right_and_only_where_it_is_read,
    what_nothing_names_or_uses_is_collected,
}

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

async fn mounted(backend: Backend, scratch: &Scratch, layer: &Layer, source: &Arc<Source>) -> Mounted {
    mounted_with(scratch, layer, source, options(backend)).await
}

async fn mounted_with(scratch: &Scratch, layer: &Layer, source: &Arc<Source>, options: Options) -> Mounted {
    let mounts = LazyMounts::start(&scratch.path().join("root"), options).unwrap();
    let lazy = mounts.add(layer.index.clone(), source.clone()).await.unwrap();
    let at = scratch.directory("mnt");
    mounts.mount(&layer.index.layer(), &at, &[]).unwrap();
    Mounted { mounts, layer: lazy, at }
}

async fn only_touched_spans_are_fetched_and_all_bytes_are_right(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let (layer, contents) = noise_layer(&scratch, 60);
    let source = Source::of(&layer);
    let Mounted { mounts, layer: lazy, at } = mounted(backend, &scratch, &layer, &source).await;
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

/// A layer without any mount.
fn opened(scratch: &Scratch, index: Arc<Index>, source: &Arc<Source>) -> Arc<LazyLayer> {
    let (options, common) = (Options::default(), Arc::new(Common::new(2)));
    LazyLayer::open(&scratch.path().join("layer"), index, source.clone(), options, common).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_faults_share_one_fetch() {
    let Some(scratch) = Scratch::supported() else { return };
    let (layer, _) = noise_layer(&scratch, 60);
    let source = Source::of(&layer);
    source.hang.store(true, SeqCst);
    let lazy = opened(&scratch, layer.index.clone(), &source);
    let readers: Vec<_> = (0..20)
        .map(|i| {
            let lazy = lazy.clone();
            tokio::spawn(async move { lazy.read(i * 512..(i + 1) * 512).await.unwrap() })
        })
        .collect();
    wait_for(|| source.waiting.load(SeqCst) == 1).await;
    source.hang.store(false, SeqCst);
    source.release.notify_waiters();
    for (i, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.await.unwrap(), &layer.tar[i * 512..(i + 1) * 512]);
    }
    assert_eq!(source.urgent(Urgency::Fault), 1);
}

async fn wrong_bytes_are_an_error_and_right_ones_are_taken_later(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let (layer, contents) = noise_layer(&scratch, 12);
    let source = Source::of(&layer);
    let Mounted { mounts: _mounts, layer: lazy, at } = mounted(backend, &scratch, &layer, &source).await;
    let file = at.join("file-009");
    for fault in [&source.corrupt, &source.refuse] {
        fault.store(true, SeqCst);
        let error = std::fs::read(&file).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        fault.store(false, SeqCst);
    }
    assert_eq!(lazy.progress().present, 0, "nothing wrong was cached");
    assert!(std::fs::read(&file).unwrap() == contents[9]);
}

async fn a_read_that_waits_blocks_no_other(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let (layer, contents) = noise_layer(&scratch, 20);
    let source = Source::of(&layer);
    let Mounted { mounts: _mounts, at, .. } = mounted(backend, &scratch, &layer, &source).await;
    assert!(std::fs::read(at.join("file-019")).unwrap() == contents[19]);
    drop_caches();
    source.hang.store(true, SeqCst);
    let slow: Vec<_> = (1..4)
        .map(|i| {
            let path = at.join(format!("file-{i:03}"));
            std::thread::spawn(move || std::fs::read(path).unwrap())
        })
        .collect();
    wait_for(|| source.waiting.load(SeqCst) > 0).await;
    assert!(std::fs::read(at.join("file-019")).unwrap() == contents[19], "served from the cache meanwhile");
    assert!(slow.iter().all(|reader| !reader.is_finished()));
    source.hang.store(false, SeqCst);
    source.release.notify_waiters();
    for (i, reader) in slow.into_iter().enumerate() {
        assert!(reader.join().unwrap() == contents[i + 1]);
    }
}

async fn a_missed_deadline_is_an_error_for_every_waiting_page(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let (layer, contents) = noise_layer(&scratch, 12);
    let source = Source::of(&layer);
    source.hang.store(true, SeqCst);
    let options = Options { deadline: Duration::from_millis(50), ..options(backend) };
    let Mounted { mounts: _mounts, layer: lazy, at } = mounted_with(&scratch, &layer, &source, options).await;
    let error = std::fs::read(at.join("file-009")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // 70 pages, each of which the kernel tries alone after the first failure.
    assert!(source.reads() < 10, "{} fetches", source.reads());
    source.hang.store(false, SeqCst);
    wait_for(|| std::fs::read(at.join("file-009")).is_ok_and(|read| read == contents[9])).await;
    assert!(lazy.progress().present > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequential_reader_is_read_ahead_of() {
    let Some(scratch) = Scratch::supported() else { return };
    let (layer, _) = noise_layer(&scratch, 60);
    let source = Source::of(&layer);
    let lazy = opened(&scratch, layer.index.clone(), &source);
    let step = 128 << 10;
    for start in (0..4 << 20).step_by(step) {
        let read = lazy.read(start as u64..(start + step) as u64).await.unwrap();
        assert!(read == layer.tar[start..start + step]);
    }
    wait_for(|| lazy.progress().present > 5).await;
    assert!(source.urgent(Urgency::ReadAhead) > 0);
    assert_eq!(source.urgent(Urgency::Background), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_device_is_zeros_and_spans_join_seamlessly() {
    let Some(scratch) = Scratch::supported() else { return };
    let mut tar = noise_layer(&scratch, 20).0.tar;
    tar.extend(b"trailer");
    let layer = support::layer_of(tar);
    let source = Source::of(&layer);
    let lazy = opened(&scratch, layer.index.clone(), &source);
    let (length, device) = (layer.tar.len() as u64, lazy.device_length());
    assert_eq!((device % 512, device - length), (0, 505));
    let tail = lazy.read(length - 10..device).await.unwrap();
    assert_eq!(tail[..10], layer.tar[layer.tar.len() - 10..]);
    assert!(tail[10..].iter().all(|&byte| byte == 0) && tail.len() == 515);
    assert!(lazy.read(0..device).await.unwrap()[..layer.tar.len()] == layer.tar);
    let cached = lazy.read_cached(0..device).unwrap();
    assert!(cached[..layer.tar.len()] == layer.tar && cached.len() as u64 == device);
}

/// The index of `layer` with another diffID, as a liar would give it.
fn lying(layer: &Layer) -> Arc<Index> {
    let mut encoded = layer.index.encode();
    let honest = layer.index.diff_id();
    let at = encoded.windows(32).position(|window| window == honest.as_bytes()).unwrap();
    encoded[at] ^= 1;
    Arc::new(Index::decode(&encoded).unwrap())
}

async fn a_layer_that_is_not_the_images_is_quarantined_for_good(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let (layer, _) = noise_layer(&scratch, 12);
    let (source, index) = (Source::of(&layer), lying(&layer));
    let mounts = LazyMounts::start(&scratch.path().join("root"), options(backend)).unwrap();
    let lazy = mounts.add(index.clone(), source.clone()).await.unwrap();
    let at = scratch.directory("mnt");
    mounts.mount(&index.layer(), &at, &[]).unwrap();
    std::fs::read(at.join("file-009")).unwrap();

    assert!(matches!(lazy.complete_all().await, Err(LazyError::Quarantined(_))));
    assert_eq!(lazy.progress().proof, Proof::Quarantined);
    assert_eq!(lazy.complete(), None);
    drop_caches();
    assert_eq!(std::fs::read(at.join("file-010")).unwrap_err().raw_os_error(), Some(libc::EIO));
    let again = mounts.mount(&index.layer(), &scratch.directory("again"), &[]);
    assert!(matches!(again, Err(MountError::Layer(LazyError::Quarantined(_)))));
    mounts.unmount(&at).unwrap();
    mounts.shutdown().await;

    let mounts = LazyMounts::start(&scratch.path().join("root"), options(backend)).unwrap();
    let lazy = mounts.add(index.clone(), source).await.unwrap();
    assert_eq!(lazy.progress().proof, Proof::Quarantined, "after a restart too");
    mounts.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_layer_needs_neither_fuse_nor_source() {
    let Some(scratch) = Scratch::supported() else { return };
    let (layer, contents) = noise_layer(&scratch, 12);
    let source = Source::of(&layer);
    let Mounted { mounts, layer: lazy, at } = mounted(Backend::Erofs, &scratch, &layer, &source).await;
    lazy.complete_all().await.unwrap();
    assert_eq!(source.reads(), layer.index.spans().len());
    let local = scratch.directory("local");
    mounts.mount(&layer.index.layer(), &local, &[]).unwrap();
    mounts.unmount(&at).unwrap();
    mounts.shutdown().await;
    drop_caches();
    for (i, content) in contents.iter().enumerate() {
        assert!(std::fs::read(local.join(format!("file-{i:03}"))).unwrap() == *content);
    }
}

async fn after_a_restart_dead_mounts_are_replaced_and_spans_are_kept(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let (layer, contents) = noise_layer(&scratch, 12);
    let source = Source::of(&layer);
    let Mounted { mounts, layer: lazy, at } = mounted(backend, &scratch, &layer, &source).await;
    assert!(std::fs::read(at.join("file-009")).unwrap() == contents[9]);
    let present = lazy.progress().present;
    // As if killed: both mounts stay, and nobody serves them.
    let (data, hidden) = (scratch.path().join("root/data"), scratch.directory("hidden"));
    rustix::mount::mount_bind(&data, &hidden).unwrap();
    mounts.shutdown().await;
    drop((mounts, lazy));
    rustix::mount::mount_bind(&hidden, &data).unwrap();
    drop_caches();
    let dead = if backend == Backend::Erofs { libc::EIO } else { libc::ENOTCONN };
    assert_eq!(std::fs::read(at.join("file-008")).unwrap_err().raw_os_error(), Some(dead));
    assert_eq!(std::fs::read_dir(&data).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));

    // An image that is not of this index, whatever made it, is not believed.
    let image = scratch.path().join("root/layers").join(layer.index.layer().hex()).join("erofs");
    let right = std::fs::read(&image).unwrap();
    std::fs::write(&image, vec![0; right.len()]).unwrap();

    let reads = source.reads();
    let Mounted { mounts: _mounts, layer: lazy, at } = mounted(backend, &scratch, &layer, &source).await;
    assert!(std::fs::read(&image).unwrap() == right);
    assert_eq!(lazy.progress().present, present);
    assert!(std::fs::read(at.join("file-009")).unwrap() == contents[9]);
    assert_eq!(source.reads(), reads, "what was there was not fetched again");
    assert!(std::fs::read(at.join("file-001")).unwrap() == contents[1]);
}

/// A mount that lives, though its descriptor is not to be had, is neither taken away nor covered by another.
#[tokio::test(flavor = "multi_thread")]
async fn a_living_mount_of_somebody_else_is_left_alone() {
    let Some(scratch) = Scratch::supported() else { return };
    let root = scratch.directory("root");
    let data = scratch.directory("root/data");
    let device = lapwing_snapshotter::fuse::open_device().unwrap();
    lapwing_snapshotter::fuse::mount_at(std::os::fd::AsFd::as_fd(&device), &data).unwrap();
    let refused = LazyMounts::start(&root, Options::default());
    assert!(matches!(refused, Err(MountError::Unreachable(_))), "{refused:?}");
    assert_eq!(scratch.mounts().len(), 1);
    // Now it is dead.
    drop(device);
    let mounts = LazyMounts::start(&root, Options::default()).unwrap();
    assert!(!mounts.is_kept());
    mounts.shutdown().await;
    assert_eq!(scratch.mounts(), Vec::<PathBuf>::new());
}

async fn adding_is_idempotent_and_removing_waits_for_unmounting(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let (layer, _) = noise_layer(&scratch, 60);
    let (source, digest) = (Source::of(&layer), layer.index.layer());
    let Mounted { mounts, layer: lazy, at } = mounted(backend, &scratch, &layer, &source).await;
    assert!(Arc::ptr_eq(&mounts.add(layer.index.clone(), source).await.unwrap(), &lazy));
    let (other, _) = noise_layer(&scratch, 5);
    let adding: Vec<_> = (0..8)
        .map(|_| {
            let (mounts, index, source) = (mounts.clone(), other.index.clone(), Source::of(&other));
            tokio::spawn(async move { mounts.add(index, source).await.unwrap() })
        })
        .collect();
    for added in adding {
        assert!(Arc::ptr_eq(&added.await.unwrap(), &mounts.layer(&other.index.layer()).unwrap()));
    }
    mounts.remove(&other.index.layer()).unwrap();
    mounts.mount(&digest, &at, &[]).unwrap();
    let listed: Vec<_> = std::fs::read_dir(scratch.path().join("root/data")).unwrap().collect();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].as_ref().unwrap().file_name().to_str().unwrap(), format!("{}.tar", digest.hex()));

    assert!(matches!(mounts.remove(&digest), Err(MountError::Busy { .. })));
    mounts.unmount(&at).unwrap();
    mounts.remove(&digest).unwrap();
    mounts.remove(&digest).unwrap();
    assert!(matches!(mounts.mount(&digest, &at, &[]), Err(MountError::Unknown(_))));
    assert!(!scratch.path().join("root/layers").join(digest.hex()).exists());
    mounts.shutdown().await;
}

/// Another mount namespace, with all that is mounted now.
struct Elsewhere(std::process::Child);

impl Elsewhere {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        let mut child =
            command.args(["--mount", "sh", "-c", "echo; exec sleep 100"]).stdout(Stdio::piped()).spawn().unwrap();
        // It is in its namespace when it says something.
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Self(child)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn what_nothing_names_or_uses_is_collected(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let (layer, contents) = noise_layer(&scratch, 6);
    let (source, digest) = (Source::of(&layer), layer.index.layer());
    let root = scratch.directory("root");
    let mounts = LazyMounts::start(&root, options(backend)).unwrap();
    let (other, _) = noise_layer(&scratch, 4);
    let spared = other.index.layer();
    mounts.add(layer.index.clone(), source).await.unwrap();
    mounts.add(other.index.clone(), Source::of(&other)).await.unwrap();
    let collect = |ids: &[u64], layers: &[Digest], spared: &[Digest]| {
        let named = Named { ids: ids.iter().copied().collect(), layers: layers.iter().copied().collect() };
        let collected = mounts.collect(&named, |layer| !spared.contains(layer)).unwrap();
        (collected.deleted, collected.in_use)
    };
    let nothing = |in_use: bool| (Vec::new(), in_use);
    assert_eq!(collect(&[], &[digest], &[spared]), nothing(false));

    // A snapshot with a container on it.
    let at = scratch.directory("root/snapshots/7/fs");
    mounts.mount(&digest, &at, &[]).unwrap();
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| scratch.directory(name));
    let overlay = format!("lowerdir={},upperdir={},workdir={}", at.display(), upper.display(), work.display());
    let overlay = std::ffi::CString::new(overlay).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("overlay", &merged, "overlay", flags, overlay.as_c_str()).unwrap();
    assert_eq!(collect(&[7], &[], &[spared]), nothing(true), "it is mounted");
    mounts.unmount(&at).unwrap();
    assert_eq!(collect(&[], &[], &[]), nothing(true), "the container reads it, though its snapshot is gone");
    assert_eq!(std::fs::read(merged.join("file-005")).unwrap(), contents[5]);
    rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::empty()).unwrap();

    // The same where only another namespace has it.
    let shown = scratch.directory("shown");
    mounts.mount(&digest, &shown, &[]).unwrap();
    let elsewhere = Elsewhere::new();
    mounts.unmount(&shown).unwrap();
    assert_eq!(collect(&[], &[], &[spared]), nothing(true), "another namespace has it");
    drop(elsewhere);
    wait_for(|| collect(&[], &[], &[spared]) == (vec![digest], false)).await;
    assert!(!root.join("layers").join(digest.hex()).exists());
    assert!(root.join("layers").join(spared.hex()).exists());
    assert_eq!(collect(&[], &[], &[]), (vec![spared], false));
    mounts.shutdown().await;
}

/// SHA-256 of a file as `sha256sum` reads it.
fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{}", path.display());
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

async fn a_large_real_layer_reads_right_and_only_where_it_is_read(backend: Backend) {
    let Some(scratch) = Scratch::on(backend) else { return };
    let arguments = ["--format=pax", "--numeric-owner", "-c", "-C", "/", "usr/bin", "usr/share/doc"];
    let output = Command::new("tar").args(arguments).output().unwrap();
    let mut encoder = Command::new("gzip").arg("-4").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = encoder.stdin.take().unwrap();
    let tar = output.stdout;
    let compressed = std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&tar).unwrap();
            drop(stdin);
        });
        encoder.wait_with_output().unwrap().stdout
    });
    let mut builder = IndexBuilder::new(Digest::of(&compressed), compressed.len() as u64);
    builder.push(&compressed).unwrap();
    let layer = Layer { bytes: compressed, tar, index: Arc::new(builder.finish().unwrap()) };
    assert!(layer.tar.len() > 50 << 20, "this machine has too small a /usr/bin for this test");
    let source = Source::of(&layer);
    let Mounted { mounts: _mounts, layer: lazy, at } = mounted(backend, &scratch, &layer, &source).await;

    assert_eq!(sha256sum(&at.join("usr/bin/bash")), sha256sum(Path::new("/usr/bin/bash")));
    let touched = lazy.progress().present;
    assert!(touched * 4 < layer.index.spans().len(), "{touched} spans for one program");
    let mut compared = 0;
    for entry in std::fs::read_dir("/usr/bin").unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_file() {
            let lazy = at.join(path.strip_prefix("/").unwrap());
            assert!(std::fs::read(&lazy).unwrap() == std::fs::read(&path).unwrap(), "{}", path.display());
            compared += 1;
        }
    }
    assert!(compared > 100);
    assert!(source.spans() < layer.index.spans().len(), "the documentation was not read");
}
