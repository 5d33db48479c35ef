//! SOCI: tables of contents beside an image, by its own library; what is around them follows its description.

use super::Registry;
use crate::image::{self, Blob, Layout};
use crate::process::check;
use crate::tools::soci_ztoc;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
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
        let push = |bytes: &[u8]| {
            let Blob { digest, size } = describe(bytes);
            self.push_blob(repository, &digest, size, bytes)?;
            anyhow::Ok(json!({ "mediaType": "application/octet-stream", "digest": digest, "size": size }))
        };
        let output = self.host().dir().join("ztoc");
        let mut ztocs = Vec::new();
        for layer in &image.layers {
            check(Command::new(soci_ztoc()?).args(["gzip", SPAN]).arg(image.blob_path(layer)).arg(&output))?;
            let mut ztoc = push(&std::fs::read(&output).context("no zTOC was written")?)?;
            ztoc["annotations"] = json!({
                "com.amazon.soci.image-layer-digest": layer.digest,
                "com.amazon.soci.image-layer-mediaType": image::LAYER,
            });
            ztocs.push(ztoc);
        }
        let mut config = push(b"{}")?;
        config["mediaType"] = format!("application/vnd.amazon.soci.index.v{version}+json").into();
        let mut index = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": ztocs });
        match version {
            1 => {
                let Blob { digest, size } = &image.manifest;
                index["subject"] = json!({ "mediaType": MANIFEST, "digest": digest, "size": size });
            }
            version => ensure!(version == 2, "SOCI has no index of version {version}"),
        }
        let bytes = serde_json::to_vec(&index)?;
        let blob = describe(&bytes);
        self.push_manifest(repository, &blob.digest, MANIFEST, &bytes)?;
        Ok(blob)
    }
}

fn describe(bytes: &[u8]) -> Blob {
    let digest = format!("sha256:{}", image::hex(&Sha256::digest(bytes)));
    Blob { digest, size: bytes.len() as u64 }
}
