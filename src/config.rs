//! The configuration: one TOML file, parsed strictly, checked before anything starts.
//!
//! Meaning, unit and default of every key stand in `contrib/lapwing.toml`, which is compiled in, printed by
//! `lapwing config`, and held against these structs by a test. The structs only say the shape.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lapwing_plugins::http::{Allowed, UrlsConfig};
use lapwing_plugins::registry::{RegistriesConfig, RegistryConfig};
use lapwing_plugins::storage::StorageConfig;
use serde::{Deserialize, Serialize};

mod containerd;
mod files;
mod identity;
mod lazy;
mod limits;
mod origin;
mod preheat;
mod proxy;
mod traces;
mod tracker;
mod units;

pub(crate) use containerd::Containerd;
pub(crate) use identity::Identity;
pub(crate) use lazy::{Formats, Lazy, LazyBackend, LazyFormat};
pub(crate) use limits::LimitsTable;
pub(crate) use preheat::Preheat;
pub(crate) use proxy::{Proxy, ProxyAction};
pub(crate) use traces::Traces;
pub(crate) use tracker::Tracker;
pub(crate) use units::{ByteSize, Span};

/// The annotated file with every key and its default.
pub(crate) const REFERENCE: &str = include_str!("../contrib/lapwing.toml");

/// Longest configuration file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What `outage.max_stale` may be, if it is not 0.
const SHORTEST_STALE: Duration = Duration::from_secs(60);
const LONGEST_STALE: Duration = Duration::from_secs(90 * 24 * 3600);

/// What `lazy.record_for` may be at most.
const LONGEST_RECORDING: Duration = Duration::from_secs(3600);

/// Most nodes that may be asked to agree: trackers count no further (their `MAX_VOTERS_PER_OBJECT`).
const MAX_QUORUM: u32 = 64;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub root: PathBuf,
    pub log: Log,
    pub traces: Traces,
    pub admin: Admin,
    pub mirror: Mirror,
    pub snapshotter: Snapshotter,
    pub lazy: Lazy,
    pub containerd: Containerd,
    pub identity: Identity,
    pub peer: Peer,
    pub tracker: Tracker,
    pub origin: Origin,
    pub seed: Seed,
    pub preheat: Preheat,
    pub store: Store,
    pub limits: LimitsTable,
    pub trust: Trust,
    pub outage: Outage,
    pub http: Http,
    pub proxy: Proxy,
    pub registries: RegistriesConfig,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    pub level: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Admin {
    pub listen: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Mirror {
    pub listen: SocketAddr,
    pub default_registry: String,
    pub first_byte: Span,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Snapshotter {
    pub enabled: bool,
    pub socket: PathBuf,
    pub resolve_timeout: Span,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Peer {
    pub listen: SocketAddr,
    pub insecure: bool,
    pub compression: bool,
    pub congestion_control: String,
    pub upload_slots: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StoreKind {
    Disk,
    Memory,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Origin {
    pub copies: u32,
    pub streams: u32,
    pub zone: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sites: BTreeMap<String, OriginSite>,
}

/// What differs at one site.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OriginSite {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Seed {
    pub listen: SocketAddr,
    pub fetches: usize,
    pub storage: StorageConfig,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Store {
    pub kind: StoreKind,
    pub quota: ByteSize,
    pub high_watermark: u8,
    pub low_watermark: u8,
    pub free_floor: ByteSize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Trust {
    pub metainfo_quorum: u32,
    pub index_quorum: u32,
    pub rights_key_file: PathBuf,
}

impl Trust {
    /// Where the group's secret is, if nodes believe each other what registries granted.
    pub(crate) fn rights_key_file(&self) -> Option<&Path> {
        (!self.rights_key_file.as_os_str().is_empty()).then_some(&*self.rights_key_file)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Outage {
    pub max_stale: Span,
    pub quorum: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Http {
    pub allow: Vec<String>,
    pub stale_if_error: Span,
    pub ignore_query: Vec<String>,
    pub max_parallel: u32,
    pub connect_timeout: Span,
    pub read_timeout: Span,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/containerd/io.containerd.snapshotter.v1.lapwing".into(),
            log: Log::default(),
            traces: Traces::default(),
            admin: Admin::default(),
            mirror: Mirror::default(),
            snapshotter: Snapshotter::default(),
            lazy: Lazy::default(),
            containerd: Containerd::default(),
            identity: Identity::default(),
            peer: Peer::default(),
            tracker: Tracker::default(),
            origin: Origin::default(),
            seed: Seed::default(),
            preheat: Preheat::default(),
            store: Store::default(),
            limits: LimitsTable::default(),
            trust: Trust::default(),
            outage: Outage::default(),
            http: Http::default(),
            proxy: Proxy::default(),
            registries: RegistriesConfig::default(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: loopback(7082) }
    }
}

impl Default for Mirror {
    fn default() -> Self {
        Self { listen: loopback(7080), default_registry: "docker.io".into(), first_byte: Span::seconds(10) }
    }
}

impl Default for Snapshotter {
    fn default() -> Self {
        Self { enabled: true, socket: "/run/lapwing/snapshotter.sock".into(), resolve_timeout: Span::seconds(1) }
    }
}

impl Default for Peer {
    fn default() -> Self {
        let congestion_control = "cubic".into();
        Self { listen: loopback(7081), insecure: false, compression: true, congestion_control, upload_slots: 2 }
    }
}

impl Default for Origin {
    fn default() -> Self {
        Self { copies: 1, streams: 0, zone: String::new(), sites: BTreeMap::new() }
    }
}

impl Default for Seed {
    fn default() -> Self {
        Self { listen: loopback(7083), fetches: 64, storage: StorageConfig::default() }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            kind: StoreKind::Disk,
            quota: ByteSize(0),
            high_watermark: 90,
            low_watermark: 80,
            free_floor: ByteSize(1 << 30),
        }
    }
}

impl Default for Trust {
    fn default() -> Self {
        Self { metainfo_quorum: 2, index_quorum: 1, rights_key_file: PathBuf::new() }
    }
}

impl Default for Outage {
    fn default() -> Self {
        Self { max_stale: Span::seconds(0), quorum: 1 }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            stale_if_error: Span::seconds(0),
            ignore_query: Vec::new(),
            max_parallel: 16,
            connect_timeout: Span::seconds(5),
            read_timeout: Span::seconds(20),
        }
    }
}

impl Http {
    /// The same as the plugin wants it.
    pub(crate) fn urls(&self) -> UrlsConfig {
        UrlsConfig {
            allow: self.allow.clone(),
            stale_if_error: self.stale_if_error.0,
            ignore_query: self.ignore_query.clone(),
            max_parallel: self.max_parallel,
            connect_timeout: self.connect_timeout.0,
            read_timeout: self.read_timeout.0,
        }
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

/// A configuration that cannot be used. Every message names the file or key and what to write instead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("configuration {path}: {reason}")]
    Unreadable { path: String, reason: String },
    #[error("configuration {path}:{detail}\n`lapwing config` prints every key with its meaning")]
    Malformed { path: String, detail: String },
    #[error("configuration key {key}: {reason}")]
    Invalid { key: String, reason: String },
}

impl Config {
    /// Reads and checks the file at `path`, or the defaults if there is none to read.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Self::default().validated() };
        let unreadable = |reason: String| ConfigError::Unreadable { path: path.display().to_string(), reason };
        let length = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
        if length > MAX_FILE_BYTES {
            return Err(unreadable(format!(
                "{length} bytes is too long for a configuration ({MAX_FILE_BYTES} allowed)"
            )));
        }
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        Self::parse(&text, &path.display().to_string())?.validated()
    }

    fn parse(text: &str, path: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            let detail = format!("{line}: {}", error.message().trim_end());
            ConfigError::Malformed { path: path.to_owned(), detail }
        })
    }

    fn validated(self) -> Result<Self, ConfigError> {
        let invalid = |key: &str, reason: String| Err(ConfigError::Invalid { key: key.to_owned(), reason });
        for (key, path) in [("root", &self.root), ("snapshotter.socket", &self.snapshotter.socket)] {
            if !path.is_absolute() {
                return invalid(key, format!("{} is not an absolute path", path.display()));
            }
        }
        self.identity.check(&self)?;
        self.tracker.check(&self)?;
        let control = &self.peer.congestion_control;
        // TCP_CA_NAME_MAX of linux/tcp.h, with its final zero.
        if control.len() > 15 || !control.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
            return invalid(
                "peer.congestion_control",
                format!("{control:?} is no name of a congestion control, like \"cubic\""),
            );
        }
        if !(1..=1024).contains(&self.peer.upload_slots) {
            return invalid("peer.upload_slots", format!("{} is not between 1 and 1024", self.peer.upload_slots));
        }
        if self.lazy.record_for.0 > LONGEST_RECORDING {
            return invalid("lazy.record_for", format!("{} is more than an hour", self.lazy.record_for));
        }
        self.check_trust()?;
        if let Some((key, reason)) = self.limits.invalid() {
            return invalid(key, reason);
        }
        origin::check(&self.origin)?;
        containerd::check(&self.containerd)?;
        self.check_store()?;
        if let Err(error) = Allowed::parse(&self.http.allow) {
            return invalid("http.allow", error.to_string());
        }
        if self.http.max_parallel == 0 {
            return invalid("http.max_parallel", "at least 1, or nothing comes".into());
        }
        let kubelet = &self.registries.kubelet;
        if kubelet.config.as_os_str().is_empty() != kubelet.bin_dir.as_os_str().is_empty() {
            return invalid("registries.kubelet", "config and bin_dir go together".into());
        }
        self.proxy.check(&self)?;
        self.preheat.check()?;
        self.traces.check()?;
        if self.registries.max_parallel == 0 {
            return invalid("registries.max_parallel", "at least 1, or nothing comes".into());
        }
        if !(1..=4096).contains(&self.seed.fetches) {
            return invalid("seed.fetches", format!("{} is not between 1 and 4096", self.seed.fetches));
        }
        if let Err(error) = self.seed.storage.check() {
            return invalid("seed.storage", error.to_string());
        }
        for (name, registry) in &self.registries.hosts {
            check_registry(name, registry)?;
        }
        Ok(self)
    }

    /// Whom to believe, and for how long.
    fn check_trust(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: String| Err(ConfigError::Invalid { key: key.to_owned(), reason });
        let quorums = [
            ("trust.metainfo_quorum", self.trust.metainfo_quorum),
            ("trust.index_quorum", self.trust.index_quorum),
            ("outage.quorum", self.outage.quorum),
        ];
        for (key, quorum) in quorums {
            if !(1..=MAX_QUORUM).contains(&quorum) {
                return invalid(key, format!("{quorum} is not between 1 and {MAX_QUORUM}"));
            }
        }
        let stale = self.outage.max_stale.0;
        if !stale.is_zero() && !(SHORTEST_STALE..=LONGEST_STALE).contains(&stale) {
            return invalid(
                "outage.max_stale",
                format!("{} is neither 0 nor between 1m and 90 days", self.outage.max_stale),
            );
        }
        Ok(())
    }

    fn check_store(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: String| Err(ConfigError::Invalid { key: key.to_owned(), reason });
        let Store { high_watermark: high, low_watermark: low, .. } = self.store;
        if !(1..=100).contains(&high) || !(1..=high).contains(&low) {
            return invalid(
                "store.low_watermark",
                format!(
                    "{low} and {high}: percentages, the low watermark at least 1 and not above the high one, that at most 100"
                ),
            );
        }
        if self.store.kind == StoreKind::Memory && self.store.quota.0 == 0 {
            return invalid("store.quota", "a store in memory needs one: how many bytes may it take?".into());
        }
        Ok(())
    }
}

fn check_registry(name: &str, registry: &RegistryConfig) -> Result<(), ConfigError> {
    let invalid = |reason: &str| {
        Err(ConfigError::Invalid { key: format!("registries.hosts.{name:?}"), reason: reason.to_owned() })
    };
    if name.is_empty() || name.contains(['/', '@', ' ', '?', '#']) {
        return invalid("the name is a host or host:port, as in image references");
    }
    if registry.username.is_some() != registry.password_file.is_some() {
        return invalid("username and password_file go together");
    }
    if registry.username.is_some() && registry.docker_config.is_some() {
        return invalid("give either username and password_file, or docker_config");
    }
    if registry.max_parallel == Some(0) {
        return invalid("max_parallel is at least 1, or nothing comes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_states_every_key_with_its_default() {
        let parsed: toml::Table = REFERENCE.parse().unwrap();
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        assert_eq!(parsed, defaults);
    }

    #[test]
    fn the_registry_example_of_the_reference_is_complete_and_valid() {
        let start = REFERENCE.find("# [registries.hosts").unwrap();
        let example: String = REFERENCE[start..]
            .lines()
            .map(|line| line.trim_start_matches("# "))
            .filter(|line| line.starts_with('[') || line.contains(" = "))
            .fold(String::new(), |text, line| text + line + "\n");
        let config = Config::parse(&example, "example").unwrap();
        let registry = &config.registries.hosts["reg.example:5000"];
        let all = toml::Table::try_from(registry).unwrap();
        assert_eq!(all.len(), 10, "a key is missing from the example: {all:?}");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = Config::parse("root = \"/x\"\n\n[mirror]\nlisten = \"127.0.0.1:1\"\nlissten = 3\n", "/etc/l.toml")
            .unwrap_err()
            .to_string();
        assert!(error.contains("/etc/l.toml:5:") && error.contains("lissten"), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused_with_a_remedy() {
        let cases = [
            ("root = \"relative\"", "root"),
            ("[tracker]\nlisten = \"0.0.0.0:7070\"", "tracker.insecure"),
            ("[peer]\nlisten = \"0.0.0.0:7081\"", "peer.listen"),
            ("[identity]\ndirectory = \"identity\"", "identity.directory"),
            ("[identity]\ntoken_file = \"/token\"", "identity.token_file"),
            ("[identity]\nissuer = \"/ca\"\nlifetime = \"1s\"", "identity.lifetime"),
            ("[identity]\ndirectory = \"/i\"\nmembers = [\"*\"]", "SPIFFE"),
            ("[identity]\ndirectory = \"/i\"\n[peer]\ninsecure = true", "peer.insecure"),
            ("[identity]\nissuer = \"/ca\"\n[tracker]\npiccolo_listen = \"0.0.0.0:7789\"", "tracker.piccolo_listen"),
            ("[tracker]\ngroup = \"a b\"", "letters"),
            ("[seed]\nlisten = \"0.0.0.0:7083\"", "tracker.insecure"),
            ("[tracker]\npiccolo_listen = \"0.0.0.0:7789\"", "tracker.piccolo_listen"),
            ("[tracker]\npiccolo_listen = \"7789\"", "address:port"),
            ("[seed]\nfetches = 0", "seed.fetches"),
            ("[seed.storage]\nservice = \"ftp\"", "s3"),
            ("[seed.storage.options]\nbucket = \"b\"", "need a service"),
            ("[tracker]\naddresses = [\"nohost\"]", "host:port"),
            ("[tracker]\naddresses = [\"dns:name\"]", "dns:name:port"),
            ("[tracker]\naddresses = [\"file:relative\"]", "file:/path"),
            (
                "[tracker]\naddresses = [\"t:1\", \"t:2\", \"t:3\", \"t:4\", \"t:5\", \"t:6\", \"t:7\", \"t:8\", \"t:9\"]",
                "at most 8",
            ),
            ("[tracker]\nresolver = \"10.0.0.2\"", "tracker.resolver"),
            ("[tracker]\nrefresh = \"0\"", "tracker.refresh"),
            ("[tracker]\ngroup = \"\"", "tracker.group"),
            ("[tracker.store]\nkind = \"redis\"", "tracker.store.urls"),
            ("[tracker.store]\nurls = [\"redis://h\"]", "tracker.store.kind"),
            ("[peer]\nupload_slots = 0", "upload_slots"),
            ("[peer]\ncongestion_control = \"../cubic\"", "congestion_control"),
            ("[trust]\nindex_quorum = 0", "trust.index_quorum"),
            ("[lazy]\nrecord_for = \"2h\"", "lazy.record_for"),
            ("[outage]\nquorum = 0", "outage.quorum"),
            ("[outage]\nmax_stale = \"5s\"", "outage.max_stale"),
            ("[limits.origin]\nper_blob = \"1KiB\"", "limits.origin.per_blob"),
            ("[origin]\ncopies = 0", "origin.copies"),
            ("[origin]\nstreams = 1000", "origin.streams"),
            ("[origin]\nzone = \"a b\"", "origin.zone"),
            ("[origin.sites.\"https://x\"]", "host:port"),
            ("[origin.sites.x]\ncopies = 0", "origin.sites.\"x\".copies"),
            ("[containerd]\nsocket = \"run\"", "containerd.socket"),
            ("[containerd]\ncontent = \"run\"", "containerd.content"),
            ("[containerd]\nverify_rate = \"1KiB\"", "1MiB"),
            ("[containerd]\nrelist = \"1s\"", "containerd.relist"),
            ("[store]\nkind = \"memory\"", "store.quota"),
            ("[store]\nhigh_watermark = 70", "store.low_watermark"),
            ("[store]\nhigh_watermark = 101", "at most 100"),
            ("[registries.hosts.\"http://x\"]", "host:port"),
            ("[registries.hosts.x]\nusername = \"u\"", "go together"),
            ("[registries]\nmax_parallel = 0", "max_parallel"),
            ("[registries.kubelet]\nconfig = \"/k.yaml\"", "bin_dir"),
            ("[http]\nallow = [\"http://x\"]", "http.allow"),
            ("[proxy]\nlisten = \"7084\"", "address:port"),
            ("[proxy]\nlisten = \"127.0.0.1:7080\"", "the mirror's"),
            ("[proxy]\nca_file = \"/x\"", "go together"),
            ("[proxy]\nmax_connections = 0", "proxy.max_connections"),
            ("[proxy]\nidle = \"0\"", "proxy.idle"),
            ("[[proxy.rules]]\naction = \"direct\"", "proxy.rules[0].host"),
            ("[proxy]\nprivate_hosts = [\"10.0.0.0/8\"]", "proxy.private_hosts"),
            ("[http]\nmax_parallel = 0", "http.max_parallel"),
            ("[preheat]\nlisten = \"7088\"", "address:port"),
            ("[preheat]\nlisten = \"0.0.0.0:7088\"", "go together"),
            ("[preheat]\nlisten = \"0.0.0.0:7088\"\n[preheat.webhooks.x]\nsecret_file = \"s\"", "absolute"),
            ("[traces]\nendpoint = \"collector:4318\"", "http://collector:4318"),
            ("[traces]\nsample = 1.5", "traces.sample"),
            ("[registries.hosts.x]\nmax_parallel = 0", "max_parallel"),
        ];
        for (text, hint) in cases {
            let error = Config::parse(text, "f").unwrap().validated().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        let error = Config::parse("[lazy]\nread_deadline = \"soon\"", "f").unwrap_err().to_string();
        assert!(error.contains("f:2:") && error.contains("30s"), "{error}");
    }

    #[test]
    fn what_others_reach_needs_an_authority_or_the_word_insecure() {
        for text in [
            "[peer]\nlisten = \"0.0.0.0:7081\"\n[identity]\ndirectory = \"/i\"",
            "[tracker]\nlisten = \"0.0.0.0:7070\"\n[identity]\nissuer = \"/ca\"",
            "[peer]\nlisten = \"0.0.0.0:7081\"\n[tracker]\ninsecure = true",
            "[tracker]\nlisten = \"0.0.0.0:7070\"\ninsecure = true",
            "[tracker]\nlisten = \"0.0.0.0:7070\"\n[peer]\ninsecure = true",
        ] {
            assert!(Config::parse(text, "f").unwrap().validated().is_ok(), "{text}");
        }
    }
}
