//! `lapwing index`: the index of a layer that lies in a file, built, looked at, held against the layer. Needs no daemon.

use std::fs::File;
use std::io::{Read as _, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets};
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::{Compression, Index, IndexBuilder};
use lapwing_snapshotter::lazy::replace_file;
use lapwing_snapshotter::limits::MAX_INDEX_BYTES;
use lapwing_snapshotter::tree::{Entry, Kind};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::cli::{self, IndexBuild, IndexShow, IndexVerify};

const PORTION: usize = 1 << 20;

pub(crate) fn run(command: &cli::Index) -> anyhow::Result<ExitCode> {
    match command {
        cli::Index::Build(arguments) => build(arguments),
        cli::Index::Show(arguments) => show(arguments),
        cli::Index::Verify(arguments) => verify(arguments),
    }
}

/// What is said of an index.
#[derive(Debug, Serialize)]
struct Summary {
    index: String,
    index_bytes: usize,
    layer: String,
    layer_bytes: u64,
    compression: &'static str,
    diff_id: String,
    tar_bytes: u64,
    spans: usize,
    longest_span_bytes: u64,
    entries: usize,
    /// Why no snapshot can be made of it, though it is an index.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_mountable: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<Listed>,
}

#[derive(Debug, Serialize)]
struct Listed {
    path: String,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

fn build(arguments: &IndexBuild) -> anyhow::Result<ExitCode> {
    let index = index_of(&arguments.layer)?;
    let encoded = index.encode();
    let out = arguments.output.clone().unwrap_or_else(|| {
        let mut name = arguments.layer.clone().into_os_string();
        name.push(".index");
        name.into()
    });
    replace_file(&out, &encoded).with_context(|| format!("{} cannot be written", out.display()))?;
    eprintln!("{}", out.display());
    print(&summary(&index, &encoded, false), arguments.json)
}

fn show(arguments: &IndexShow) -> anyhow::Result<ExitCode> {
    let (index, encoded) = read(&arguments.index)?;
    print(&summary(&index, &encoded, arguments.files), arguments.json)
}

fn verify(arguments: &IndexVerify) -> anyhow::Result<ExitCode> {
    let (claimed, encoded) = read(&arguments.index)?;
    let built = index_of(&arguments.layer)?;
    if claimed.layer() != built.layer() {
        anyhow::bail!(
            "{} is the index of {}, and {} is {}",
            arguments.index.display(),
            claimed.layer(),
            arguments.layer.display(),
            built.layer()
        );
    }
    let differences = differences(&claimed, &built, built.encode() == encoded);
    let mut out = std::io::stdout().lock();
    for difference in &differences {
        writeln!(out, "{difference}")?;
    }
    if differences.is_empty() {
        writeln!(out, "{} says of {} what is in it", arguments.index.display(), claimed.layer())?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

/// In what an index differs from the one that was just built of the same layer.
fn differences(claimed: &Index, built: &Index, same_bytes: bool) -> Vec<String> {
    let mut differences = Vec::new();
    if claimed.diff_id() != built.diff_id() {
        differences.push(format!("diffID: {} in the index, {} in the layer", claimed.diff_id(), built.diff_id()));
    }
    let spans = claimed.spans().iter().zip(built.spans()).position(|(claimed, built)| claimed != built);
    let spans = spans.or_else(|| {
        let (claimed, built) = (claimed.spans().len(), built.spans().len());
        (claimed != built).then(|| claimed.min(built))
    });
    differences.extend(spans.map(|span| format!("span {span} is not the one that the layer gives")));
    let entries = claimed.entries().iter().zip(built.entries()).find(|(claimed, built)| claimed != built);
    differences
        .extend(entries.map(|(claimed, built)| format!("entry {claimed:?} in the index, {built:?} in the layer")));
    if claimed.entries().len() != built.entries().len() {
        differences.push(format!(
            "{} entries in the index, {} in the layer",
            claimed.entries().len(),
            built.entries().len()
        ));
    }
    if differences.is_empty() && !same_bytes {
        differences.push("the index is encoded otherwise than this version of Lapwing encodes it".to_owned());
    }
    differences
}

/// Reads a layer twice: once for its name, once for its index.
fn index_of(layer: &Path) -> anyhow::Result<Index> {
    let mut hasher = Sha256::new();
    let length = portions(layer, |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    let mut builder = IndexBuilder::new(Digest::from_bytes(hasher.finalize().into()), length);
    portions(layer, |bytes| Ok(builder.push(bytes)?))?;
    builder.finish().with_context(|| format!("{} has no index: it can only be pulled whole", layer.display()))
}

fn portions(path: &Path, mut each: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let failed = || format!("{} cannot be read", path.display());
    let mut file = File::open(path).with_context(failed)?;
    let (mut buffer, mut total) = (vec![0; PORTION], 0);
    loop {
        let length = file.read(&mut buffer).with_context(failed)?;
        if length == 0 {
            return Ok(total);
        }
        total += length as u64;
        each(&buffer[..length]).with_context(|| path.display().to_string())?;
    }
}

fn read(path: &Path) -> anyhow::Result<(Index, Vec<u8>)> {
    let failed = || format!("{} cannot be read", path.display());
    let mut encoded = Vec::new();
    let file = File::open(path).with_context(failed)?;
    file.take(MAX_INDEX_BYTES as u64 + 1).read_to_end(&mut encoded).with_context(failed)?;
    let index = Index::decode(&encoded).with_context(|| format!("{} is no index", path.display()))?;
    Ok((index, encoded))
}

fn summary(index: &Index, encoded: &[u8], with_files: bool) -> Summary {
    let image =
        lapwing_snapshotter::erofs::write_image(index.entries(), index.tar_length(), index.layer().as_bytes(), &|_| {
            None
        });
    Summary {
        index: Digest::of(encoded).to_string(),
        index_bytes: encoded.len(),
        layer: index.layer().to_string(),
        layer_bytes: index.layer_length(),
        compression: match index.compression() {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        },
        diff_id: index.diff_id().to_string(),
        tar_bytes: index.tar_length(),
        spans: index.spans().len(),
        longest_span_bytes: index.spans().iter().map(|span| span.output.end - span.output.start).max().unwrap_or(0),
        entries: index.entries().len(),
        not_mountable: image.err().map(|error| error.to_string()),
        files: if with_files { index.entries().iter().map(listed).collect() } else { Vec::new() },
    }
}

fn listed(entry: &Entry) -> Listed {
    let (kind, size, target) = match &entry.kind {
        Kind::File { size, .. } => ("file", *size, None),
        Kind::Directory => ("directory", 0, None),
        Kind::Symlink(target) => ("symlink", 0, Some(target)),
        Kind::Hardlink(target) => ("hardlink", 0, Some(target)),
        Kind::CharDevice { .. } => ("char device", 0, None),
        Kind::BlockDevice { .. } => ("block device", 0, None),
        Kind::Fifo => ("fifo", 0, None),
    };
    Listed {
        // What is not UTF-8 is shown with replacement characters, what a terminal would obey escaped.
        path: shown(&entry.path),
        kind,
        mode: format!("{:04o}", entry.mode),
        uid: entry.uid,
        gid: entry.gid,
        size,
        mtime: entry.mtime,
        target: target.map(|target| shown(target)),
    }
}

fn shown(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    name.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

fn print(summary: &Summary, json: bool) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, summary)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let share = summary.index_bytes as f64 * 100.0 / summary.layer_bytes.max(1) as f64;
    writeln!(out, "index    {} ({} bytes, {share:.2} % of the layer)", summary.index, summary.index_bytes)?;
    writeln!(out, "layer    {} ({} bytes, compression {})", summary.layer, summary.layer_bytes, summary.compression)?;
    writeln!(out, "diffID   {} ({} bytes)", summary.diff_id, summary.tar_bytes)?;
    writeln!(out, "spans    {}, the longest of {} bytes", summary.spans, summary.longest_span_bytes)?;
    writeln!(out, "entries  {}", summary.entries)?;
    if let Some(reason) = &summary.not_mountable {
        writeln!(out, "It cannot be mounted: {reason}")?;
    }
    if !summary.files.is_empty() {
        writeln!(out, "\n{}", files(&summary.files))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn files(files: &[Listed]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["KIND", "MODE", "OWNER", "SIZE", "PATH"]);
    for file in files {
        let path = match &file.target {
            Some(target) => format!("{} -> {target}", file.path),
            None => file.path.clone(),
        };
        let owner = format!("{}:{}", file.uid, file.gid);
        table.add_row([file.kind.to_owned(), file.mode.clone(), owner, file.size.to_string(), path]);
    }
    table
}
