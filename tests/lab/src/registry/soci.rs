//! SOCI: tables of contents beside an image, by its own library; what is around them follows its description.

use super::Registry;
use crate::image::{self, Blob, Layout};
use crate::process::check;
use crate::tools::soci_ztoc;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::process::Command;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Bytes of a layer's tar between two places at which decompression can begin: what `soci create` takes.
const SPAN: &str = "4194304";

impl Registry {
    /// Pushes an image with its SOCI index, as `soci convert` makes it (index version 2), and gives the full reference.
    pub fn push_with_soci(&self, image: &Layout, repository: &str, tag: &str) -> Result<String> {
        self.push(image, repository)?;
        let index = self.push_soci_index(image, repository, 2)?;
        let mut manifest: Value = serde_json::from_slice(&std::fs::read(image.blob_path(&image.manifest))?)?;
        manifest["annotations"] = json!({ "com.amazon.soci.index-digest": index.digest });
        self.push_manifest(repository, tag, MANIFEST, &serde_json::to_vec(&manifest)?)?;
        Ok(format!("{}/{repository}:{tag}", self.name()))
    }

    /// Pushes a SOCI index of this version for the layers of an image that is in the repository.
    pub fn push_soci_index(&self, image: &Layout, repository: &str, version: u8) -> Result<Blob> {
        let push = |media_type: String, bytes: &[u8]| {
            let Blob { digest, size } = describe(bytes);
            self.push_blob(repository, &digest, size, bytes)?;
            anyhow::Ok(Descriptor { media_type, digest, size, annotations: BTreeMap::new() })
        };
        let output = self.host().dir().join("ztoc");
        let mut layers = Vec::new();
        for layer in &image.layers {
            check(Command::new(soci_ztoc()?).args(["gzip", SPAN]).arg(image.blob_path(layer)).arg(&output))?;
            let ztoc = std::fs::read(&output).context("no zTOC was written")?;
            let mut ztoc = push("application/octet-stream".to_owned(), &ztoc)?;
            ztoc.annotations.insert("com.amazon.soci.image-layer-digest", layer.digest.clone());
            ztoc.annotations.insert("com.amazon.soci.image-layer-mediaType", image::LAYER.to_owned());
            layers.push(ztoc);
        }
        let config = push(format!("application/vnd.amazon.soci.index.v{version}+json"), b"{}")?;
        let subject = match version {
            1 => {
                let Blob { digest, size } = image.manifest.clone();
                Some(Descriptor { media_type: MANIFEST.to_owned(), digest, size, annotations: BTreeMap::new() })
            }
            version => {
                ensure!(version == 2, "SOCI has no index of version {version}");
                None
            }
        };
        let index = Index { schema_version: 2, media_type: MANIFEST, config, layers, subject };
        let bytes = serde_json::to_vec(&index)?;
        let blob = describe(&bytes);
        self.push_manifest(repository, &blob.digest, MANIFEST, &bytes)?;
        Ok(blob)
    }
}

/// A manifest whose fields stand as soci-snapshotter writes them: it writes what it has fetched once more, and compares digests.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

fn describe(bytes: &[u8]) -> Blob {
    let digest = format!("sha256:{}", image::hex(&Sha256::digest(bytes)));
    Blob { digest, size: bytes.len() as u64 }
}
