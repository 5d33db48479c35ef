//! Writes zTOCs after their schema, and the layers for them.

use flate2::{Compress, Compression, FlushCompress};
use lapwing_p2p::digest::Digest;

use crate::support::noise;

/// Where a span begins.
#[derive(Clone)]
pub(crate) struct Checkpoint {
    pub(crate) layer: u64,
    pub(crate) tar: u64,
    pub(crate) bits: u8,
    pub(crate) window: Vec<u8>,
}

/// An entry of the tar.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) name: Vec<u8>,
    pub(crate) offset: i64,
    pub(crate) size: i64,
    pub(crate) mode: i64,
    pub(crate) uid: u32,
    pub(crate) modified: String,
    pub(crate) pax: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a zTOC says.
#[derive(Clone)]
pub(crate) struct Ztoc {
    pub(crate) layer_length: i64,
    pub(crate) tar_length: i64,
    pub(crate) files: Vec<File>,
    pub(crate) digests: Vec<String>,
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// Length of a span of a plain tar.
    plain: Option<i64>,
}

/// A layer and its zTOC.
pub(crate) struct Made {
    pub(crate) layer: Vec<u8>,
    pub(crate) tar: Vec<u8>,
    pub(crate) ztoc: Ztoc,
}

enum Field<'a> {
    Number(Vec<u8>),
    Bytes(&'a [u8]),
    Child,
    Absent,
}

/// A FlatBuffer, written forwards: what is referred to comes after who refers to it.
struct Buffer(Vec<u8>);

impl Buffer {
    fn patch(&mut self, at: usize) {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        let offset = (self.0.len() - at) as u32;
        self.0[at..at + 4].copy_from_slice(&offset.to_le_bytes());
    }

    /// Gives where the offsets of the children go.
    fn table(&mut self, from: usize, fields: &[Field<'_>]) -> Vec<usize> {
        // The vtable first, then the table it belongs to, eight bytes for each field.
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        let vtable = self.0.len();
        self.0.extend(((4 + 2 * fields.len()) as u16).to_le_bytes());
        self.0.extend(((8 + 8 * fields.len()) as u16).to_le_bytes());
        for (number, field) in fields.iter().enumerate() {
            let offset = if matches!(field, Field::Absent) { 0 } else { 8 + 8 * number as u16 };
            self.0.extend(offset.to_le_bytes());
        }
        self.patch(from);
        let table = self.0.len();
        self.0.extend(((table - vtable) as i32).to_le_bytes());
        self.0.resize(table + 8 + 8 * fields.len(), 0);
        let mut children = Vec::new();
        for (number, field) in fields.iter().enumerate() {
            let at = table + 8 + 8 * number;
            match field {
                Field::Number(bytes) => self.0[at..at + bytes.len()].copy_from_slice(bytes),
                Field::Bytes(bytes) => self.bytes(at, bytes),
                Field::Child => children.push(at),
                Field::Absent => {}
            }
        }
        children
    }

    fn bytes(&mut self, from: usize, bytes: &[u8]) {
        self.patch(from);
        self.0.extend((bytes.len() as u32).to_le_bytes());
        self.0.extend(bytes);
        self.0.push(0);
    }

    /// Gives where the offsets of the elements go.
    fn vector(&mut self, from: usize, length: usize) -> Vec<usize> {
        self.patch(from);
        self.0.extend((length as u32).to_le_bytes());
        let start = self.0.len();
        self.0.resize(start + 4 * length, 0);
        (0..length).map(|element| start + 4 * element).collect()
    }
}

fn number(value: i64) -> Field<'static> {
    Field::Number(value.to_le_bytes().into())
}

impl Ztoc {
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut out = Buffer(vec![0; 4]);
        let root = [
            Field::Bytes(b"0.9"),
            Field::Bytes(b"test"),
            number(self.layer_length),
            number(self.tar_length),
            Field::Child,
            Field::Child,
        ];
        let children = out.table(0, &root);
        let contents = out.table(children[0], &[Field::Child]);
        let places = out.vector(contents[0], self.files.len());
        for (at, file) in places.into_iter().zip(&self.files) {
            write_file(&mut out, at, file);
        }
        let algorithm = Field::Number(vec![if self.plain.is_some() { 2 } else { 1 }]);
        let blob = self.blob();
        let spans = Field::Number(((self.digests.len() - 1) as i32).to_le_bytes().into());
        let compressed = out.table(children[1], &[algorithm, spans, Field::Child, Field::Bytes(&blob)]);
        let places = out.vector(compressed[0], self.digests.len());
        for (at, digest) in places.into_iter().zip(&self.digests) {
            out.bytes(at, digest.as_bytes());
        }
        out.0
    }

    fn blob(&self) -> Vec<u8> {
        if let Some(span) = self.plain {
            let mut out = Buffer(vec![0; 4]);
            out.table(0, &[Field::Number(2i32.to_le_bytes().into()), number(span), number(self.layer_length)]);
            return out.0;
        }
        let mut blob = (self.checkpoints.len() as u32).to_le_bytes().to_vec();
        blob.extend((4u64 << 20).to_le_bytes());
        for checkpoint in &self.checkpoints {
            blob.extend(checkpoint.layer.to_le_bytes());
            blob.extend(checkpoint.tar.to_le_bytes());
            blob.push(checkpoint.bits);
            blob.extend(&checkpoint.window);
        }
        blob
    }
}

fn write_file(out: &mut Buffer, at: usize, file: &File) {
    let id = |id: u32| Field::Number(id.to_le_bytes().into());
    let fields = [
        Field::Bytes(&file.name),
        Field::Bytes(b"reg"),
        number(file.offset),
        number(file.size),
        Field::Absent,
        number(file.mode),
        id(file.uid),
        id(100),
        Field::Absent,
        Field::Absent,
        Field::Bytes(file.modified.as_bytes()),
        Field::Absent,
        Field::Absent,
        Field::Child,
    ];
    let children = out.table(at, &fields);
    let places = out.vector(children[0], file.pax.len());
    for (at, (key, value)) in places.into_iter().zip(&file.pax) {
        out.table(at, &[Field::Bytes(key), Field::Bytes(value)]);
    }
}

/// A layer of several spans: gzip with a block boundary every 200,000 bytes, or a plain tar.
pub(crate) fn made(plain: bool) -> Made {
    let repeated: Vec<u8> = noise(30_000, 7).repeat(20);
    of(&[(b"one", &repeated), (b"two", &noise(300_000, 3)), (b"not-utf8-\xff", b"x")], plain)
}

/// A layer of one span.
pub(crate) fn small() -> Made {
    of(&[(b"one", b"content")], false)
}

fn of(contents: &[(&[u8], &[u8])], plain: bool) -> Made {
    const SPAN: usize = 200_000;
    let (mut tar, mut files) = (Vec::new(), Vec::new());
    for (name, content) in contents {
        tar.extend(header(name, content.len()));
        files.push(File {
            name: name.to_vec(),
            offset: tar.len() as i64,
            size: content.len() as i64,
            mode: 0o644,
            uid: 1000,
            modified: "2017-07-14T02:40:00Z".to_owned(),
            pax: Vec::new(),
        });
        tar.extend(*content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    // Go's reader of tars stops at the end of the entries.
    let tar_length = tar.len() as i64 + 1024;
    tar.resize(tar.len() + 10_240, 0);
    let (layer, checkpoints) = if plain { (tar.clone(), Vec::new()) } else { gzip(&tar, SPAN) };
    let ends = checkpoints.iter().skip(1).map(|next| next.layer as usize).chain([layer.len()]);
    let digest = |bytes: &[u8]| Digest::of(bytes).to_string();
    let digests = match plain {
        true => layer.chunks(SPAN).map(digest).collect(),
        false => checkpoints.iter().zip(ends).map(|(start, end)| digest(&layer[start.layer as usize..end])).collect(),
    };
    let plain = plain.then_some(SPAN as i64);
    let layer_length = layer.len() as i64;
    Made { tar, layer, ztoc: Ztoc { layer_length, tar_length, files, digests, checkpoints, plain } }
}

fn gzip(tar: &[u8], span: usize) -> (Vec<u8>, Vec<Checkpoint>) {
    let mut layer = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    let mut deflate = Compress::new(Compression::new(6), false);
    let mut checkpoints = Vec::new();
    for (number, part) in tar.chunks(span).enumerate() {
        let at = number * span;
        let mut window = vec![0; 32 << 10];
        let known = at.min(window.len());
        let start = window.len() - known;
        window[start..].copy_from_slice(&tar[at - known..at]);
        checkpoints.push(Checkpoint { layer: layer.len() as u64, tar: at as u64, bits: 0, window });
        layer.reserve(part.len() + 1000);
        deflate.compress_vec(part, &mut layer, FlushCompress::Sync).unwrap();
    }
    layer.reserve(1000);
    deflate.compress_vec(&[], &mut layer, FlushCompress::Finish).unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(tar);
    layer.extend(crc.sum().to_le_bytes());
    layer.extend((tar.len() as u32).to_le_bytes());
    (layer, checkpoints)
}

fn header(name: &[u8], length: usize) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name);
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0001750");
    header[116..123].copy_from_slice(b"0000144");
    header[124..135].copy_from_slice(format!("{length:011o}").as_bytes());
    header[136..147].copy_from_slice(format!("{:011o}", 1_500_000_000).as_bytes());
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}
