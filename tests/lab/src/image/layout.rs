//! OCI image layouts (OCI image specification, "Image Layout Specification"), written and read.

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of a layer compressed by gzip.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The media type of a layer compressed by zstd.
pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const TAG: &str = "latest";
const CREATED: &str = "2024-01-01T00:00:00Z";
const COPY_BYTES: usize = 1 << 20;

/// A blob of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
}

/// An image in a directory.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The directory.
    pub dir: PathBuf,
    /// The image's manifest.
    pub manifest: Blob,
    /// The image's configuration.
    pub config: Blob,
    /// The layers, lowest first, as compressed.
    pub layers: Vec<Blob>,
    /// The digests of the layers' tars.
    pub diff_ids: Vec<String>,
}

/// What the image's configuration says of running it.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig<'a> {
    /// The program and its first arguments.
    pub entrypoint: &'a [&'a str],
    /// Arguments that a run may replace.
    pub cmd: &'a [&'a str],
    /// `NAME=value`.
    pub env: &'a [&'a str],
    /// Where the program starts.
    pub working_dir: &'a str,
}

impl Layout {
    /// Reads the layout in `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json"))?)?;
        let manifest = blob(&index["manifests"][0])?;
        let content: Value = serde_json::from_slice(&std::fs::read(path_in(dir, &manifest.digest))?)?;
        let config = blob(&content["config"])?;
        let layers = content["layers"].as_array().context("no layers")?.iter().map(blob).collect::<Result<Vec<_>>>()?;
        let image: Value = serde_json::from_slice(&std::fs::read(path_in(dir, &config.digest))?)?;
        let ids = image["rootfs"]["diff_ids"].as_array().context("no diff_ids")?;
        let diff_ids = ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect();
        Ok(Self { dir: dir.to_owned(), manifest, config, layers, diff_ids })
    }

    /// What skopeo calls it.
    pub fn oci_reference(&self) -> String {
        format!("oci:{}:{TAG}", self.dir.display())
    }

    /// The file that holds a blob.
    pub fn blob_path(&self, blob: &Blob) -> PathBuf {
        path_in(&self.dir, &blob.digest)
    }

    /// The bytes that a whole pull moves: all layers, the configuration and the manifest.
    pub fn compressed_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum::<u64>() + self.config.size + self.manifest.size
    }
}

fn blob(descriptor: &Value) -> Result<Blob> {
    let digest = descriptor["digest"].as_str().context("a descriptor without digest")?.to_owned();
    Ok(Blob { digest, size: descriptor["size"].as_u64().context("a descriptor without size")? })
}

fn path_in(dir: &Path, digest: &str) -> PathBuf {
    dir.join("blobs").join(digest.replace(':', "/"))
}

/// Writes a layout, layer by layer.
pub struct LayoutWriter {
    dir: PathBuf,
    layers: Vec<Blob>,
    media_types: Vec<&'static str>,
    diff_ids: Vec<String>,
}

impl LayoutWriter {
    /// An empty image in `dir`, which exists.
    pub fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir.join("blobs/sha256"))?;
        Ok(Self { dir: dir.to_owned(), layers: Vec::new(), media_types: Vec::new(), diff_ids: Vec::new() })
    }

    /// Adds the tar that `write` makes as a layer, compressed in this process.
    pub fn layer(&mut self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let part = self.dir.join("layer.part");
        let file = BufWriter::with_capacity(COPY_BYTES, File::create(&part)?);
        let mut tar = Hashing::new(GzEncoder::new(Hashing::new(file), Compression::new(6)));
        write(&mut tar)?;
        let diff_id = tar.digest();
        let mut compressed = tar.inner.finish()?;
        compressed.flush()?;
        self.adopt(&part, &compressed, diff_id)
    }

    /// Adds the tar in `file` as a layer, compressed by `pigz -6`.
    pub fn layer_from_file(&mut self, file: &Path) -> Result<()> {
        let part = self.dir.join("layer.part");
        let mut pigz = Command::new("pigz")
            .args(["-6", "-n", "-c"])
            .arg(file)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start pigz (contrib/setup/packages.sh installs it)")?;
        let mut compressed = Hashing::new(BufWriter::with_capacity(COPY_BYTES, File::create(&part)?));
        copy(&mut pigz.stdout.take().context("pigz without output")?, &mut compressed)?;
        compressed.flush()?;
        anyhow::ensure!(pigz.wait()?.success(), "pigz failed on {}", file.display());
        let mut tar = Hashing::new(io::sink());
        copy(&mut File::open(file)?, &mut tar)?;
        self.adopt(&part, &compressed, tar.digest())
    }

    /// Adds `bytes` as a layer, whatever they are; `tar` is what they are said to decompress to.
    pub fn layer_as_it_is(&mut self, media_type: &'static str, bytes: &[u8], tar: &[u8]) -> Result<()> {
        let layer = self.write_blob(bytes)?;
        self.layers.push(layer);
        self.media_types.push(media_type);
        self.diff_ids.push(format!("sha256:{}", hex(&Sha256::digest(tar))));
        Ok(())
    }

    fn adopt<W: Write>(&mut self, part: &Path, compressed: &Hashing<W>, diff_id: String) -> Result<()> {
        let layer = Blob { digest: compressed.digest(), size: compressed.bytes };
        std::fs::rename(part, path_in(&self.dir, &layer.digest))?;
        self.layers.push(layer);
        self.media_types.push(LAYER);
        self.diff_ids.push(diff_id);
        Ok(())
    }

    /// Writes configuration, manifest and index.
    pub fn finish(self, config: &ImageConfig<'_>) -> Result<Layout> {
        let history: Vec<Value> =
            self.layers.iter().map(|_| json!({"created": CREATED, "created_by": "lapwing-lab"})).collect();
        let image = json!({
            "created": CREATED,
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": config.entrypoint,
                "Cmd": config.cmd,
                "Env": config.env,
                "WorkingDir": config.working_dir,
            },
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
            "history": history,
        });
        let config = self.write_blob(&serde_json::to_vec(&image)?)?;
        let layers: Vec<Value> = self
            .layers
            .iter()
            .zip(&self.media_types)
            .map(|(layer, media_type)| descriptor(media_type, layer))
            .collect();
        let config = descriptor(CONFIG, &config);
        let content = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut entry = descriptor(MANIFEST, &self.write_blob(&serde_json::to_vec(&content)?)?);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": TAG});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        std::fs::write(self.dir.join("index.json"), serde_json::to_vec(&index)?)?;
        std::fs::write(self.dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Layout::open(&self.dir)
    }

    fn write_blob(&self, content: &[u8]) -> Result<Blob> {
        let digest = format!("sha256:{}", hex(&Sha256::digest(content)));
        std::fs::write(path_in(&self.dir, &digest), content)?;
        Ok(Blob { digest, size: content.len() as u64 })
    }
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size})
}

/// The machine's architecture as Go, and so OCI, calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn copy(source: &mut dyn io::Read, sink: &mut dyn Write) -> Result<()> {
    let mut source = BufReader::with_capacity(COPY_BYTES, source);
    io::copy(&mut source, sink).map(drop).context("copying a layer")
}

/// Passes bytes on, and hashes and counts them.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", hex(&self.hash.clone().finalize()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
