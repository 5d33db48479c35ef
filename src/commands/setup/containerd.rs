//! containerd: its `config.toml`, and a `hosts.toml` for each registry.

use std::path::{Path, PathBuf};

use lapwing_plugins::registry::RegistryName;

use super::containerd_toml::{self, Plugin, Wanted};
use super::error::SetupError;
use super::plan::{Plan, read};
use super::version::ContainerdVersion;
use super::{hosts, mirror_url};
use crate::commands::doctor;
use crate::config::Config;

/// Where containerd's configuration is, unless somebody says otherwise.
pub(crate) const CONFIG: &str = "/etc/containerd/config.toml";
/// What 2.x reads besides a file that does not name any `imports`.
const DEFAULT_IMPORTS: &str = "/etc/containerd/conf.d/*.toml";
/// The directory of registries that have none of their own.
const EVERY_OTHER: &str = "_default";
/// The first kernel whose overlayfs takes layers that are shown with mapped ids.
const MAPS_IDS: (u32, u32, u32) = (5, 19, 0);

/// Which containerd is to be set up, and how.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub config: &'a Path,
    pub certs_dir: Option<PathBuf>,
    /// Empty: every registry.
    pub registries: &'a [String],
    pub containerd: ContainerdVersion,
    pub keep_snapshotter: bool,
}

/// What is to be done so that this containerd uses the Lapwing of `lapwing`.
pub(crate) fn plan(target: &Target<'_>, lapwing: &Config) -> Result<Plan, SetupError> {
    let (path, before) = read(target.config)?;
    let plugin = Plugin {
        socket: lapwing.snapshotter.socket.clone(),
        root: lapwing.root.clone(),
        remap_ids: doctor::kernel_version().is_some_and(|version| version >= MAPS_IDS),
    };
    let wanted = Wanted {
        containerd: target.containerd,
        plugin: lapwing.snapshotter.enabled.then_some(plugin),
        certs_dir: target.certs_dir.clone(),
        keep_snapshotter: target.keep_snapshotter,
    };
    let edited = containerd_toml::edit(before.as_deref().unwrap_or_default(), &wanted)
        .map_err(|why| SetupError::refused(&path, why))?;
    let mut plan = Plan { notes: edited.notes, ..Plan::default() };
    plan.file(&path, before, edited.text);
    if !plan.changes.is_empty() {
        plan.afterwards.push("systemctl restart containerd     # running containers are left alone".into());
    }
    let mut imports = edited.imports;
    if imports.is_empty() && target.containerd.major >= 2 {
        imports.push(DEFAULT_IMPORTS.into());
    }
    for pattern in imports {
        note_imports(&path, &pattern, &mut plan.notes);
    }
    host_files(&edited.certs_dir, target, lapwing, &mut plan)?;
    Ok(plan)
}

/// Says which of the files that containerd reads besides concern Lapwing. They are not edited, and not followed further.
fn note_imports(config: &Path, pattern: &str, notes: &mut Vec<String>) {
    let pattern = config.parent().unwrap_or(Path::new("/")).join(pattern);
    let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (start, end) = name.split_once('*').unwrap_or((&name, ""));
    let entries = pattern.parent().and_then(|dir| std::fs::read_dir(dir).ok());
    let mut files: Vec<_> = entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let found = file.file_name().unwrap_or_default().to_string_lossy();
        let matches = if name.contains('*') {
            found.len() >= start.len() + end.len() && found.starts_with(start) && found.ends_with(end)
        } else {
            found == name.as_str()
        };
        if !matches || file == config {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        for section in containerd_toml::imported(&text) {
            notes.push(format!(
                "{} has {section}, too: containerd reads it after {} and takes it instead; see `containerd config dump`",
                file.display(),
                config.display()
            ));
        }
    }
}

fn host_files(certs_dir: &Path, target: &Target<'_>, lapwing: &Config, plan: &mut Plan) -> Result<(), SetupError> {
    let mirror = mirror_url(lapwing);
    let asked = if target.registries.is_empty() {
        let mut names = present(certs_dir, &mut plan.notes)?;
        names.insert(0, EVERY_OTHER.into());
        names.dedup();
        names
    } else {
        target.registries.to_vec()
    };
    for name in asked {
        let dir = directory(certs_dir, &name)?;
        let (file, before) = read(&dir.join("hosts.toml"))?;
        if before.is_none() && has_certificates(&dir) {
            return Err(SetupError::refused(
                &dir,
                "it holds certificates, which containerd takes only without a hosts.toml: write a hosts.toml that names them \
                 (server, ca, client), see that pulls still work, and run this again",
            ));
        }
        let after = hosts::edit(before.as_deref(), &mirror, server(lapwing, &name).as_deref())
            .map_err(|why| SetupError::refused(&file, why))?;
        plan.file(&file, before, after);
    }
    Ok(())
}

/// The directories of registries that have a hosts.toml: containerd does not ask `_default` for these.
fn present(certs_dir: &Path, notes: &mut Vec<String>) -> Result<Vec<String>, SetupError> {
    let entries = match std::fs::read_dir(certs_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(SetupError::file(certs_dir, error)),
    };
    let mut names = Vec::new();
    for dir in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == EVERY_OTHER {
            continue;
        }
        if dir.join("hosts.toml").exists() {
            names.push(name);
        } else {
            notes.push(format!(
                "{} has no hosts.toml: that registry is not asked through Lapwing's mirror",
                dir.display()
            ));
        }
    }
    names.sort();
    Ok(names)
}

/// Where containerd looks for a registry's hosts.toml: the port may be written `host_5000_`.
fn directory(certs_dir: &Path, name: &str) -> Result<PathBuf, SetupError> {
    let spelled_out = certs_dir.join(name);
    if name == EVERY_OTHER || spelled_out.is_dir() {
        return Ok(spelled_out);
    }
    let registry: RegistryName =
        name.parse().map_err(|error| SetupError::Usage(format!("--registry {name}: {error}")))?;
    if let Some((host, port)) = registry.as_str().rsplit_once(':') {
        let other = certs_dir.join(format!("{host}_{port}_"));
        if other.is_dir() {
            return Ok(other);
        }
    }
    Ok(certs_dir.join(registry.as_str()))
}

fn has_certificates(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let is_one = |path: PathBuf| path.extension().is_some_and(|kind| kind == "crt" || kind == "cert" || kind == "key");
    entries.map(|entry| entry.path()).any(is_one)
}

/// The URL of a registry that containerd would otherwise ask by https.
fn server(lapwing: &Config, name: &str) -> Option<String> {
    let registry = lapwing.registries.hosts.get(name).filter(|registry| registry.plain_http)?;
    Some(format!("http://{}", registry.host.as_deref().unwrap_or(name)))
}

#[cfg(test)]
mod tests;
