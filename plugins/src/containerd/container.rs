//! What containerd's containers are started with.

use serde::Deserialize;

use super::proto::services::containers::v1::GetContainerRequest;
use super::proto::services::containers::v1::containers_client::ContainersClient;
use super::{Containerd, ContainerdError, within};
use crate::limits::{MAX_CONTAINER_SPEC, MAX_CONTAINERD_MESSAGE};
use tonic::Code;

/// What is used of the OCI runtime specification.
#[derive(Deserialize)]
struct Spec {
    process: Option<Process>,
}

#[derive(Deserialize)]
struct Process {
    args: Option<Vec<String>>,
}

impl Containerd {
    /// The arguments of the first process of the container `id`, the program first; none if there is no such container, or none on
    /// that snapshot, or it does not say.
    pub async fn arguments(
        &self,
        namespace: &str,
        id: &str,
        snapshot: &str,
    ) -> Result<Option<Vec<String>>, ContainerdError> {
        let mut client = ContainersClient::new(self.channel.clone()).max_decoding_message_size(MAX_CONTAINERD_MESSAGE);
        let asking = async {
            match client.get(within(namespace, GetContainerRequest { id: id.to_owned() })?).await {
                Ok(answer) => Ok(answer.into_inner().container),
                Err(status) if status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(status),
            }
        };
        let container = self.answer("look up a container", asking).await?;
        let container = container.filter(|container| container.snapshot_key == snapshot);
        Ok(container.and_then(|container| arguments(&container.spec?.value)))
    }
}

/// Those that a runtime specification names.
fn arguments(spec: &[u8]) -> Option<Vec<String>> {
    if spec.len() > MAX_CONTAINER_SPEC {
        return None;
    }
    let spec: Spec = serde_json::from_slice(spec).ok()?;
    spec.process?.args.filter(|arguments| !arguments.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_those_of_the_process() {
        let of = |spec: &str| arguments(spec.as_bytes());
        let spec = r#"{"ociVersion":"1.2.0","process":{"cwd":"/","args":["/bin/sh","-c","true"]},"root":{}}"#;
        assert_eq!(of(spec).unwrap(), ["/bin/sh", "-c", "true"]);
        for nothing in ["", "{}", r#"{"process":{}}"#, r#"{"process":{"args":[]}}"#, r#"{"process":{"args":"x"}}"#] {
            assert_eq!(of(nothing), None, "{nothing}");
        }
        let long = format!("{spec}{}", " ".repeat(MAX_CONTAINER_SPEC));
        assert_eq!(of(&long), None);
    }
}
