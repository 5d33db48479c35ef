//! `[proxy]`: the forward proxy.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError, Span};
use crate::proxy::rules::Rules;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Proxy {
    pub listen: String,
    pub private_hosts: Vec<String>,
    pub connect_ports: Vec<u16>,
    pub ca_file: PathBuf,
    pub ca_key_file: PathBuf,
    pub upstream_ca_file: PathBuf,
    pub max_connections: usize,
    pub idle: Span,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<ProxyRule>,
}

/// What is done with requests that match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProxyRule {
    #[serde(default)]
    pub host: String,
    #[serde(default)]
    pub url: String,
    pub action: ProxyAction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProxyAction {
    /// Blobs and allowed URLs come out of the swarm, all else is passed on.
    Swarm,
    /// Everything is passed on.
    Direct,
    /// Nothing is.
    Refuse,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            listen: String::new(),
            private_hosts: Vec::new(),
            connect_ports: vec![443],
            ca_file: PathBuf::new(),
            ca_key_file: PathBuf::new(),
            upstream_ca_file: PathBuf::new(),
            max_connections: 1024,
            idle: Span::seconds(600),
            rules: Vec::new(),
        }
    }
}

impl Proxy {
    /// Where it is listened, if it is.
    pub(crate) fn listen(&self) -> Option<SocketAddr> {
        self.listen.parse().ok()
    }

    /// Refuses what cannot work.
    pub(super) fn check(&self, config: &Config) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: String| Err(ConfigError::Invalid { key: format!("proxy.{key}"), reason });
        if self.listen().is_none() && !self.listen.is_empty() {
            return invalid("listen", format!("{:?} is not address:port, nor empty", self.listen));
        }
        if self.listen() == Some(config.mirror.listen) {
            return invalid("listen", format!("{} is the mirror's: choose another port", self.listen));
        }
        if self.ca_file.as_os_str().is_empty() != self.ca_key_file.as_os_str().is_empty() {
            return invalid("ca_file", "ca_file and ca_key_file go together".into());
        }
        if self.max_connections == 0 {
            return invalid("max_connections", "at least 1, or nobody is served".into());
        }
        if self.idle.0.as_secs() == 0 {
            return invalid("idle", format!("{} is shorter than 1s", self.idle));
        }
        if let Err((key, reason)) = Rules::new(self) {
            return invalid(&key, reason);
        }
        Ok(())
    }
}
