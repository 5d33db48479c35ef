//! Lapwing's part of containerd's `config.toml`, versions 2 to 4 of the file, as `contrib/containerd/` shows it.
//!
//! Sources: containerd's `server/config`, `plugins/transfer`, `internal/cri/config`. A section of 1.x that 2.x renamed is written by its old
//! name into a file of version 2, which 2.x migrates when it loads it, as far as it does.

use std::path::{Path, PathBuf};

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use super::edit::{find, malformed, set, table};
use super::version::ContainerdVersion;

/// CRI in files of version 2.
const CRI_V1: &str = "io.containerd.grpc.v1.cri";
/// CRI's image service in files of version 3 and newer.
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
const TRANSFER: &str = "io.containerd.transfer.v1.local";
/// Lapwing's differ: what was fetched is mounted as it is where containerd would unpack it.
const DIFFER: &str = "lapwing-diff";
/// The newest version of the file that is known.
const NEWEST: i64 = 4;
/// By which containerd knows a snapshotter that maps ids.
const REMAP_IDS: &str = "remap-ids";

/// What is to stand in the file.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub containerd: ContainerdVersion,
    /// `None`: the mirror alone.
    pub plugin: Option<Plugin>,
    /// Where the hosts.toml files are to be; `None`: where the file says, or at the usual place.
    pub certs_dir: Option<PathBuf>,
    /// CRI goes on with the snapshotter that it has.
    pub keep_snapshotter: bool,
}

/// Lapwing's snapshotter.
#[derive(Debug, Clone)]
pub(super) struct Plugin {
    pub socket: PathBuf,
    pub root: PathBuf,
    /// Whether the kernel shows layers with mapped ids.
    pub remap_ids: bool,
}

/// A file as it is to be.
#[derive(Debug)]
pub(super) struct Edited {
    pub text: String,
    /// Where CRI reads hosts.toml files.
    pub certs_dir: PathBuf,
    pub notes: Vec<String>,
    /// Other files that containerd reads after this one, as patterns.
    pub imports: Vec<String>,
}

/// Where hosts.toml files are, unless somebody says otherwise.
pub(super) const CERTS_DIR: &str = "/etc/containerd/certs.d";

/// The file `text` with everything that is wanted; `Err` says why it cannot be had, and what to do.
pub(super) fn edit(text: &str, wanted: &Wanted) -> Result<Edited, String> {
    let mut document: DocumentMut = text.parse().map_err(|error| malformed(text, &error))?;
    if document.as_table().is_empty() {
        // What stands there are comments: they stay above.
        let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        let text = format!("{text}{gap}version = {}\n", wanted.containerd.config_version());
        document = text.parse().map_err(|error| malformed(&text, &error))?;
    }
    let version = file_version(&document, wanted.containerd)?;
    let mut notes = Vec::new();
    let root = document.as_table_mut();
    if let Some(plugin) = &wanted.plugin {
        proxy_plugin(root, plugin, wanted.containerd)?;
        if wanted.containerd.major >= 2 {
            transfer(root, wanted.containerd, &mut notes)?;
        }
        cri_snapshotter(root, version, wanted, &mut notes)?;
    }
    let certs_dir = cri_hosts(root, version, wanted)?;
    disabled(root, &mut notes);
    let imports = strings(root.get("imports"));
    Ok(Edited { text: document.to_string(), certs_dir, notes, imports })
}

fn file_version(document: &DocumentMut, containerd: ContainerdVersion) -> Result<i64, String> {
    let version = document.get("version").map_or(Some(1), Item::as_integer).ok_or("version is not a number")?;
    match version {
        2 => Ok(2),
        3..=NEWEST if containerd.major >= 2 => Ok(version),
        3..=NEWEST => Err(format!("version = {version} is for containerd 2.x, this is {containerd}: write version = 2")),
        1 => Err("its version is 1, or is not written in it, which stands for 1: containerd's names of plugins were \
                  others then. Move it to version 2 (`containerd config migrate` of 2.x prints it; by hand: version = 2 as \
                  its first line, and plugins by their full names, as \"io.containerd.grpc.v1.cri\" for \"cri\"), see that \
                  containerd still does what it did, and run this again"
            .into()),
        other => Err(format!("version = {other} is not known: 2 to {NEWEST} are")),
    }
}

fn proxy_plugin(root: &mut Table, plugin: &Plugin, containerd: ContainerdVersion) -> Result<(), String> {
    let section = table(root, &["proxy_plugins", "lapwing"])?;
    set(section, "type", "snapshot", "  ");
    set(section, "address", path(&plugin.socket)?, "  ");
    if containerd < (ContainerdVersion { major: 1, minor: 7 }) {
        return Ok(());
    }
    if containerd.major >= 2 && plugin.remap_ids {
        let listed = strings(section.get("capabilities"));
        if !listed.iter().any(|capability| capability == REMAP_IDS) {
            let all = listed.iter().map(String::as_str).chain([REMAP_IDS]);
            set(section, "capabilities", Array::from_iter(all), "  ");
        }
    }
    let exports = table(root, &["proxy_plugins", "lapwing", "exports"])?;
    set(exports, "root", path(&plugin.root)?, "  ");
    if containerd.major >= 2 {
        set(exports, "enable_remote_snapshot_annotations", "true", "  ");
        let diff = table(root, &["proxy_plugins", DIFFER])?;
        set(diff, "type", "diff", "  ");
        set(diff, "address", path(&plugin.socket)?, "  ");
    }
    Ok(())
}

/// Any `unpack_config` replaces the default list, so what containerd has there by default is written with Lapwing's.
fn transfer(root: &mut Table, containerd: ContainerdVersion, notes: &mut Vec<String>) -> Result<(), String> {
    let plugin = table(root, &["plugins", TRANSFER])?;
    let lapwing = [("platform", "linux"), ("snapshotter", "lapwing"), ("differ", DIFFER)];
    let Some(present) = plugin.get_mut("unpack_config") else {
        let mut list = ArrayOfTables::new();
        list.push(entry(&lapwing));
        // Named, since there are several differs now.
        list.push(entry(&[("platform", "linux"), ("snapshotter", "overlayfs"), ("differ", "walking")]));
        if containerd >= (ContainerdVersion { major: 2, minor: 3 }) {
            let mut erofs = entry(&[("platform", "linux(+erofs)"), ("snapshotter", "erofs"), ("differ", "erofs")]);
            set(&mut erofs, "optional", true, "  ");
            list.push(erofs);
        }
        plugin.insert("unpack_config", Item::ArrayOfTables(list));
        return Ok(());
    };
    let named = |table: &dyn TableLike, name: &str| table.get("snapshotter").and_then(Item::as_str) == Some(name);
    let listed = match present {
        Item::ArrayOfTables(list) => {
            if !list.iter().any(|table| named(table, "lapwing")) {
                list.push(entry(&lapwing));
            }
            // One of before there was a differ.
            for own in list.iter_mut().filter(|table| named(&**table, "lapwing") && !table.contains_key("differ")) {
                set(own, "differ", DIFFER, "  ");
            }
            list.iter().any(|table| named(table, "overlayfs"))
        }
        Item::Value(Value::Array(list)) => {
            let tables =
                |list: &Array, name| list.iter().filter_map(Value::as_inline_table).any(|table| named(table, name));
            if !tables(list, "lapwing") {
                list.push(lapwing.iter().copied().collect::<InlineTable>());
            }
            let inline = list.iter_mut().filter_map(Value::as_inline_table_mut);
            for own in inline.filter(|table| named(&**table, "lapwing") && !table.contains_key("differ")) {
                own.insert("differ", DIFFER.into());
            }
            tables(list, "overlayfs")
        }
        _ => return Err(format!("plugins.'{TRANSFER}'.unpack_config is not a list of tables")),
    };
    if !listed {
        notes.push(format!(
            "plugins.'{TRANSFER}'.unpack_config does not list overlayfs: images pulled for it through the transfer service are not unpacked"
        ));
    }
    Ok(())
}

fn entry(pairs: &[(&str, &str)]) -> Table {
    let mut table = Table::new();
    for (key, value) in pairs {
        set(&mut table, key, *value, "  ");
    }
    table
}

/// CRI's default snapshotter, and that it says which layer a snapshot is of.
fn cri_snapshotter(root: &mut Table, version: i64, wanted: &Wanted, notes: &mut Vec<String>) -> Result<(), String> {
    // 2.x takes the old names over into the new section only where the old one has runtimes (`migrateConfig` of plugins/cri/images, 2.3).
    let old = ["plugins", CRI_V1, "containerd"];
    let taken_over = wanted.containerd.major < 2 || find(root, &[old.as_slice(), &["runtimes"]].concat()).is_some();
    let section = if version == 2 && taken_over { table(root, &old)? } else { table(root, &["plugins", CRI_IMAGES])? };
    let before = section.get("snapshotter").and_then(Item::as_str).unwrap_or("overlayfs").to_owned();
    if !wanted.keep_snapshotter && before != "lapwing" {
        set(section, "snapshotter", "lapwing", "  ");
        notes.push(format!(
            "CRI's snapshotter was {before}: containers go on running, and images are pulled again when they are next used"
        ));
    }
    if says_layers_itself(section, version, wanted.containerd) {
        set(section, "disable_snapshot_annotations", false, "  ");
    }
    Ok(())
}

/// The directory with hosts.toml files, which CRI is told of.
fn cri_hosts(root: &mut Table, version: i64, wanted: &Wanted) -> Result<PathBuf, String> {
    let registry: &[&str] = match version {
        2 => &["plugins", CRI_V1, "registry"],
        _ => &["plugins", CRI_IMAGES, "registry"],
    };
    if find(root, registry).is_some_and(|registry| mirrors_of_old(registry) && text(registry, "config_path").is_empty())
    {
        return Err(format!(
            "{}.mirrors or .configs names registries, which containerd takes instead of hosts.toml files and never beside \
             them: write a hosts.toml for each into {CERTS_DIR}/<registry>/, remove these tables, set config_path = \
             {CERTS_DIR:?}, see that pulls still work, and run this again",
            registry.join(".")
        ));
    }
    let registry = table(root, registry)?;
    let present = text(registry, "config_path");
    if present.is_empty() {
        let dir = wanted.certs_dir.clone().unwrap_or_else(|| CERTS_DIR.into());
        set(registry, "config_path", path(&dir)?, "  ");
        return Ok(dir);
    }
    let mut dirs = present.split(':').map(PathBuf::from);
    let Some(asked) = &wanted.certs_dir else { return Ok(dirs.next().unwrap_or_else(|| CERTS_DIR.into())) };
    if dirs.any(|dir| &dir == asked) {
        return Ok(asked.clone());
    }
    Err(format!("CRI reads hosts.toml files in {present}, not in {}: give that as --certs-dir", asked.display()))
}

/// Whether CRI itself, and not the transfer service, tells the snapshotter which layer a snapshot is of. Where it need not, asking it to
/// makes it pull without the transfer service.
fn says_layers_itself(section: &dyn TableLike, version: i64, containerd: ContainerdVersion) -> bool {
    let local = section.get("use_local_image_pull").and_then(Item::as_bool).unwrap_or(false);
    containerd < (ContainerdVersion { major: 2, minor: 1 }) || (version > 2 && local)
}

/// `registry.mirrors`, or `registry.configs` with `tls`.
fn mirrors_of_old(registry: &dyn TableLike) -> bool {
    let table = |key: &str| registry.get(key).and_then(Item::as_table_like);
    let mirrors = table("mirrors").is_some_and(|mirrors| !mirrors.is_empty());
    let tls = |item: &Item| item.as_table_like().is_some_and(|table| table.contains_key("tls"));
    mirrors || table("configs").is_some_and(|configs| configs.iter().any(|(_, config)| tls(config)))
}

fn disabled(root: &Table, notes: &mut Vec<String>) {
    for name in strings(root.get("disabled_plugins")) {
        let idle = match name.as_str() {
            "cri" | CRI_V1 | CRI_IMAGES => "Kubernetes and crictl cannot use this containerd",
            TRANSFER => "nothing can be pulled through the transfer service, which lazy pulls by ctr and nerdctl need",
            _ => continue,
        };
        notes.push(format!("disabled_plugins lists {name}: {idle}"));
    }
}

fn text(table: &dyn TableLike, key: &str) -> String {
    table.get(key).and_then(Item::as_str).unwrap_or_default().to_owned()
}

fn strings(item: Option<&Item>) -> Vec<String> {
    let array = item.and_then(Item::as_array);
    array.into_iter().flatten().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

fn path(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{} is not UTF-8, which a TOML file is", path.display()))
}

/// What of a file that containerd reads besides concerns Lapwing.
pub(super) fn imported(text: &str) -> Vec<&'static str> {
    let Ok(document) = text.parse::<DocumentMut>() else { return vec!["something that is not TOML"] };
    let root = document.as_table();
    let concerns: [(&str, &[&str]); 5] = [
        ("proxy_plugins.lapwing", &["proxy_plugins", "lapwing"]),
        ("proxy_plugins.lapwing-diff", &["proxy_plugins", DIFFER]),
        ("plugins.'io.containerd.grpc.v1.cri'", &["plugins", CRI_V1]),
        ("plugins.'io.containerd.cri.v1.images'", &["plugins", CRI_IMAGES]),
        ("plugins.'io.containerd.transfer.v1.local'", &["plugins", TRANSFER]),
    ];
    concerns.into_iter().filter(|(_, path)| find(root, path).is_some()).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests;
