//! Where a daemon may write, and whether it may start programs (Landlock, `Documentation/userspace-api/landlock.rst`).
//!
//! It matters because root without any capability is still the owner of most of the machine's files. Reading is left alone: the kernel's
//! usual rules are for that. Kernels before 5.19 cannot be told that files may be renamed from one directory to another, which the daemons do: they
//! get no rules.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus,
};

use super::Part;
use crate::config::Config;

/// What is known to this program.
const KNOWN: ABI = ABI::V5;

/// How far it could be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Enforced {
    /// As meant.
    All,
    /// The kernel does not know all of it.
    Partly,
    /// Not at all.
    Nothing,
}

impl Enforced {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::All => "enforced",
            Self::Partly => "enforced as far as this kernel can (6.10 and later can all of it)",
            Self::Nothing => "not enforced: this kernel has no Landlock, or one before 5.19",
        }
    }
}

/// The files and directories that `part` writes to; directories that it makes itself are made now.
pub(super) fn writable(part: Part, config: &Config) -> Vec<PathBuf> {
    let mut found = vec![config.root.clone(), "/dev/null".into()];
    if part == Part::Node {
        found.push("/dev/fuse".into());
        let socket = config.snapshotter.socket.parent().filter(|parent| !parent.as_os_str().is_empty());
        found.extend(socket.filter(|_| config.snapshotter.enabled).map(|parent| made(parent, 0o711)));
    }
    if config.identity.has_authority() {
        // Certificates are renewed by new files in the place of the old ones.
        found.push(made(&config.identity.directory, 0o700));
        let files = [config.identity.authority(), config.identity.certificate()];
        found.extend(files.iter().filter_map(|file| Some(file.parent()?.to_owned())));
    }
    found.extend(config.identity.issuer().map(Path::to_owned));
    if config.seed.storage.service == "fs" {
        let options = ["root", "atomic_write_dir"].map(|name| config.seed.storage.options.get(name));
        found.extend(options.into_iter().flatten().map(|path| made(Path::new(path), 0o700)));
    }
    if cfg!(debug_assertions)
        && let Some(log) = std::env::var_os("LAPWING_FAILPOINT_LOG").map(PathBuf::from)
    {
        let _ = std::fs::File::options().append(true).create(true).open(&log);
        found.push(log);
    }
    found
}

/// A directory that is there, if it can be made; whoever needs it says what is wrong with it.
fn made(directory: &Path, mode: u32) -> PathBuf {
    let _ = DirBuilder::new().recursive(true).mode(mode).create(directory);
    directory.to_owned()
}

/// Confines this thread, and all that it starts, to writing below `writable`; to starting no programs unless there are `programs`.
pub(super) fn confine(writable: &[PathBuf], programs: bool) -> anyhow::Result<Enforced> {
    if version() < 2 {
        return Ok(Enforced::Nothing);
    }
    let writing = AccessFs::from_write(KNOWN);
    let handled = if programs { writing } else { writing | AccessFs::Execute };
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(handled)?;
    let mut ruleset = ruleset.create()?;
    for path in writable {
        match PathFd::new(path) {
            Ok(parent) => {
                let allowed = if path.is_dir() { writing } else { writing & AccessFs::from_file(KNOWN) };
                ruleset = ruleset.add_rule(PathBeneath::new(parent, allowed))?;
            }
            // It is not there, and cannot be made.
            Err(PathFdError::OpenCall { source, .. }) => {
                tracing::debug!(path = %path.display(), error = %source, "no rule for what is not there");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Enforced::All,
        RulesetStatus::PartiallyEnforced => Enforced::Partly,
        RulesetStatus::NotEnforced => Enforced::Nothing,
    })
}

/// The version of Landlock's interface that the kernel has, as far as that matters here; 0: none.
pub(crate) fn version() -> u32 {
    let has = |access: BitFlags<AccessFs>| {
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(access);
        ruleset.and_then(|ruleset| ruleset.create()).is_ok()
    };
    let versions = [(5, ABI::V5), (3, ABI::V3), (2, ABI::V2), (1, ABI::V1)];
    versions.into_iter().find(|(_, abi)| has(AccessFs::from_all(*abi))).map_or(0, |(version, _)| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_elsewhere_and_programs_are_refused() {
        if version() < 2 {
            eprintln!("this kernel has no Landlock that would do");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let (own, other) = (scratch.path().join("own"), scratch.path().join("other"));
        for directory in [&own, &other] {
            std::fs::create_dir_all(directory.join("a")).unwrap();
            std::fs::write(directory.join("file"), "before").unwrap();
        }
        let missing = scratch.path().join("missing");
        let confined = std::thread::spawn(move || {
            let enforced = confine(&[own.clone(), "/dev/null".into(), missing], false).unwrap();
            assert_ne!(enforced, Enforced::Nothing);
            std::fs::rename(own.join("file"), own.join("a/file")).unwrap();
            std::fs::write(own.join("new"), "new").unwrap();
            std::fs::write("/dev/null", "x").unwrap();
            assert_eq!(std::fs::read_to_string(other.join("file")).unwrap(), "before", "reading is left alone");
            for refused in [
                std::fs::write(other.join("file"), "after"),
                std::fs::write(other.join("new"), "new"),
                std::fs::rename(own.join("new"), other.join("new")),
                std::fs::remove_file(other.join("file")),
                std::process::Command::new("true").status().map(drop),
            ] {
                assert!(refused.is_err(), "{refused:?}");
            }
        });
        confined.join().unwrap();
    }

    #[test]
    fn what_the_configuration_names_is_writable() {
        let scratch = tempfile::tempdir().unwrap();
        let mut config = Config { root: scratch.path().join("root"), ..Config::default() };
        config.snapshotter.socket = scratch.path().join("run/snapshotter.sock");
        let found = writable(Part::Node, &config);
        assert!(found.contains(&config.root) && found.contains(&scratch.path().join("run")), "{found:?}");
        assert!(scratch.path().join("run").is_dir());
        assert!(!writable(Part::Seed, &config).contains(&scratch.path().join("run")));
        assert!(!found.contains(&config.identity.directory), "nobody writes there without an authority");
    }
}
