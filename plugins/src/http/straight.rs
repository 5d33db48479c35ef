//! URLs fetched straight from where they are, without a node and its cache.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use tokio::sync::Semaphore;

use super::fetch::Fetcher;
use super::target::{Allowed, Target};
use super::{InvalidUrls, Passed, UrlError};
use crate::registry::RegistriesConfig;
use crate::registry::client::{Route, build};

/// Fetches what its user names, wherever that is, as the node would: redirects are followed, and personal headers stay with
/// the scheme, host and port that they were given for.
pub struct Straight {
    fetcher: Fetcher,
}

impl Straight {
    /// Makes the client. `silence`: for a connection to stand, and before or within an answer. `ca_file`: PEM, trusted besides the
    /// system's. A rustls crypto provider must have been installed.
    pub fn new(silence: Duration, ca_file: Option<&Path>) -> Result<Self, InvalidUrls> {
        let seconds = silence.as_secs();
        let times = RegistriesConfig {
            connect_timeout_seconds: seconds,
            read_timeout_seconds: seconds,
            ..RegistriesConfig::default()
        };
        let client = build(&times, ca_file, Route::Listed).map_err(InvalidUrls::Client)?;
        let turns = Arc::new(Semaphore::new(1));
        let fetcher = Fetcher { allowed: Allowed::anywhere(), public: client.clone(), free: client, turns };
        Ok(Self { fetcher })
    }

    /// The answer, whatever its status.
    pub async fn get(&self, target: &Target, request: &HeaderMap) -> Result<Passed, UrlError> {
        self.fetcher.pass(target, &Method::GET, request).await
    }
}
