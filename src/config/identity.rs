//! `[identity]`: this machine's part in a cluster that has an authority.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError, Span};

/// Certificates are good for that long at least, and at most.
const LIFETIMES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(90 * 86_400));

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Identity {
    pub directory: PathBuf,
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub members: Vec<String>,
    pub token_file: PathBuf,
    pub issuer: PathBuf,
    pub lifetime: Span,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            directory: PathBuf::new(),
            authority: "authority.pem".into(),
            certificate: "certificate.pem".into(),
            key: PathBuf::new(),
            members: Vec::new(),
            token_file: PathBuf::new(),
            issuer: PathBuf::new(),
            lifetime: Span::seconds(86_400),
        }
    }
}

fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

impl Identity {
    /// Whether the cluster has an authority.
    pub(crate) fn has_authority(&self) -> bool {
        is_set(&self.directory) || is_set(&self.issuer)
    }

    /// The authority's directory, on a tracker that has it.
    pub(crate) fn issuer(&self) -> Option<&Path> {
        Some(&*self.issuer).filter(|path| is_set(path))
    }

    /// The file with the token by which this machine joins by itself.
    pub(crate) fn token_file(&self) -> Option<&Path> {
        Some(&*self.token_file).filter(|path| is_set(path))
    }

    /// Of the authorities that are believed.
    pub(crate) fn authority(&self) -> PathBuf {
        self.directory.join(&self.authority)
    }

    /// Of this machine.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.join(&self.certificate)
    }

    /// Of the certificate, if it is not this node's own.
    pub(crate) fn key(&self) -> Option<PathBuf> {
        is_set(&self.key).then(|| self.directory.join(&self.key))
    }

    /// Refuses what cannot work.
    pub(super) fn check(&self, config: &Config) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: &str| {
            Err(ConfigError::Invalid { key: format!("identity.{key}"), reason: reason.to_owned() })
        };
        for (key, path) in [("directory", &self.directory), ("token_file", &self.token_file), ("issuer", &self.issuer)]
        {
            if is_set(path) && !path.is_absolute() {
                return invalid(key, "is not an absolute path");
            }
        }
        if !is_set(&self.authority) || !is_set(&self.certificate) {
            return invalid("certificate", "certificate and authority name files in identity.directory");
        }
        if is_set(&self.token_file) && (!is_set(&self.directory) || is_set(&self.key)) {
            return invalid(
                "token_file",
                "who joins gets a certificate for its own key, in identity.directory: set that, and no identity.key",
            );
        }
        let (shortest, longest) = LIFETIMES;
        if !(shortest..=longest).contains(&self.lifetime.0) {
            return invalid("lifetime", "is not between 10s and 90 days");
        }
        if self.members.iter().any(|id| !id.starts_with("spiffe://") || *id == "spiffe://*") {
            return invalid("members", "expected SPIFFE IDs such as \"spiffe://prod.example/ns/lapwing/*\"");
        }
        if self.has_authority() && config.peer.insecure {
            return Err(ConfigError::Invalid {
                key: "peer.insecure".to_owned(),
                reason:
                    "the cluster has an authority (identity.directory), whose members speak TLS: set one of the two"
                        .to_owned(),
            });
        }
        Ok(())
    }
}
