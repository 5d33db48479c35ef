//! Where a content is: behind a URL, or in a repository of a registry.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{
    Credential, OthersConfig, Registries, RegistriesConfig, RegistryConfig, RegistryName, RepositoryName,
};
use reqwest::Url;

use super::outcome::{Failed, Fault};

/// One content.
#[derive(Clone)]
pub(super) enum Place {
    Url(Url),
    Blob { of: Arc<Repository>, digest: Digest, length: u64 },
}

impl Place {
    /// For people and records: no query, which may be a signature.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Url(url) => {
                let mut shown = url.clone();
                shown.set_query(None);
                shown.into()
            }
            Self::Blob { of, digest, .. } => format!("{}/{}@{digest}", of.registry, of.repository),
        }
    }
}

/// A repository, and how it is reached without a node.
pub(super) struct Repository {
    pub registry: RegistryName,
    pub repository: RepositoryName,
    pub registries: Arc<Registries>,
    pub credential: Credential,
}

/// How registries are spoken to without a node.
pub(super) struct Speech<'a> {
    pub headers: &'a HeaderMap,
    pub silence: Duration,
    pub ca_file: Option<&'a Path>,
    pub plain_http: bool,
}

impl Repository {
    /// With the user's `Authorization`, or what his docker configuration has for the registry.
    pub(super) fn new(registry: RegistryName, repository: RepositoryName, speech: &Speech<'_>) -> Result<Self, Failed> {
        let host = RegistryConfig {
            plain_http: speech.plain_http,
            ca_file: speech.ca_file.map(Path::to_owned),
            docker_config: docker_config(),
            ..RegistryConfig::default()
        };
        let seconds = speech.silence.as_secs().max(1);
        let config = RegistriesConfig {
            hosts: [(registry.to_string(), host)].into(),
            others: OthersConfig { enabled: true, allow_private: true },
            connect_timeout_seconds: seconds,
            read_timeout_seconds: seconds,
            ..RegistriesConfig::default()
        };
        let registries = Registries::new(config).map_err(|error| Failed::new(Fault::Other, error.to_string()))?;
        let credential = match speech.headers.get(AUTHORIZATION) {
            Some(header) => Credential::Header(header.clone()),
            None => Credential::Configured,
        };
        Ok(Self { registry, repository, registries, credential })
    }
}

/// Where `docker login` writes, if it has.
fn docker_config() -> Option<PathBuf> {
    let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    directory.or_else(home).map(|directory| directory.join("config.json")).filter(|file| file.is_file())
}
