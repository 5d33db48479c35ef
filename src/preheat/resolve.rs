//! From the name of an image to its blobs, as the registry describes it to this machine.

use axum::http::HeaderValue;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::limits::MAX_BLOB_LENGTH;
use lapwing_plugins::registry::{Credential, ForwardMethod, ForwardRequest, Reference, Registries, Resource};
use oci_spec::image::Descriptor;
use serde::Deserialize;

use super::jobs::BlobWant;
use super::limits::{MAX_BLOBS, MAX_MANIFESTS};
use super::name::ImageName;
use crate::catalog::is_layer;
use crate::platform::{self, is_for};

const ACCEPT: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// What a manifest or index says (OCI image specification 1.1; docker's schema 2 has the same shape).
#[derive(Debug, PartialEq, Eq)]
enum Described {
    Index(Vec<Digest>),
    Image(Vec<Part>),
}

#[derive(Debug, PartialEq, Eq)]
struct Part {
    digest: Digest,
    length: u64,
    is_layer: bool,
}

/// The blobs of an image for these platforms (`os/architecture[/variant]`, or `all`; none: this machine's), each once. Asks with the
/// credentials that this machine is configured with.
pub(crate) async fn resolve(
    registries: &Registries,
    name: &ImageName,
    platforms: &[String],
) -> Result<Vec<BlobWant>, String> {
    let mut waiting = vec![name.reference.clone()];
    let mut parts: Vec<Part> = Vec::new();
    let mut read = 0;
    while let Some(reference) = waiting.pop() {
        read += 1;
        if read > MAX_MANIFESTS {
            return Err(format!("{name} has more than {MAX_MANIFESTS} manifests; choose platforms"));
        }
        match describe(&manifest(registries, name, reference).await?, platforms, read == 1)? {
            Described::Index(children) if children.is_empty() => {
                let own = [platform::own()];
                let wanted = if platforms.is_empty() { &own[..] } else { platforms };
                return Err(format!("{name} has no manifest for {}", wanted.join(", ")));
            }
            Described::Index(children) => waiting.extend(children.into_iter().map(Reference::Digest)),
            Described::Image(image) => parts.extend(image),
        }
        if parts.len() > MAX_BLOBS {
            return Err(format!("{name} has more than {MAX_BLOBS} blobs"));
        }
    }
    let want = |part: Part| BlobWant {
        registry: name.registry.clone(),
        repo: name.repo.clone(),
        digest: part.digest,
        length: Some(part.length),
        is_layer: Some(part.is_layer),
    };
    Ok(parts.into_iter().map(want).collect())
}

async fn manifest(registries: &Registries, name: &ImageName, reference: Reference) -> Result<bytes::Bytes, String> {
    let request = ForwardRequest {
        method: ForwardMethod::Get,
        registry: name.registry.clone(),
        repository: name.repo.clone(),
        resource: Resource::Manifest(reference.clone()),
        query: None,
        accept: ACCEPT.map(HeaderValue::from_static).into(),
        credential: Credential::Configured,
    };
    let answer = registries.forward(&request).await.map_err(|error| error.to_string())?;
    let shown = format_args!("{}/{}, {reference}", name.registry, name.repo);
    match answer.status.as_u16() {
        200 => {}
        401 | 403 => {
            return Err(format!(
                "{shown}: the registry does not let this machine have it (HTTP {}); give it credentials under registries.hosts",
                answer.status.as_u16(),
            ));
        }
        404 => return Err(format!("{shown}: the registry does not have it")),
        status => return Err(format!("{shown}: the registry answers HTTP {status}")),
    }
    match reference {
        Reference::Digest(digest) if Digest::of(&answer.body) != digest => {
            Err(format!("{shown}: the registry answers with other content"))
        }
        _ => Ok(answer.body),
    }
}

#[derive(Deserialize)]
struct Shape {
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

/// Reads a manifest, or of an index those manifests that are for the platforms. Within an index there are no further ones.
fn describe(bytes: &[u8], platforms: &[String], is_top: bool) -> Result<Described, String> {
    let shape: Shape = serde_json::from_slice(bytes).map_err(|error| format!("not a manifest: {error}"))?;
    match shape {
        Shape { manifests: Some(children), config: None, layers: None } if is_top => {
            let wanted: Vec<_> = children.iter().filter(|child| is_wanted(child, platforms)).collect();
            let digests = wanted.into_iter().map(digest).collect::<Result<Vec<_>, _>>()?;
            Ok(Described::Index(digests))
        }
        Shape { manifests: None, config: Some(config), layers: Some(layers) } => {
            let config = part(&config, false)?;
            // What is elsewhere, the registry does not have.
            let layers = layers.iter().filter(|layer| layer.urls().is_none());
            let layers = layers.map(|layer| part(layer, is_layer(layer.media_type())));
            Ok(Described::Image(std::iter::once(Ok(config)).chain(layers).collect::<Result<_, _>>()?))
        }
        _ => Err("neither the manifest of an image nor an index of such".to_owned()),
    }
}

fn is_wanted(child: &Descriptor, platforms: &[String]) -> bool {
    if platforms.is_empty() {
        return is_for(child, &platform::own());
    }
    // What builders attach to an image (attestations) is of an unknown platform, and nobody pulls it.
    let is_any = || child.platform().as_ref().is_none_or(|platform| platform.os().to_string() != "unknown");
    platforms.iter().any(|wanted| if wanted == "all" { is_any() } else { is_for(child, wanted) })
}

fn part(descriptor: &Descriptor, is_layer: bool) -> Result<Part, String> {
    let (digest, length) = (digest(descriptor)?, descriptor.size());
    if length > MAX_BLOB_LENGTH {
        return Err(format!("blob {digest} of {length} bytes is longer than the limit of {MAX_BLOB_LENGTH}"));
    }
    Ok(Part { digest, length, is_layer })
}

fn digest(descriptor: &Descriptor) -> Result<Digest, String> {
    descriptor.digest().to_string().parse::<Digest>().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn descriptor(kind: &str, content: &str, platform: Option<&str>) -> serde_json::Value {
        let mut text = json!({ "mediaType": kind, "digest": Digest::of(content.as_bytes()).to_string(), "size": 7 });
        if let Some((os, architecture)) = platform.and_then(|platform| platform.split_once('/')) {
            text["platform"] = json!({ "os": os, "architecture": architecture });
        }
        text
    }

    fn read(document: &serde_json::Value, platforms: &[&str], is_top: bool) -> Result<Described, String> {
        let platforms: Vec<String> = platforms.iter().map(|&platform| platform.to_owned()).collect();
        describe(&serde_json::to_vec(document).unwrap(), &platforms, is_top)
    }

    #[test]
    fn of_an_index_the_platforms_are_chosen() {
        let of = |name: &str| Digest::of(name.as_bytes());
        let child =
            |name: &str, platform| descriptor("application/vnd.oci.image.manifest.v1+json", name, Some(platform));
        let index = json!({ "manifests": [
            child("amd", "linux/amd64"), child("arm", "linux/arm64"), child("win", "windows/amd64"), child("att", "unknown/unknown"),
        ]});
        let chosen = |platforms: &[&str]| match read(&index, platforms, true).unwrap() {
            Described::Index(children) => children,
            Described::Image(_) => panic!("an index"),
        };
        assert_eq!(chosen(&["linux/arm64"]), [of("arm")]);
        assert_eq!(chosen(&["linux/arm64", "linux/amd64"]), [of("amd"), of("arm")]);
        assert_eq!(chosen(&["all"]), [of("amd"), of("arm"), of("win")]);
        assert_eq!(chosen(&["linux/s390x"]), []);
        assert_eq!(chosen(&[]).len(), 1, "this machine's");
        assert!(read(&index, &["all"], false).is_err(), "an index within an index");
    }

    #[test]
    fn a_manifest_gives_config_and_layers() {
        let config = descriptor("application/vnd.oci.image.config.v1+json", "config", None);
        let layer = descriptor(GZIP, "layer", None);
        let mut elsewhere = descriptor(GZIP, "elsewhere", None);
        elsewhere["urls"] = json!(["https://elsewhere.example/x"]);
        let manifest = json!({ "config": config, "layers": [layer, elsewhere] });
        let part = |name: &str, is_layer| Part { digest: Digest::of(name.as_bytes()), length: 7, is_layer };
        assert_eq!(read(&manifest, &[], true), Ok(Described::Image(vec![part("config", false), part("layer", true)])));
        let mut huge = manifest.clone();
        huge["layers"][0]["size"] = json!(1_u64 << 60);
        let mut both = manifest;
        both["manifests"] = json!([]);
        for document in [huge, both, json!({}), json!([]), json!({ "schemaVersion": 1, "fsLayers": [] })] {
            assert!(read(&document, &["all"], true).is_err(), "{document}");
        }
    }
}
