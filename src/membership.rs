//! This machine's part in a cluster that has an authority: where its certificate comes from, and how it stays good.
//!
//! Certificates are files, which somebody else may replace, or come from an authority of Lapwing's own: then they are renewed
//! at about half of their life, by way of any tracker. A tracker that is the authority certifies itself.
//!
//! A certificate that ran out, because the machine was off, does not keep a node from starting: its lazy mounts need
//! nobody. It gets nowhere in the swarm until it is renewed, which its key suffices for where it joined.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use lapwing_discovery::TrackerSource;
use lapwing_discovery::authority::{self, AskError, Authority};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::membership::{self, Authorities, Credentials, CredentialsError, Member, Role, Roles, Rules, Shown};
use lapwing_p2p::node::Security;
use lapwing_p2p::tls::{Protocol, Tls};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;

use crate::config::Config;

/// Files are looked at that often.
const WATCH: Duration = Duration::from_secs(10);
/// A renewal that failed is tried again after that, before jitter, or a sixteenth of what is left if that is more.
const RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(600);
/// Wall clocks that are kept right by small steps stay within that.
const CLOCK_SLACK: Duration = Duration::from_secs(30);
/// A machine with a token tries to join for so long before it gives up, and is started anew.
const JOIN_FOR: Duration = Duration::from_secs(60);

/// Who this machine is, to its cluster or to nobody in particular.
pub(crate) struct Membership {
    pub(crate) identity: Arc<Identity>,
    cluster: Option<Cluster>,
}

struct Cluster {
    credentials: Arc<Credentials>,
    authority: Option<Arc<Authority>>,
    keeping: JoinHandle<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl Membership {
    /// Reads or gets what `config` names. `roles` is what a machine is that certifies itself.
    pub(crate) async fn open(config: &Config, roles: &[Role], metrics: &mut Registry) -> anyhow::Result<Self> {
        let expiry = Expiry::default();
        metrics.register(
            "certificate_expiry_seconds",
            "When this machine's certificate runs out, Unix time",
            expiry.clone(),
        );
        let settings = &config.identity;
        // A tracker without an authority is nobody, and may have no directory of its own.
        let identity = if roles == [Role::Tracker] && !settings.has_authority() {
            Identity::generate()?
        } else {
            Identity::load_or_create(&config.root.join("node.key"))?
        };
        let identity = Arc::new(identity);
        if !settings.has_authority() {
            return Ok(Self { identity, cluster: None });
        }
        let authority = match settings.issuer() {
            Some(directory) if roles.contains(&Role::Tracker) => {
                let opened = Authority::open(directory, settings.lifetime.0);
                Some(Arc::new(opened.context("configuration key identity.issuer")?))
            }
            _ => None,
        };
        let keeper = Keeper {
            config: config.clone(),
            identity: Arc::clone(&identity),
            authority: authority.clone(),
            roles: roles.to_vec(),
        };
        keeper.join_once().await?;
        let (shown, authorities) = keeper.load().context("configuration section [identity]")?;
        let credentials = Arc::new(Credentials::new(shown, authorities).context("configuration section [identity]")?);
        let own = credentials.own();
        anyhow::ensure!(
            own.group == config.tracker.group || roles == [Role::Tracker],
            "configuration key tracker.group: this machine's certificate is for the group {:?}, not {:?}",
            own.group,
            config.tracker.group
        );
        tracing::info!(member = %own, "this machine is a member of a cluster");
        let keeping = tokio::spawn(keeper.keep(Arc::clone(&credentials), expiry));
        Ok(Self { identity, cluster: Some(Cluster { credentials, authority, keeping }) })
    }

    /// How pieces are protected.
    pub(crate) fn security(&self, config: &Config) -> Security {
        match &self.cluster {
            Some(cluster) => Security::Members(Arc::clone(&cluster.credentials)),
            None if config.peer.insecure => Security::Plaintext,
            None => Security::Keys,
        }
    }

    /// How calls are.
    pub(crate) fn calls(&self) -> anyhow::Result<Option<Tls>> {
        let credentials = self.cluster.as_ref().map(|cluster| &cluster.credentials);
        let tls = credentials.map(|credentials| Tls::new(Protocol::Calls, &self.identity, Some(credentials)));
        Ok(tls.transpose()?)
    }

    /// The authority that this machine is.
    pub(crate) fn authority(&self) -> Option<Arc<Authority>> {
        self.cluster.as_ref()?.authority.clone()
    }

    /// Says what is not protected.
    pub(crate) fn warn(&self, config: &Config) {
        if self.cluster.is_some() {
            return;
        }
        if config.peer.insecure {
            tracing::warn!("peer.insecure: pieces and calls are not encrypted; every host on that network is trusted");
        } else if !config.peer.listen.ip().is_loopback() {
            tracing::warn!(
                "the cluster has no authority (identity.directory): whoever reaches peer.listen and knows a digest gets the \
                 blob, and calls to trackers are not encrypted"
            );
        }
    }
}

/// When the certificate runs out; 0 when it has.
type Expiry = Gauge;

/// Keeps credentials good.
struct Keeper {
    config: Config,
    identity: Arc<Identity>,
    authority: Option<Arc<Authority>>,
    roles: Vec<Role>,
}

/// What tells one state of the files from another.
type Stamps = Vec<Option<(u64, SystemTime, u64)>>;

impl Keeper {
    /// What is there now, or what the own authority gives.
    fn load(&self) -> anyhow::Result<(Shown, Authorities)> {
        if let Some(authority) = &self.authority {
            let roles = Roles::of(self.roles.iter().copied());
            let group = self.config.tracker.group.clone();
            let member = Member { cluster: String::new(), group, roles, peer: None };
            let given = authority.certify(&member, self.identity.id())?;
            let shown = Shown::with_identity(given.certificates, &self.identity)?;
            return Ok((shown, Authorities::new(given.authorities, Rules::default())?));
        }
        let settings = &self.config.identity;
        let believed = membership::certificates(&settings.authority()).context("identity.authority")?;
        let rules = Rules { members: settings.members.clone(), group: self.config.tracker.group.clone() };
        let chain = membership::certificates(&settings.certificate())
            .context("identity.certificate (`lapwing ca join` gets one; or set identity.token_file)")?;
        let shown = match settings.key() {
            Some(key) => Shown::with_key_file(chain, &key).context("identity.key")?,
            None => Shown::with_identity(chain, &self.identity)?,
        };
        Ok((shown, Authorities::new(believed, rules).context("identity.authority")?))
    }

    fn stamps(&self) -> Stamps {
        use std::os::unix::fs::MetadataExt as _;
        let settings = &self.config.identity;
        let files = [Some(settings.authority()), Some(settings.certificate()), settings.key()];
        let stamp = |path: &Path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.ino(), found.modified().ok()?, found.size()))
        };
        files.into_iter().flatten().map(|path| stamp(&path)).collect()
    }

    /// Whether there is a certificate that this machine may show: one that is for its key, or for the one in `identity.key`.
    fn has_certificate(&self) -> bool {
        let settings = &self.config.identity;
        if !settings.certificate().exists() {
            return false;
        }
        let Ok(chain) = membership::certificates(&settings.certificate()) else { return true };
        let another = |error| matches!(error, CredentialsError::Another(_));
        settings.key().is_some() || !Shown::with_identity(chain, &self.identity).is_err_and(another)
    }

    /// Joins by the token, if there is one and no certificate, or one for the key that this machine had before `root` was emptied.
    async fn join_once(&self) -> anyhow::Result<()> {
        let settings = &self.config.identity;
        let Some(file) = settings.token_file().filter(|_| self.authority.is_none() && !self.has_certificate()) else {
            return Ok(());
        };
        let token = read_token(file).context("configuration key identity.token_file")?;
        let end = tokio::time::Instant::now() + JOIN_FOR;
        loop {
            let error = match join(&self.config, &self.identity, &token).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let refused = matches!(error.downcast_ref(), Some(AskError::Refused { .. } | AskError::Token(_)));
            if refused || tokio::time::Instant::now() >= end {
                return Err(error.context("this machine cannot join the cluster (identity.token_file)"));
            }
            tracing::warn!(error = format!("{error:#}"), "this machine could not join the cluster yet");
            tokio::time::sleep(RETRY.mul_f64(0.5 + fastrand::f64())).await;
        }
    }

    /// Renews, and takes up what others put into the files, for ever.
    async fn keep(self, credentials: Arc<Credentials>, expiry: Expiry) {
        let mut stamps = self.stamps();
        let renews = self.authority.is_some() || self.config.identity.key().is_none();
        let mut due = tokio::time::Instant::now() + until_renewal(&credentials);
        let mut clocks = Clocks::read();
        loop {
            let until = credentials.good_until().map_or(0, |until| until.as_secs());
            expiry.set(i64::try_from(until).unwrap_or(i64::MAX));
            let tick = tokio::time::Instant::now() + WATCH;
            tokio::time::sleep_until(if renews { due.min(tick) } else { tick }).await;
            if clocks.have_parted() {
                clocks = Clocks::read();
                tracing::warn!("the clock of this machine was set; its certificate is renewed if that is not good now");
                due = tokio::time::Instant::now() + until_renewal(&credentials);
            }
            let found = self.stamps();
            if self.authority.is_none() && found != stamps {
                stamps = found;
                self.take_up(&credentials);
                due = tokio::time::Instant::now() + until_renewal(&credentials);
            } else if renews && tokio::time::Instant::now() >= due {
                due = tokio::time::Instant::now() + self.renew(&credentials).await;
                stamps = self.stamps();
            }
        }
    }

    /// Uses what is there from now on, if it is good. A file that is half written is good at the next look.
    fn take_up(&self, credentials: &Credentials) {
        let taken = self.load().and_then(|(shown, authorities)| Ok(credentials.replace(shown, authorities)?));
        match taken {
            Ok(()) => tracing::info!(member = %credentials.own(), "this machine uses another certificate"),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the certificates that are there now are not used");
            }
        }
    }

    /// Gets another certificate. Gives the time until the next attempt.
    async fn renew(&self, credentials: &Arc<Credentials>) -> Duration {
        if self.authority.is_some() {
            self.take_up(credentials);
            return until_renewal(credentials);
        }
        let mut failed = None;
        for tracker in trackers(&self.config).await {
            match authority::renew(&tracker, &self.identity, credentials).await {
                Ok(given) => match self.write(&given) {
                    Ok(()) => {
                        self.take_up(credentials);
                        return until_renewal(credentials);
                    }
                    Err(error) => failed = Some(format!("{error:#}")),
                },
                Err(error) => failed = Some(error.to_string()),
            }
        }
        let left = remaining(credentials);
        let reason = failed.unwrap_or_else(|| "no tracker is known".to_owned());
        if left.is_zero() {
            tracing::error!(
                reason,
                "this machine's certificate has run out, or begins later by this machine's clock, and is not renewed: no peer and no \
                 tracker takes it"
            );
        } else {
            tracing::warn!(reason, left_seconds = left.as_secs(), "this machine's certificate is not renewed");
        }
        (left / 16).clamp(RETRY, LONGEST_RETRY).mul_f64(0.5 + fastrand::f64())
    }

    fn write(&self, given: &authority::Membership) -> anyhow::Result<()> {
        write(&self.config, given)
    }
}

fn write(config: &Config, given: &authority::Membership) -> anyhow::Result<()> {
    let settings = &config.identity;
    membership::write_certificates(&settings.authority(), &given.authorities)?;
    membership::write_certificates(&settings.certificate(), &given.certificates)?;
    Ok(())
}

/// Joins the cluster of `token` by way of the trackers of `config`, and keeps what it gets in its files.
pub(crate) async fn join(config: &Config, identity: &Arc<Identity>, token: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let directory = &config.identity.directory;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("identity.directory: {} cannot be made", directory.display()))?;
    let mut failed = anyhow::anyhow!("no tracker is known; name one in tracker.addresses");
    for tracker in trackers(config).await {
        match authority::join(&tracker, identity, token).await {
            Ok(given) => return write(config, &given),
            Err(error) => failed = error.into(),
        }
    }
    Err(failed)
}

/// What this machine's certificate says, and how long it is good yet; for `lapwing doctor`, without asking anybody.
pub(crate) fn inspect(config: &Config) -> anyhow::Result<(Member, Duration)> {
    let identity = Arc::new(Identity::load_or_create(&config.root.join("node.key"))?);
    let keeper = Keeper { config: config.clone(), identity, authority: None, roles: Vec::new() };
    let (shown, authorities) = keeper.load()?;
    let credentials = Credentials::new(shown, authorities)?;
    Ok((credentials.own(), remaining(&credentials)))
}

/// A token in a file.
pub(crate) fn read_token(file: &Path) -> anyhow::Result<String> {
    let token = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Ok(token.trim().to_owned())
}

/// The trackers as they are named now, in any order.
async fn trackers(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let resolver = config.tracker.resolver().unwrap_or_default();
    for source in config.tracker.addresses.iter().filter_map(|entry| TrackerSource::parse(entry).ok()) {
        match source.trackers(resolver).await {
            Ok(trackers) => found.extend(trackers),
            Err(error) => tracing::warn!(%error, "a source of trackers names none"),
        }
    }
    fastrand::shuffle(&mut found);
    found
}

/// The clock that dates are held to and the one that waits are, read together.
struct Clocks {
    wall: SystemTime,
    steady: std::time::Instant,
}

impl Clocks {
    fn read() -> Self {
        Self { wall: SystemTime::now(), steady: std::time::Instant::now() }
    }

    /// Whether the wall clock was set since, so that a wait for a date ends at another time.
    fn have_parted(&self) -> bool {
        let expected = self.wall + self.steady.elapsed();
        let now = SystemTime::now();
        now.duration_since(expected).unwrap_or_else(|early| early.duration()) > CLOCK_SLACK
    }
}

/// How long the certificate is good yet.
fn remaining(credentials: &Credentials) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let until = credentials.good_until().map(|until| Duration::from_secs(until.as_secs()));
    until.unwrap_or_default().saturating_sub(now)
}

/// About half of what is left: many machines that began together do not renew together.
fn until_renewal(credentials: &Credentials) -> Duration {
    remaining(credentials).mul_f64(0.4 + 0.2 * fastrand::f64())
}
