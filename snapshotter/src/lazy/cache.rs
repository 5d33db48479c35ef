//! The spans of one layer that are on this machine: `tar`, a sparse file of decompressed bytes, and `spans`, which says
//! what of it is there.
//!
//! ```text
//! spans: "LWSPANS1" | fingerprint of the span table (32) | state (1) | zeros (3) | spans (u32) | bitmap | CRC32C (u32)
//! ```
//!
//! Integers are little endian. The file is replaced as a whole, after `tar` was synced: a set bit is right after any
//! crash. A `spans` file that does not check out, or belongs to another span table, counts as empty.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;

use super::common::Common;
use super::whole::WholeTar;

const MAGIC: &[u8; 8] = b"LWSPANS1";
const HEADER: usize = 48;

/// What is known of the tar as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Proof {
    /// Spans match the index; the whole has not been compared with the image's diffID yet.
    Pending = 0,
    /// The whole tar has the image's diffID.
    Proved = 1,
    /// The whole tar has another digest: the index lies.
    Quarantined = 2,
}

impl Proof {
    fn of(byte: u8) -> Option<Self> {
        [Self::Pending, Self::Proved, Self::Quarantined].into_iter().find(|proof| *proof as u8 == byte)
    }
}

#[derive(Debug)]
pub(super) struct SpanCache {
    directory: PathBuf,
    common: Arc<Common>,
    /// Of the tar, among those that are open.
    number: u64,
    /// The tar, once its path may be another's.
    given_up: OnceLock<Arc<File>>,
    fingerprint: [u8; 32],
    spans: usize,
    words: Vec<AtomicU64>,
    present: AtomicUsize,
    proof: AtomicU8,
    dirty: AtomicBool,
    /// All spans are on disk and the bitmap says so.
    settled: AtomicBool,
    /// Held while the bitmap is replaced, so that an older one never follows a newer one.
    lasting: Mutex<Lasting>,
}

/// What is on disk.
#[derive(Debug)]
struct Lasting {
    /// The files were given up: another cache may own their paths by now.
    retired: bool,
    /// The bitmap.
    words: Vec<u64>,
    /// What the tar was made of, until that is on the disk.
    whole: Option<WholeTar>,
}

impl SpanCache {
    /// Opens or makes the cache in `directory` for a device of `length` bytes.
    pub(super) fn open(
        directory: &Path,
        fingerprint: [u8; 32],
        spans: usize,
        length: u64,
        common: &Arc<Common>,
    ) -> io::Result<Self> {
        let tar_path = directory.join("tar");
        let kept = fs::metadata(&tar_path).is_ok_and(|tar| tar.is_file() && tar.len() == length);
        if !kept {
            // Bits first, data second: a crash between must not leave bits over an empty file.
            remove_if_there(&directory.join("spans"))?;
            remove_if_there(&tar_path)?;
            File::open(directory)?.sync_all()?;
        }
        make_tar(&tar_path, length)?;
        let (words, proof) = load(&directory.join("spans"), &fingerprint, spans);
        let present: usize = words.iter().map(|word| word.count_ones() as usize).sum();
        Ok(Self {
            directory: directory.to_owned(),
            common: Arc::clone(common),
            number: common.files.number(),
            given_up: OnceLock::new(),
            fingerprint,
            spans,
            words: words.iter().copied().map(AtomicU64::new).collect(),
            present: AtomicUsize::new(present),
            proof: AtomicU8::new(proof as u8),
            dirty: AtomicBool::new(false),
            settled: AtomicBool::new(present == spans),
            lasting: Mutex::new(Lasting { retired: false, words, whole: None }),
        })
    }

    /// Takes all of the tar, which somebody has made of the whole layer, unless it is here already. Nobody may be reading
    /// yet. It lasts from the next [`SpanCache::commit`].
    pub(super) fn take(&self, whole: &WholeTar) -> io::Result<()> {
        if self.settled() {
            return Ok(());
        }
        let (tar_path, length) = (self.tar_path(), fs::metadata(self.tar_path())?.len());
        let mut lasting = self.lasting();
        // As when it is opened: bits that say something of the former file go first.
        if lasting.words.iter().any(|word| *word != 0) {
            remove_if_there(&self.directory.join("spans"))?;
            File::open(&self.directory)?.sync_all()?;
        }
        remove_if_there(&tar_path)?;
        self.give_up_all_but(&vec![0; self.words.len()]);
        lasting.words.fill(0);
        self.common.files.close(self.number);
        if let Err(error) = whole.place(&tar_path) {
            make_tar(&tar_path, length)?;
            return Err(error);
        }
        self.tar()?.set_len(length)?;
        lasting.whole = Some(whole.clone());
        drop(lasting);
        for span in 0..self.spans {
            self.words[span / 64].fetch_or(1 << (span % 64), Ordering::AcqRel);
        }
        self.present.store(self.spans, Ordering::Release);
        self.set_proof(Proof::Proved);
        Ok(())
    }

    /// The file that holds the bytes.
    pub(super) fn tar_path(&self) -> PathBuf {
        self.directory.join("tar")
    }

    fn tar(&self) -> io::Result<Arc<File>> {
        match self.given_up.get() {
            Some(tar) => Ok(Arc::clone(tar)),
            None => self.common.files.get(self.number, &self.tar_path()),
        }
    }

    pub(super) fn has(&self, span: usize) -> bool {
        self.words[span / 64].load(Ordering::Acquire) & (1 << (span % 64)) != 0
    }

    pub(super) fn present(&self) -> usize {
        self.present.load(Ordering::Acquire)
    }

    /// Whether every span is on disk, and would be after a crash.
    pub(super) fn settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    pub(super) fn proof(&self) -> Proof {
        Proof::of(self.proof.load(Ordering::Acquire)).unwrap_or(Proof::Quarantined)
    }

    pub(super) fn set_proof(&self, proof: Proof) {
        self.proof.store(proof as u8, Ordering::Release);
        self.dirty.store(true, Ordering::Release);
    }

    /// Reads bytes of spans that are present.
    pub(super) fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        self.tar()?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }

    /// Writes a span; its bit lasts from the next [`SpanCache::commit`].
    pub(super) fn write(&self, span: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.tar()?.write_all_at(bytes, offset)?;
        let bit = 1 << (span % 64);
        if self.words[span / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.present.fetch_add(1, Ordering::AcqRel);
        }
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Forgets a span whose bytes cannot be read back.
    pub(super) fn forget(&self, span: usize) {
        let bit = 1 << (span % 64);
        if self.words[span / 64].fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
            self.present.fetch_sub(1, Ordering::AcqRel);
        }
        self.settled.store(false, Ordering::Release);
        self.dirty.store(true, Ordering::Release);
    }

    /// Forgets the spans that are not in `kept`.
    fn give_up_all_but(&self, kept: &[u64]) {
        for (word, kept) in self.words.iter().zip(kept) {
            let lost = word.fetch_and(*kept, Ordering::AcqRel) & !kept;
            self.present.fetch_sub(lost.count_ones() as usize, Ordering::AcqRel);
        }
        self.settled.store(false, Ordering::Release);
        if self.proof() == Proof::Proved && self.present() < self.spans {
            self.proof.store(Proof::Pending as u8, Ordering::Release);
        }
        self.dirty.store(true, Ordering::Release);
    }

    fn lasting(&self) -> MutexGuard<'_, Lasting> {
        self.lasting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what was written last: syncs the bytes, then replaces the bitmap. Blocks on the disk. Where the disk fails to take
    /// them, all that did not last before is forgotten: the kernel tells once, and then takes lost pages for written ones.
    pub(super) fn commit(&self) -> io::Result<()> {
        let mut lasting = self.lasting();
        if lasting.retired || !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        // Taken before the sync: bits set during it are for the next time.
        let words: Vec<u64> = self.words.iter().map(|word| word.load(Ordering::Acquire)).collect();
        let whole = lasting.whole.take();
        let synced = whole.as_ref().map_or(Ok(()), WholeTar::sync).and_then(|()| self.tar()?.sync_data());
        if let Err(error) = synced {
            self.give_up_all_but(&lasting.words);
            return Err(error);
        }
        if let Err(error) = self.replace_bitmap(&words) {
            self.dirty.store(true, Ordering::Release);
            return Err(error);
        }
        let present: usize = words.iter().map(|word| word.count_ones() as usize).sum();
        self.settled.store(present == self.spans, Ordering::Release);
        lasting.words = words;
        Ok(())
    }

    /// Gives the files up: nothing is committed from now on.
    pub(super) fn retire(&self) {
        // Who still reads goes on with this file, whatever comes to its path.
        if let Ok(tar) = self.tar() {
            let _ = self.given_up.set(tar);
        }
        self.common.files.close(self.number);
        self.lasting().retired = true;
        self.settled.store(false, Ordering::Release);
    }

    fn replace_bitmap(&self, words: &[u64]) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.fingerprint);
        bytes.extend([self.proof.load(Ordering::Acquire), 0, 0, 0]);
        bytes.extend((self.spans as u32).to_le_bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        replace_file(&self.directory.join("spans"), &bytes)
    }
}

impl Drop for SpanCache {
    fn drop(&mut self) {
        self.common.files.close(self.number);
    }
}

/// The sparse file, unless it is there.
fn make_tar(path: &Path, length: u64) -> io::Result<()> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?.set_len(length)
}

/// The bitmap and state in `path`; all zero where it is missing, damaged or another's.
fn load(path: &Path, fingerprint: &[u8; 32], spans: usize) -> (Vec<u64>, Proof) {
    let empty = (vec![0; spans.div_ceil(64)], Proof::Pending);
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "a span bitmap cannot be read; its spans are fetched again");
            }
            return empty;
        }
    };
    parse(&bytes, fingerprint, spans).unwrap_or_else(|| {
        tracing::warn!(path = %path.display(), "a span bitmap is damaged or outdated; its spans are fetched again");
        empty
    })
}

fn parse(bytes: &[u8], fingerprint: &[u8; 32], spans: usize) -> Option<(Vec<u64>, Proof)> {
    let (body, sum) = bytes.split_last_chunk::<4>()?;
    let bitmap = body.get(HEADER..)?;
    let ours = body[..8] == MAGIC[..]
        && body[8..40] == fingerprint[..]
        && body[44..48] == (spans as u32).to_le_bytes()
        && bitmap.len() == spans.div_ceil(64) * 8
        && crc32c::crc32c(body) == u32::from_le_bytes(*sum);
    let words: Vec<u64> = bitmap.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let stray = !spans.is_multiple_of(64) && words.last().is_some_and(|word| word >> (spans % 64) != 0);
    (ours && !stray).then_some((words, Proof::of(body[40])?))
}

/// Replaces `path` by `bytes` so that a crash leaves the old or the new content.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (directory, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary_name = name.to_owned();
    temporary_name.push(".new");
    let temporary = directory.join(temporary_name);
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::whole::TarWriter;
    use super::*;

    const PRINT: [u8; 32] = [7; 32];

    fn open(directory: &Path, spans: usize, length: u64) -> io::Result<SpanCache> {
        SpanCache::open(directory, PRINT, spans, length, &Arc::new(Common::new(1)))
    }

    #[test]
    fn committed_spans_survive_and_others_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path(), 70, 7000).unwrap();
        cache.write(69, 6900, &[1; 100]).unwrap();
        cache.set_proof(Proof::Proved);
        cache.commit().unwrap();
        cache.write(3, 300, &[2; 100]).unwrap();
        assert!(cache.has(3));
        drop(cache);
        let cache = open(directory.path(), 70, 7000).unwrap();
        assert!(cache.has(69) && !cache.has(3));
        assert_eq!((cache.present(), cache.proof()), (1, Proof::Proved));
        assert_eq!(cache.read(6900, 100).unwrap(), &[1; 100][..]);
    }

    #[test]
    fn a_damaged_or_foreign_bitmap_counts_as_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spans");
        let cache = open(directory.path(), 9, 900).unwrap();
        cache.write(0, 0, &[1; 100]).unwrap();
        cache.commit().unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(parse(&bad, &PRINT, 9), None, "byte {at}");
        }
        assert_eq!(parse(&good, &[8; 32], 9), None);
        assert_eq!(parse(&good[..20], &PRINT, 9), None);
        assert!(parse(&good, &PRINT, 9).is_some());
    }

    #[test]
    fn a_retired_cache_writes_no_bits_over_its_successor() {
        let directory = tempfile::tempdir().unwrap();
        let former = open(directory.path(), 1, 512).unwrap();
        former.write(0, 0, &[1; 512]).unwrap();
        former.retire();
        fs::remove_file(directory.path().join("tar")).unwrap();
        open(directory.path(), 1, 512).unwrap();
        former.commit().unwrap();
        assert_eq!(former.read(0, 512).unwrap(), &[1; 512][..], "its own bytes, not its successor's");
        assert!(!former.settled());
        assert!(!open(directory.path(), 1, 512).unwrap().has(0));
    }

    fn whole(directory: &Path, tar: &[u8]) -> WholeTar {
        let mut writer = TarWriter::new(directory, 0).unwrap();
        writer.push(tar);
        writer.finish().unwrap()
    }

    #[test]
    fn a_whole_tar_takes_the_place_of_a_part_and_lasts_once_it_is_committed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path(), 2, 1024).unwrap();
        cache.write(1, 512, &[9; 512]).unwrap();
        cache.commit().unwrap();
        // 1,000 bytes: the device is longer by zeros.
        cache.take(&whole(directory.path(), &[7; 1000])).unwrap();
        assert_eq!((cache.present(), cache.proof(), cache.settled()), (2, Proof::Proved, false));
        assert_eq!(cache.read(512, 512).unwrap(), [[7; 488].as_slice(), &[0; 24]].concat());
        drop(cache);
        let cache = open(directory.path(), 2, 1024).unwrap();
        assert_eq!((cache.present(), cache.proof()), (0, Proof::Pending), "not committed");
        cache.take(&whole(directory.path(), &[8; 1000])).unwrap();
        cache.commit().unwrap();
        assert!(cache.settled());
        cache.take(&whole(directory.path(), &[5; 1000])).unwrap();
        let cache = open(directory.path(), 2, 1024).unwrap();
        assert_eq!((cache.present(), cache.proof(), cache.settled()), (2, Proof::Proved, true));
        assert_eq!(cache.read(0, 4).unwrap(), &[8; 4][..], "what was all there stays");
    }

    /// Linux says once that it lost pages: a second sync succeeds.
    #[test]
    fn what_the_disk_failed_to_take_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path(), 2, 1024).unwrap();
        let tar = whole(directory.path(), &[7; 1024]);
        cache.take(&tar).unwrap();
        tar.fail();
        assert!(tar.sync().is_err() && cache.commit().is_err());
        assert_eq!((cache.present(), cache.proof(), cache.settled()), (0, Proof::Pending, false));
        cache.commit().unwrap();
        assert_eq!(open(directory.path(), 2, 1024).unwrap().present(), 0);
        cache.write(1, 512, &[9; 512]).unwrap();
        cache.commit().unwrap();
        cache.write(0, 0, &[9; 512]).unwrap();
        cache.give_up_all_but(&cache.lasting().words.clone());
        assert_eq!((cache.present(), cache.has(0), cache.has(1)), (1, false, true), "what lasted before stays");
    }

    #[test]
    fn bits_do_not_outlive_their_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path(), 1, 512).unwrap();
        cache.write(0, 0, &[1; 512]).unwrap();
        cache.commit().unwrap();
        assert!(cache.settled());
        fs::remove_file(directory.path().join("tar")).unwrap();
        let cache = open(directory.path(), 1, 512).unwrap();
        assert!(!cache.has(0) && !cache.settled());
    }
}
