//! The packages, as somebody installs them: what they carry, and the Debian package's life under a real systemd.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lapwing_lab::{Lab, Need, check, image, lapwing_binary, output, require, tools_dir, wait};

const ROLES: [&str; 3] = ["node", "seed", "tracker"];

fn script(path: &str) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    // The test looks at what is in packages, not at how small they are.
    command.env("LAPWING_PACKAGE_LEVEL", "0").env("SOURCE_DATE_EPOCH", "1700000000");
    command
}

/// The program without its symbols, as a release has it.
fn stripped(directory: &Path) -> PathBuf {
    let program = directory.join("lapwing-stripped");
    check(Command::new("strip").arg("-o").arg(&program).arg(lapwing_binary().unwrap())).unwrap();
    program
}

/// Builds a package by that script and gives its path.
fn package(by: &str, program: &Path, version: &str, out: &Path) -> PathBuf {
    let mut command = script(by);
    command.arg(program).env("LAPWING_VERSION", version).env("LAPWING_PACKAGE_DIR", out);
    PathBuf::from(check(&mut command).unwrap().trim())
}

/// What every package must carry, whatever installs it.
fn expected() -> Vec<String> {
    let mut paths: Vec<String> =
        ROLES.iter().map(|role| format!("/usr/lib/systemd/system/lapwing-{role}.service")).collect();
    paths.extend(
        [
            "/usr/bin/lapwing",
            "/etc/lapwing/lapwing.toml",
            "/etc/lapwing/seed.toml",
            "/etc/lapwing/tracker.toml",
            "/usr/lib/sysusers.d/lapwing.conf",
            "/usr/share/man/man1/lapwing.1.gz",
            "/usr/share/man/man1/lapwing-ca-token.1.gz",
            "/usr/share/bash-completion/completions/lapwing",
            "/usr/share/fish/vendor_completions.d/lapwing.fish",
            "/usr/share/doc/lapwing/README.md",
            "/usr/share/doc/lapwing/docs/reference/cli.md",
            "/usr/share/doc/lapwing/contrib/kubernetes/chart/Chart.yaml",
        ]
        .map(str::to_owned),
    );
    paths
}

fn carries_all(listing: &str, package: &str) {
    for path in expected() {
        assert!(listing.lines().any(|line| line.ends_with(&path)), "{package} lacks {path}:\n{listing}");
    }
}

#[test]
fn the_debian_package_carries_everything_and_is_the_same_twice() {
    let needs = ["dpkg-deb", "objdump", "strip", "fakeroot"].map(Need::Program);
    if !require("the_debian_package_carries_everything_and_is_the_same_twice", &needs) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let program = stripped(scratch.path());
    let deb = package("contrib/package/deb.sh", &program, "1.2.3", scratch.path());
    let listing = check(Command::new("dpkg-deb").arg("--contents").arg(&deb)).unwrap();
    carries_all(&listing, "the .deb");
    assert!(listing.lines().all(|line| line.contains(" root/root ")), "{listing}");
    let field = |name: &str| check(Command::new("dpkg-deb").arg("--field").arg(&deb).arg(name)).unwrap();
    assert_eq!(field("Version").trim(), "1.2.3");
    assert!(field("Depends").contains("libc6 (>= 2."), "{}", field("Depends"));
    let conffiles = check(Command::new("dpkg-deb").args(["--info"]).arg(&deb).arg("conffiles")).unwrap();
    assert_eq!(
        conffiles.lines().collect::<Vec<_>>(),
        ["/etc/lapwing/lapwing.toml", "/etc/lapwing/seed.toml", "/etc/lapwing/tracker.toml"]
    );

    let first = std::fs::read(&deb).unwrap();
    package("contrib/package/deb.sh", &program, "1.2.3", scratch.path());
    assert!(first == std::fs::read(&deb).unwrap(), "built twice from the same program, it differs");
}

#[test]
fn the_rpm_carries_everything() {
    if !require("the_rpm_carries_everything", &["rpmbuild", "rpm", "strip"].map(Need::Program)) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let rpm = package("contrib/package/rpm.sh", &stripped(scratch.path()), "1.2.3", scratch.path());
    let query = |what: &[&str]| check(Command::new("rpm").args(["-q", "--package"]).args(what).arg(&rpm)).unwrap();
    carries_all(&query(&["--list"]), "the .rpm");
    assert_eq!(query(&["--queryformat", "%{VERSION}-%{RELEASE} %{LICENSE}"]), "1.2.3-1 Apache-2.0");
    assert_eq!(query(&["--configfiles"]).lines().count(), 3);
    let scripts = query(&["--scripts"]);
    for word in ["make_user", "restart_what_runs", "refuse_while_used", "stop_for_good"] {
        assert!(scripts.matches(word).count() >= 2, "no {word} in the scriptlets:\n{scripts}");
    }
    assert!(query(&["--requires"]).contains("libc.so.6"), "its libraries are not required");
    // Into a root of its own: the files themselves, with the owners and modes that the package says.
    let root = scratch.path().join("root");
    let install = ["--root", root.to_str().unwrap(), "--install", "--nodeps", "--noscripts"];
    check(Command::new("rpm").args(install).arg(&rpm)).unwrap();
    let verify = ["--root", root.to_str().unwrap(), "--verify", "--nodeps", "--noscripts", "lapwing"];
    assert_eq!(check(Command::new("rpm").args(verify)).unwrap(), "");
}

#[test]
fn the_container_image_runs_by_what_it_holds_alone() {
    let needs = [Need::Root, Need::Disk, Need::Program("skopeo"), Need::Program("umoci"), Need::Program("strip")];
    if !require("the_container_image_runs_by_what_it_holds_alone", &needs) {
        return;
    }
    let lab = Lab::new("image").unwrap();
    let archive = package("contrib/package/oci.sh", &stripped(lab.dir()), "1.2.3", lab.dir());
    // skopeo holds every blob against its digest and size as it copies.
    let layout = lab.dir().join("layout");
    check(
        Command::new("skopeo")
            .args(["copy", "--quiet"])
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("oci:{}:v", layout.display())),
    )
    .unwrap();
    let bundle = lab.dir().join("bundle");
    check(Command::new("umoci").args(["unpack", "--image"]).arg(format!("{}:v", layout.display())).arg(&bundle))
        .unwrap();
    let root = bundle.join("rootfs");
    let run =
        |arguments: &[&str]| check(Command::new("chroot").arg(&root).arg("/usr/bin/lapwing").args(arguments)).unwrap();
    assert!(run(&["--version"]).starts_with("lapwing "));
    assert!(run(&["config"]).contains("[mirror]"));
    assert!(root.join("etc/ssl/certs/ca-certificates.crt").is_file());
    assert!(!root.join("bin/sh").exists() && !root.join("usr/bin/sh").exists());
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bundle.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["process"]["args"][0], "/usr/bin/lapwing");
}

/// How exposed systemd takes each unit to be, at most; it comes to 9.6 without any setting.
#[test]
fn the_units_are_as_closed_as_they_can_be() {
    if !require("the_units_are_as_closed_as_they_can_be", &[Need::Program("systemd-analyze")]) {
        return;
    }
    for (role, most) in [("node", "60"), ("seed", "15"), ("tracker", "15")] {
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("contrib/systemd/lapwing-{role}.service"));
        let threshold = format!("--threshold={most}");
        let scored =
            output(Command::new("systemd-analyze").args(["security", "--offline=true", &threshold]).arg(&unit))
                .unwrap();
        assert!(scored.status.success(), "{}", String::from_utf8_lossy(&scored.stdout));
    }
}

/// `tests/packages/boot.sh`, which ends with everything in it when this is dropped.
struct Booted {
    unshare: std::process::Child,
    systemd: u32,
}

impl Booted {
    fn new(directory: &Path, shown: &[&Path]) -> Self {
        let namespaces = ["--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--fork", "--kill-child"];
        let boot = script("tests/packages/boot.sh");
        let unshare = Command::new("unshare")
            .args(namespaces)
            .arg(boot.get_program())
            .arg(directory)
            .args(shown)
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let mut systemd = 0;
        wait::until_true("systemd as process 1", Duration::from_secs(60), || {
            systemd = std::fs::read_to_string(&children).ok().and_then(|pids| pids.trim().parse().ok()).unwrap_or(0);
            name(systemd).trim() == "systemd"
        })
        .unwrap();
        Self { unshare, systemd }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.systemd.to_string()]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]);
        command
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // Process 1 of the namespace dies with this one, and with it everything there.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let gone = format!("/proc/{}", self.systemd);
        let _ = wait::until_true("the booted machine's end", Duration::from_secs(30), || !Path::new(&gone).exists());
    }
}

#[test]
fn a_debian_package_is_installed_upgraded_under_a_live_mount_and_removed() {
    let needs = [
        Need::Root,
        Need::Disk,
        Need::Fuse,
        Need::Erofs,
        Need::Tools,
        Need::Program("docker-registry"),
        Need::Program("skopeo"),
        Need::Program("dpkg"),
        Need::Program("dbus-daemon"),
        Need::Program("systemctl"),
        Need::Program("man"),
        Need::Program("strip"),
    ];
    if !require("a_debian_package_is_installed_upgraded_under_a_live_mount_and_removed", &needs) {
        return;
    }
    let lab = Lab::new("package").unwrap();
    let program = stripped(lab.dir());
    let [first, second] =
        ["1.2.3", "1.2.4"].map(|version| package("contrib/package/deb.sh", &program, version, lab.dir()));
    let reference = image::noise(77, &[12]).unwrap().layout.oci_reference();
    let image = Path::new(reference.split(':').nth(1).unwrap());
    let tools = tools_dir().unwrap();
    let steps = script("tests/packages/lifecycle.sh");
    let here = Path::new(steps.get_program()).parent().unwrap().to_owned();
    let debs = lab.dir().join("debs");
    std::fs::create_dir(&debs).unwrap();
    let debs_of = |deb: &Path| debs.join(deb.file_name().unwrap());
    for deb in [&first, &second] {
        std::fs::rename(deb, debs_of(deb)).unwrap();
    }
    let booted = Booted::new(&lab.dir().join("machine"), &[&debs, &here, &tools, image]);
    let mut life = booted.command();
    life.arg(steps.get_program()).args([debs_of(&first), debs_of(&second), tools]).arg(&reference);
    let said = check(&mut life).unwrap();
    assert!(said.ends_with("lifecycle complete\n"), "{said}");
}
