//! The node's own credentials: where they are looked for, in which order.
//!
//! 1. `username` and `password_file` of the registry's entry
//! 2. its `docker_config`, then that of all registries ([`docker`])
//! 3. kubelet's credential providers ([`kubelet`])
//!
//! The first that has one for the repository counts; without any the node is anonymous. Files are read at each use, so that
//! rotated credentials are taken up; what a program said is kept as long as it says, and asked for again when it is refused.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::config::{KubeletConfig, RegistriesConfig, RegistryConfig};
use super::credential::Secret;
use crate::limits::MAX_CREDENTIAL_FILE;

mod docker;
mod kubelet;
mod pattern;
mod program;

/// See the module's documentation.
pub(crate) struct Keychain {
    docker_config: Option<std::path::PathBuf>,
    kubelet: KubeletConfig,
    answers: kubelet::Answers,
}

/// Credentials named in the configuration that cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot get the credentials of {registry}: {reason}")]
pub(crate) struct NoCredentials {
    registry: String,
    reason: String,
}

impl Keychain {
    pub(crate) fn new(config: &RegistriesConfig) -> Self {
        let docker_config = config.docker_config.clone();
        let docker_config = (!docker_config.as_os_str().is_empty()).then_some(docker_config);
        Self { docker_config, kubelet: config.kubelet.clone(), answers: kubelet::Answers::new() }
    }

    /// The node's own secret for a repository.
    pub(crate) async fn secret(
        &self,
        registry: &str,
        config: &RegistryConfig,
        repository: &str,
    ) -> Result<Secret, NoCredentials> {
        let found = self.find(registry, config, repository).await;
        found.map_err(|reason| NoCredentials { registry: registry.to_owned(), reason })
    }

    async fn find(&self, registry: &str, config: &RegistryConfig, repository: &str) -> Result<Secret, String> {
        if let (Some(username), Some(path)) = (&config.username, &config.password_file) {
            return password(username, path);
        }
        for path in config.docker_config.iter().chain(&self.docker_config) {
            if let Some(secret) = docker::secret(path, registry, repository).await? {
                return Ok(secret);
            }
        }
        let KubeletConfig { config, bin_dir } = &self.kubelet;
        if !config.as_os_str().is_empty()
            && let Some(secret) = self.answers.secret(config, bin_dir, registry, repository).await?
        {
            return Ok(secret);
        }
        Ok(Secret::None)
    }

    /// A secret was refused: what a program said before is not used again. Whether that leaves something to ask for.
    pub(crate) fn refused(&self, registry: &str, repository: &str) -> bool {
        self.answers.forget(registry, repository)
    }
}

fn password(username: &str, path: &Path) -> Result<Secret, String> {
    let password = read_bounded(path)?;
    let password = password.trim_end_matches(['\n', '\r']).to_owned();
    Ok(Secret::Password { username: username.to_owned(), password })
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_CREDENTIAL_FILE).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}
