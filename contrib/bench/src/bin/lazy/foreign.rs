//! Other snapshotters that mount layers lazily, from images that were converted for them.

use anyhow::{Result, bail};
use lapwing_bench::programs;
use lapwing_lab::image::Layout;
use lapwing_lab::wait::{self, Poll};
use lapwing_lab::{Host, Machine, MachineOptions, Process, Registry, Site, check};
use std::path::PathBuf;
use std::time::Duration;

const READY: Duration = Duration::from_secs(30);

/// As containerd is told of it.
pub(crate) fn proxy(name: &str) -> (String, PathBuf) {
    (name.to_owned(), socket(name))
}

fn socket(name: &str) -> PathBuf {
    PathBuf::from(format!("/run/{name}.sock"))
}

/// Starts the snapshotter of that name, with its defaults.
pub(crate) fn start(host: &Host, name: &str, registry: &Registry) -> Result<Process> {
    let directory = host.dir().join(name);
    std::fs::create_dir_all(&directory)?;
    let mut command = host.command(programs(name)?.join(name));
    command.arg(&directory).arg(socket(name));
    let registry = registry.name();
    match name {
        "stargz" => drop(command.arg(registry)),
        "soci" => {
            let config = host.dir().join("soci.toml");
            let text = format!(
                "[resolver.host.{registry:?}]\n[[resolver.host.{registry:?}.mirrors]]\nhost = \"http://{registry}\"\ninsecure = true\n"
            );
            std::fs::write(&config, text)?;
            command.arg(config);
        }
        _ => bail!("there is no snapshotter {name}"),
    }
    let mut process = host.spawn(name, &mut command)?;
    wait::until(&format!("{name} to listen"), READY, || {
        process.expect_running()?;
        Ok(if host.path(socket(name)).exists() { Poll::Ready(()) } else { Poll::NotYet("there is no socket".into()) })
    })?;
    Ok(process)
}

/// Converts an image that is in the registry to eStargz, pushes it, and gives its reference.
pub(crate) fn estargz(site: &Site, reference: &str) -> Result<String> {
    let worker = Machine::start(&site.network, "converter", &site.registry, MachineOptions::plain())?;
    worker.containerd.pull(reference, "overlayfs")?;
    let converted = format!("{reference}-estargz");
    check(worker.containerd.nerdctl()?.args(["image", "convert", "--oci", "--estargz", reference, &converted]))?;
    check(worker.containerd.ctr()?.args(["images", "push", "--plain-http", &converted]))?;
    Ok(converted)
}

/// Pushes an image with a SOCI index, and gives its reference.
pub(crate) fn soci(site: &Site, layout: &Layout, name: &str) -> Result<String> {
    site.registry.push_with_soci(layout, name, "1-soci")
}
