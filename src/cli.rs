//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::membership::Roles;

mod bench;
mod get;
mod preheat;

pub(crate) use bench::Bench;
pub(crate) use get::Get;
pub(crate) use preheat::Preheat;

use crate::commands::setup::DOCKER_CONFIG;
use crate::commands::setup::containerd::CONFIG as CONTAINERD_CONFIG;
use crate::commands::setup::version::ContainerdVersion;
use crate::config::{ByteSize, Span};
use crate::tracker::view::DEFAULT_ROWS;

/// How the node starts the process that keeps its mounts alive: a name that no version may change, since the program may have been replaced.
pub(crate) const HOLD_COMMAND: &str = "hold-descriptors";

/// How the node starts the process that mounts for it. Nobody else does, so it is not among the commands.
pub(crate) const MOUNTER_COMMAND: &str = "mount-for-node";

/// Peer-to-peer image distribution and lazy start for containerd.
#[derive(Debug, Parser)]
#[command(name = "lapwing", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a worker's daemon: snapshotter, registry mirror, chunk store, swarm peer
    Node(Daemon),
    /// Run a tracker: who holds which blob, who may fetch what from the registry
    Tracker(Daemon),
    /// Run a seed: fetches blobs from their registries on demand and keeps them for all nodes
    Seed(Daemon),
    /// Run tracker and node in one process
    Up(Daemon),
    /// List the blobs and lazily mounted layers of the node on this machine
    Ls(Query),
    /// Fetch files by their URLs, out of the swarm where that may be, as wget does
    Get(Box<Get>),
    /// Bring images to seeds or nodes before anybody pulls them, with the indexes of their layers if wanted
    Preheat(Preheat),
    /// Measure how close the swarm of one's own nodes comes to the theoretical bound, and what limits it
    Bench(Box<Bench>),
    /// Put the blobs of a lazily pulled image into containerd's content store, for export, push, convert and other snapshotters
    Hydrate(Hydrate),
    /// List the nodes that the tracker on this machine knows
    Nodes(Nodes),
    /// Show where the time and the bytes of a pull went, and what limited it
    Explain(Explain),
    /// Show who holds a blob, nearest first, as the tracker on this machine knows it
    Find(Find),
    /// Take blobs, or all blobs of an image, out of the chunk store of the node on this machine
    Rm(Rm),
    /// Take everything out of the chunk store that nothing uses
    Gc(Gc),
    /// Show the speed limits of the node on this machine, or change them until it is started anew
    Limits(Limits),
    /// Keep blobs on this machine, whatever else needs room, until they are unpinned
    Pin(Pin),
    /// Let pinned blobs age again
    Unpin(Pin),
    /// Build, show or check the index of a layer in a file, by which it can be mounted lazily
    #[command(subcommand)]
    Index(Index),
    /// Show what containers of an image read when they start, which other nodes then fetch ahead; write it to a file, or read it from one
    #[command(subcommand)]
    Profile(Profile),
    /// Check whether this machine can do what Lapwing needs, and say what to mend
    Doctor(Doctor),
    /// Be, or join, a cluster's authority: certificates that say who may take part
    #[command(subcommand)]
    Ca(Ca),
    /// Tell containerd or dockerd of the Lapwing on this machine: write, check or take back their configuration
    Setup(Setup),
    /// Print the configuration's reference, or check a file
    Config(Check),
    /// Take the lazy mounts of a stopped node away, which outlive it otherwise: before it is uninstalled
    Detach(Detach),
    /// Write man pages, shell completions, or the pages of docs/reference, as packages do
    Generate(Generate),
    /// Keep the descriptors that the node gives to this process
    #[command(hide = true, name = HOLD_COMMAND)]
    HoldDescriptors,
}

#[derive(Debug, Args)]
pub(crate) struct Daemon {
    /// Configuration file (TOML); without it every key has its default
    #[arg(short, long, env = "LAPWING_CONFIG")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// What to write
    pub what: GenerateWhat,
    /// The directory it goes to, which is made
    pub directory: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GenerateWhat {
    /// A page of section 1 for each command
    Man,
    /// For bash (lapwing.bash), zsh (_lapwing) and fish (lapwing.fish)
    Completions,
    /// cli.md, configuration.md and preheat-api.json
    Reference,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Index {
    /// Build the index of a layer
    Build(IndexBuild),
    /// Show what an index says
    Show(IndexShow),
    /// Build the index of a layer anew and compare; exit code 1 if it is another
    Verify(IndexVerify),
}

#[derive(Debug, Args)]
pub(crate) struct IndexBuild {
    /// The layer, as a registry has it: a tar, plain or compressed by gzip or zstd
    pub layer: PathBuf,
    /// Where the index goes; default: beside the layer, with ".index" behind its name
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print JSON instead of lines
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct IndexShow {
    /// The index; a node keeps those of its lazy layers in layers/<digest>/index below its root
    pub index: PathBuf,
    /// List the files of the layer, too
    #[arg(long)]
    pub files: bool,
    /// Print JSON instead of lines
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct IndexVerify {
    /// The index
    pub index: PathBuf,
    /// The layer, as a registry has it
    pub layer: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Make an authority: a key that lets nodes into a cluster, for trackers (identity.issuer)
    Init(CaInit),
    /// Print a new token by which machines join, list tokens, or take one back
    Token(CaToken),
    /// Join a cluster: get a certificate for this machine and put it where the configuration says
    Join(CaJoin),
    /// Write a certificate for a machine that cannot reach a tracker
    Issue(CaIssue),
    /// List who was let in
    Members(CaMembers),
    /// Give a machine no certificate any more
    Revoke(CaRevoke),
}

#[derive(Debug, Args)]
pub(crate) struct CaInit {
    /// A new directory for the authority; keep it secret, and a copy of it safe
    pub directory: PathBuf,
    /// The cluster's name: lowercase letters, digits, '.', '-', '_'
    #[arg(long)]
    pub cluster: String,
}

#[derive(Debug, Args)]
pub(crate) struct CaToken {
    /// The authority's directory
    pub directory: PathBuf,
    /// The group that machines with it join
    #[arg(long, default_value = "default")]
    pub group: String,
    /// What they may be: node, seed, tracker, joined by '+'
    #[arg(long, default_value = "node")]
    pub roles: Roles,
    /// How long it lets machines in
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub valid: Span,
    /// List tokens instead
    #[arg(long, conflicts_with_all = ["group", "roles", "valid"])]
    pub list: bool,
    /// Take back the token with this id instead
    #[arg(long, value_name = "ID", conflicts_with_all = ["group", "roles", "valid", "list"])]
    pub revoke: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CaJoin {
    /// Configuration file (TOML); its identity.directory gets the certificate, its tracker.addresses are asked
    #[arg(short, long, env = "LAPWING_CONFIG")]
    pub config: Option<PathBuf>,
    /// A file with the token, "-" for the standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CaIssue {
    /// The authority's directory
    pub directory: PathBuf,
    /// The machine's peer id (64 hexadecimal digits, as it logs at its start)
    #[arg(long, value_name = "ID")]
    pub peer: PeerId,
    /// Its group
    #[arg(long, default_value = "default")]
    pub group: String,
    /// What it may be: node, seed, tracker, joined by '+'
    #[arg(long, default_value = "node")]
    pub roles: Roles,
    /// How long the certificate is good
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub valid: Span,
    /// Where certificate.pem and authority.pem go: a directory that is there
    #[arg(long, value_name = "DIRECTORY")]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CaMembers {
    /// The authority's directory
    pub directory: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CaRevoke {
    /// The authority's directory
    pub directory: PathBuf,
    /// The machine's peer id, as `lapwing ca members` and `lapwing nodes` show it
    pub peer: PeerId,
}

#[derive(Debug, Args)]
pub(crate) struct Query {
    /// The node's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Hydrate {
    /// The image's name, as containerd has it ("registry.example/team/app:1.0")
    pub image: String,
    /// containerd's namespace ("k8s.io" is Kubernetes')
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Only this platform ("linux/arm64"); else every one that was pulled
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// The node's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Profile {
    /// Show the profile of an image
    Show(ProfileShow),
    /// Write it to a file
    Export(ProfileExport),
    /// Take up a file that was exported elsewhere, for this node and the others of its group
    Import(ProfileImport),
}

#[derive(Debug, Args)]
pub(crate) struct ProfileShow {
    /// The image's name, as containerd has it, or its chain id ("sha256:...")
    pub image: String,
    /// containerd's namespace ("k8s.io" is Kubernetes')
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// The node's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
}

#[derive(Debug, Args)]
pub(crate) struct ProfileExport {
    /// The image's name, as containerd has it, or its chain id ("sha256:...")
    pub image: String,
    /// containerd's namespace ("k8s.io" is Kubernetes')
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Where it goes, "-" for the standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// The node's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
}

#[derive(Debug, Args)]
pub(crate) struct ProfileImport {
    /// A file that `lapwing profile export` wrote
    pub file: PathBuf,
    /// The node's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
}

#[derive(Debug, Args)]
pub(crate) struct Nodes {
    /// The tracker's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Only nodes of this group
    #[arg(long)]
    pub group: Option<String>,
    /// Only nodes of this zone
    #[arg(long)]
    pub zone: Option<String>,
    /// Leave out so many, which were shown before
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub skip: usize,
    /// Show at most so many
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULT_ROWS)]
    pub limit: usize,
}

#[derive(Debug, Args)]
#[command(after_help = EXPLAIN_HELP)]
pub(crate) struct Explain {
    /// The image as it was pulled ("registry.example/team/app:1.0", or the end of that), or a digest; default: list the last pulls
    #[arg(value_name = "IMAGE|DIGEST")]
    pub name: Option<String>,
    /// The node's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

const EXPLAIN_HELP: &str = "The last pulls through this node's mirror are remembered until it is started anew; docs/explain.md says what the phases \
                            and causes mean.";

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 done; 1 something is pinned or in use, and was left. containerd's own images and content are not touched."
)]
pub(crate) struct Rm {
    /// Digests of blobs ("sha256:..."), or images as they were pulled
    #[arg(required = true, value_name = "BLOB|IMAGE")]
    pub names: Vec<String>,
    /// The node's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The node's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Find {
    /// Digest of a layer or another blob ("sha256:...")
    pub digest: lapwing_p2p::digest::Digest,
    /// The tracker's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// Only holders of this group
    #[arg(long)]
    pub group: Option<String>,
    /// Order by nearness to this zone
    #[arg(long)]
    pub zone: Option<String>,
    /// Order by nearness to this rack of the zone
    #[arg(long, requires = "zone")]
    pub rack: Option<String>,
    /// Order by nearness to this address
    #[arg(long, value_name = "ADDRESS")]
    pub near: Option<IpAddr>,
    /// Show at most so many holders of each group
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULT_ROWS)]
    pub limit: usize,
}

/// Sizes per second, such as "10MiB"; "0" takes a limit away. Limits that are not named stay.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// The node's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// What the node sends to other nodes
    #[arg(long, value_name = "SIZE")]
    pub upload: Option<ByteSize>,
    /// ... of each blob
    #[arg(long, value_name = "SIZE")]
    pub upload_per_blob: Option<ByteSize>,
    /// ... to each node
    #[arg(long, value_name = "SIZE")]
    pub upload_per_peer: Option<ByteSize>,
    /// What the node asks of other nodes
    #[arg(long, value_name = "SIZE")]
    pub download: Option<ByteSize>,
    /// ... of each blob
    #[arg(long, value_name = "SIZE")]
    pub download_per_blob: Option<ByteSize>,
    /// ... of each node
    #[arg(long, value_name = "SIZE")]
    pub download_per_peer: Option<ByteSize>,
    /// What the node takes from registries
    #[arg(long, value_name = "SIZE")]
    pub origin: Option<ByteSize>,
    /// ... of each blob
    #[arg(long, value_name = "SIZE")]
    pub origin_per_blob: Option<ByteSize>,
}

#[derive(Debug, Args)]
pub(crate) struct Pin {
    /// Digests of layers or other blobs ("sha256:..."), as `lapwing ls --json` names them
    #[arg(required = true, value_name = "DIGEST")]
    pub digests: Vec<lapwing_p2p::digest::Digest>,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// The node's admin address (admin.listen)
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Configuration file (TOML) whose paths and addresses are to be checked; default /etc/lapwing/lapwing.toml if it is there
    #[arg(short, long, env = "LAPWING_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// Configuration file (TOML) of the node
    #[arg(short, long, env = "LAPWING_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// A configuration file to check; exit code 1 if it cannot be used
    #[arg(long, value_name = "FILE")]
    pub check: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Setup {
    #[command(subcommand)]
    pub target: SetupTarget,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SetupTarget {
    /// containerd 1.6, 1.7 and 2.x: config.toml and the hosts.toml files
    Containerd(SetupContainerd),
    /// dockerd: daemon.json
    Docker(SetupDocker),
}

#[derive(Debug, Args)]
pub(crate) struct SetupHow {
    /// Show what would change, and write nothing
    #[arg(long, group = "how")]
    pub dry_run: bool,
    /// The same, with exit code 1 if anything would change
    #[arg(long, group = "how")]
    pub check: bool,
    /// Give the files back as they were before the first run
    #[arg(long, group = "how")]
    pub undo: bool,
    /// Lapwing's own configuration, for the mirror's address and the snapshotter's socket; default /etc/lapwing/lapwing.toml
    #[arg(long, value_name = "FILE", env = "LAPWING_CONFIG")]
    pub lapwing_config: Option<PathBuf>,
}

const SETUP_CODES: &str = "Exit codes: 0 done, or nothing to do; 1 --check found something to do; 2 not done, and why";

#[derive(Debug, Args)]
#[command(after_help = SETUP_CODES)]
pub(crate) struct SetupContainerd {
    #[command(flatten)]
    pub how: SetupHow,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = CONTAINERD_CONFIG)]
    pub config: PathBuf,
    /// The directory with the hosts.toml files; default: the one that CRI uses, else /etc/containerd/certs.d
    #[arg(long, value_name = "DIRECTORY")]
    pub certs_dir: Option<PathBuf>,
    /// Only these registries ("reg.example:5000"), instead of all ("_default" and those that have a hosts.toml)
    #[arg(long, value_name = "HOST", num_args = 1..)]
    pub registry: Vec<String>,
    /// The version of containerd, such as "1.7"; default: what `containerd --version` says
    #[arg(long, value_name = "VERSION")]
    pub containerd_version: Option<ContainerdVersion>,
    /// Leave CRI's default snapshotter as it is
    #[arg(long)]
    pub keep_snapshotter: bool,
}

#[derive(Debug, Args)]
#[command(after_help = SETUP_CODES)]
pub(crate) struct SetupDocker {
    #[command(flatten)]
    pub how: SetupHow,
    /// dockerd's configuration
    #[arg(long, value_name = "FILE", default_value = DOCKER_CONFIG)]
    pub config: PathBuf,
}
