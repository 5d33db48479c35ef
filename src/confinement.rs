//! What a daemon may still do once it runs: as little as its work needs.
//!
//! A daemon is confined before it has a second thread, a socket, or anything from outside in its memory ([`enter`]):
//!
//! * what needs rights goes to a process of its own, the mounter ([`mounter`]; for nodes)
//! * capabilities: none, but for what the configuration asks for ([`needed`]); they are gone for good, also from the bounding set
//! * `no_new_privs`: no program that it starts has more
//! * system calls that neither its work nor that of a credential helper needs are refused ([`syscalls`])
//! * it writes below its own directories alone, and starts no program unless the configuration names some ([`files`])
//!
//! Users of a machine without Landlock, or with a daemon that was started without rights, get what is there; the log says once what is not.

use std::net::SocketAddr;

use rustix::thread::CapabilitySet;

use crate::config::Config;
use crate::node::prepare_root;

mod capabilities;
mod files;
pub(crate) mod mounter;
mod syscalls;

pub(crate) use capabilities::give_up_all;
pub(crate) use files::version as landlock_version;

/// Which daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// `lapwing node` and `lapwing up`
    Node,
    /// `lapwing seed`
    Seed,
    /// `lapwing tracker`
    Tracker,
}

/// Confines this process, which has no other thread yet, to what `part` needs. From here on `config.root` is named as the kernel names it.
///
/// # Errors
///
/// When the root cannot be made, or the system refuses to take rights away.
pub(crate) fn enter(part: Part, config: &mut Config) -> anyhow::Result<()> {
    match prepare_root(&config.root) {
        Ok(root) => config.root = root,
        // It may do without.
        Err(error) if part == Part::Tracker => tracing::debug!(%error, "this tracker has no directory"),
        Err(error) => return Err(error),
    }
    if part == Part::Node {
        mounter::start(config)?;
    }
    let writable = files::writable(part, config);
    let programs = runs_programs(config);
    let kept = capabilities::keep(needed(part, config))?;
    rustix::thread::set_no_new_privs(true)?;
    // Whoever started this may have forbidden it to confine itself further, as old versions of systemd do with filtered system calls.
    let landlock = files::confine(&writable, programs).unwrap_or_else(|error| {
        tracing::warn!(%error, "Landlock could not be used: what is root's can be written to");
        files::Enforced::Nothing
    });
    let role = if programs { syscalls::Role::WithPrograms } else { syscalls::Role::Alone };
    if let Err(error) = syscalls::refuse(role) {
        tracing::warn!(%error, "system calls could not be filtered; allow seccomp(2)");
    }
    tracing::info!(
        capabilities = kept.names(),
        programs,
        landlock = landlock.as_str(),
        "confined to what its work needs"
    );
    if kept.bounding_is_whole {
        tracing::debug!(
            "the bounding set stays: there is no CAP_SETPCAP. No program gets anything of it (no_new_privs)"
        );
    }
    Ok(())
}

/// The capabilities that the network-facing process needs, and why:
///
/// * `CAP_NET_BIND_SERVICE`, when the configuration names a port that others may not listen on
/// * `CAP_NET_ADMIN`, for nodes and seeds, when `peer.congestion_control` is one that the system does not allow to everybody
///   (`net.ipv4.tcp_allowed_congestion_control`)
///
/// Nothing else: files are root's, and it is root that reads and writes them as their owner; those of others go through the mounter.
fn needed(part: Part, config: &Config) -> CapabilitySet {
    let first_free = sysctl("net/ipv4/ip_unprivileged_port_start").and_then(|text| text.parse().ok()).unwrap_or(1024);
    let allowed = sysctl("net/ipv4/tcp_allowed_congestion_control").unwrap_or_default();
    needed_where(part, config, first_free, &allowed)
}

fn needed_where(part: Part, config: &Config, first_free_port: u16, allowed_congestion_control: &str) -> CapabilitySet {
    let mut needed = CapabilitySet::empty();
    if listeners(config).iter().any(|listen| (1..first_free_port).contains(&listen.port())) {
        needed |= CapabilitySet::NET_BIND_SERVICE;
    }
    let wanted = &config.peer.congestion_control;
    let is_allowed = allowed_congestion_control.split_whitespace().any(|allowed| allowed == wanted);
    if part != Part::Tracker && !wanted.is_empty() && !is_allowed {
        needed |= CapabilitySet::NET_ADMIN;
    }
    needed
}

fn listeners(config: &Config) -> Vec<SocketAddr> {
    let named =
        [config.mirror.listen, config.admin.listen, config.peer.listen, config.tracker.listen, config.seed.listen];
    let optional = [config.proxy.listen(), config.preheat.listen(), config.tracker.piccolo_listen()];
    named.into_iter().chain(optional.into_iter().flatten()).collect()
}

fn sysctl(name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok().map(|text| text.trim().to_owned())
}

/// Whether the configuration names programs that give credentials: a docker `config.json` may, kubelet's configuration does.
fn runs_programs(config: &Config) -> bool {
    let registries = &config.registries;
    let of_hosts = registries.hosts.values().any(|host| host.docker_config.is_some());
    of_hosts || !registries.docker_config.as_os_str().is_empty() || !registries.kubelet.config.as_os_str().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_kept_for_what_the_configuration_asks_for() {
        let mut config = Config::default();
        assert_eq!(needed_where(Part::Node, &config, 1024, "reno cubic"), CapabilitySet::empty());
        config.mirror.listen.set_port(443);
        assert_eq!(needed_where(Part::Node, &config, 1024, "reno cubic"), CapabilitySet::NET_BIND_SERVICE);
        assert_eq!(needed_where(Part::Node, &config, 0, "reno cubic"), CapabilitySet::empty(), "everybody may");
        config.mirror.listen.set_port(0);
        config.peer.congestion_control = "bbr".into();
        assert_eq!(needed_where(Part::Node, &config, 1024, "reno cubic"), CapabilitySet::NET_ADMIN);
        assert_eq!(needed_where(Part::Node, &config, 1024, "reno cubic bbr"), CapabilitySet::empty());
        assert_eq!(needed_where(Part::Tracker, &config, 1024, "reno"), CapabilitySet::empty(), "it has no piece wire");
        config.peer.congestion_control = "".into();
        assert_eq!(needed_where(Part::Node, &config, 1024, ""), CapabilitySet::empty());
    }

    #[test]
    fn programs_are_run_where_some_are_named() {
        let mut config = Config::default();
        assert!(!runs_programs(&config));
        config.registries.docker_config = "/root/.docker/config.json".into();
        assert!(runs_programs(&config));
        let mut config = Config::default();
        config.registries.kubelet.config = "/etc/kubernetes/credentials.yaml".into();
        assert!(runs_programs(&config));
    }
}
