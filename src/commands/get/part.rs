//! The file while it is not whole: `NAME.part`, and beside it `NAME.part.json`, which says what it is a part of.
//!
//! The name itself is given by renaming when all bytes are there and were held against what was promised. A run that is cut off
//! leaves both, and the next goes on from there if the source still has that version: the record holds its strong validator,
//! which goes out as `If-Range`.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapwing_p2p::digest::hex;
use md5::Md5;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::limits::MAX_RECORD;
use super::outcome::{Failed, Fault};

/// What a part is a part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Without credentials and the parameters of `--filter-query`.
    pub url: String,
    /// A strong `ETag`, or a `Last-Modified` that is one.
    pub validator: String,
    /// Of the whole, in bytes.
    pub length: u64,
}

/// What the content must be.
#[derive(Debug, Clone, Default)]
pub(super) struct Promise {
    /// 64 digits in lower case.
    pub sha256: Option<String>,
    /// 32 of them.
    pub md5: Option<String>,
}

#[derive(Default)]
struct Sums {
    sha256: Option<Sha256>,
    md5: Option<Md5>,
}

impl Sums {
    fn of(promise: &Promise) -> Self {
        Self { sha256: promise.sha256.as_ref().map(|_| Sha256::new()), md5: promise.md5.as_ref().map(|_| Md5::new()) }
    }

    fn update(&mut self, bytes: &[u8]) {
        if let Some(sum) = &mut self.sha256 {
            sum.update(bytes);
        }
        if let Some(sum) = &mut self.md5 {
            sum.update(bytes);
        }
    }
}

enum Place {
    /// Standard output, or what is no file: a device, a pipe.
    Stream(Box<dyn Write + Send>, PathBuf),
    File {
        file: Arc<File>,
        part: PathBuf,
        record: PathBuf,
        target: PathBuf,
    },
}

/// Where bytes go, in order.
pub(super) struct Sink {
    place: Place,
    promise: Promise,
    sums: Sums,
    position: u64,
    record: Option<Record>,
    syncing: Option<tokio::task::JoinHandle<()>>,
    synced: u64,
}

/// How much is written between two requests to put it on disk, so that the last one is short.
const SYNC_EVERY: u64 = 16 << 20;

impl Sink {
    /// Standard output: nothing can be taken back there.
    pub(super) fn stdout(promise: Promise) -> Self {
        Self::new(Place::Stream(Box::new(std::io::stdout()), "standard output".into()), promise)
    }

    /// `target`, by way of its part; what an earlier run left of `url` is kept where `go_on`.
    pub(super) fn file(target: &Path, url: &str, promise: Promise, go_on: bool) -> Result<Self, Failed> {
        let beside = |end: &str| {
            let mut name = target.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        let (part, record) = (beside(".part"), beside(".part.json"));
        if target.is_dir() {
            return Err(Failed::file(target, "is a directory; name a file with -O, or the directory with -P"));
        }
        if std::fs::metadata(target).is_ok_and(|metadata| !metadata.is_file()) {
            let file = OpenOptions::new().write(true).open(target).map_err(|error| Failed::file(target, error))?;
            return Ok(Self::new(Place::Stream(Box::new(file), target.to_owned()), promise));
        }
        let file = open_own(&part)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| Failed::file(&part, "another lapwing get writes it"))?;
        // Between opening and locking it may have been given its name.
        if !is_at(&file, &part) {
            return Err(Failed::file(&part, "another lapwing get has just finished it"));
        }
        let known = if go_on { read_record(&record).filter(|known| known.url == url) } else { None };
        let place = Place::File { file: Arc::new(file), part, record, target: target.to_owned() };
        let mut sink = Self::new(place, promise);
        match known {
            Some(known) => sink.take_up(known)?,
            None => sink.begin_anew()?,
        }
        Ok(sink)
    }

    fn new(place: Place, promise: Promise) -> Self {
        let sums = Sums::of(&promise);
        Self { place, promise, sums, position: 0, record: None, syncing: None, synced: 0 }
    }

    /// How many bytes are here.
    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// What they are a part of, where that is known: they may be gone on with.
    pub(super) const fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    fn take_up(&mut self, known: Record) -> Result<(), Failed> {
        let Place::File { file, part, .. } = &self.place else { return Ok(()) };
        let failed = |error: std::io::Error| Failed::file(part, error);
        // One byte at least is asked for, so that the source says which version it has.
        let have = file.metadata().map_err(failed)?.len().min(known.length.saturating_sub(1));
        file.set_len(have).map_err(failed)?;
        let mut left = file.as_ref();
        left.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut buffer = vec![0; 1 << 20];
        if self.sums.sha256.is_some() || self.sums.md5.is_some() {
            loop {
                let got = left.read(&mut buffer).map_err(failed)?;
                if got == 0 {
                    break;
                }
                self.sums.update(&buffer[..got]);
            }
        }
        left.seek(SeekFrom::Start(have)).map_err(failed)?;
        (self.position, self.record) = (have, Some(known));
        Ok(())
    }

    /// Forgets all bytes. Refused where they are gone to somebody already.
    pub(super) fn begin_anew(&mut self) -> Result<(), Failed> {
        match &self.place {
            Place::Stream(..) if self.position > 0 => {
                return Err(Failed::new(Fault::Network, "the rest of what was written cannot be had any more"));
            }
            Place::Stream(..) => {}
            Place::File { file, part, record, .. } => {
                let _ = std::fs::remove_file(record);
                let emptied = file.set_len(0).and_then(|()| file.as_ref().seek(SeekFrom::Start(0)));
                emptied.map_err(|error| Failed::file(part, error))?;
            }
        }
        (self.position, self.synced, self.record) = (0, 0, None);
        self.sums = Sums::of(&self.promise);
        Ok(())
    }

    /// Says of which version the bytes are that come now.
    pub(super) fn describe(&mut self, record: Record) -> Result<(), Failed> {
        if self.record.as_ref() == Some(&record) {
            return Ok(());
        }
        if let Place::File { record: path, .. } = &self.place {
            let text = serde_json::to_vec(&record).map_err(|error| Failed::file(path, error))?;
            let _ = std::fs::remove_file(path);
            let written = File::create_new(path).and_then(|mut file| file.write_all(&text));
            written.map_err(|error| Failed::file(path, error))?;
        }
        self.record = Some(record);
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        match &mut self.place {
            Place::Stream(out, name) => out.write_all(bytes).map_err(|error| Failed::file(name, error))?,
            Place::File { file, part, .. } => {
                file.as_ref().write_all(bytes).map_err(|error| Failed::file(part, error))?;
            }
        }
        self.sums.update(bytes);
        self.position += bytes.len() as u64;
        self.sync_ahead();
        Ok(())
    }

    fn sync_ahead(&mut self) {
        let Place::File { file, .. } = &self.place else { return };
        let busy = self.syncing.as_ref().is_some_and(|running| !running.is_finished());
        if !busy && self.position - self.synced >= SYNC_EVERY {
            self.synced = self.position;
            let file = Arc::clone(file);
            self.syncing = Some(tokio::task::spawn_blocking(move || drop(file.sync_data())));
        }
    }

    /// All bytes are here: holds them against the promise, and gives them their name.
    pub(super) async fn finish(&mut self) -> Result<(), Failed> {
        if let Some(running) = self.syncing.take() {
            let _ = running.await;
        }
        if let Err(failed) = self.check() {
            self.discard();
            return Err(failed);
        }
        match &mut self.place {
            Place::Stream(out, name) => out.flush().map_err(|error| Failed::file(name, error)),
            Place::File { file, part, record, target } => {
                file.sync_data().map_err(|error| Failed::file(part, error))?;
                std::fs::rename(&*part, &*target).map_err(|error| Failed::file(target, error))?;
                let _ = std::fs::remove_file(record);
                Ok(())
            }
        }
    }

    fn check(&mut self) -> Result<(), Failed> {
        let sha256 = self.sums.sha256.take().map(|sum| hex(&sum.finalize()));
        let md5 = self.sums.md5.take().map(|sum| hex(&sum.finalize()));
        for (kind, promised, got) in [("sha256", &self.promise.sha256, sha256), ("md5", &self.promise.md5, md5)] {
            if *promised != got {
                let (promised, got) = (promised.clone().unwrap_or_default(), got.unwrap_or_default());
                let reason = format!("the content is not what was promised: {kind} {got} instead of {promised}");
                return Err(Failed::new(Fault::Content, reason));
            }
        }
        Ok(())
    }

    /// Takes the part away: nothing shall go on with it.
    pub(super) fn discard(&mut self) {
        if let Place::File { part, record, .. } = &self.place {
            let _ = std::fs::remove_file(part);
            let _ = std::fs::remove_file(record);
        }
    }

    /// Takes the part away if there is nothing in it.
    pub(super) fn give_up(&mut self) {
        if self.position == 0 || self.record.is_none() {
            self.discard();
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let (own, there) = (file.metadata(), std::fs::metadata(path));
    matches!((own, there), (Ok(own), Ok(there)) if (own.dev(), own.ino()) == (there.dev(), there.ino()))
}

/// Opens the part, or makes it: a file of this user's, and nothing that somebody laid in its place.
fn open_own(part: &Path) -> Result<File, Failed> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(part).map_err(|error| Failed::file(part, error))?;
    let metadata = file.metadata().map_err(|error| Failed::file(part, error))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Failed::file(part, "belongs to another user; choose another name, or have it removed"));
    }
    Ok(file)
}

fn read_record(path: &Path) -> Option<Record> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_RECORD).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}
