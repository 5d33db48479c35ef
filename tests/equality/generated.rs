//! Layers with everything odd that a tar can say, from a seed: each has a directory of its own, and changes what the layers below it left in
//! those that all share.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use fastrand::Rng;
use lapwing_lab::image::{Entry, EntryKind, ImageConfig, Layout, LayoutWriter, TarWriter};

/// Directories that all layers write to.
const SHARED: usize = 12;
const EDGES: [usize; 12] = [0, 1, 100, 511, 512, 513, 4095, 4096, 4097, 20_000, 65_536, 300_001];
/// `cap_net_bind_service=ep`, revision 2 (linux/capability.h, `struct vfs_cap_data`).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What the layers so far make of the shared directories: whether each path is a directory.
type Below = BTreeMap<String, bool>;

/// An image of `layers` layers; the first also has a directory with `crowd` names.
pub(crate) fn image(dir: &Path, seed: u64, layers: usize, crowd: usize) -> Layout {
    let mut image = LayoutWriter::new(dir).unwrap();
    let (mut rng, mut below) = (Rng::with_seed(seed), Below::new());
    for number in 0..layers {
        image
            .layer(|out| {
                let crowd = if number == 0 { crowd } else { 0 };
                LayerWriter::new(out, &mut rng, number).write(&mut below, crowd)
            })
            .unwrap();
    }
    image.finish(&ImageConfig { cmd: &["/bin/true"], working_dir: "/", ..ImageConfig::default() }).unwrap()
}

struct LayerWriter<'a> {
    out: &'a mut dyn Write,
    rng: &'a mut Rng,
    number: usize,
    /// Directories that this layer has named: what it names not has the time of the unpacking.
    named: BTreeSet<String>,
    /// Regular files of this layer, to be linked to.
    files: Vec<Vec<u8>>,
    serial: usize,
}

impl<'a> LayerWriter<'a> {
    fn new(out: &'a mut dyn Write, rng: &'a mut Rng, number: usize) -> Self {
        Self { out, rng, number, named: BTreeSet::new(), files: Vec::new(), serial: 0 }
    }

    fn write(mut self, below: &mut Below, crowd: usize) -> Result<()> {
        let own = format!("layer-{:03}", self.number);
        let deep = format!("{own}/{}", "deep/".repeat(1 + self.rng.usize(..20)));
        for directory in [own.clone(), deep.trim_end_matches('/').to_owned()] {
            for _ in 0..4 + self.rng.usize(..8) {
                self.odd_entry(&directory)?;
            }
        }
        for entry in 0..crowd {
            self.name_directories(&format!("{own}/crowd"))?;
            let path = format!("{own}/crowd/{entry:x}-{}", "n".repeat(entry % 40));
            self.add(&Entry::new(path.as_bytes(), EntryKind::File(&entry.to_le_bytes())))?;
        }
        for _ in 0..3 + self.rng.usize(..6) {
            let shared = format!("shared-{}", self.rng.usize(..SHARED));
            self.change(&shared, below)?;
        }
        self.out.write_all(&[0; 1024])?;
        Ok(())
    }

    fn add(&mut self, entry: &Entry<'_>) -> Result<()> {
        let mut tar = TarWriter::new(&mut *self.out);
        tar.add(entry)
    }

    /// Names the directories on the way to `path`, itself included, once.
    fn name_directories(&mut self, path: &str) -> Result<()> {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends.collect::<Vec<_>>() {
            if self.named.insert(path[..end].to_owned()) {
                let name = format!("{}/", &path[..end]);
                self.add_odd(name.as_bytes(), EntryKind::Directory)?;
            }
        }
        Ok(())
    }

    /// The entry with some owner, mode, time and attributes.
    fn add_odd(&mut self, path: &[u8], kind: EntryKind<'_>) -> Result<()> {
        let rng = &mut *self.rng;
        let plain = matches!(kind, EntryKind::File(_) | EntryKind::Directory);
        let note = vec![b'v'; *rng.choice(&[0usize, 1, 40, 700]).unwrap_or(&0)];
        let mut xattrs: Vec<(&str, &[u8])> = Vec::new();
        if plain && rng.u8(..3) == 0 {
            xattrs.extend([("user.note", &note[..]), ("user.a.b", b"\0\xff\n")]);
            // containerd drops these.
            xattrs.extend([("trusted.overlay.opaque", &b"y"[..]), ("unknown.x", b"1")]);
        }
        if matches!(kind, EntryKind::File(_)) && rng.u8(..6) == 0 {
            xattrs.push(("security.capability", &CAPABILITY));
        }
        let mode = match kind {
            EntryKind::Symlink(_) => 0o777,
            _ => *rng.choice(&[0o644, 0o755, 0o4755, 0o2755, 0o6711, 0o1777, 0, 0o7777]).unwrap_or(&0),
        };
        let owner = (*rng.choice(&[0, 1, 1000, 65_534, 2_000_000]).unwrap_or(&0), rng.u32(..2_000_000));
        let seconds = *rng.choice(&[0, 1, 951_782_400, 1_700_000_000, 4_294_967_296, 8_000_000_000]).unwrap_or(&0);
        let nanos = *rng.choice(&[0, 1, 500_000_000, 999_999_999]).unwrap_or(&0);
        self.add(&Entry { path, kind, mode, owner, mtime: (seconds, nanos), xattrs: &xattrs })
    }

    fn name(&mut self, directory: &str) -> Vec<u8> {
        self.serial += 1;
        let serial = format!("{}-{}", self.number, self.serial);
        let name: Vec<u8> = match self.rng.u8(..9) {
            0 => [&vec![b'L'; 255 - serial.len()][..], serial.as_bytes()].concat(),
            1 => [b"\xff\xfe\x80", serial.as_bytes()].concat(),
            2 => [&b"with \n\t\\ \"'*\x7f "[..], serial.as_bytes()].concat(),
            3 => [b"...", serial.as_bytes()].concat(),
            4 => [b"-", serial.as_bytes(), b" "].concat(),
            5 => format!("\u{e9}\u{2603}{serial}").into_bytes(),
            _ => serial.into_bytes(),
        };
        [directory.as_bytes(), b"/", &name].concat()
    }

    fn content(&mut self) -> Vec<u8> {
        let length = *self.rng.choice(&EDGES).unwrap_or(&0);
        let noisy = self.rng.bool();
        (0..length).map(|at| if noisy { self.rng.u8(..) } else { (at / 700) as u8 }).collect()
    }

    fn odd_entry(&mut self, directory: &str) -> Result<()> {
        self.name_directories(directory)?;
        let path = self.name(directory);
        match self.rng.u8(..14) {
            0..=3 => {
                let content = self.content();
                self.add_odd(&path, EntryKind::File(&content))?;
                self.files.push(path);
                Ok(())
            }
            4 => {
                let length = *self.rng.choice(&[1usize, 99, 101, 255, 1023, 4095]).unwrap_or(&1);
                self.add_odd(&path, EntryKind::Symlink(&vec![b't'; length]))
            }
            5 => self.add_odd(&path, EntryKind::Symlink(b"../../dangling")),
            6 | 7 => match self.files.is_empty() {
                true => Ok(()),
                false => {
                    let target = self.files[self.rng.usize(..self.files.len())].clone();
                    self.add_odd(&path, EntryKind::Hardlink(&target))
                }
            },
            8 => self.add_odd(&path, EntryKind::CharDevice(1, 3)),
            9 => self.add_odd(&path, EntryKind::BlockDevice(0xabc, 0xf_1234)),
            10 => self.add_odd(&path, EntryKind::Fifo),
            11 => self.sparse(&path),
            12 => self.gnu(&path),
            _ => self.twice(&path),
        }
    }

    /// The same path again, as something else.
    fn twice(&mut self, path: &[u8]) -> Result<()> {
        let content = self.content();
        let within = [path, b"/within"].concat();
        match self.rng.u8(..3) {
            0 => self.add_odd(path, EntryKind::File(b"first"))?,
            1 => self.add_odd(path, EntryKind::Symlink(b"first"))?,
            _ => {
                self.add_odd(path, EntryKind::Directory)?;
                self.add_odd(&within, EntryKind::File(b"first"))?;
            }
        }
        if self.rng.bool() {
            return self.add_odd(path, EntryKind::File(&content));
        }
        self.add_odd(path, EntryKind::Directory)?;
        self.add_odd(&within, EntryKind::File(&content))
    }

    /// A sparse file as GNU tar writes it with `--format=posix`: version 1.0, or 0.1.
    fn sparse(&mut self, path: &[u8]) -> Result<()> {
        let stretches = self.rng.usize(..6);
        let in_data = self.rng.bool();
        let size = (stretches + 2) * 40_960;
        let places: Vec<usize> = (0..stretches).map(|at| at * 40_960 + 512 * self.rng.usize(..40)).collect();
        let mut data = Vec::new();
        let mut map: Vec<String> = places.iter().flat_map(|at| [at.to_string(), "4096".to_owned()]).collect();
        let mut records: Vec<(&str, Vec<u8>)> = vec![("GNU.sparse.name", path.to_vec())];
        let (count, size) = (stretches.to_string(), size.to_string());
        if in_data || stretches == 0 {
            // A hole at the end has a stretch of no bytes there.
            map.extend([size.clone(), "0".to_owned()]);
            data = format!("{}\n{}\n", stretches + 1, map.join("\n")).into_bytes();
            data.resize(data.len().next_multiple_of(512), 0);
            records.extend([("GNU.sparse.major", b"1".to_vec()), ("GNU.sparse.minor", b"0".to_vec())]);
            records.push(("GNU.sparse.realsize", size.into()));
        } else {
            records.extend([("GNU.sparse.size", size.into()), ("GNU.sparse.numblocks", count.into())]);
            records.push(("GNU.sparse.map", map.join(",").into()));
        }
        for _ in 0..stretches {
            data.extend((0..4096).map(|_| self.rng.u8(..)));
        }
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.raw(b"PaxHeaders/sparse", b'x', &body, |_| {})?;
        self.raw(b"GNUSparseFile.0/name", b'0', &data, |_| {})
    }

    /// A long name, a long target and large numbers as GNU tar writes them.
    fn gnu(&mut self, path: &[u8]) -> Result<()> {
        let target = [b't'; 1000];
        self.raw(b"././@LongLink", b'L', &[path, b"\0"].concat(), |_| {})?;
        let is_link = self.rng.bool();
        if is_link {
            self.raw(b"././@LongLink", b'K', &[&target[..], b"\0"].concat(), |_| {})?;
        }
        let times = *self
            .rng
            .choice(&[&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xf0"[..], b"\x80\0\0\0\0\0\0\x02\0\0\0\x01"])
            .unwrap_or(&&[][..]);
        self.raw(b"name", if is_link { b'2' } else { b'0' }, b"", |header| {
            header[257..265].copy_from_slice(b"ustar  \0");
            header[108..116].copy_from_slice(b"\x80\0\0\0\xb2\xd0\x5e\0");
            header[136..148].copy_from_slice(times);
        })
    }

    fn raw(&mut self, name: &[u8], flag: u8, content: &[u8], change: impl FnOnce(&mut [u8; 512])) -> Result<()> {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name);
        header[100..107].copy_from_slice(b"0000640");
        header[108..115].copy_from_slice(b"0001750");
        header[116..123].copy_from_slice(b"0000144");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"13132027400");
        header[156] = flag;
        header[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut header);
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.out.write_all(&header)?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; 512][..content.len().next_multiple_of(512) - content.len()])?;
        Ok(())
    }

    /// Changes something in a directory that lower layers may have.
    fn change(&mut self, shared: &str, below: &mut Below) -> Result<()> {
        if self.named.contains(shared) {
            return Ok(());
        }
        self.name_directories(shared)?;
        let path = format!("{shared}/{}", self.rng.usize(..8));
        let inside = format!("{path}/");
        let was_directory = below.get(&path).copied();
        match self.rng.u8(..7) {
            // Whatever was there is gone, and perhaps nothing was.
            0 | 1 => {
                below.retain(|known, _| *known != path && !known.starts_with(&inside));
                let whiteout = path.replacen(&format!("{shared}/"), &format!("{shared}/.wh."), 1);
                self.add(&Entry::new(whiteout.as_bytes(), EntryKind::File(b"")))
            }
            2 => {
                let all = format!("{shared}/");
                below.retain(|known, _| !known.starts_with(&all));
                self.add(&Entry::new(format!("{shared}/.wh..wh..opq").as_bytes(), EntryKind::File(b"")))?;
                self.add_odd(format!("{shared}/7").as_bytes(), EntryKind::File(b"after an opaque mark"))?;
                below.insert(format!("{shared}/7"), false);
                Ok(())
            }
            // A file, or a file in the place of a directory.
            3 | 4 => {
                below.retain(|known, _| !known.starts_with(&inside));
                below.insert(path.clone(), false);
                let content = self.content();
                self.add_odd(path.as_bytes(), EntryKind::File(&content))
            }
            // A directory, merged with one that is there, or in the place of a file.
            _ => {
                below.insert(path.clone(), true);
                self.name_directories(&path)?;
                let file = format!("{path}/{}", self.rng.usize(..4));
                below.insert(file.clone(), false);
                let content = self.content();
                self.add_odd(file.as_bytes(), EntryKind::File(&content))?;
                if was_directory == Some(true) && self.rng.bool() {
                    let gone = format!("{path}/.wh.{}", 4 + self.rng.usize(..2));
                    self.add(&Entry::new(gone.as_bytes(), EntryKind::File(b"")))?;
                }
                Ok(())
            }
        }
    }
}

/// One record of an extended header; its length counts itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..).find(|length| length.to_string().len() + rest == *length).unwrap_or_default();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}
