//! What rights the daemons have once they run, as `/proc` shows it, and what the process that mounts for a node refuses.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lapwing_lab::{
    Lab, Lapwing, LapwingSettings, Machine, MachineOptions, Need, Registry, RegistryOptions, image, lapwing_binary,
    require, wait,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// CHOWN, DAC_OVERRIDE, FOWNER, IPC_LOCK, SYS_PTRACE, SYS_ADMIN, SYS_RESOURCE (linux/capability.h).
const MOUNTING: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 14 | 1 << 19 | 1 << 21 | 1 << 24;

/// The fields of a `status` file of proc(5).
fn status(path: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.into(), value.trim().into()))
        .collect()
}

fn set(status: &BTreeMap<String, String>, name: &str) -> u64 {
    u64::from_str_radix(&status[name], 16).unwrap()
}

/// Every thread of a process has these capabilities alone, can get none but `bounding`, and is filtered.
fn assert_confined(what: &str, pid: u32, capabilities: u64, bounding: u64) {
    let mut threads = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        // One may have ended meanwhile.
        let path = thread.unwrap().path().join("status");
        if !path.exists() {
            continue;
        }
        let status = status(&path);
        for (name, expected) in
            [("CapPrm", capabilities), ("CapEff", capabilities), ("CapBnd", bounding), ("CapInh", 0), ("CapAmb", 0)]
        {
            assert_eq!(set(&status, name), expected, "{name} of {what}: {status:?}");
        }
        assert_eq!((status["NoNewPrivs"].as_str(), status["Seccomp"].as_str()), ("1", "2"), "{what}: {status:?}");
        threads += 1;
    }
    assert!(threads > 0, "{what} has no thread");
}

fn children(pid: u32) -> Vec<u32> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    listed.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn named(pids: &[u32], name: &str) -> Option<u32> {
    let comm = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.iter().copied().find(|pid| comm(*pid).trim() == name)
}

/// The kernel's own congestion control: on some machines another one takes a capability.
fn plain(settings: LapwingSettings) -> LapwingSettings {
    settings.with("peer", "congestion_control = \"\"")
}

/// The mounter of a node, once it is what it will be.
fn mounter_of(node: u32) -> u32 {
    wait::until_true("the mounter to be there", PATIENCE, || named(&children(node), "lapwing-mounter").is_some())
        .unwrap();
    named(&children(node), "lapwing-mounter").unwrap()
}

#[test]
fn daemons_have_no_rights_but_what_mounting_needs_in_a_process_of_its_own() {
    const NAME: &str = "daemons_have_no_rights_but_what_mounting_needs_in_a_process_of_its_own";
    if !require(NAME, &[Need::Root, Need::Disk, Need::Fuse, Need::Erofs, Need::Tools]) {
        return;
    }
    let own = status(Path::new("/proc/self/status"));
    let mounting = MOUNTING & set(&own, "CapPrm");
    assert_ne!(set(&own, "CapBnd") & 1 << 8, 0, "without CAP_SETPCAP the bounding set cannot be shown to be empty");

    let network = Lab::new("privileges").unwrap().network().unwrap();
    let registry = Registry::start(&network.host("registry", None).unwrap(), RegistryOptions::default()).unwrap();
    let reference = registry.push(&image::small().unwrap(), "small:1").unwrap();
    let mut tracker =
        Lapwing::start(&network.host("tracker", None).unwrap(), plain(LapwingSettings::tracker())).unwrap();
    assert_confined("the tracker", tracker.process().pid(), 0, 0);
    let trackers = [tracker.tracker_address()];
    let settings = plain(LapwingSettings::seed(&trackers)).registry(&registry.name());
    let mut seed = Lapwing::start(&network.host("seed", None).unwrap(), settings).unwrap();
    assert_confined("the seed", seed.process().pid(), 0, 0);

    let settings = plain(LapwingSettings::node(&trackers)).with("lazy", "complete_after = \"0\"");
    let mut machine = Machine::start(&network, "node", &registry, MachineOptions::lapwing(settings)).unwrap();
    // The seed is asked for the layers, and their indexes are built from what it gives.
    machine.containerd.pull(&reference, "lapwing").unwrap();
    let output = machine.containerd.run(&reference, "lapwing", "one", &[]).unwrap();
    assert_eq!(output.trim(), image::SMALL_OUTPUT);
    let node = machine.lapwing.as_mut().unwrap();
    assert!(node.metric("lapwing_snapshot_layers_adopted_total", "").unwrap() > 0.0, "nothing was mounted lazily");
    let pid = node.process().pid();
    let mounter = mounter_of(pid);
    assert_confined("the node", pid, 0, 0);
    assert_confined("the mounter", mounter, mounting, mounting);
    wait::until_true("the holder to be there", PATIENCE, || named(&children(mounter), "lapwing-holder").is_some())
        .unwrap();
    let holder = named(&children(mounter), "lapwing-holder").unwrap();
    wait::until_true("the holder to have given up its rights", PATIENCE, || {
        set(&status(Path::new(&format!("/proc/{holder}/status"))), "CapPrm") == 0
    })
    .unwrap();
    // What bounds it is the mounter's, which has no right to make that smaller.
    assert_confined("the holder", holder, 0, mounting);
    assert!(node.log().unwrap().contains("confined to what its work needs"));

    // Without the mounter the node is of no use, says so, and leaves what is mounted to the next one.
    let gone = rustix::process::Pid::from_raw(mounter.cast_signed()).unwrap();
    rustix::process::kill_process(gone, rustix::process::Signal::KILL).unwrap();
    let ended = node.process().wait(PATIENCE).unwrap();
    assert!(!ended.success(), "{ended}");
    assert!(node.log().unwrap().contains("(lapwing-mounter) ended"), "{}", node.log().unwrap());
    node.restart().unwrap();
    assert_ne!(mounter_of(node.process().pid()), mounter);
    // containerd dials the socket again in its own time.
    let mut names = (0..).map(|number| format!("again{number}"));
    wait::until_true("a container to start again", PATIENCE, || {
        let run = machine.containerd.run(&reference, "lapwing", &names.next().unwrap(), &[]);
        run.is_ok_and(|output| output.trim() == image::SMALL_OUTPUT)
    })
    .unwrap();
}

/// A mounter that this test speaks with, in the place of a node.
struct Asked(OwnedFd);

impl Asked {
    fn start(root: &Path) -> (Self, std::process::Child) {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let mut command = Command::new(lapwing_binary().unwrap());
        let child = command.arg("mount-for-node").arg(root).stdin(Stdio::from(theirs)).spawn().unwrap();
        (Self(ours), child)
    }

    /// Its word on a request: an error's number and text; or 0 and what was asked for.
    fn ask(&self, request: &[u8], descriptors: &[BorrowedFd<'_>]) -> (u32, String) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(request)], &mut control, SendFlags::NOSIGNAL).unwrap();
        let mut answer = [0; 4096];
        let mut control = RecvAncillaryBuffer::new(&mut []);
        let mut parts = [IoSliceMut::new(&mut answer)];
        let length = rustix::net::recvmsg(&self.0, &mut parts, &mut control, RecvFlags::empty()).unwrap().bytes;
        let number = u32::from_le_bytes(answer[..4].try_into().unwrap());
        (number, String::from_utf8_lossy(&answer[4..length]).into_owned())
    }
}

/// A request as the node writes it: its kind, and paths with their lengths.
fn request(kind: u8, paths: &[&str]) -> Vec<u8> {
    let mut out = vec![kind];
    for path in paths {
        out.extend_from_slice(&(path.len() as u32).to_le_bytes());
        out.extend_from_slice(path.as_bytes());
    }
    out
}

#[test]
fn the_mounter_does_for_its_node_what_it_is_for_and_nothing_else() {
    const NAME: &str = "the_mounter_does_for_its_node_what_it_is_for_and_nothing_else";
    if !require(NAME, &[Need::Root, Need::Disk, Need::Fuse]) {
        return;
    }
    let lab = Lab::new("mounter").unwrap();
    let root = lab.dir().join("root");
    let outside = lab.dir().join("outside");
    for directory in [root.join("data"), root.join("snapshots/8"), outside.join("fs"), root.join("layers/x")] {
        std::fs::create_dir_all(directory).unwrap();
    }
    std::fs::create_dir_all(root.join("snapshots/removed-7/deep/er")).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("snapshots/9")).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("snapshots/removed-9")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("layers/x/erofs")).unwrap();
    std::fs::write(root.join("layers/x/tar"), "tar").unwrap();
    let (mounter, mut child) = Asked::start(&root);
    let device = lapwing_snapshotter::fuse::open_device().unwrap();
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let device = [device.as_fd()];

    let refused = |request: &[u8], descriptors: &[BorrowedFd<'_>], word: &str| {
        let (number, text) = mounter.ask(request, descriptors);
        assert_ne!(number, 0, "{request:?} was done");
        assert!(text.contains(word), "{request:?}: {number} {text}");
    };
    // Places that are none of a node's, by their names or by what is there.
    for at in ["/etc", "../outside", "snapshots/../../outside", "snapshots/8/work", "etc", ""] {
        refused(&request(1, &[at]), &device, "no place");
        refused(&request(4, &[at]), &[], "no place");
        refused(&request(10, &[at]), &[], "no place");
    }
    refused(&request(3, &["data/x", "snapshots/9/fs"]), &[], "");
    // The link goes, as any file, and what it leads to stays.
    mounter.ask(&request(10, &["snapshots/removed-9"]), &[]);
    refused(&request(2, &["layers/x/erofs", "layers/x/tar", "snapshots/8/fs"]), &[], "");
    refused(&request(9, &["snapshots/9/fs"]), &[], "");
    let own = [request(8, &["snapshots/9/fs"]), vec![1; 8]].concat();
    refused(&own, &[], "");
    // What is mounted has no options that a node could choose, and the connection is one of FUSE.
    refused(&[request(1, &["data"]), b"\x03\0\0\0dev".to_vec()].concat(), &device, "no request");
    refused(&request(1, &["data"]), &[null.as_fd()], "/dev/fuse");
    refused(&request(1, &["data"]), &[], "descriptors");
    refused(&request(12, &[]), &device, "descriptors");
    refused(&request(13, &[]), &[null.as_fd(), null.as_fd(), null.as_fd()], "no holder");
    refused(&request(7, &["../../block/sda", "layers/x/tar"]), &[], "no place");
    refused(&vec![4; 100 << 10], &[], "may have");
    refused(&[77], &[], "no request");
    assert!(outside.join("fs").is_dir() && outside.is_dir(), "what is outside is as it was");

    // And what it is for, still.
    assert_eq!(mounter.ask(&request(1, &["data"]), &device).0, 0);
    let table = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line =
        |table: &str| table.lines().find(|line| line.contains(root.join("data").to_str().unwrap())).map(str::to_owned);
    let mounted = line(&table()).unwrap();
    for option in ["ro,", "nosuid", "nodev", "noexec", " fuse.lapwing "] {
        assert!(mounted.contains(option), "{option} in {mounted}");
    }
    assert_eq!(mounter.ask(&request(4, &["data"]), &[]).0, 0);
    assert_eq!(line(&table()), None);
    assert_eq!(mounter.ask(&request(10, &["snapshots/removed-7"]), &[]).0, 0);
    assert!(!root.join("snapshots/removed-7").exists());

    // Nothing is left of it when its node is gone.
    drop(mounter);
    let ended = child.wait().unwrap();
    assert!(ended.success(), "{ended}");
}
