//! The FUSE loop against the kernel: what it answers when its files misbehave, and how it is taken over.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, outside of test functions")]

use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use lapwing_snapshotter::fuse::{DataFile, DataFiles, Handshake, Lengths, Purpose, Session, mount_at, open_device};
use lapwing_snapshotter::mountpoint::detach;
use rustix::io::Errno;
use tokio::sync::Notify;

const SIZE: u64 = 1 << 20;

/// Four files: good, one whose reads panic, one short, one that never answers.
#[derive(Default)]
struct Files {
    cured: bool,
    asked: Arc<Notify>,
}

const NAMES: [&str; 4] = ["good", "panics", "short", "hangs"];

fn byte(offset: u64) -> u8 {
    (offset ^ (offset >> 9)) as u8
}

impl DataFiles for Files {
    fn lookup(&self, name: &[u8]) -> Option<DataFile> {
        let number = NAMES.iter().position(|known| known.as_bytes() == name)?;
        self.get(10 + number as u64)
    }

    fn get(&self, nodeid: u64) -> Option<DataFile> {
        (10..14).contains(&nodeid).then_some(DataFile { nodeid, size: SIZE })
    }

    fn list(&self) -> Vec<(Vec<u8>, DataFile)> {
        NAMES.iter().map(|name| (name.as_bytes().to_vec(), self.lookup(name.as_bytes()).unwrap())).collect()
    }

    fn read_cached(&self, _nodeid: u64, _range: Range<u64>) -> Option<Bytes> {
        None
    }

    fn read(&self, nodeid: u64, range: Range<u64>) -> BoxFuture<'static, Result<Bytes, Errno>> {
        let (cured, asked) = (self.cured, self.asked.clone());
        Box::pin(async move {
            let bytes: Bytes = range.map(byte).collect();
            match NAMES[nodeid as usize - 10] {
                _ if cured => Ok(bytes),
                "panics" => panic!("as the test wants"),
                "short" => Ok(bytes.slice(1..)),
                "hangs" => {
                    asked.notify_one();
                    std::future::pending().await
                }
                _ => Ok(bytes),
            }
        })
    }
}

struct Mount {
    at: PathBuf,
    device: OwnedFd,
    _directory: tempfile::TempDir,
}

impl Mount {
    /// `None`, said loudly, where FUSE is not to be had.
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("data");
        std::fs::create_dir(&at).unwrap();
        match open_device().and_then(|device| mount_at(device.as_fd(), &at).map(|()| device)) {
            Ok(device) => Some(Self { at, device, _directory: directory }),
            Err(error) => {
                println!("SKIPPED: no FUSE: {error}");
                None
            }
        }
    }

    fn serve(&self, handshake: Handshake, files: Files) -> Session {
        let runtime = tokio::runtime::Handle::current();
        Session::start(self.device.try_clone().unwrap(), handshake, Lengths::Exact, Arc::new(files), runtime).unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        detach(&self.at).unwrap();
    }
}

fn read_at(path: PathBuf, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    std::fs::File::open(path)?.read_exact_at(&mut buffer, offset).map(|()| buffer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_answered_in_full_or_with_an_error() {
    let Some(mount) = Mount::new() else { return };
    let session = mount.serve(Handshake::Pending(Purpose::Devices), Files::default());
    let whole = std::fs::read(mount.at.join("good")).unwrap();
    assert!(whole.len() as u64 == SIZE && whole.iter().zip(0..).all(|(&read, offset)| read == byte(offset)));
    for name in ["panics", "short"] {
        let error = read_at(mount.at.join(name), 4096, 4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}");
    }
    assert_eq!(read_at(mount.at.join("good"), SIZE - 1, 1).unwrap(), [byte(SIZE - 1)], "the loop goes on");
    session.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_is_listed_read_only_and_for_root_alone() {
    let Some(mount) = Mount::new() else { return };
    let session = mount.serve(Handshake::Pending(Purpose::Devices), Files::default());
    let names: Vec<_> = std::fs::read_dir(&mount.at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, NAMES);
    let metadata = std::fs::metadata(mount.at.join("good")).unwrap();
    assert_eq!((metadata.ino(), metadata.len(), metadata.mode()), (10, SIZE, 0o100_400));
    assert_eq!(std::fs::metadata(&mount.at).unwrap().mode(), 0o040_500);
    assert_eq!(std::fs::metadata(mount.at.join("other")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    let written = std::fs::File::options().write(true).open(mount.at.join("good"));
    assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EROFS));
    session.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_answers_what_its_predecessor_had_taken() {
    let Some(mount) = Mount::new() else { return };
    let files = Files::default();
    let asked = files.asked.clone();
    let first = mount.serve(Handshake::Pending(Purpose::Devices), files);
    let path = mount.at.join("hangs");
    let reader = std::thread::spawn(move || read_at(path, 8192, 100));
    asked.notified().await;
    let terms = first.terms();
    first.stop();
    assert!(!reader.is_finished());
    let second = mount.serve(Handshake::Done(terms), Files { cured: true, ..Files::default() });
    let read = reader.join().unwrap().unwrap();
    assert!(read.iter().zip(8192..).all(|(&read, offset)| read == byte(offset)));
    assert_eq!(read_at(mount.at.join("good"), 0, 1).unwrap(), [byte(0)]);
    second.stop();
}

/// A process that ends leaves its tasks undone; what they were to answer is the next one's, not an error.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_leaving_process_does_not_finish_is_no_error() {
    let Some(mount) = Mount::new() else { return };
    let files = Files::default();
    let asked = files.asked.clone();
    let leaving = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let device = mount.device.try_clone().unwrap();
    let runtime = leaving.handle().clone();
    let first =
        Session::start(device, Handshake::Pending(Purpose::Devices), Lengths::Exact, Arc::new(files), runtime).unwrap();
    let terms = first.terms();
    let path = mount.at.join("hangs");
    let reader = std::thread::spawn(move || read_at(path, 8192, 100));
    asked.notified().await;
    first.leave();
    // As at the end of a process; all its tasks are dropped when this returns.
    tokio::task::spawn_blocking(move || drop(leaving)).await.unwrap();
    let second = mount.serve(Handshake::Done(terms), Files { cured: true, ..Files::default() });
    let read = reader.join().unwrap().unwrap();
    assert!(read.iter().zip(8192..).all(|(&read, offset)| read == byte(offset)));
    second.stop();
}
