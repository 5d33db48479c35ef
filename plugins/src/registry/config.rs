//! The configuration of registries.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[registries]`: which registries the node talks to, and how.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistriesConfig {
    /// `[registries.hosts."docker.io"]`: registries by the name that images carry and containerd sends as `ns`:
    /// `docker.io`, `reg.example:443`, `10.0.0.1:5000`. Default: none, which is enough for public registries.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, RegistryConfig>,
    /// A docker `config.json`, or a directory with such files (mounted secrets), for every registry whose own entry has no
    /// credentials. Default: empty, none.
    pub docker_config: PathBuf,
    /// `[registries.kubelet]`: kubelet's credential providers.
    pub kubelet: KubeletConfig,
    /// `[registries.others]`: the rule for every registry not listed.
    pub others: OthersConfig,
    /// Seconds until a connection to a registry must stand. Default 5.
    pub connect_timeout_seconds: u64,
    /// Seconds that a registry may stay silent before or within an answer. Default 20.
    pub read_timeout_seconds: u64,
    /// Most transfers of blobs at once from one registry, by this node. Default 16.
    pub max_parallel: u32,
}

impl Default for RegistriesConfig {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            docker_config: PathBuf::new(),
            kubelet: KubeletConfig::default(),
            others: OthersConfig::default(),
            connect_timeout_seconds: 5,
            read_timeout_seconds: 20,
            max_parallel: 16,
        }
    }
}

/// One registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// `host[:port]` to connect to. Default: the name itself (`registry-1.docker.io` for `docker.io`).
    pub host: Option<String>,
    /// Speak http instead of https. Credentials then cross the network in the clear. Default false.
    pub plain_http: bool,
    /// User name for the node's own requests; needs `password_file`. Default: none, anonymous.
    pub username: Option<String>,
    /// File with the password, read at each use; a newline at its end is not part of it.
    pub password_file: Option<PathBuf>,
    /// A docker `config.json` (or a mounted `.dockerconfigjson` secret, or a directory with some), read at each use, so that
    /// rotated credentials are taken up. Used when `username` is not set. Credential helpers that it names are run. Default:
    /// none.
    pub docker_config: Option<PathBuf>,
    /// PEM file with certificates to trust for this registry, beside those of the system. Default: none.
    pub ca_file: Option<PathBuf>,
    /// `host[:port]` of the token service when it is not the registry itself; credentials are sent nowhere else.
    /// Default: `auth.docker.io` for `docker.io`, `gitlab.com` for `registry.gitlab.com`, otherwise none.
    pub auth_host: Option<String>,
    /// `host[:port]`s that this registry may redirect blobs to although they have loopback, link-local or private
    /// addresses (an object store in the same network). Public hosts need no entry. Default: none.
    pub redirect_hosts: Vec<String>,
    /// Let local clients of the mirror that bring no credentials have what the node's own credentials may pull.
    /// Everybody who reaches the mirror's port then has the node's rights. Default false.
    pub share_credentials: bool,
    /// Most transfers of blobs at once from this registry, by this node. Default: `registries.max_parallel`.
    pub max_parallel: Option<u32>,
}

/// kubelet's credential providers, asked for what neither a registry's entry nor a docker `config.json` has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubeletConfig {
    /// kubelet's `--image-credential-provider-config`, read at each use. Default: empty, none.
    pub config: PathBuf,
    /// Its `--image-credential-provider-bin-dir`.
    pub bin_dir: PathBuf,
}

/// The rule for registries that have no entry of their own: https, anonymous or with the client's own credentials.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct OthersConfig {
    /// Talk to registries that are not listed. Default true.
    pub enabled: bool,
    /// Also where their names resolve to loopback, link-local or private addresses. Anybody who reaches the mirror's
    /// port can then make the node connect inside its network. Default false: list such registries instead.
    pub allow_private: bool,
}

impl Default for OthersConfig {
    fn default() -> Self {
        Self { enabled: true, allow_private: false }
    }
}
