//! OCI registries (distribution spec 1.1): ranges of blobs, manifests passed through, and who may have what.
//!
//! * `name`, `config`: what registries and repositories are called, and how they are configured
//! * `endpoint`: one registry, and one exchange with it; `client`, `address`: how it is reached, and what may be dialled
//! * `credential`, `keychain`, `challenge`, `token`: whose rights a request uses
//! * `origin`, `forward`, `authorize`: the three things asked of a registry
//! * `reach`: is there anybody, before a client waits
//! * `flight`: concurrent askers of one question are one
//!
//! Everything here is in memory; nothing survives a restart, and nothing needs to.

mod address;
mod authorize;
mod challenge;
pub(crate) mod client;
mod config;
mod credential;
pub(crate) mod endpoint;
pub(crate) mod flight;
mod forward;
mod keychain;
pub(crate) mod name;
pub(crate) mod origin;
mod reach;
mod token;

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lapwing_p2p::digest::Digest;
use lru::LruCache;
use reqwest::Client;

pub use self::address::{PublicOnly, is_public};
pub use self::authorize::{Denied, Grant, Right, Witnesses};
pub use self::config::{KubeletConfig, OthersConfig, RegistriesConfig, RegistryConfig};
pub use self::credential::{Credential, CredentialKey};
pub use self::forward::{ForwardError, ForwardMethod, ForwardRequest, Forwarded, Resource};
pub use self::name::{InvalidName, Reference, RegistryName, RepositoryName};
pub use self::origin::RegistryOrigin;

use self::authorize::Grants;
use self::client::Route;
use self::endpoint::{Endpoint, Place};
use self::keychain::Keychain;
use self::token::Tokens;
use crate::limits::MAX_UNLISTED;

/// Public registries that are reached without an entry, and believed when they say that a repository has a blob: only
/// who pushed the bytes can make them say so.
const WELL_KNOWN: [&str; 9] = [
    "docker.io",
    "gcr.io",
    "ghcr.io",
    "mcr.microsoft.com",
    "public.ecr.aws",
    "quay.io",
    "registry.access.redhat.com",
    "registry.gitlab.com",
    "registry.k8s.io",
];

/// The registries that the node talks to.
pub struct Registries {
    config: RegistriesConfig,
    listed: HashMap<RegistryName, Arc<Endpoint>>,
    unlisted: Mutex<LruCache<RegistryName, Arc<Endpoint>>>,
    /// Reaches any address.
    free: Client,
    /// Reaches public addresses.
    public: Client,
    tokens: Arc<Tokens>,
    grants: Grants,
    witnesses: OnceLock<Arc<dyn Witnesses>>,
}

/// The `[registries]` section cannot be used as it is.
#[derive(Debug, Clone, thiserror::Error)]
#[error("[registries.hosts.{registry:?}]: {wrong}")]
pub struct InvalidRegistry {
    registry: String,
    wrong: String,
}

/// A registry that the node does not talk to.
#[derive(Debug, Clone, thiserror::Error)]
#[error("registry {registry} is not used: {wrong}")]
pub struct UnknownRegistry {
    registry: String,
    wrong: String,
}

impl Registries {
    /// Checks the configuration and makes the clients. A rustls crypto provider must have been installed.
    pub fn new(config: RegistriesConfig) -> Result<Arc<Self>, InvalidRegistry> {
        let general = |wrong| InvalidRegistry { registry: "*".to_owned(), wrong };
        let free = client::build(&config, None, Route::Listed).map_err(general)?;
        let public = client::build(&config, None, Route::Public).map_err(general)?;
        if config.max_parallel == 0 {
            return Err(general("max_parallel must be at least 1".to_owned()));
        }
        let mut registries = Self {
            listed: HashMap::new(),
            unlisted: Mutex::new(LruCache::new(NonZeroUsize::new(MAX_UNLISTED).unwrap_or(NonZeroUsize::MIN))),
            free,
            public,
            tokens: Arc::new(Tokens::new(Keychain::new(&config))),
            grants: Grants::new(),
            witnesses: OnceLock::new(),
            config,
        };
        for (key, entry) in &registries.config.hosts {
            let invalid = |wrong: String| InvalidRegistry { registry: key.clone(), wrong };
            let name = RegistryName::from_str(key).map_err(|error| invalid(error.to_string()))?;
            let endpoint = registries.listed_endpoint(&name, entry).map_err(invalid)?;
            if registries.listed.insert(name, Arc::new(endpoint)).is_some() {
                return Err(invalid("another entry names the same registry".to_owned()));
            }
        }
        Ok(Arc::new(registries))
    }

    /// From now on other nodes are asked before a registry is, and told what it grants. Only the first call counts.
    pub fn believe(&self, witnesses: Arc<dyn Witnesses>) {
        let _ = self.witnesses.set(witnesses);
    }

    fn listed_endpoint(&self, name: &RegistryName, config: &RegistryConfig) -> Result<Endpoint, String> {
        if config.username.is_some() != config.password_file.is_some() {
            return Err("username and password_file go together".to_owned());
        }
        for host in config.redirect_hosts.iter().chain(&config.auth_host) {
            name::check_host(host).map_err(|wrong| format!("{host:?}: {wrong}"))?;
        }
        let own = match &config.ca_file {
            Some(path) => client::build(&self.config, Some(path), Route::Listed)?,
            None => self.free.clone(),
        };
        self.endpoint(name, config.clone(), Route::Listed, true, own)
    }

    fn endpoint(
        &self,
        name: &RegistryName,
        config: RegistryConfig,
        route: Route,
        listed: bool,
        own: Client,
    ) -> Result<Endpoint, String> {
        let parallel = config.max_parallel.unwrap_or(self.config.max_parallel);
        let max_parallel = NonZeroU32::new(parallel).ok_or("max_parallel must be at least 1")?;
        let place = Place { name: name.clone(), config, route, listed, own, public: self.public.clone(), max_parallel };
        Endpoint::new(place, self.tokens.clone())
    }

    /// The registry of this name: its entry, or the rule for others.
    fn find(&self, name: &RegistryName) -> Result<Arc<Endpoint>, UnknownRegistry> {
        if let Some(endpoint) = self.listed.get(name) {
            return Ok(endpoint.clone());
        }
        let unknown = |wrong: String| UnknownRegistry { registry: name.to_string(), wrong };
        let listed = WELL_KNOWN.contains(&name.as_str());
        if !self.config.others.enabled {
            return Err(unknown("it is not listed, and registries.others.enabled is false".to_owned()));
        }
        let mut unlisted = self.unlisted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = unlisted.get(name) {
            return Ok(endpoint.clone());
        }
        let route = if self.config.others.allow_private { Route::Listed } else { Route::Public };
        let own = if self.config.others.allow_private { &self.free } else { &self.public };
        let endpoint = self.endpoint(name, RegistryConfig::default(), route, listed, own.clone()).map_err(unknown)?;
        let endpoint = Arc::new(endpoint);
        unlisted.put(name.clone(), endpoint.clone());
        Ok(endpoint)
    }

    /// Whether the configuration names the registry, or it is one of the well-known public ones. Such a registry lets
    /// only those claim a blob who could push its bytes; any other may be a stranger's, and its word is worth nothing.
    pub fn is_listed(&self, registry: &RegistryName) -> bool {
        self.listed.contains_key(registry) || WELL_KNOWN.contains(&registry.as_str())
    }

    /// One blob at its registry, as an origin of ranges. `length` is the blob's, from its descriptor or a [`Grant`].
    pub fn origin(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: Digest,
        length: u64,
        credential: Credential,
    ) -> Result<RegistryOrigin, UnknownRegistry> {
        Ok(RegistryOrigin::new(self.find(registry)?, repository.clone(), digest, length, credential))
    }

    /// Whose rights a client of the mirror uses: its own header's; without one nobody's, or the node's where the
    /// configuration shares them.
    pub fn client_credential(&self, registry: &RegistryName, header: Option<&http::HeaderValue>) -> Credential {
        match header {
            None if self.listed.get(registry).is_some_and(|endpoint| endpoint.config.share_credentials) => {
                Credential::Configured
            }
            header => Credential::of_client(header),
        }
    }
}
