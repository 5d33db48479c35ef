//! What a node tells its client of trackers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lapwing_p2p::identity::PeerId;
use lapwing_p2p::tls::Tls;
use tonic::transport::{Endpoint, Uri};

use super::source::TrackerSource;
use crate::limits::{CONNECT_TIMEOUT, DEADLINE, HEARTBEAT, MAX_TRACKERS, SOURCE_REFRESH};
use crate::wire::{check_group, check_label};

/// Configuration of a [`TrackerClient`](super::TrackerClient).
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Where trackers are named ([`TrackerSource`]): `host:port`, `dns:name:port`, `srv:name`, `file:/path`; at most
    /// [`MAX_TRACKERS`] entries, and as many trackers. Two of them own each digest by its hash with their names, so that all
    /// nodes of a cluster must name them alike.
    pub trackers: Vec<String>,
    /// This node.
    pub node: PeerId,
    /// Its group: nodes of one never see those of another. Letters, digits, `.`, `_`, `-`.
    pub group: String,
    /// Its zone, or empty if unknown.
    pub zone: String,
    /// Its rack, or empty if unknown.
    pub rack: String,
    /// TCP port of its piece wire; 0 if it serves nobody.
    pub piece_port: u16,
    /// Whether it keeps blobs for others: where a seed asks for leases, nobody else gets them.
    pub seed: bool,
    /// TCP port of its seed service; 0 if it is no seed.
    pub seed_port: u16,
    /// The name server to ask for `dns:` and `srv:` entries; by default those of `/etc/resolv.conf`.
    pub resolver: Option<SocketAddr>,
    /// This node's side of TLS, if its cluster has an authority; else calls go over plain TCP.
    pub tls: Option<Tls>,
    /// How often these are asked for again, before jitter.
    pub refresh: Duration,
    /// How long one call may take before the next tracker is asked; twice that for a call in all.
    pub deadline: Duration,
    /// Between two signs of life, before jitter; a tracker forgets a node that is silent for 55 s.
    pub heartbeat: Duration,
}

impl ClientConfig {
    /// Group `default`, no labels, serving nobody, with the usual times.
    pub fn new(trackers: Vec<String>, node: PeerId) -> Self {
        Self {
            trackers,
            node,
            group: "default".to_owned(),
            zone: String::new(),
            rack: String::new(),
            piece_port: 0,
            seed: false,
            seed_port: 0,
            resolver: None,
            tls: None,
            refresh: SOURCE_REFRESH,
            deadline: DEADLINE,
            heartbeat: HEARTBEAT,
        }
    }

    /// Checks all of it; gives the sources of trackers.
    pub(super) fn check(&self) -> Result<Vec<TrackerSource>, InvalidConfig> {
        check_group(&self.group).map_err(InvalidConfig::Name)?;
        check_label("zone", &self.zone).map_err(InvalidConfig::Name)?;
        check_label("rack", &self.rack).map_err(InvalidConfig::Name)?;
        if self.trackers.is_empty() || self.trackers.len() > MAX_TRACKERS {
            return Err(InvalidConfig::Count(self.trackers.len()));
        }
        self.trackers.iter().map(|entry| TrackerSource::parse(entry)).collect()
    }
}

/// A configuration that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// The group or a label is malformed.
    #[error("{0}")]
    Name(String),
    /// No tracker, or too many.
    #[error("{0} trackers are configured; expected 1 to {MAX_TRACKERS}")]
    Count(usize),
    /// A tracker's address is malformed.
    #[error(
        "tracker {0:?}: expected host:port, as in tracker.example:7070 or [fd00::1]:7070, or dns:name:port, \
         srv:_lapwing._tcp.example.org, file:/path"
    )]
    Address(String),
}

/// Reads `host:port` (`http://` before it is allowed). Says, too, whether it names this machine.
pub(crate) fn endpoint(tracker: &str) -> Result<(Endpoint, bool), InvalidConfig> {
    let invalid = || InvalidConfig::Address(tracker.to_owned());
    let authority = tracker.strip_prefix("http://").unwrap_or(tracker);
    let uri: Uri = format!("http://{authority}").parse().map_err(|_| invalid())?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(invalid)?;
    if uri.port_u16().is_none_or(|port| port == 0)
        || uri.path() != "/"
        || uri.query().is_some()
        || authority.contains('@')
    {
        return Err(invalid());
    }
    let ip: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    let local = host == "localhost" || ip.is_some_and(|ip| ip.to_canonical().is_loopback());
    let endpoint = Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    Ok((endpoint, local))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses() {
        let cases = [("tracker.example:7070", false), ("http://10.0.0.1:7070", false), ("[fd00::1]:7070", false)];
        let local = [("127.0.0.1:7070", true), ("[::1]:7070", true), ("localhost:1", true)];
        for (tracker, expected) in cases.into_iter().chain(local) {
            assert_eq!(endpoint(tracker).unwrap().1, expected, "{tracker}");
        }
    }

    #[test]
    fn refuses_what_is_no_address_and_names_it() {
        for tracker in ["", "tracker", "tracker:0", "tracker:99999", ":7070", "https://t:7070", "t:7070/x", "a@t:7070"]
        {
            let error = endpoint(tracker).unwrap_err();
            assert_eq!(error, InvalidConfig::Address(tracker.to_owned()));
            assert!(error.to_string().contains("expected host:port"));
        }
    }

    #[test]
    fn refuses_groups_and_labels_that_trackers_would() {
        let node = PeerId::from_bytes([1; 32]);
        let good = ClientConfig::new(vec!["t:1".to_owned()], node);
        assert!(good.check().is_ok());
        for bad in [
            ClientConfig { group: String::new(), ..good.clone() },
            ClientConfig { group: "a/b".to_owned(), ..good.clone() },
            ClientConfig { zone: "a b".to_owned(), ..good.clone() },
            ClientConfig { rack: "x".repeat(64), ..good.clone() },
            ClientConfig { trackers: vec![], ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
