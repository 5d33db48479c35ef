//! `oci://REGISTRY/REPOSITORY:TAG`: an image into a directory in the form of the OCI image layout (image spec 1.1, "Image Layout
//! Specification").
//!
//! Blobs are written below `blobs/sha256/` as they come, each held against its digest, and `index.json` last: a layout that names an image has
//! all of it. What is there already is not fetched again, so an interrupted run is gone on with by the same command.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::http::HeaderMap;
use bytes::Bytes;
use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{Reference, RegistryName, RepositoryName};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde_json::{Value, json};

use super::limits::MAX_IMAGE_BLOBS;
use super::outcome::{Failed, Fault};
use super::place::{Place, Repository, Speech};
use super::ways::Ways;
use crate::platform;

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What follows `oci://`.
#[derive(Debug, Clone)]
pub(super) struct Name {
    pub registry: RegistryName,
    pub repository: RepositoryName,
    pub reference: Reference,
}

impl Name {
    pub(super) fn parse(rest: &str) -> Result<Self, Failed> {
        let usage = |reason: &dyn std::fmt::Display| {
            Failed::new(Fault::Usage, format!("oci://{rest}: {reason}; the form is oci://REGISTRY/REPOSITORY:TAG"))
        };
        let (registry, path) = rest.split_once('/').ok_or_else(|| usage(&"there is no repository"))?;
        let (path, digest) = path.split_once('@').map_or((path, None), |(path, digest)| (path, Some(digest)));
        let (path, tag) = path.split_once(':').map_or((path, None), |(path, tag)| (path, Some(tag)));
        Ok(Self {
            registry: registry.parse().map_err(|error| usage(&error))?,
            repository: path.parse().map_err(|error| usage(&error))?,
            reference: digest.or(tag).unwrap_or("latest").parse().map_err(|error| usage(&error))?,
        })
    }

    /// Where it goes if nothing else is said.
    pub(super) fn directory(&self) -> PathBuf {
        PathBuf::from(self.repository.as_str().rsplit('/').next().unwrap_or_default())
    }

    /// As images are named.
    pub(super) fn full(&self) -> String {
        let mark = if matches!(self.reference, Reference::Digest(_)) { '@' } else { ':' };
        format!("{}/{}{mark}{}", self.registry, self.repository, self.reference)
    }
}

/// What an image consists of.
pub(super) struct Image {
    of: Arc<Repository>,
    /// Blobs still to be fetched, each once.
    pub blobs: Vec<(Place, Digest, PathBuf)>,
    directory: PathBuf,
    top: Value,
}

/// Asks for the manifests and writes them; `wanted_platform`: `os/architecture[/variant]`, or `all`.
pub(super) async fn open(
    ways: &Ways,
    name: &Name,
    wanted_platform: Option<&str>,
    directory: &Path,
    speech: &Speech<'_>,
) -> Result<Image, Failed> {
    let of = Arc::new(Repository::new(name.registry.clone(), name.repository.clone(), speech)?);
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(|error| Failed::file(&blobs, error))?;
    let mut image = Image { of, blobs: Vec::new(), directory: directory.to_owned(), top: Value::Null };
    let top = image.manifest(ways, &name.reference, speech.headers).await?;
    let digest = Digest::of(&top);
    let document: Value = serde_json::from_slice(&top).map_err(|error| malformed(&digest, error))?;
    let (mut descriptor, mut manifests) = (described(&document, &digest, top.len()), Vec::new());
    if document.get("manifests").is_some() {
        let index: ImageIndex = serde_json::from_slice(&top).map_err(|error| malformed(&digest, error))?;
        let wanted = index.manifests().iter().filter(|child| is_wanted(child, wanted_platform));
        let wanted: Vec<&Descriptor> = wanted.take(MAX_IMAGE_BLOBS).collect();
        let all = wanted_platform == Some("all");
        let shown = wanted_platform.map_or_else(platform::own, str::to_owned);
        let first = wanted.first().ok_or_else(|| {
            let reason = format!("{}: there is none for {shown}; choose with --platform", name.full());
            Failed::new(Fault::Status, reason)
        })?;
        for child in if all { &wanted[..] } else { &wanted[..1] } {
            let reference = child.digest().to_string().parse::<Digest>().map_err(|error| malformed(&digest, error))?;
            manifests.push(image.manifest(ways, &Reference::Digest(reference), speech.headers).await?);
        }
        if all {
            image.keep(&top)?;
        } else {
            descriptor = serde_json::to_value(first).map_err(|error| malformed(&digest, error))?;
        }
    } else {
        manifests.push(top);
    }
    let mut known = HashSet::new();
    for manifest in &manifests {
        image.keep(manifest)?;
        image.list(manifest, &mut known)?;
    }
    descriptor["annotations"][REF_NAME] = match &name.reference {
        Reference::Tag(tag) => json!(tag),
        Reference::Digest(_) => json!(name.full()),
    };
    descriptor["annotations"]["io.containerd.image.name"] = json!(name.full());
    image.top = descriptor;
    Ok(image)
}

impl Image {
    async fn manifest(&self, ways: &Ways, reference: &Reference, headers: &HeaderMap) -> Result<Bytes, Failed> {
        let manifest = ways.manifest(&self.of, reference, headers).await?;
        match reference {
            Reference::Digest(digest) if Digest::of(&manifest) != *digest => Err(Failed::new(
                Fault::Content,
                format!("the manifest {digest} has the digest {}", Digest::of(&manifest)),
            )),
            _ => Ok(manifest),
        }
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs/sha256").join(digest.to_string().trim_start_matches("sha256:"))
    }

    /// Writes a manifest.
    fn keep(&self, manifest: &[u8]) -> Result<(), Failed> {
        write(&self.blob(&Digest::of(manifest)), manifest)
    }

    /// Takes up the blobs of a manifest that are not here.
    fn list(&mut self, manifest: &[u8], known: &mut HashSet<Digest>) -> Result<(), Failed> {
        let own = Digest::of(manifest);
        let parsed: ImageManifest = serde_json::from_slice(manifest).map_err(|error| malformed(&own, error))?;
        for descriptor in std::iter::once(parsed.config()).chain(parsed.layers()) {
            let digest = descriptor.digest().to_string().parse::<Digest>().map_err(|error| malformed(&own, error))?;
            // Layers that may not be distributed have their bytes elsewhere.
            if !known.insert(digest) || descriptor.urls().as_ref().is_some_and(|urls| !urls.is_empty()) {
                continue;
            }
            if known.len() > MAX_IMAGE_BLOBS {
                return Err(malformed(&own, format!("more than {MAX_IMAGE_BLOBS} blobs")));
            }
            let (file, length) = (self.blob(&digest), descriptor.size());
            if !std::fs::metadata(&file).is_ok_and(|metadata| metadata.len() == length) {
                self.blobs.push((Place::Blob { of: Arc::clone(&self.of), digest, length }, digest, file));
            }
        }
        Ok(())
    }

    /// All blobs are here: names the image.
    pub(super) fn finish(&self) -> Result<(), Failed> {
        write(&self.directory.join("oci-layout"), LAYOUT.as_bytes())?;
        let path = self.directory.join("index.json");
        let index = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let former = index.as_ref().and_then(|index| index["manifests"].as_array()).cloned().unwrap_or_default();
        let name = &self.top["annotations"]["io.containerd.image.name"];
        let others = former.into_iter().filter(|other| other["annotations"]["io.containerd.image.name"] != *name);
        let manifests: Vec<Value> = others.chain([self.top.clone()]).collect();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests,
        });
        write(&path, index.to_string().as_bytes())
    }
}

/// By way of another name, so that nobody sees a half.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failed> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".part");
    let written = std::fs::write(&aside, bytes).and_then(|()| std::fs::rename(&aside, path));
    written.map_err(|error| Failed::file(path, error))
}

fn malformed(digest: &Digest, error: impl std::fmt::Display) -> Failed {
    Failed::new(Fault::Protocol, format!("the manifest {digest} makes no sense: {error}"))
}

fn described(document: &Value, digest: &Digest, length: usize) -> Value {
    let kind = document["mediaType"].as_str().unwrap_or(if document.get("manifests").is_some() {
        "application/vnd.oci.image.index.v1+json"
    } else {
        "application/vnd.oci.image.manifest.v1+json"
    });
    json!({ "mediaType": kind, "digest": digest.to_string(), "size": length })
}

fn is_wanted(child: &Descriptor, wanted: Option<&str>) -> bool {
    match wanted {
        Some("all") => true,
        Some(wanted) => platform::is_for(child, wanted),
        None => platform::is_for(child, &platform::own()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name =
            |text: &str| Name::parse(text).ok().map(|name| (name.full(), name.directory().display().to_string()));
        let digest = Digest::of(b"x");
        let cases = [
            ("reg.example:5000/team/app:1", Some(("reg.example:5000/team/app:1".to_owned(), "app".to_owned()))),
            ("reg.example/app", Some(("reg.example/app:latest".to_owned(), "app".to_owned()))),
            ("reg.example", None),
            ("reg.example/App:1", None),
            ("reg.example/app:", None),
            ("reg.example/../app:1", None),
        ];
        for (text, expected) in cases {
            assert_eq!(name(text), expected, "{text}");
        }
        let by_digest = format!("reg.example/app:1@{digest}");
        assert_eq!(name(&by_digest).unwrap().0, format!("reg.example/app@{digest}"));
    }
}
