use super::*;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

/// A configuration with one old file and a directory for new ones.
struct Place {
    dir: tempfile::TempDir,
    config: PathBuf,
    new: PathBuf,
}

const OLD: &str = "# mine\nold = true\n";

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (config, new) = (dir.path().join("config.toml"), dir.path().join("certs.d/_default/hosts.toml"));
        std::fs::write(&config, OLD).unwrap();
        std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o640)).unwrap();
        Self { dir, config, new }
    }

    fn write(&self, text: &str) -> Result<(), SetupError> {
        let mut plan = Plan::default();
        for path in [&self.config, &self.new] {
            plan.file(path, std::fs::read_to_string(path).ok(), text.to_owned());
        }
        apply(&self.config, &plan)
    }

    fn is_as_it_was(&self) {
        let left: Vec<_> =
            std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["config.toml"]);
        assert_eq!(std::fs::read_to_string(&self.config).unwrap(), OLD);
        assert_eq!(std::fs::metadata(&self.config).unwrap().mode() & 0o7777, 0o640);
    }
}

#[test]
fn what_was_written_is_taken_back() {
    let place = Place::new();
    place.write("first\n").unwrap();
    let written = std::fs::metadata(&place.config).unwrap();
    assert_eq!((written.mode() & 0o7777, std::fs::metadata(&place.new).unwrap().mode() & 0o7777), (0o640, 0o644));
    let kept = directory(&place.config);
    assert_eq!(std::fs::metadata(&kept).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(std::fs::read_to_string(kept.join("0-config.toml")).unwrap(), OLD);
    // A second run, with something else to write, does not forget what was there at first.
    place.write("second\n").unwrap();
    assert_eq!(undo(&place.config).unwrap(), [place.config.clone(), place.new.clone()]);
    place.is_as_it_was();
    assert!(matches!(undo(&place.config), Err(SetupError::NoRecord(_))));
}

#[test]
fn the_owner_stays() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    std::os::unix::fs::chown(&place.config, Some(1234), Some(2345)).unwrap();
    place.write("first\n").unwrap();
    let owner = || {
        let found = std::fs::metadata(&place.config).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    assert_eq!(owner(), (1234, 2345, 0o640));
    undo(&place.config).unwrap();
    assert_eq!(owner(), (1234, 2345, 0o640));
}

#[test]
fn a_file_that_was_changed_since_is_not_overwritten() {
    let place = Place::new();
    place.write("first\n").unwrap();
    std::fs::write(&place.new, "by hand\n").unwrap();
    let error = undo(&place.config).unwrap_err();
    assert!(error.to_string().contains(&place.new.display().to_string()), "{error}");
    assert_eq!(std::fs::read_to_string(&place.config).unwrap(), "first\n", "nothing is taken back at all");
    std::fs::write(&place.new, "first\n").unwrap();
    undo(&place.config).unwrap();
    place.is_as_it_was();
}

/// What the operator wrote between two runs stands in what the second one wrote: taking that back would lose it.
#[test]
fn a_file_that_was_changed_between_two_runs_is_not_overwritten() {
    let place = Place::new();
    place.write("first\n").unwrap();
    std::fs::write(&place.config, "by hand\n").unwrap();
    place.write("second\n").unwrap();
    let error = undo(&place.config).unwrap_err();
    assert!(error.to_string().contains("0-config.toml"), "{error}");
    assert_eq!(std::fs::read_to_string(&place.config).unwrap(), "second\n");
}

/// The record is there before the files: those not yet written are as they were.
#[test]
fn a_run_that_died_half_way_is_taken_back() {
    let place = Place::new();
    place.write("first\n").unwrap();
    std::fs::write(&place.config, OLD).unwrap();
    assert_eq!(undo(&place.config).unwrap(), std::slice::from_ref(&place.new));
    place.is_as_it_was();
}

#[test]
fn what_somebody_put_into_a_directory_stays() {
    let place = Place::new();
    place.write("first\n").unwrap();
    let other = place.dir.path().join("certs.d/other");
    std::fs::write(&other, "").unwrap();
    undo(&place.config).unwrap();
    assert!(other.exists() && !place.new.parent().unwrap().exists());
}
