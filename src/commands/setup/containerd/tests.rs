use super::*;

const MIRROR: &str = "[host.\"http://127.0.0.1:7080\"]";

struct Place {
    dir: tempfile::TempDir,
    lapwing: Config,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("certs.d")).unwrap();
        Self { dir, lapwing: Config::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn plan(&self, registries: &[&str]) -> Result<Plan, SetupError> {
        let registries: Vec<String> = registries.iter().map(|name| (*name).to_owned()).collect();
        let target = Target {
            config: &self.path("config.toml"),
            certs_dir: Some(self.path("certs.d")),
            registries: &registries,
            containerd: ContainerdVersion { major: 2, minor: 3 },
            keep_snapshotter: false,
        };
        plan(&target, &self.lapwing)
    }

    /// The files to be written, relative.
    fn written(&self, registries: &[&str]) -> Vec<String> {
        let base = self.path("");
        let plan = self.plan(registries).unwrap();
        let name = |path: &Path| path.strip_prefix(&base).unwrap().display().to_string();
        plan.changes.iter().map(|change| name(&change.path)).collect()
    }
}

#[test]
fn every_registry_with_a_file_of_its_own_is_written_and_the_default() {
    let place = Place::new();
    place.file("certs.d/reg.example_5000_/hosts.toml", "server = \"https://reg.example:5000\"\n");
    place.file("certs.d/cert.example/ca.crt", "");
    assert_eq!(
        place.written(&[]),
        ["config.toml", "certs.d/_default/hosts.toml", "certs.d/reg.example_5000_/hosts.toml"]
    );
    let notes = place.plan(&[]).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("cert.example") && note.contains("no hosts.toml")), "{notes:?}");
}

#[test]
fn named_registries_alone_are_written_where_containerd_looks_for_them() {
    let mut place = Place::new();
    place.file("certs.d/reg.example_5000_/hosts.toml", "server = \"https://reg.example:5000\"\n");
    place.lapwing = toml::from_str("[registries.hosts.\"plain.example:80\"]\nplain_http = true\n").unwrap();
    let names = ["reg.example:5000", "plain.example:80", "_default"];
    let expected = [
        "config.toml",
        "certs.d/reg.example_5000_/hosts.toml",
        "certs.d/plain.example:80/hosts.toml",
        "certs.d/_default/hosts.toml",
    ];
    assert_eq!(place.written(&names), expected);
    let plan = place.plan(&names).unwrap();
    assert!(plan.changes[2].after.starts_with("server = \"http://plain.example:80\"\n"), "{}", plan.changes[2].after);
    assert!(plan.changes.iter().skip(1).all(|change| change.after.contains(MIRROR)));
    for bad in ["http://x", "a b", "../x"] {
        assert!(matches!(place.plan(&[bad]), Err(SetupError::Usage(_))), "{bad}");
    }
}

#[test]
fn certificates_that_a_hosts_file_would_hide_are_not_hidden() {
    let place = Place::new();
    place.file("certs.d/cert.example/ca.crt", "");
    let error = place.plan(&["cert.example"]).unwrap_err().to_string();
    assert!(error.contains("cert.example") && error.contains("ca"), "{error}");
}

#[test]
fn files_that_containerd_reads_besides_are_named_and_not_edited() {
    let place = Place::new();
    place.file("config.toml", "version = 3\nimports = [\"conf.d/*.toml\", \"one.toml\"]\n");
    place.file("conf.d/a.toml", "[plugins.'io.containerd.cri.v1.images']\n  snapshotter = \"x\"\n");
    place.file("conf.d/b.toml", "[debug]\n  level = \"info\"\n");
    place.file("conf.d/c.toml.off", "[proxy_plugins.lapwing]\n");
    place.file("one.toml", "[proxy_plugins.lapwing]\n");
    let plan = place.plan(&[]).unwrap();
    let told = |part: &str| plan.notes.iter().filter(|note| note.contains(part)).count();
    assert_eq!(
        (told("conf.d/a.toml"), told("b.toml"), told("c.toml"), told("one.toml")),
        (1, 0, 0, 1),
        "{:?}",
        plan.notes
    );
    assert!(plan.changes.iter().all(|change| !change.path.ends_with("a.toml") && !change.path.ends_with("one.toml")));
}

#[test]
fn a_mirror_on_every_address_is_reached_on_loopback() {
    let mut place = Place::new();
    for (listen, url) in
        [("0.0.0.0:99", "http://127.0.0.1:99"), ("[::]:99", "http://[::1]:99"), ("10.1.2.3:99", "http://10.1.2.3:99")]
    {
        place.lapwing.mirror.listen = listen.parse().unwrap();
        assert!(place.plan(&[]).unwrap().changes[1].after.contains(url), "{listen}");
    }
}
