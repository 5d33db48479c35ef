//! The realistic image: a Debian root filesystem, Python libraries of hundreds of megabytes, and a small program on top.
//!
//! The first layer comes from the machine's own Debian sources, the second from the configured package index of pip. Each is kept in
//! the cache by itself, so that a changed program does not fetch them again.

use super::layout::{ImageConfig, Layout, LayoutWriter};
use crate::cache::built_once;
use crate::process::check;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Seconds since 1970 that every file of the image carries at most.
const EPOCH: &str = "1700000000";
const SUITE: &str = "bookworm";
const PACKAGES: &str = "python3-minimal,python3,ca-certificates";
const REQUIREMENTS: &str = include_str!("requirements.txt");
/// With hashes: one of the wheels has 640 MB. x86-64.
const LEARNING: &str = include_str!("learning.txt");
/// The Python of that suite, and the wheels' platform.
const PYTHON: &str = "3.11";
const SITE: &str = "usr/lib/python3/dist-packages";

/// What [`MAIN_OUTPUT`] comes from: a start that needs little of the image.
const MAIN: &str = "\
import json, platform, sys

document = json.loads('{\"answer\": 42}')
print('lapwing: hello from python %d.%d, answer %d' % (*sys.version_info[:2], document['answer']), flush=True)
";
/// What the image prints when it is run as it is.
pub const MAIN_OUTPUT: &str = "lapwing: hello from python 3.11, answer 42";

/// A program that reads much more of the image; run it with `/usr/bin/python3`.
pub const FULL_SCRIPT: &str = "/app/full.py";
const FULL: &str = "\
import numpy
import scipy.linalg

values = numpy.arange(1000000, dtype=numpy.int64)
determinant = scipy.linalg.det(numpy.eye(8) * 2)
print('lapwing: numpy sum %d, determinant %d' % (values.sum(), round(determinant)), flush=True)
";
/// What that program prints.
pub const FULL_OUTPUT: &str = "lapwing: numpy sum 499999500000, determinant 256";

const LEARN: &str = "\
print('lapwing: first output', flush=True)
import numpy
import tensorflow
total = tensorflow.reduce_sum(tensorflow.constant(numpy.arange(1000)))
print('lapwing: ready, tensorflow %s, sum %d' % (tensorflow.__version__, int(total)), flush=True)
";
/// What the image of a large library prints when its interpreter runs, and what the last line begins with that it prints once the library has
/// been loaded and has computed something.
pub const LEARNING_OUTPUTS: [&str; 2] = ["lapwing: first output", "lapwing: ready"];

/// The image of a large library: Debian, Python, numpy and TensorFlow, above 700 MB compressed. The first call on a machine takes some
/// minutes and some GB of disk.
pub fn learning() -> Result<Layout> {
    let base = debian_tar(PACKAGES)?;
    let libraries = libraries_tar(LEARNING)?;
    let sources: [&[u8]; 2] = [LEARN.as_bytes(), include_bytes!("layout.rs")];
    let parts = [base.as_os_str().as_encoded_bytes(), libraries.as_os_str().as_encoded_bytes()];
    let key = super::recipe_key("learning", &[&sources[..], &parts[..]].concat());
    let dir = built_once("images", &key, |dir| {
        eprintln!("building the image of a large library: compressing its layers");
        let mut image = LayoutWriter::new(dir)?;
        image.layer_from_file(&base)?;
        image.layer_from_file(&libraries)?;
        image.layer_from_file(&app_tar(dir, &[("main.py", LEARN)])?)?;
        std::fs::remove_dir_all(dir.join("work"))?;
        image.finish(&PYTHON_CONFIG).map(drop)
    })?;
    Layout::open(&dir)
}

const PYTHON_CONFIG: ImageConfig<'static> = ImageConfig {
    entrypoint: &["/usr/bin/python3"],
    cmd: &["/app/main.py"],
    env: &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONUNBUFFERED=1", "LANG=C.UTF-8"],
    working_dir: "/app",
};

/// The realistic image: above 200 MB compressed, more than 15,000 files. The first call on a machine takes some minutes.
pub fn real() -> Result<Layout> {
    let base = debian_tar(PACKAGES)?;
    let libraries = libraries_tar(REQUIREMENTS)?;
    let sources: [&[u8]; 2] = [include_bytes!("real.rs"), include_bytes!("layout.rs")];
    let parts = [base.as_os_str().as_encoded_bytes(), libraries.as_os_str().as_encoded_bytes()];
    let key = super::recipe_key("real", &[&sources[..], &parts[..]].concat());
    let dir = built_once("images", &key, |dir| {
        eprintln!("building the realistic image: compressing its layers");
        let mut image = LayoutWriter::new(dir)?;
        image.layer_from_file(&base)?;
        image.layer_from_file(&libraries)?;
        image.layer_from_file(&app_tar(dir, &[("main.py", MAIN), ("full.py", FULL)])?)?;
        std::fs::remove_dir_all(dir.join("work"))?;
        image.finish(&PYTHON_CONFIG).map(drop)
    })?;
    Layout::open(&dir)
}

/// A minimal Debian with these packages.
pub(super) fn debian_tar(packages: &str) -> Result<PathBuf> {
    let key = super::recipe_key("debian", &[SUITE.as_bytes(), packages.as_bytes(), EPOCH.as_bytes()]);
    let dir = built_once("layers", &key, |dir| {
        eprintln!("building a Debian {SUITE} with {packages} (about a minute)");
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--quiet", "--variant=minbase", &format!("--include={packages}"), SUITE])
            .arg(dir.join("base.tar"));
        command.args(debian_sources()).env("SOURCE_DATE_EPOCH", EPOCH);
        check(&mut command).map(drop)
    })?;
    Ok(dir.join("base.tar"))
}

/// The machine's own list of Debian's packages, if it is for the suite; else mmdebstrap takes its default.
fn debian_sources() -> Option<&'static str> {
    let known = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    known.into_iter().find(|file| std::fs::read_to_string(file).is_ok_and(|text| text.contains(SUITE)))
}

fn libraries_tar(requirements: &str) -> Result<PathBuf> {
    let key =
        super::recipe_key("python", &[requirements.as_bytes(), PYTHON.as_bytes(), SITE.as_bytes(), EPOCH.as_bytes()]);
    let dir = built_once("layers", &key, |dir| {
        eprintln!("building an image of Python libraries: fetching them (a minute or more)");
        let (wheels, root) = (dir.join("wheels"), dir.join("root"));
        download_wheels(requirements, dir, &wheels)?;
        let site = root.join(SITE);
        std::fs::create_dir_all(&site)?;
        for wheel in std::fs::read_dir(&wheels)? {
            check(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel?.path()).arg(&site))?;
        }
        compile(&site)?;
        tar_of(&root, &dir.join("libraries.tar"))?;
        std::fs::remove_dir_all(&root)?;
        std::fs::remove_dir_all(&wheels).map_err(Into::into)
    })?;
    Ok(dir.join("libraries.tar"))
}

fn download_wheels(requirements: &str, dir: &Path, wheels: &Path) -> Result<()> {
    let list = dir.join("requirements.txt");
    std::fs::write(&list, requirements)?;
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation=cp"]);
    command.args(["--python-version", PYTHON, "--abi=cp311", "--abi=abi3", "--abi=none"]);
    let platform = std::env::consts::ARCH;
    for manylinux in ["manylinux2014", "manylinux_2_17"] {
        command.arg(format!("--platform={manylinux}_{platform}"));
    }
    check(command.arg("--dest").arg(wheels).arg("--requirement").arg(&list))
        .context("fetching the Python libraries with pip")?;
    ensure!(std::fs::read_dir(wheels)?.count() > 0, "pip fetched nothing");
    Ok(())
}

/// Compiles as an installation does, where this machine's Python is the image's; else Python does it when it first imports.
fn compile(site: &Path) -> Result<()> {
    let program = format!("python{PYTHON}");
    if crate::tools::on_path(&program).is_none() {
        return Ok(());
    }
    let mut command = Command::new(program);
    command.args([
        "-m",
        "compileall",
        "-q",
        "-q",
        "-j0",
        "--invalidation-mode=unchecked-hash",
        "-p",
        &format!("/{SITE}"),
        "-s",
    ]);
    // Some libraries ship examples that are no valid Python, which compileall's status tells.
    crate::process::output(command.arg(site).arg(site)).map(drop)
}

pub(super) fn app_tar(dir: &Path, programs: &[(&str, &str)]) -> Result<PathBuf> {
    let root = dir.join("work/root");
    std::fs::create_dir_all(root.join("app"))?;
    for (name, program) in programs {
        std::fs::write(root.join("app").join(name), program)?;
    }
    let tar = dir.join("work/app.tar");
    tar_of(&root, &tar)?;
    Ok(tar)
}

/// The files under `root` as root's, in order of name, all of one time.
fn tar_of(root: &Path, tar: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--sort=name", "--format=pax", "--pax-option=delete=atime,delete=ctime", "--numeric-owner"]);
    command.args(["--owner=0", "--group=0", "--mode=u=rwX,go=rX", &format!("--mtime=@{EPOCH}")]);
    check(command.arg("-C").arg(root).arg("-cf").arg(tar).arg(".")).map(drop)
}
