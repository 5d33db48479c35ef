//! `[preheat]`: what is brought to seeds and nodes before anybody pulls it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::preheat::To;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Preheat {
    pub accept: bool,
    pub listen: String,
    pub to: To,
    pub lazy_index: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub webhooks: BTreeMap<String, Webhook>,
}

/// A registry that tells of pushes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Webhook {
    pub secret_file: PathBuf,
}

impl Default for Preheat {
    fn default() -> Self {
        Self { accept: true, listen: String::new(), to: To::Seeds, lazy_index: true, webhooks: BTreeMap::new() }
    }
}

impl Preheat {
    /// Where registries are listened to, if anywhere.
    pub(crate) fn listen(&self) -> Option<SocketAddr> {
        self.listen.parse().ok()
    }

    /// Refuses what cannot work.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key: String, reason: String| Err(ConfigError::Invalid { key, reason });
        if self.listen().is_none() && !self.listen.is_empty() {
            let reason = format!("{:?} is not address:port, nor empty", self.listen);
            return invalid("preheat.listen".into(), reason);
        }
        if self.listen.is_empty() != self.webhooks.is_empty() {
            return invalid("preheat.listen".into(), "listen and [preheat.webhooks.\"<registry>\"] go together".into());
        }
        for (name, webhook) in &self.webhooks {
            if !webhook.secret_file.is_absolute() {
                let reason = format!("{} is not an absolute path", webhook.secret_file.display());
                return invalid(format!("preheat.webhooks.{name:?}.secret_file"), reason);
            }
        }
        Ok(())
    }
}
