//! What must hold for each parser, whatever it is given: it refuses with an error, or what it gives is right.
//!
//! These are the fuzz targets, and the corpus is judged by them as well.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::erofs::view::View;
use lapwing_snapshotter::erofs::{device_length, write_image};
use lapwing_snapshotter::index::{Index, IndexBuilder, IndexError, LayerProof};
use lapwing_snapshotter::profile::Profile;
use lapwing_snapshotter::tar::Scanner;
use lapwing_snapshotter::toc::Toc;
use lapwing_snapshotter::tree::Entry;

/// Bytes that were held against what is right since they were last asked for.
static COMPARED: AtomicU64 = AtomicU64::new(0);

pub(crate) fn take_compared() -> u64 {
    COMPARED.swap(0, Ordering::Relaxed)
}

fn compared(bytes: usize) {
    COMPARED.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// What became of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// An error before any byte was given, in these words.
    Refused(String),
    /// A part of it is an error where it is read, in these words; the rest is right.
    Unreadable(String),
    /// Bytes can be read that are the input's own; the proof over the whole layer finds out that they are not the layer's.
    Caught(String),
    /// All of it is right.
    Exact,
}

/// An error must say something, and not all there is.
fn refused(error: &dyn std::error::Error) -> Verdict {
    let text = error.to_string();
    // A path of a layer may be in it, escaped; not more.
    assert!((10..20_000).contains(&text.len()), "an error of {} bytes", text.len());
    Verdict::Refused(text)
}

fn build_in(layer: &[u8], portion: usize) -> Result<Index, IndexError> {
    let mut builder = IndexBuilder::new(Digest::of(layer), layer.len() as u64);
    for bytes in layer.chunks(portion) {
        builder.push(bytes)?;
    }
    builder.finish()
}

/// A layer, as the registry gives it: the index of it, every span, the image.
pub(crate) fn layer(bytes: &[u8]) -> Verdict {
    let whole = build_in(bytes, 64 << 10);
    let index = match whole {
        Ok(index) => index,
        Err(error) => return refused(&error),
    };
    if bytes.len() < 64 << 10 {
        assert_eq!(build_in(bytes, 1 + bytes.len() / 7).as_ref(), Ok(&index), "portions do not matter");
    }
    let tar = decompressed(bytes);
    assert_eq!((index.diff_id(), index.tar_length()), (Digest::of(&tar), tar.len() as u64));
    for (number, span) in index.spans().iter().enumerate() {
        let input = &bytes[span.compressed.start as usize..span.compressed.end as usize];
        let output = index.inflate_span(number, input).unwrap();
        assert!(output == tar[span.output.start as usize..span.output.end as usize], "span {number}");
        compared(output.len());
    }
    assert_eq!(Index::decode(&index.encode()).as_ref(), Ok(&index), "what it writes is what it reads");
    table(index.entries(), index.tar_length())
}

/// The layer by other means: flate2's readers and zstd's stream.
fn decompressed(layer: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    match layer {
        [0x1f, 0x8b, ..] => {
            let mut rest = layer;
            while rest.iter().any(|byte| *byte != 0) {
                flate2::bufread::GzDecoder::new(&mut rest).read_to_end(&mut tar).unwrap();
            }
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            zstd::stream::read::Decoder::new(layer).unwrap().read_to_end(&mut tar).unwrap();
        }
        _ => tar.extend_from_slice(layer),
    }
    tar
}

/// The image of a file table is written or refused, and what is written can be walked, and refers to nothing beyond the device.
fn table(entries: &[Entry], tar_length: u64) -> Verdict {
    for entry in entries {
        let climbs = entry.path.split(|byte| *byte == b'/').any(|name| name == b".." || name == b".");
        assert!(!climbs && !entry.path.starts_with(b"/") && !entry.path.contains(&0), "{entry:?}");
    }
    let written = write_image(entries, tar_length, &[7; 32], &|_| None);
    let bytes = match written {
        Ok(bytes) => bytes,
        Err(error) => return refused(&error),
    };
    match walk(&bytes, Some(device_length(tar_length))) {
        Ok(()) => Verdict::Exact,
        Err(error) => panic!("an image that was written here cannot be read: {error}"),
    }
}

/// An image of EROFS metadata, as the FUSE tree reads it.
pub(crate) fn image(bytes: &[u8]) -> Verdict {
    match walk(bytes, None) {
        Ok(()) => Verdict::Exact,
        Err(error) => refused(&error),
    }
}

/// Inodes that are visited of one image: a damaged one may have directories in circles.
const MOST_INODES: usize = 2000;

fn walk(bytes: &[u8], device: Option<u64>) -> std::io::Result<()> {
    let file = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(bytes)?;
    let view = View(&file);
    let mut pending = VecDeque::from([view.superblock()?.root]);
    let mut first_error = None;
    for _ in 0..MOST_INODES {
        let Some(nid) = pending.pop_front() else { break };
        // What is damaged fails alone.
        if let Err(error) = visit(view, nid, device, &mut pending) {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn visit(view: View<'_>, nid: u64, device: Option<u64>, pending: &mut VecDeque<u64>) -> std::io::Result<()> {
    let inode = view.inode(nid)?;
    view.xattrs(&inode)?;
    match inode.mode & 0o170_000 {
        0o040_000 => {
            let mut names = Vec::new();
            view.list(&inode, 0, |name| {
                names.push((name.name.to_vec(), name.nid, name.next));
                names.len() < 3000
            })?;
            for (name, nid, next) in &names {
                let found = view.lookup(&inode, name)?;
                assert!(device.is_none() || found == Some(*nid), "{name:?} is listed and not found");
                view.list(&inode, *next, |_| false)?;
                if name != b"." && name != b".." {
                    pending.push_back(*nid);
                }
            }
        }
        0o120_000 => drop(view.target(&inode)?),
        0o100_000 if inode.size > 0 => {
            const LONGEST: u64 = 1 << 20;
            for start in [0, inode.size / 2, inode.size.saturating_sub(LONGEST)] {
                let end = inode.size.min(start.saturating_add(LONGEST));
                let stretches = view.stretches(&inode, start..end)?;
                assert_eq!(stretches.iter().map(|stretch| stretch.length).sum::<u64>(), end - start);
                let within = |at: u64, length: u64| device.is_none_or(|device| at + length <= device);
                assert!(stretches.iter().all(|stretch| stretch.tar.is_none_or(|at| within(at, stretch.length))));
            }
        }
        _ => {}
    }
    Ok(())
}

/// An encoded index of a layer whose bytes and diffID are known.
pub(crate) fn index(encoded: &[u8], layer: &[u8], tar: &[u8]) -> Verdict {
    let index = match Index::decode(encoded) {
        Ok(index) => index,
        Err(error) => return refused(&error),
    };
    assert_eq!(Index::decode(&index.encode()).as_ref(), Ok(&index), "what it writes is what it reads");
    if index.layer() != Digest::of(layer) || index.diff_id() != Digest::of(tar) {
        return Verdict::Refused("it is of another layer".to_owned());
    }
    // By a wrong table too an image is written or refused.
    let image = table(index.entries(), index.tar_length());
    let mut found = Vec::new();
    for (number, span) in index.spans().iter().enumerate() {
        let input = layer.get(span.compressed.start as usize..span.compressed.end as usize).unwrap_or_default();
        match index.inflate_span(number, input) {
            Ok(output) => found.extend(output),
            Err(error) => return Verdict::Unreadable(error.to_string()),
        }
    }
    if Digest::of(&found) != index.diff_id() {
        return Verdict::Caught("another diffID".to_owned());
    }
    assert!(found == tar);
    compared(found.len());
    let mut scanner = Scanner::default();
    scanner.push(tar).unwrap();
    match scanner.finish().unwrap() == index.entries() {
        true => image,
        false => Verdict::Caught("another file table".to_owned()),
    }
}

/// A table of contents as it is stored, in or beside its layer.
pub(crate) fn toc(toc: &Toc, stored: &[u8], layer: &[u8]) -> Verdict {
    let index = match toc.index(stored) {
        Ok(index) => index,
        Err(error) => return refused(&error),
    };
    assert_eq!(Toc::load(&toc.keep(stored)).as_ref(), Ok(&index), "what is kept gives the same");
    let image = table(index.entries(), index.tar_length());
    let mut device = blake3::Hasher::new();
    for (number, span) in index.spans().iter().enumerate() {
        assert!(span.compressed.end <= layer.len() as u64, "a span outside of the layer");
        let input = &layer[span.compressed.start as usize..span.compressed.end as usize];
        match index.inflate_span(number, input) {
            Ok(output) => device.update(&output),
            Err(error) => return Verdict::Unreadable(error.to_string()),
        };
    }
    let mut proof = LayerProof::new(&index);
    let proved = layer.chunks(64 << 10).try_for_each(|bytes| proof.push(bytes)).and_then(|()| proof.finish(&index));
    match proved {
        Err(error) => Verdict::Caught(error.to_string()),
        Ok(Err(problem)) => Verdict::Caught(problem),
        Ok(Ok(hash)) if !index.form().is_virtual() && hash != *device.finalize().as_bytes() => {
            Verdict::Caught("other bytes than the tar".to_owned())
        }
        Ok(Ok(_)) => image,
    }
}

/// A profile of an image.
pub(crate) fn profile(bytes: &[u8]) -> Verdict {
    match Profile::decode(bytes) {
        Err(error) => refused(&error),
        Ok(profile) => {
            assert!(profile.encode() == bytes, "there is one form of each profile");
            Verdict::Exact
        }
    }
}
