//! File systems of the tests' own: small ones that run full, and one that can lose its power.
#![allow(unsafe_code, reason = "shutting a file system down is an ioctl without a safe wrapper")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A mount below a temporary directory, gone when dropped.
pub(crate) struct Mount {
    directory: tempfile::TempDir,
    options: Vec<String>,
    mounted: bool,
}

impl Mount {
    /// A tmpfs of that size; says so and gives nothing where tests may not mount.
    pub(crate) fn tmpfs(bytes: u64) -> Option<Self> {
        Self::new(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"], |_| true)
    }

    /// An ext4 in a file.
    pub(crate) fn ext4(bytes: u64) -> Option<Self> {
        Self::new(&["-t", "ext4", "-o", "loop"], |image| {
            File::create(image).unwrap().set_len(bytes).unwrap();
            run("mkfs.ext4", &["-q".to_owned(), "-F".to_owned(), image.display().to_string()])
        })
    }

    fn new(options: &[&str], make: impl FnOnce(&Path) -> bool) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        let mut options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let made = make(&image);
        if image.exists() {
            options.push(image.display().to_string());
        }
        std::fs::create_dir(directory.path().join("mount")).unwrap();
        let mut mount = Self { directory, options, mounted: false };
        mount.mounted = made && mount.mount();
        if mount.mounted {
            return Some(mount);
        }
        eprintln!("SKIPPED: cannot mount {:?}; run as root with loop devices and mkfs.ext4", mount.options);
        None
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    fn mount(&self) -> bool {
        let mut arguments = self.options.clone();
        arguments.push(self.path().display().to_string());
        run("mount", &arguments)
    }

    /// Tries again while it is busy: a process that another test is just starting has a copy of every descriptor.
    fn unmount(&self) -> bool {
        (0..1000).any(|_| run("umount", &[self.path().display().to_string()]))
    }

    /// Stops an ext4 at once: neither its log nor any page reaches the disk any more.
    pub(crate) fn cut_power(&self) {
        use rustix::ioctl::{Setter, ioctl, opcode};
        /// EXT4_IOC_SHUTDOWN (linux/ext4.h), declared there as _IOR('X', 125, __u32) though it is read by the kernel.
        const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
        /// EXT4_GOING_FLAGS_NOLOGFLUSH
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(self.path()).unwrap();
        // SAFETY: the kernel reads one u32 behind the pointer, which is what a Setter of u32 passes.
        unsafe { ioctl(&root, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }.unwrap();
    }

    /// What a machine does when the power is back. As long as another mount namespace, made while this was mounted, has a
    /// copy of the mount, the dead filesystem comes back: then it is tried again.
    pub(crate) fn restart(&self) {
        let alive = || File::create(self.path().join("alive")).and_then(|file| file.sync_all()).is_ok();
        let again = || std::thread::sleep(std::time::Duration::from_millis(100));
        let restarted = (0..1200).any(|_| {
            assert!(self.unmount() && self.mount());
            alive() || (again(), false).1
        });
        assert!(restarted, "the filesystem stays dead");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted && !self.unmount() && !std::thread::panicking() {
            panic!("{} stays mounted", self.path().display());
        }
    }
}

fn run(program: &str, arguments: &[String]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
