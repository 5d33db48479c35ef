//! Reads the headers of a tar that streams by: which entries it has and where their bytes are.
//!
//! Formats: POSIX ustar and PAX, GNU tar (long names, base-256 numbers, sparse files), Unix v7. What a header means is
//! decided as Go's `archive/tar` and containerd's `archive/tar.go` decide it, because a lazily mounted layer must look like
//! one that containerd unpacked: a later extended header replaces an earlier one, links and directories have no data
//! whatever their size says, `LIBARCHIVE.*` and access times are ignored, times before 1970 become 1970, and everything
//! after two zero blocks is ignored. Where those would fail or where readers of tar are known to differ (global extended
//! headers that change entries), this one fails too, and the layer is pulled whole.
//!
//! One thing is wider: GNU sparse and contiguous files (types `S` and `7`) are taken, which containerd refuses.

use std::mem;

use crate::limits::{MAX_ENTRIES, MAX_FILE_BYTES, MAX_PATH_BYTES, MAX_TABLE_BYTES, MAX_TAR_META_BYTES};
use crate::shown::brief;
use crate::tree::{Entry, Extent, Kind};

mod header;
pub(crate) mod path;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

use header::{BLOCK, Block, Header};
use pax::Pax;
use sparse::{Map, MapReader, Sparse, padding};

/// Why a tar has no file table. Offsets are in the decompressed tar, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// Not a tar, or a damaged or hostile one.
    #[error("bad tar at byte {offset}: {problem}")]
    Bad {
        /// Where the header or block starts.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// The stream ended inside an entry.
    #[error("tar ends at byte {offset} inside an entry")]
    Truncated {
        /// Where it ends.
        offset: u64,
    },
    /// Valid perhaps, but outside what is understood or allowed.
    #[error("unsupported in a tar, at byte {offset}: {what}")]
    Unsupported {
        /// Where the header or block starts.
        offset: u64,
        /// What it is.
        what: String,
    },
}

/// What the next block is.
enum State {
    Header,
    /// One zero block was seen.
    HalfEnd,
    End,
    /// Bytes to pass over, of which the last `padding` may be missing at the end of the stream.
    Skip {
        left: u64,
        padding: u64,
    },
    /// The contents of an extended header or long name.
    Meta {
        flag: u8,
        left: u64,
        bytes: Vec<u8>,
    },
    /// Extension blocks of an old GNU sparse header.
    OldSparse {
        file: Box<SparseFile>,
        map: Map,
    },
    /// The map at the start of the data (PAX sparse 1.0).
    SparseMap {
        file: Box<SparseFile>,
        reader: MapReader,
    },
}

/// A sparse file whose map is still being read.
struct SparseFile {
    entry: Entry,
    size: u64,
    physical: u64,
}

/// A tar reader that is fed bytes in any portions.
pub struct Scanner {
    state: State,
    block: Block,
    filled: usize,
    /// Bytes taken so far.
    offset: u64,
    pax: Option<Pax>,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
    entries: Vec<Entry>,
    table_bytes: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            state: State::Header,
            block: [0; BLOCK],
            filled: 0,
            offset: 0,
            pax: None,
            long_name: Vec::new(),
            long_link: Vec::new(),
            entries: Vec::new(),
            table_bytes: 0,
        }
    }
}

impl Scanner {
    /// Takes the next bytes. After an error the scanner is of no use.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::End => bytes.len(),
                State::Skip { left, .. } => {
                    let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    *left -= taken as u64;
                    if *left == 0 {
                        self.state = State::Header;
                    }
                    taken
                }
                _ => {
                    let taken = bytes.len().min(BLOCK - self.filled);
                    self.block[self.filled..][..taken].copy_from_slice(&bytes[..taken]);
                    self.filled += taken;
                    taken
                }
            };
            self.offset += taken as u64;
            bytes = &bytes[taken..];
            if self.filled == BLOCK {
                self.filled = 0;
                let block = self.block;
                self.take_block(&block)?;
            }
        }
        Ok(())
    }

    /// Ends the stream and gives the entries in the order of the tar.
    ///
    /// As in Go, the zero blocks and the padding after the last file may be missing.
    pub fn finish(self) -> Result<Vec<Entry>, TarError> {
        let whole = match self.state {
            State::Header | State::HalfEnd => self.filled == 0,
            State::End => true,
            State::Skip { left, padding } => left <= padding,
            State::Meta { .. } | State::OldSparse { .. } | State::SparseMap { .. } => false,
        };
        if whole { Ok(self.entries) } else { Err(TarError::Truncated { offset: self.offset }) }
    }

    fn take_block(&mut self, block: &Block) -> Result<(), TarError> {
        match mem::replace(&mut self.state, State::Header) {
            State::HalfEnd if *block == [0; BLOCK] => self.state = State::End,
            State::HalfEnd => return Err(self.bad("one zero block, then more")),
            State::Meta { flag, left, bytes } => self.take_meta(block, flag, left, bytes)?,
            State::OldSparse { file, mut map } => {
                let more = sparse::old_map(block, false, &mut map).map_err(|problem| self.bad(problem))?;
                self.old_sparse(file, map, more)?;
            }
            State::SparseMap { mut file, mut reader } => {
                let left = file.physical.checked_sub(BLOCK as u64);
                file.physical = left.ok_or_else(|| self.bad("sparse map is longer than its entry"))?;
                match reader.push(block).map_err(|problem| self.bad(problem))? {
                    Some(map) => self.finish_sparse(*file, &map)?,
                    None => self.state = State::SparseMap { file, reader },
                }
            }
            State::Header | State::End | State::Skip { .. } if *block == [0; BLOCK] => self.state = State::HalfEnd,
            State::Header | State::End | State::Skip { .. } => self.take_header(block)?,
        }
        Ok(())
    }

    fn take_header(&mut self, block: &Block) -> Result<(), TarError> {
        let header = Header::parse(block).map_err(|problem| self.bad(problem))?;
        if !matches!(header.flag, b'x' | b'g' | b'L' | b'K') {
            return self.take_entry(header, block);
        }
        let left = u64::try_from(header.size).map_err(|_| self.bad("negative size"))?;
        if left > MAX_TAR_META_BYTES {
            return Err(self.unsupported(format!("extended header of {left} bytes")));
        }
        if left == 0 {
            return self.finish_meta(header.flag, &[]);
        }
        self.state = State::Meta { flag: header.flag, left, bytes: Vec::with_capacity(left as usize) };
        Ok(())
    }

    fn take_meta(&mut self, block: &Block, flag: u8, left: u64, mut bytes: Vec<u8>) -> Result<(), TarError> {
        let taken = left.min(BLOCK as u64);
        bytes.extend_from_slice(&block[..taken as usize]);
        if left > taken {
            self.state = State::Meta { flag, left: left - taken, bytes };
            return Ok(());
        }
        self.finish_meta(flag, &bytes)
    }

    fn finish_meta(&mut self, flag: u8, bytes: &[u8]) -> Result<(), TarError> {
        match flag {
            b'L' => self.long_name = header::text(bytes).to_vec(),
            b'K' => self.long_link = header::text(bytes).to_vec(),
            b'x' => self.pax = Some(Pax::parse(bytes).map_err(|problem| self.bad(problem))?),
            _ => {
                if !Pax::parse(bytes).map_err(|problem| self.bad(problem))?.is_plain() {
                    return Err(self.unsupported("a global extended header that changes entries".to_owned()));
                }
                self.pax = None;
                self.long_name.clear();
                self.long_link.clear();
            }
        }
        Ok(())
    }

    fn take_entry(&mut self, mut header: Header, block: &Block) -> Result<(), TarError> {
        let pax = self.pax.take().unwrap_or_default();
        let first = |candidates: [Option<Vec<u8>>; 3], last: Vec<u8>| {
            candidates.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or(last)
        };
        let is_regular = matches!(header.flag, b'0' | 0 | b'7');
        let sparse_name = if is_regular { sparse::name_from_pax(&pax) } else { None };
        header.name = first([sparse_name, Some(mem::take(&mut self.long_name)), pax.path.clone()], header.name);
        header.link = first([Some(mem::take(&mut self.long_link)), pax.linkpath.clone(), None], header.link);
        header.size = pax.size.unwrap_or(header.size);
        if header.flag == 0 && header.name.ends_with(b"/") {
            header.flag = b'5';
        }
        let entry = self.entry(&header, &pax)?;
        let physical = u64::try_from(header.size).map_err(|_| self.bad("negative size"))?;
        match header.flag {
            b'0' | 0 | b'7' => self.take_file(entry, physical, &pax),
            b'S' => {
                if !header.gnu {
                    return Err(self.bad("sparse entry without a GNU header"));
                }
                let size = sparse::old_size(block).map_err(|problem| self.bad(problem))?;
                let size = u64::try_from(size).map_err(|_| self.bad("negative size"))?;
                let mut map = Map::new();
                let more = sparse::old_map(block, true, &mut map).map_err(|problem| self.bad(problem))?;
                self.old_sparse(Box::new(SparseFile { entry, size, physical }), map, more)
            }
            _ => self.keep(entry),
        }
    }

    /// The entry but for a file's size and place.
    fn entry(&self, header: &Header, pax: &Pax) -> Result<Entry, TarError> {
        let bad = |problem| self.bad(problem);
        let id =
            |value: i64| u32::try_from(value).map_err(|_| self.bad(format!("number {value} does not fit 32 bits")));
        let kind = match header.flag {
            b'0' | 0 | b'7' | b'S' => Kind::File { size: 0, extents: Vec::new() },
            b'1' => Kind::Hardlink(path::clean(&header.link).map_err(bad)?),
            b'2' if header.link.is_empty() || header.link.len() > MAX_PATH_BYTES || header.link.contains(&0) => {
                return Err(self.bad("symbolic link whose target is empty or too long"));
            }
            b'2' => Kind::Symlink(header.link.clone()),
            b'3' => Kind::CharDevice { major: id(header.major)?, minor: id(header.minor)? },
            b'4' => Kind::BlockDevice { major: id(header.major)?, minor: id(header.minor)? },
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            flag => return Err(self.unsupported(format!("entry of type {:?}", char::from(flag)))),
        };
        if matches!(&kind, Kind::Hardlink(target) if target.is_empty()) {
            return Err(self.bad("hard link to the root"));
        }
        let (mtime, mtime_nanos) = bound_time(pax.mtime.unwrap_or((header.mtime, 0)));
        Ok(Entry {
            path: path::clean(&header.name).map_err(bad)?,
            kind,
            mode: (header.mode & 0o7777) as u16,
            uid: id(pax.uid.unwrap_or(header.uid))?,
            gid: id(pax.gid.unwrap_or(header.gid))?,
            mtime,
            mtime_nanos,
            xattrs: pax.xattrs.clone(),
        })
    }

    fn take_file(&mut self, mut entry: Entry, physical: u64, pax: &Pax) -> Result<(), TarError> {
        let sparse = sparse::from_pax(pax).map_err(|problem| self.bad(problem))?;
        let size = match sparse::size_from_pax(pax).map_err(|problem| self.bad(problem))? {
            Some(size) => u64::try_from(size).map_err(|_| self.bad("negative size"))?,
            None => physical,
        };
        match sparse {
            Sparse::No => {
                let extents = match physical {
                    0 => Vec::new(),
                    length => vec![Extent { file_offset: 0, tar_offset: self.offset, length }],
                };
                entry.kind = Kind::File { size: physical, extents };
                self.skip(physical)?;
                self.keep(entry)
            }
            Sparse::Known(map) => self.finish_sparse(SparseFile { entry, size, physical }, &map),
            Sparse::InData => {
                let file = Box::new(SparseFile { entry, size, physical });
                self.state = State::SparseMap { file, reader: MapReader::default() };
                Ok(())
            }
        }
    }

    fn old_sparse(&mut self, file: Box<SparseFile>, map: Map, more: bool) -> Result<(), TarError> {
        if more {
            self.state = State::OldSparse { file, map };
            return Ok(());
        }
        self.finish_sparse(*file, &map)
    }

    fn finish_sparse(&mut self, file: SparseFile, map: &Map) -> Result<(), TarError> {
        let SparseFile { mut entry, size, physical } = file;
        let extents = sparse::extents(map, size, self.offset, physical).map_err(|problem| self.bad(problem))?;
        entry.kind = Kind::File { size, extents };
        self.skip(physical)?;
        self.keep(entry)
    }

    fn skip(&mut self, length: u64) -> Result<(), TarError> {
        if length > MAX_FILE_BYTES - BLOCK as u64 - self.offset {
            return Err(self.bad("entry ends beyond the longest tar"));
        }
        let padding = padding(length);
        if length > 0 {
            self.state = State::Skip { left: length + padding, padding };
        }
        Ok(())
    }

    fn keep(&mut self, entry: Entry) -> Result<(), TarError> {
        if entry.path.is_empty() && entry.kind != Kind::Directory {
            // containerd ignores whatever resolves to the root; only a directory can be meant.
            return Ok(());
        }
        self.table_bytes += table_bytes(&entry);
        if self.entries.len() >= MAX_ENTRIES || self.table_bytes > MAX_TABLE_BYTES {
            return Err(self.unsupported(format!("a file table of more than {} entries", self.entries.len())));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Offset of the block in hand.
    fn here(&self) -> u64 {
        self.offset.saturating_sub(BLOCK as u64)
    }

    fn bad(&self, problem: impl Into<String>) -> TarError {
        TarError::Bad { offset: self.here(), problem: brief(problem.into()) }
    }

    fn unsupported(&self, what: String) -> TarError {
        TarError::Unsupported { offset: self.here(), what }
    }
}

/// Memory that an entry takes in the table, about; what malloc(3) adds included, which is most of it for short names.
pub(crate) fn table_bytes(entry: &Entry) -> usize {
    let allocated = |length: usize| if length == 0 { 0 } else { (length + 8).next_multiple_of(16).max(32) };
    let kind = match &entry.kind {
        Kind::File { extents, .. } => allocated(size_of_val(extents.as_slice())),
        Kind::Symlink(target) | Kind::Hardlink(target) => allocated(target.len()),
        _ => 0,
    };
    let xattrs: usize =
        entry.xattrs.iter().map(|(name, value)| 48 + allocated(name.len()) + allocated(value.len())).sum();
    size_of::<Entry>() + allocated(entry.path.len()) + kind + xattrs
}

/// containerd sets times outside what it can express (1970 to 2262) to 1970.
pub(crate) fn bound_time((seconds, nanos): (i64, u32)) -> (i64, u32) {
    const LAST: (i64, u32) = (i64::MAX / 1_000_000_000, (i64::MAX % 1_000_000_000) as u32);
    if seconds < 0 || (seconds, nanos) > LAST { (0, 0) } else { (seconds, nanos) }
}
