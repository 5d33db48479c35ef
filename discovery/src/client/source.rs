//! Where trackers are named: in the configuration itself, in DNS, or in a file.
//!
//! Every address that a name has, and every target of an SRV record, is a tracker of its own, known by its `address:port` or
//! `target:port`. Priorities and weights of SRV records (RFC 2782) do not matter: who is asked what follows from hashes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};

use super::config::{InvalidConfig, endpoint};
use crate::limits::{DNS_TIMEOUT, MAX_TRACKER_FILE_BYTES};

/// One entry of `tracker.addresses`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrackerSource {
    /// One tracker: `host:port`.
    Address(String),
    /// Every address of a name, A and AAAA alike: `dns:name:port`.
    Dns {
        /// The name.
        name: String,
        /// Of all of them.
        port: u16,
    },
    /// Every target of an SRV record: `srv:_lapwing._tcp.example.org`.
    Srv(String),
    /// A file of addresses, one a line, with comments after `#`: `file:/etc/lapwing/trackers`.
    File(PathBuf),
}

/// Why a source names no tracker now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The name is not resolved.
    #[error("{name} cannot be resolved: {reason}; check the name and tracker.resolver")]
    Dns {
        /// Which.
        name: String,
        /// What the resolver said.
        reason: String,
    },
    /// The file is not read.
    #[error("{path} cannot be read: {reason}")]
    File {
        /// Which.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// It is well and names none.
    #[error("{0} names no tracker")]
    Empty(String),
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl TrackerSource {
    /// Reads an entry of the configuration.
    pub fn parse(entry: &str) -> Result<Self, InvalidConfig> {
        let invalid = || InvalidConfig::Address(entry.to_owned());
        if let Some(path) = entry.strip_prefix("file:") {
            return if path.starts_with('/') { Ok(Self::File(path.into())) } else { Err(invalid()) };
        }
        let is_name = |name: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !name.is_empty() && name.len() <= 254 && name.bytes().all(plain)
        };
        if let Some(name) = entry.strip_prefix("srv:") {
            return if is_name(name) { Ok(Self::Srv(name.to_owned())) } else { Err(invalid()) };
        }
        if let Some(rest) = entry.strip_prefix("dns:") {
            let (name, port) = rest.rsplit_once(':').ok_or_else(invalid)?;
            let port = port.parse().ok().filter(|&port: &u16| port != 0).ok_or_else(invalid)?;
            return if is_name(name) { Ok(Self::Dns { name: name.to_owned(), port }) } else { Err(invalid()) };
        }
        endpoint(entry)?;
        Ok(Self::Address(entry.to_owned()))
    }

    /// The trackers that it names now, as `host:port`, in an order that is the same everywhere. `resolver` is the name server to
    /// ask; without one, those of `/etc/resolv.conf` are.
    pub async fn trackers(&self, resolver: Option<SocketAddr>) -> Result<Vec<String>, SourceError> {
        let found: BTreeSet<String> = match self {
            Self::Address(address) => BTreeSet::from([address.clone()]),
            Self::Dns { name, port } => {
                let addresses = addresses(name, resolver).await?;
                addresses.into_iter().map(|ip| SocketAddr::new(ip.to_canonical(), *port).to_string()).collect()
            }
            Self::Srv(name) => targets(name, resolver).await?,
            Self::File(path) => read(path).await?,
        };
        if found.is_empty() {
            return Err(SourceError::Empty(self.to_string()));
        }
        Ok(found.into_iter().collect())
    }

    /// What the file looks like now, if it is one and is there.
    pub(super) async fn stamp(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt as _;
        let Self::File(path) = self else { return None };
        let metadata = tokio::fs::metadata(path).await.ok()?;
        Some(Stamp { modified: metadata.modified().ok(), length: metadata.len(), inode: metadata.ino() })
    }
}

impl std::fmt::Display for TrackerSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => f.write_str(address),
            Self::Dns { name, port } => write!(f, "dns:{name}:{port}"),
            Self::Srv(name) => write!(f, "srv:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

async fn addresses(name: &str, resolver: Option<SocketAddr>) -> Result<Vec<IpAddr>, SourceError> {
    let failed = |error: hickory_resolver::net::NetError| failed(name, &error);
    let found = asker(resolver).map_err(failed)?.lookup_ip(name).await.map_err(failed)?;
    Ok(found.iter().collect())
}

async fn targets(name: &str, resolver: Option<SocketAddr>) -> Result<BTreeSet<String>, SourceError> {
    let failed = |error: hickory_resolver::net::NetError| failed(name, &error);
    let found = asker(resolver).map_err(failed)?.lookup(name, RecordType::SRV).await.map_err(failed)?;
    let target = |data: &RData| match data {
        // A target "." says that the service is not there (RFC 2782).
        RData::SRV(record) if !record.target.is_root() && record.port != 0 => {
            let host = record.target.to_ascii();
            Some(format!("{}:{}", host.trim_end_matches('.'), record.port))
        }
        _ => None,
    };
    Ok(found.answers().iter().filter_map(|record| target(&record.data)).filter(|named| is_usable(named)).collect())
}

/// Asks afresh each time: what `/etc/resolv.conf` says may have changed, and nothing is to come from a cache.
fn asker(resolver: Option<SocketAddr>) -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let mut builder = match resolver {
        None => TokioResolver::builder_tokio()?,
        Some(address) => {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections.iter_mut().for_each(|connection| connection.port = address.port());
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.cache_size = 0;
    options.timeout = DNS_TIMEOUT;
    options.ip_strategy = hickory_resolver::config::LookupIpStrategy::Ipv4AndIpv6;
    builder.build()
}

fn failed(name: &str, error: &dyn std::error::Error) -> SourceError {
    SourceError::Dns { name: name.to_owned(), reason: error.to_string() }
}

async fn read(path: &std::path::Path) -> Result<BTreeSet<String>, SourceError> {
    let failed = |reason: String| SourceError::File { path: path.display().to_string(), reason };
    let metadata = tokio::fs::metadata(path).await.map_err(|error| failed(error.to_string()))?;
    if metadata.len() > MAX_TRACKER_FILE_BYTES {
        return Err(failed(format!("it has {} bytes, at most {MAX_TRACKER_FILE_BYTES} are read", metadata.len())));
    }
    let text = tokio::fs::read_to_string(path).await.map_err(|error| failed(error.to_string()))?;
    Ok(listed(&text).filter(|named| is_usable(named)).map(str::to_owned).collect())
}

/// The addresses in a file's text.
fn listed(text: &str) -> impl Iterator<Item = &str> {
    let entries = text.lines().map(|line| line.split_once('#').map_or(line, |(entry, _)| entry).trim());
    entries.filter(|entry| !entry.is_empty())
}

fn is_usable(tracker: &str) -> bool {
    let usable = endpoint(tracker).is_ok();
    if !usable {
        tracing::warn!(tracker, "this is no tracker's address and is passed over: expected host:port");
    }
    usable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_kind_and_writes_it_back() {
        let dns = TrackerSource::Dns { name: "trackers.example".to_owned(), port: 7070 };
        for (entry, expected) in [
            ("10.0.0.1:7070", TrackerSource::Address("10.0.0.1:7070".to_owned())),
            ("[fd00::1]:7070", TrackerSource::Address("[fd00::1]:7070".to_owned())),
            ("dns:trackers.example:7070", dns),
            ("srv:_lapwing._tcp.example.org", TrackerSource::Srv("_lapwing._tcp.example.org".to_owned())),
            ("file:/etc/lapwing/trackers", TrackerSource::File("/etc/lapwing/trackers".into())),
        ] {
            let source = TrackerSource::parse(entry).unwrap();
            assert_eq!((source.to_string().as_str(), source), (entry, expected));
        }
    }

    #[test]
    fn refuses_what_is_no_source_and_says_what_would_be() {
        for entry in [
            "dns:name",
            "dns::7070",
            "dns:name:0",
            "dns:name:x",
            "dns:a b:1",
            "srv:",
            "srv:a/b",
            "file:",
            "file:x",
            "x",
        ] {
            let error = TrackerSource::parse(entry).unwrap_err();
            assert_eq!(error, InvalidConfig::Address(entry.to_owned()));
            assert!(["host:port", "dns:", "srv:", "file:/"].iter().all(|form| error.to_string().contains(form)));
        }
    }

    #[test]
    fn a_file_may_have_comments_and_empty_lines() {
        let text = "# trackers of the east\n\n  10.0.0.1:7070  # rack 1\nt2:7070\r\n#t3:7070\n";
        assert_eq!(listed(text).collect::<Vec<_>>(), ["10.0.0.1:7070", "t2:7070"]);
    }
}
