//! containerd's configuration: the files of `contrib/` that users are told to install, and what a laboratory needs besides.

use crate::host::Host;
use crate::tools::repository;
use anyhow::{Context, Result};
use serde_json::json;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flavour {
    /// The pinned 2.x, which needs [`crate::Need::Tools`].
    #[default]
    V2,
    /// The pinned 1.7, which needs [`crate::Need::Containerd17`].
    V17,
    /// The distribution's own (1.6 in Debian 12).
    Debian,
}

/// How containerd is to run.
#[derive(Debug, Clone)]
pub struct ContainerdOptions {
    /// Which containerd.
    pub flavour: Flavour,
    /// Lapwing's snapshotter, as the proxy plugin `lapwing`.
    pub snapshotter: Option<SnapshotterPlugin>,
    /// The registries of the laboratory, by plain HTTP, and what is asked before them.
    pub registries: Vec<RegistryHosts>,
    /// The snapshotter that CRI uses.
    pub cri_snapshotter: String,
    /// CRI pulls by itself, as before containerd 2.1, and not through the transfer service.
    pub cri_local_pull: bool,
    /// Bytes of the parts in which the transfer service fetches a layer, several at once (2.1); `None`: in one piece.
    pub layer_fetch_buffer: Option<u32>,
    /// Whether containerd tells the snapshotter which layer a snapshot is of, as the files in `contrib/` ask it to.
    pub annotations: bool,
    /// Whether containerd is told that the snapshotter maps ids (2.x).
    pub remap_ids: bool,
    /// The image of CRI's sandbox containers.
    pub pause: Option<String>,
    /// Whether containerd's own EROFS snapshotter is set up (2.x), as `erofs`.
    pub erofs: bool,
    /// Other snapshotters (2.x): their names and sockets. They are told which layer a snapshot is of.
    pub others: Vec<(String, PathBuf)>,
}

impl Default for ContainerdOptions {
    fn default() -> Self {
        Self {
            flavour: Flavour::default(),
            snapshotter: None,
            registries: Vec::new(),
            cri_snapshotter: "overlayfs".into(),
            cri_local_pull: false,
            layer_fetch_buffer: None,
            annotations: true,
            remap_ids: true,
            pause: None,
            erofs: false,
            others: Vec::new(),
        }
    }
}

/// Where Lapwing's snapshotter is.
#[derive(Debug, Clone)]
pub struct SnapshotterPlugin {
    /// Its socket, on the host.
    pub socket: PathBuf,
    /// Its root directory.
    pub root: PathBuf,
}

/// One `hosts.toml`.
#[derive(Debug, Clone)]
pub struct RegistryHosts {
    /// The registry's name in image references.
    pub name: String,
    /// Its own URL.
    pub url: String,
    /// URLs asked before it, in order.
    pub mirrors: Vec<String>,
    /// Headers that these are sent.
    pub headers: Vec<(String, String)>,
}

pub(super) fn hosts_dir(host: &Host) -> PathBuf {
    host.dir().join("certs.d")
}

pub(super) fn file(host: &Host) -> PathBuf {
    host.dir().join("containerd.toml")
}

/// Writes configuration, hosts.toml files and CNI networks.
pub(super) fn write(host: &Host, options: &ContainerdOptions) -> Result<()> {
    for registry in &options.registries {
        let dir = hosts_dir(host).join(&registry.name);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("hosts.toml"), hosts_toml(registry)?)?;
    }
    let networks = cni_dir(host);
    std::fs::create_dir_all(&networks)?;
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.89.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    std::fs::write(networks.join("10-lab.conflist"), serde_json::to_vec(&network)?)?;
    let (shipped, own) = match options.flavour {
        Flavour::V2 => ("config-2.x.toml", version_3(host, options)),
        Flavour::V17 | Flavour::Debian => ("config-1.7.toml", version_2(host, options)),
    };
    let mut config: Table = match options.snapshotter {
        Some(_) => toml::from_str(&contrib(&format!("containerd/{shipped}"))?).context(shipped)?,
        None => Table::new(),
    };
    merge(&mut config, toml::from_str(&own).context("the laboratory's own settings")?);
    if !options.remap_ids
        && let Some(plugin) = at(&mut config, &["proxy_plugins", "lapwing"])
    {
        plugin.remove("capabilities");
    }
    if !options.annotations {
        without_annotations(&mut config, options.flavour);
    }
    std::fs::write(file(host), toml::to_string(&config)?).map_err(Into::into)
}

/// A file that users are told to install.
pub(super) fn contrib(name: &str) -> Result<String> {
    let path = repository().join("contrib").join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Sets every key of `own` in `config`; tables are merged, all else is replaced.
fn merge(config: &mut Table, own: Table) {
    for (key, value) in own {
        match (config.get_mut(&key), value) {
            (Some(Value::Table(there)), Value::Table(table)) => merge(there, table),
            (_, value) => drop(config.insert(key, value)),
        }
    }
}

fn without_annotations(config: &mut Table, flavour: Flavour) {
    match flavour {
        Flavour::V2 => {
            if let Some(exports) = at(config, &["proxy_plugins", "lapwing", "exports"]) {
                exports.remove("enable_remote_snapshot_annotations");
            }
        }
        Flavour::V17 | Flavour::Debian => {
            if let Some(cri) = at(config, &["plugins", "io.containerd.grpc.v1.cri", "containerd"]) {
                cri.insert("disable_snapshot_annotations".into(), true.into());
            }
        }
    }
}

fn at<'a>(config: &'a mut Table, path: &[&str]) -> Option<&'a mut Table> {
    path.iter().try_fold(config, |table, key| table.get_mut(*key)?.as_table_mut())
}

fn cni_dir(host: &Host) -> PathBuf {
    host.dir().join("cni")
}

/// The shipped file with the registry's own URL, which is not by https here; mirrors that the file does not name come first.
fn hosts_toml(registry: &RegistryHosts) -> Result<String> {
    let shipped = contrib("containerd/hosts.toml")?;
    let mut text = format!("server = {:?}\n", registry.url);
    for url in registry.mirrors.iter().chain([&registry.url]) {
        let is_mirror = registry.mirrors.contains(url);
        match shipped.contains(&format!("[host.{url:?}]")) {
            true => text.push_str(&shipped),
            false => {
                let _ = write!(
                    text,
                    "\n[host.{url:?}]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"1s\"\n"
                );
                for (name, value) in registry.headers.iter().filter(|_| is_mirror) {
                    let _ = writeln!(text, "  [host.{url:?}.header]\n    {name} = {value:?}");
                }
            }
        }
    }
    Ok(text)
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

fn version_3(host: &Host, options: &ContainerdOptions) -> String {
    let mut text = common(host, 3);
    let _ = write!(
        text,
        r#"
[plugins.'io.containerd.internal.v1.opt']
  path = {opt}
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE a sandbox cannot lower its oom_score_adj, and does not start.
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = {cni}
[plugins.'io.containerd.cri.v1.images']
  snapshotter = {snapshotter:?}
"#,
        opt = quoted(&host.dir().join("opt")),
        cni = quoted(&cni_dir(host)),
        snapshotter = options.cri_snapshotter,
    );
    if options.cri_local_pull {
        let _ =
            writeln!(text, "  use_local_image_pull = true\n  disable_snapshot_annotations = {}", !options.annotations);
    }
    let _ = writeln!(
        text,
        "  [plugins.'io.containerd.cri.v1.images'.registry]\n    config_path = {}",
        quoted(&hosts_dir(host))
    );
    if let Some(bytes) = options.layer_fetch_buffer {
        let _ = writeln!(
            text,
            "[plugins.'io.containerd.transfer.v1.local']\n  concurrent_layer_fetch_buffer = {bytes}\n  \
             max_concurrent_downloads = 4"
        );
    }
    if let Some(pause) = &options.pause {
        let _ = writeln!(text, "  [plugins.'io.containerd.cri.v1.images'.pinned_images]\n    sandbox = {pause:?}");
    }
    if let Some(plugin) = &options.snapshotter {
        let _ = write!(
            text,
            r#"
[proxy_plugins.lapwing]
  address = {socket}
  [proxy_plugins.lapwing.exports]
    root = {root}
[proxy_plugins.lapwing-diff]
  address = {socket}
"#,
            socket = quoted(&plugin.socket),
            root = quoted(&plugin.root),
        );
    }
    if options.erofs {
        text.push_str(
            "\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  platform = \"linux\"\n  snapshotter = \"erofs\"\n  \
             differ = \"walking\"\n",
        );
    }
    for (name, socket) in &options.others {
        let _ = write!(
            text,
            "\n[proxy_plugins.{name}]\n  type = \"snapshot\"\n  address = {socket}\n  [proxy_plugins.{name}.exports]\n    \
             enable_remote_snapshot_annotations = \"true\"\n\
             [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  platform = \"linux\"\n  snapshotter = {name:?}\n  \
             differ = \"walking\"\n",
            socket = quoted(socket),
        );
    }
    text
}

fn version_2(host: &Host, options: &ContainerdOptions) -> String {
    let mut text = common(host, 2);
    let _ = write!(
        text,
        r#"
[plugins."io.containerd.internal.v1.opt"]
  path = {opt}
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
"#,
        opt = quoted(&host.dir().join("opt")),
    );
    if let Some(pause) = &options.pause {
        let _ = writeln!(text, "  sandbox_image = {pause:?}");
    }
    let _ = write!(
        text,
        r#"  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = {snapshotter:?}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = {cni}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {hosts}
"#,
        snapshotter = options.cri_snapshotter,
        cni = quoted(&cni_dir(host)),
        hosts = quoted(&hosts_dir(host)),
    );
    if let Some(plugin) = &options.snapshotter {
        let _ = write!(
            text,
            "\n[proxy_plugins.lapwing]\n  address = {}\n  [proxy_plugins.lapwing.exports]\n    root = {}\n",
            quoted(&plugin.socket),
            quoted(&plugin.root)
        );
    }
    text
}

fn common(host: &Host, version: u32) -> String {
    format!(
        "version = {version}\nroot = {root}\nstate = \"/run/containerd\"\n\n[grpc]\n  address = \"/run/containerd/containerd.sock\"\n[debug]\n  level = \"info\"\n",
        root = quoted(&host.dir().join("containerd")),
    )
}
