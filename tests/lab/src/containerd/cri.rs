//! Pods and containers through CRI, by `crictl`, as kubelet would make them.

use super::Containerd;
use crate::process::check;
use crate::wait::{self, Poll};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

impl Containerd {
    /// Pulls an image through CRI.
    pub fn cri_pull(&self, reference: &str) -> Result<String> {
        check(self.crictl()?.args(["pull", reference]))
    }

    /// Starts a pod sandbox and gives its id.
    pub fn cri_pod(&self, name: &str) -> Result<String> {
        let file = self.pod_file(name)?;
        check(self.crictl()?.arg("runp").arg(file)).map(|id| id.trim().to_owned())
    }

    /// Starts a container in the pod `name` with id `pod`, and gives its id. No `command`: the image's own.
    pub fn cri_container(&self, name: &str, pod: &str, reference: &str, command: &[&str]) -> Result<String> {
        let mut config = json!({
            "metadata": {"name": "main", "attempt": 0},
            "image": {"image": reference},
            "log_path": "main.log",
            "linux": {},
        });
        if !command.is_empty() {
            config["command"] = json!(command);
        }
        let file = self.host.dir().join(format!("container-{name}.json"));
        std::fs::write(&file, serde_json::to_vec(&config)?)?;
        let id = check(self.crictl()?.args(["create", pod]).arg(file).arg(self.pod_file(name)?))?.trim().to_owned();
        check(self.crictl()?.args(["start", &id]))?;
        Ok(id)
    }

    /// Waits for the end of a container and gives its output; an exit code other than 0 is an error.
    pub fn cri_output(&self, container: &str, deadline: Duration) -> Result<String> {
        let code = wait::until("a container to end", deadline, || {
            let text = check(self.crictl()?.args(["inspect", container]))?;
            let state: Value = serde_json::from_str(&text)?;
            let status = &state["status"];
            Ok(match status["state"].as_str() {
                Some("CONTAINER_EXITED") => Poll::Ready(status["exitCode"].as_i64().context("no exit code")?),
                other => Poll::NotYet(format!("its state is {other:?}")),
            })
        })?;
        let output = check(self.crictl()?.args(["logs", container]))?;
        if code != 0 {
            bail!("the container ended with {code}: {output}");
        }
        Ok(output)
    }

    /// Stops and removes a pod with its containers.
    pub fn cri_remove_pod(&self, pod: &str) -> Result<()> {
        check(self.crictl()?.args(["rmp", "--force", pod])).map(drop)
    }

    fn pod_file(&self, name: &str) -> Result<PathBuf> {
        let dir = self.host.dir();
        let logs = dir.join("pods").join(name);
        std::fs::create_dir_all(&logs)?;
        let config = json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "attempt": 0},
            "log_directory": logs,
            "linux": {},
        });
        let file = dir.join(format!("pod-{name}.json"));
        std::fs::write(&file, serde_json::to_vec(&config)?)?;
        Ok(file)
    }
}
