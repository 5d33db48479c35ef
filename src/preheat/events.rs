//! What registries tell of pushes, taken apart.
//!
//! * Distribution, and what speaks as it does: envelopes of events ("Notifications" of the distribution documentation). It tells of each blob
//!   as it is pushed, and of the manifest at the end.
//! * Harbor: `PUSH_ARTIFACT` in its own form ("Configure Webhook Notifications" of its documentation), or as a CloudEvent
//!   (`harbor.artifact.pushed`). It tells of whole artifacts only.
//!
//! Which registry it is, the operator says in the webhook's path: the hosts and URLs that events carry are those of whoever pushed, and are not
//! looked at. Nor are lengths: the registry is asked.

use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{Reference, RegistryName, RepositoryName};
use serde::Deserialize;

use super::jobs::{BlobWant, Pushed};
use super::limits::MAX_EVENTS;
use super::name::ImageName;

const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Whose words it is told in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Distribution,
    Harbor,
}

#[derive(Deserialize)]
struct Envelope {
    events: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct DistributionEvent {
    action: String,
    #[serde(default)]
    target: Target,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Target {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
    repository: String,
}

#[derive(Deserialize)]
struct HarborEvent {
    #[serde(rename = "type")]
    kind: String,
    #[serde(alias = "data")]
    event_data: HarborPush,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HarborPush {
    resources: Vec<HarborResource>,
    repository: HarborRepository,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HarborResource {
    digest: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HarborRepository {
    repo_full_name: String,
}

/// What was pushed to `registry`, in the order in which it is told. What is told of other things, or makes no sense by itself, is left out; an
/// error where the whole makes no sense.
pub(super) fn read(dialect: Dialect, registry: &RegistryName, body: &[u8]) -> Result<Vec<Pushed>, String> {
    let pushed = match dialect {
        Dialect::Distribution => {
            let envelope: Envelope = serde_json::from_slice(body).map_err(|error| error.to_string())?;
            if envelope.events.len() > MAX_EVENTS {
                return Err(format!("more than {MAX_EVENTS} events"));
            }
            let events = envelope.events.into_iter().filter_map(|event| serde_json::from_value(event).ok());
            events.filter_map(|event| of_distribution(registry, &event)).collect()
        }
        Dialect::Harbor => {
            let event: HarborEvent = serde_json::from_slice(body).map_err(|error| error.to_string())?;
            if event.event_data.resources.len() > MAX_EVENTS {
                return Err(format!("more than {MAX_EVENTS} resources"));
            }
            of_harbor(registry, &event)
        }
    };
    Ok(pushed)
}

fn of_distribution(registry: &RegistryName, event: &DistributionEvent) -> Option<Pushed> {
    // A blob that another repository has is mounted instead of pushed.
    if !matches!(event.action.as_str(), "push" | "mount") {
        return None;
    }
    let Target { media_type, digest, repository } = &event.target;
    let (digest, repo): (Digest, RepositoryName) = (digest.parse().ok()?, repository.parse().ok()?);
    let registry = registry.clone();
    if MANIFESTS.contains(&media_type.as_str()) {
        return Some(Pushed::Image(ImageName { registry, repo, reference: Reference::Digest(digest) }));
    }
    Some(Pushed::Blob(BlobWant { registry, repo, digest, length: None, is_layer: None }))
}

fn of_harbor(registry: &RegistryName, event: &HarborEvent) -> Vec<Pushed> {
    let HarborEvent { kind, event_data: HarborPush { resources, repository } } = event;
    let Ok(repo) = repository.repo_full_name.parse::<RepositoryName>() else { return Vec::new() };
    if !matches!(kind.as_str(), "PUSH_ARTIFACT" | "harbor.artifact.pushed") {
        return Vec::new();
    }
    let image =
        |digest| ImageName { registry: registry.clone(), repo: repo.clone(), reference: Reference::Digest(digest) };
    resources
        .iter()
        .filter_map(|resource| resource.digest.parse().ok())
        .map(|digest| Pushed::Image(image(digest)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn registry() -> RegistryName {
        "reg.example:5000".parse().unwrap()
    }

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn image(name: &str, repo: &str) -> Pushed {
        let reference = Reference::Digest(digest(name));
        Pushed::Image(ImageName { registry: registry(), repo: repo.parse().unwrap(), reference })
    }

    fn event(action: &str, media_type: &str, name: &str) -> serde_json::Value {
        json!({
            "id": "320678d8-ca14-430f-8bb6-4ca139cd83f7", "timestamp": "2026-01-01T00:00:00Z", "action": action,
            "target": {
                "mediaType": media_type, "size": 708, "length": 708, "digest": digest(name).to_string(), "repository": "team/app",
                "url": "http://169.254.169.254/v2/team/app/blobs/x",
            },
            "request": { "host": "127.0.0.1:5000", "method": "PUT" },
            "source": { "addr": "registry:5000" },
        })
    }

    fn told(dialect: Dialect, body: &serde_json::Value) -> Result<Vec<Pushed>, String> {
        read(dialect, &registry(), &serde_json::to_vec(body).unwrap())
    }

    /// The shape is that of distribution's `notifications/event.go`, 2.8 and 3.0.
    #[test]
    fn distribution_tells_of_blobs_and_then_of_the_manifest() {
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let mut nonsense = event("push", manifest, "m");
        nonsense["target"]["digest"] = json!("sha512:00");
        let mut traversal = event("push", manifest, "m");
        traversal["target"]["repository"] = json!("../../etc");
        let envelope = json!({ "events": [
            event("push", "application/octet-stream", "layer"),
            event("mount", "application/octet-stream", "mounted"),
            event("pull", "application/octet-stream", "pulled"),
            nonsense, traversal, json!(7), json!({ "action": "delete", "target": { "digest": digest("x").to_string() } }),
            event("push", manifest, "manifest"),
        ]});
        let blob = |name: &str| {
            let (registry, repo) = (registry(), "team/app".parse().unwrap());
            Pushed::Blob(BlobWant { registry, repo, digest: digest(name), length: None, is_layer: None })
        };
        let expected = vec![blob("layer"), blob("mounted"), image("manifest", "team/app")];
        assert_eq!(told(Dialect::Distribution, &envelope), Ok(expected));
        for bad in [json!({}), json!([]), json!({ "events": vec![0; MAX_EVENTS + 1] })] {
            assert!(told(Dialect::Distribution, &bad).is_err());
        }
    }

    /// The payloads are those of Harbor's documentation.
    #[test]
    fn harbor_tells_of_artifacts() {
        let data = json!({
            "resources": [{
                "digest": digest("artifact").to_string(), "tag": "latest", "resource_url": "hub.harbor.example/test/debian:latest",
            }],
            "repository": {
                "date_created": 1_586_922_308, "name": "debian", "namespace": "test", "repo_full_name": "test/debian", "repo_type": "private",
            },
        });
        let own =
            |kind: &str| json!({ "type": kind, "occur_at": 1_586_922_308, "operator": "admin", "event_data": data });
        let cloud =
            json!({ "specversion": "1.0", "type": "harbor.artifact.pushed", "data": data, "operator": "admin" });
        let expected = Ok(vec![image("artifact", "test/debian")]);
        assert_eq!(told(Dialect::Harbor, &own("PUSH_ARTIFACT")), expected);
        assert_eq!(told(Dialect::Harbor, &cloud), expected);
        assert_eq!(told(Dialect::Harbor, &own("PULL_ARTIFACT")), Ok(Vec::new()));
        assert!(told(Dialect::Harbor, &json!({ "type": "PUSH_ARTIFACT" })).is_err());
    }
}
