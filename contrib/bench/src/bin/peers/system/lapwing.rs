//! Lapwing: a tracker for all, a node on each worker. Whole pulls only, so that no layer index is built meanwhile.

use super::Daemon;
use crate::files::WEB;
use crate::stage::Stage;
use anyhow::{Result, bail};
use lapwing_lab::{Host, Lapwing, LapwingSettings, WebServer, lapwing_binary};
use std::process::Command;

pub(super) fn tracker(stage: &Stage) -> Result<Daemon> {
    let tracker = Lapwing::start(&stage.network.host("tracker", None)?, LapwingSettings::tracker())?;
    Ok(Daemon::Lapwing(Box::new(tracker)))
}

pub(super) fn node(stage: &Stage, host: &Host) -> Result<Daemon> {
    let Some(Daemon::Lapwing(tracker)) = &stage.shared else { bail!("no tracker") };
    let settings = LapwingSettings::node(&[tracker.tracker_address()])
        .registry(&stage.registry.name())
        .with("lazy", "enabled = false")
        .with("lazy", "build_indexes = false")
        .with("http", &format!("allow = [{:?}]", WebServer::name_of(WEB)))
        .with("outage", "max_stale = \"1h\"");
    Ok(Daemon::Lapwing(Box::new(Lapwing::start(host, settings)?)))
}

/// What is left to name is the file and the URL.
pub(super) fn download(host: &Host) -> Result<Command> {
    let mut command = host.command(lapwing_binary()?);
    command.args(["get", "-q", "-O"]);
    Ok(command)
}
