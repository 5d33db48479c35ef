//! `lapwing setup`: containerd and dockerd told of Lapwing, and back.
//!
//! * [`containerd`], [`containerd_toml`], [`hosts`], [`docker`]: what the files are to hold, from what they hold
//! * [`edit`]: TOML changed in place
//! * [`plan`], [`files`], [`record`]: shown, written, taken back
//! * [`version`]: which containerd it is
//!
//! The operator's comments, order, keys and hosts stay. Nothing is ever restarted.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::{Setup, SetupHow, SetupTarget};
use crate::config::Config;

pub(crate) mod containerd;
mod containerd_toml;
mod docker;
mod edit;
mod error;
mod files;
mod hosts;
mod plan;
mod record;
pub(crate) mod version;

use error::SetupError;
use plan::Plan;

/// Where Lapwing's own configuration is, if it is anywhere.
pub(super) const LAPWING_CONFIG: &str = "/etc/lapwing/lapwing.toml";
/// Where dockerd's configuration is, unless somebody says otherwise.
pub(crate) const DOCKER_CONFIG: &str = "/etc/docker/daemon.json";

const WOULD_CHANGE: u8 = 1;
const NOT_DONE: u8 = 2;

/// Runs to an exit code of its own: 0 done or nothing to do, 1 `--check` found something to do, 2 it cannot be done, or not understood.
pub(crate) fn run(arguments: &Setup) -> ExitCode {
    match act(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lapwing: {error:#}");
            ExitCode::from(NOT_DONE)
        }
    }
}

fn act(arguments: &Setup) -> anyhow::Result<ExitCode> {
    let (how, config) = match &arguments.target {
        SetupTarget::Containerd(containerd) => (&containerd.how, &containerd.config),
        SetupTarget::Docker(docker) => (&docker.how, &docker.config),
    };
    // The record lies beside the file itself, wherever links lead.
    let config = match std::fs::canonicalize(config) {
        Ok(found) => found,
        Err(_) => std::path::absolute(config)?,
    };
    let mut out = std::io::stdout().lock();
    if how.undo {
        for path in record::undo(&config)? {
            writeln!(out, "as it was: {}", path.display())?;
        }
        writeln!(out, "now restart what reads these files")?;
        return Ok(ExitCode::SUCCESS);
    }
    let plan = planned(&arguments.target, &config, how)?;
    write!(out, "{plan}")?;
    for note in &plan.notes {
        writeln!(out, "note: {note}")?;
    }
    if plan.changes.is_empty() {
        writeln!(out, "nothing to do")?;
        return Ok(ExitCode::SUCCESS);
    }
    if how.check {
        return Ok(ExitCode::from(WOULD_CHANGE));
    }
    if !how.dry_run {
        record::apply(&config, &plan)?;
        for change in &plan.changes {
            writeln!(out, "wrote {}", change.path.display())?;
        }
        writeln!(out, "what was there before: {} (--undo gives it back)", record::directory(&config).display())?;
    }
    for command in &plan.afterwards {
        writeln!(out, "then: {command}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn planned(target: &SetupTarget, config: &Path, how: &SetupHow) -> anyhow::Result<Plan> {
    let lapwing = lapwing_config(how.lapwing_config.as_deref())?;
    Ok(match target {
        SetupTarget::Docker(_) => docker::plan(config, &mirror_url(&lapwing))?,
        SetupTarget::Containerd(containerd) => {
            let version = match containerd.containerd_version {
                Some(version) => version,
                None => version::installed()?,
            };
            let target = containerd::Target {
                config,
                certs_dir: containerd.certs_dir.as_deref().map(std::path::absolute).transpose()?,
                registries: &containerd.registry,
                containerd: version,
                keep_snapshotter: containerd.keep_snapshotter,
            };
            containerd::plan(&target, &lapwing)?
        }
    })
}

fn lapwing_config(path: Option<&Path>) -> anyhow::Result<Config> {
    let usual = PathBuf::from(LAPWING_CONFIG);
    let path = path.or_else(|| usual.is_file().then_some(usual.as_path()));
    Ok(Config::load(path)?)
}

/// How clients on this machine reach the mirror.
fn mirror_url(lapwing: &Config) -> String {
    let listen = lapwing.mirror.listen;
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listen.port()))
}

/// Whether the containerd at its usual place is set up: what would have to be done.
pub(crate) fn containerd_is(lapwing: &Config) -> Result<(version::ContainerdVersion, Vec<PathBuf>), SetupError> {
    let version = version::installed()?;
    let target = containerd::Target {
        config: Path::new(containerd::CONFIG),
        certs_dir: None,
        registries: &[],
        containerd: version,
        keep_snapshotter: true,
    };
    let plan = containerd::plan(&target, lapwing)?;
    Ok((version, plan.changes.into_iter().map(|change| change.path).collect()))
}

/// The same of the dockerd at its usual place.
pub(crate) fn docker_is(lapwing: &Config) -> Result<bool, SetupError> {
    Ok(docker::plan(Path::new(DOCKER_CONFIG), &mirror_url(lapwing))?.changes.is_empty())
}
