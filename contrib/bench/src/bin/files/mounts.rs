//! The same files four times, each as the lower directory of an overlayfs.

use std::ffi::CString;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::{Index, IndexBuilder};
use lapwing_snapshotter::lazy::{Backend, LazyMounts, Options};
use lapwing_snapshotter::mountpoint;
use lapwing_snapshotter::source::{LayerSource, SourceError, Urgency};
use rustix::mount::{MountFlags, mount};

use crate::content::Content;

/// More than the files take, and their journal.
const IMAGE_BYTES: u64 = 3 << 30;

/// What is measured: a tree, and what it takes to have it.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) root: PathBuf,
    /// Mounted for it below.
    lower: Option<PathBuf>,
    mounts: Option<(Arc<LazyMounts>, PathBuf)>,
}

impl Subject {
    /// Takes the mounts away.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        mountpoint::detach(&self.root)?;
        if let Some(lower) = self.lower {
            mountpoint::detach(&lower)?;
        }
        if let Some((mounts, at)) = self.mounts {
            mounts.unmount(&at)?;
            mounts.shutdown().await;
        }
        Ok(())
    }
}

/// * `local`: the files as they are on this machine's disk
/// * `local_small_folios`: the same in an ext4 that journals its data, whose page cache is of single pages, as every ext4's is before Linux 6.16
/// * `erofs`: the layer over EROFS and the FUSE data file, as long as it is not complete
/// * `erofs_complete`: the same, complete: no FUSE
/// * `fuse`: the layer as a FUSE tree
pub(crate) async fn all(scratch: &Path, content: &Content) -> anyhow::Result<Vec<Subject>> {
    let layer = scratch.join("layer");
    let index = Arc::new(pack(&content.directory, &layer)?);
    let mut subjects = vec![overlay(scratch, "local", &content.directory, None)?, small_folios(scratch, content)?];
    for (name, backend, complete) in
        [("erofs", Backend::Erofs, false), ("erofs_complete", Backend::Erofs, true), ("fuse", Backend::Fuse, false)]
    {
        let mounts = LazyMounts::start(&scratch.join(name).join("root"), Options { backend, ..Options::default() })?;
        let source = Arc::new(LocalLayer(File::open(&layer)?));
        let lazy = mounts.add(Arc::clone(&index), source).await?;
        let at = scratch.join(name).join("layer");
        fs::create_dir_all(&at)?;
        if complete {
            lazy.complete_all().await?;
        } else {
            // Its spans are here, but nobody has proven it.
            let spans = index.spans().iter().map(|span| span.output.clone());
            for span in spans {
                lazy.read(span).await?;
            }
        }
        mounts.mount(&index.layer(), &at, &[])?;
        subjects.push(overlay(scratch, name, &at, Some((mounts, at.clone())))?);
    }
    Ok(subjects)
}

fn overlay(
    scratch: &Path,
    name: &'static str,
    lower: &Path,
    mounts: Option<(Arc<LazyMounts>, PathBuf)>,
) -> anyhow::Result<Subject> {
    let directory = scratch.join(name);
    let [root, upper, work] = ["merged", "upper", "work"].map(|part| directory.join(part));
    for part in [&root, &upper, &work] {
        fs::create_dir_all(part)?;
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount("overlay", &root, "overlay", MountFlags::empty(), CString::new(options)?.as_c_str())
        .context("mount overlayfs")?;
    Ok(Subject { name, root, lower: None, mounts })
}

fn small_folios(scratch: &Path, content: &Content) -> anyhow::Result<Subject> {
    let (name, directory) = ("local_small_folios", scratch.join("local_small_folios"));
    let (image, at) = (directory.join("image"), directory.join("files"));
    fs::create_dir_all(&at)?;
    File::create(&image)?.set_len(IMAGE_BYTES)?;
    let run = |command: &mut Command| {
        let status = command.status().with_context(|| format!("{command:?}"))?;
        anyhow::ensure!(status.success(), "{command:?}: {status}");
        Ok(())
    };
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
    run(Command::new("mount").args(["-o", "loop,data=journal"]).args([&image, &at]))?;
    let copied = run(Command::new("cp").arg("-a").arg(content.directory.join(".")).arg(&at));
    let subject =
        copied.and_then(|()| overlay(scratch, name, &at, None)).inspect_err(|_| drop(mountpoint::detach(&at)))?;
    Ok(Subject { lower: Some(at), ..subject })
}

/// Makes the layer of a directory, and its index.
fn pack(directory: &Path, layer: &Path) -> anyhow::Result<Index> {
    let mut tar =
        Command::new("tar").arg("-C").arg(directory).args(["-cf", "-", "."]).stdout(Stdio::piped()).spawn()?;
    let tar_output = tar.stdout.take().context("tar has no output")?;
    let status = Command::new("gzip").arg("-4").stdin(tar_output).stdout(File::create(layer)?).status()?;
    anyhow::ensure!(status.success() && tar.wait()?.success(), "tar or gzip failed");
    let bytes = fs::read(layer)?;
    let mut builder = IndexBuilder::new(Digest::of(&bytes), bytes.len() as u64);
    for portion in bytes.chunks(256 << 10) {
        builder.push(portion)?;
    }
    Ok(builder.finish()?)
}

/// The layer in a file of this machine.
struct LocalLayer(File);

impl LayerSource for LocalLayer {
    fn read(&self, range: Range<u64>, _urgency: Urgency) -> BoxFuture<'_, Result<Bytes, SourceError>> {
        async move {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.0.read_exact_at(&mut bytes, range.start).map_err(|error| SourceError(error.to_string()))?;
            Ok(bytes.into())
        }
        .boxed()
    }
}
