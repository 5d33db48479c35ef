//! `[tracker]`: where the trackers are, what this one listens on, and a node's place among others.

use std::net::SocketAddr;
use std::time::Duration;

use lapwing_discovery::TrackerSource;
use lapwing_discovery::limits::MAX_TRACKERS;
use lapwing_p2p::membership::is_group;
use lapwing_plugins::tracker_store::{InvalidTrackerStore, TrackerStoreConfig};
use serde::{Deserialize, Serialize};

use super::{Config, ConfigError, Span, loopback};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tracker {
    pub addresses: Vec<String>,
    pub resolver: String,
    pub refresh: Span,
    pub listen: SocketAddr,
    pub piccolo_listen: String,
    pub insecure: bool,
    pub group: String,
    pub zone: String,
    pub rack: String,
    pub store: TrackerStoreConfig,
}

impl Tracker {
    /// Where Piccolo's agents are listened for, if they are.
    pub(crate) fn piccolo_listen(&self) -> Option<SocketAddr> {
        self.piccolo_listen.parse().ok()
    }

    /// The name server to ask, if it is not the system's.
    pub(crate) fn resolver(&self) -> Result<Option<SocketAddr>, String> {
        if self.resolver.is_empty() {
            return Ok(None);
        }
        let address = self.resolver.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
        address.map(Some).ok_or_else(|| format!("{:?} is not address:port, such as \"10.0.0.2:53\"", self.resolver))
    }

    /// Refuses what cannot work.
    pub(super) fn check(&self, config: &Config) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: String| Err(ConfigError::Invalid { key: format!("tracker.{key}"), reason });
        if self.piccolo_listen().is_none() && !self.piccolo_listen.is_empty() {
            return invalid("piccolo_listen", format!("{:?} is not address:port, nor empty", self.piccolo_listen));
        }
        self.check_exposure(config)?;
        if self.addresses.len() > MAX_TRACKERS {
            return invalid("addresses", format!("at most {MAX_TRACKERS} are used"));
        }
        for address in &self.addresses {
            if let Err(error) = TrackerSource::parse(address) {
                return invalid("addresses", error.to_string());
            }
        }
        if let Err(reason) = self.resolver() {
            return invalid("resolver", reason);
        }
        if self.refresh.0 < Duration::from_secs(1) {
            return invalid("refresh", format!("{} is shorter than 1s", self.refresh));
        }
        if !is_group(&self.group) {
            return invalid("group", format!("{:?}: expected 1 to 64 letters, digits, '.', '_' or '-'", self.group));
        }
        match self.store.check() {
            Ok(()) => Ok(()),
            Err(InvalidTrackerStore::Key { key, reason }) => invalid(&format!("store.{key}"), reason),
            Err(error) => invalid("store", error.to_string()),
        }
    }

    /// What others can reach is protected by certificates, or the operator says that the network is trusted.
    fn check_exposure(&self, config: &Config) -> Result<(), ConfigError> {
        // Who says it of the piece wire means it of trackers and seeds as well.
        let trusted = self.insecure || config.peer.insecure;
        let members = config.identity.has_authority();
        let listeners = [
            ("peer.listen", Some(config.peer.listen), trusted || members),
            ("tracker.listen", Some(self.listen), trusted || members),
            ("seed.listen", Some(config.seed.listen), trusted || members),
            // Its agents know of no certificates.
            ("tracker.piccolo_listen", self.piccolo_listen(), trusted),
        ];
        for (key, address, protected) in listeners {
            let Some(address) = address.filter(|address| !address.ip().is_loopback() && !protected) else { continue };
            return Err(ConfigError::Invalid {
                key: key.to_owned(),
                reason: format!(
                    "{address} can be reached from other machines, and whoever reaches it is believed; give the cluster an \
                     authority (identity.directory, `lapwing ca`), listen on loopback, or set tracker.insecure = true if you \
                     trust that network"
                ),
            });
        }
        Ok(())
    }
}

impl Default for Tracker {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            resolver: String::new(),
            refresh: Span::seconds(30),
            listen: loopback(7070),
            piccolo_listen: String::new(),
            insecure: false,
            group: "default".into(),
            zone: String::new(),
            rack: String::new(),
            store: TrackerStoreConfig::default(),
        }
    }
}
