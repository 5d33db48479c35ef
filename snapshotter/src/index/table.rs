//! The file table's encoding; see the module documentation of [`index`](super) for the layout.

use crate::limits::{
    MAX_EXTENTS, MAX_FILE_BYTES, MAX_PATH_BYTES, MAX_TABLE_BYTES, MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES,
};
use crate::tar::path::is_clean;
use crate::tar::table_bytes;
use crate::tree::{Entry, Extent, Kind};

/// Fewest bytes that a record has.
const MIN_RECORD_BYTES: usize = 9;

/// Names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What a record is relative to.
#[derive(Default)]
struct Context {
    path: Vec<u8>,
    mtime: i64,
    tar_end: u64,
}

pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * 48);
    let mut context = Context::default();
    for entry in entries {
        encode_entry(entry, &mut context, &mut bytes);
    }
    bytes
}

fn encode_entry(entry: &Entry, context: &mut Context, out: &mut Vec<u8>) {
    out.push(match &entry.kind {
        Kind::File { .. } => 0,
        Kind::Directory => 1,
        Kind::Symlink(_) => 2,
        Kind::Hardlink(_) => 3,
        Kind::CharDevice { .. } => 4,
        Kind::BlockDevice { .. } => 5,
        Kind::Fifo => 6,
    });
    put(out, entry.mode.into());
    put(out, entry.uid.into());
    put(out, entry.gid.into());
    let step = entry.mtime.wrapping_sub(context.mtime);
    put(out, (step << 1 ^ step >> 63) as u64);
    put(out, entry.mtime_nanos.into());
    let shared = entry.path.iter().zip(&context.path).take_while(|(a, b)| a == b).count();
    put(out, shared as u64);
    put_bytes(out, &entry.path[shared..]);
    match &entry.kind {
        Kind::File { size, extents } => {
            put(out, *size);
            put(out, extents.len() as u64);
            let mut file_end = 0;
            for extent in extents {
                put(out, extent.file_offset - file_end);
                put(out, extent.tar_offset - context.tar_end);
                put(out, extent.length);
                file_end = extent.file_offset + extent.length;
                context.tar_end = extent.tar_offset + extent.length;
            }
        }
        Kind::Symlink(target) | Kind::Hardlink(target) => put_bytes(out, target),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            put(out, (*major).into());
            put(out, (*minor).into());
        }
        Kind::Directory | Kind::Fifo => {}
    }
    put(out, entry.xattrs.len() as u64);
    for (name, value) in &entry.xattrs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
    context.path.clone_from(&entry.path);
    context.mtime = entry.mtime;
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads exactly `count` records; extents must lie in the tar, one after the other.
pub(super) fn decode(table: &[u8], count: usize, tar_length: u64) -> Result<Vec<Entry>, String> {
    if count > table.len() / MIN_RECORD_BYTES {
        return Err(format!("{count} entries in a file table of {} bytes", table.len()));
    }
    let mut reader = Reader { bytes: table, tar_length, memory: 0 };
    let mut context = Context::default();
    let mut entries = Vec::with_capacity(count);
    for number in 0..count {
        let entry = reader.entry(&mut context).map_err(|problem| format!("entry {number}: {problem}"))?;
        reader.memory += table_bytes(&entry);
        if reader.memory > MAX_TABLE_BYTES {
            return Err("file table too large for memory".to_owned());
        }
        entries.push(entry);
    }
    if reader.bytes.is_empty() { Ok(entries) } else { Err("bytes after the last entry".to_owned()) }
}

struct Reader<'a> {
    bytes: &'a [u8],
    tar_length: u64,
    memory: usize,
}

impl<'a> Reader<'a> {
    fn entry(&mut self, context: &mut Context) -> Result<Entry, String> {
        let kind = self.byte()?;
        let mode = self.at_most(0o7777, "mode")? as u16;
        let uid = self.u32("uid")?;
        let gid = self.u32("gid")?;
        let step = self.number()?;
        let mtime = context.mtime.wrapping_add((step >> 1) as i64 ^ -((step & 1) as i64));
        let mtime_nanos = self.at_most(999_999_999, "nanoseconds")? as u32;
        let shared = self.at_most(context.path.len() as u64, "shared path")? as usize;
        let rest = self.bytes(MAX_PATH_BYTES)?;
        let path = [&context.path[..shared], rest].concat();
        let repeats = context.path.get(shared).is_some_and(|byte| rest.first() == Some(byte));
        if repeats || !is_clean(&path) || (path.is_empty() && kind != 1) {
            return Err("path that no tar gives".to_owned());
        }
        let kind = self.kind(kind, context)?;
        let xattrs = self.xattrs()?;
        context.path.clone_from(&path);
        context.mtime = mtime;
        Ok(Entry { path, kind, mode, uid, gid, mtime, mtime_nanos, xattrs })
    }

    fn kind(&mut self, kind: u8, context: &mut Context) -> Result<Kind, String> {
        Ok(match kind {
            0 => {
                let size = self.at_most(MAX_FILE_BYTES, "size")?;
                Kind::File { size, extents: self.extents(size, context)? }
            }
            1 => Kind::Directory,
            2 => {
                let target = self.bytes(MAX_PATH_BYTES)?;
                if target.is_empty() || target.contains(&0) {
                    return Err("symbolic link without a target".to_owned());
                }
                Kind::Symlink(target.to_vec())
            }
            3 => {
                let target = self.bytes(MAX_PATH_BYTES)?;
                if target.is_empty() || !is_clean(target) {
                    return Err("hard link without a target".to_owned());
                }
                Kind::Hardlink(target.to_vec())
            }
            4 => Kind::CharDevice { major: self.u32("major")?, minor: self.u32("minor")? },
            5 => Kind::BlockDevice { major: self.u32("major")?, minor: self.u32("minor")? },
            6 => Kind::Fifo,
            other => return Err(format!("kind {other}")),
        })
    }

    fn extents(&mut self, size: u64, context: &mut Context) -> Result<Vec<Extent>, String> {
        let count = self.at_most(MAX_EXTENTS as u64, "number of extents")? as usize;
        let mut extents = Vec::with_capacity(count.min(self.bytes.len() / 3));
        let mut file_end = 0u64;
        for _ in 0..count {
            let [gap, tar_gap, length] = [self.number()?, self.number()?, self.number()?];
            let end = |start: u64, limit: u64| start.checked_add(length).filter(|end| length > 0 && *end <= limit);
            let file_offset = file_end.checked_add(gap).ok_or("extent beyond its file")?;
            let tar_offset = context.tar_end.checked_add(tar_gap).ok_or("extent beyond the tar")?;
            file_end = end(file_offset, size).ok_or("extent beyond its file")?;
            context.tar_end = end(tar_offset, self.tar_length).ok_or("extent beyond the tar")?;
            extents.push(Extent { file_offset, tar_offset, length });
        }
        Ok(extents)
    }

    fn xattrs(&mut self) -> Result<Xattrs, String> {
        let count = self.at_most((self.bytes.len() / 2) as u64, "number of extended attributes")?;
        let mut xattrs = Xattrs::new();
        for _ in 0..count {
            let name = self.bytes(MAX_XATTR_NAME_BYTES)?;
            let value = self.bytes(MAX_XATTR_VALUE_BYTES)?;
            if name.is_empty() || name.contains(&0) {
                return Err("extended attribute without a name".to_owned());
            }
            xattrs.push((name.to_vec(), value.to_vec()));
        }
        let mut names: Vec<&[u8]> = xattrs.iter().map(|(name, _)| name.as_slice()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("extended attribute twice".to_owned());
        }
        xattrs.shrink_to_fit();
        Ok(xattrs)
    }

    fn byte(&mut self) -> Result<u8, String> {
        let (first, rest) = self.bytes.split_first().ok_or("it ends too early")?;
        self.bytes = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return Err("number beyond 64 bits".to_owned());
            }
            value |= part << shift;
            if byte < 0x80 {
                return if byte == 0 && shift > 0 { Err("number with needless bytes".to_owned()) } else { Ok(value) };
            }
        }
        Err("number beyond 64 bits".to_owned())
    }

    fn at_most(&mut self, limit: u64, name: &str) -> Result<u64, String> {
        let value = self.number()?;
        if value > limit { Err(format!("{name} {value} beyond {limit}")) } else { Ok(value) }
    }

    fn u32(&mut self, name: &str) -> Result<u32, String> {
        self.at_most(u32::MAX.into(), name).map(|value| value as u32)
    }

    fn bytes(&mut self, limit: usize) -> Result<&'a [u8], String> {
        let length = self.at_most(limit as u64, "length")? as usize;
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or("it ends too early")?;
        self.bytes = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> Vec<Entry> {
        let entry = |path: &str, kind: Kind| Entry {
            path: path.into(),
            kind,
            mode: 0o4755,
            uid: 1000,
            gid: u32::MAX,
            mtime: 1_700_000_000,
            mtime_nanos: 5,
            xattrs: vec![(b"user.a".to_vec(), vec![0; 300]), (b"user.b".to_vec(), Vec::new())],
        };
        let extent = |file_offset, tar_offset, length| Extent { file_offset, tar_offset, length };
        let mut entries = vec![
            entry("", Kind::Directory),
            entry("usr/bin", Kind::Directory),
            entry("usr/bin/a", Kind::File { size: 10, extents: vec![extent(0, 1536, 10)] }),
            entry("usr/sparse", Kind::File { size: 100, extents: vec![extent(5, 2048, 5), extent(50, 2053, 50)] }),
            entry("usr/empty", Kind::File { size: 0, extents: Vec::new() }),
            entry("l", Kind::Symlink(b"../x".to_vec())),
            entry("h", Kind::Hardlink(b"usr/bin/a".to_vec())),
            entry("c", Kind::CharDevice { major: 1, minor: 3 }),
            entry("b", Kind::BlockDevice { major: 8, minor: u32::MAX }),
            entry("f", Kind::Fifo),
        ];
        entries[3].mtime = i64::MIN;
        entries[4].mtime = i64::MAX;
        entries
    }

    #[test]
    fn gives_back_what_it_took() {
        let table = encode(&entries());
        assert_eq!(decode(&table, 10, 4096).unwrap(), entries());
        assert!(decode(&table, 9, 4096).is_err(), "bytes left over");
        assert!(decode(&table, 11, 4096).is_err(), "too few records");
        assert!(decode(&table, 10, 2100).is_err(), "extents beyond the tar");
        for end in 0..table.len() {
            assert!(decode(&table[..end], 10, 4096).is_err(), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn changed_tables_never_panic_and_have_one_form(at in 0usize..10_000, byte in any::<u8>()) {
            let mut table = encode(&entries());
            let length = table.len();
            table[at % length] = byte;
            if let Ok(entries) = decode(&table, 10, 4096) {
                prop_assert_eq!(encode(&entries), table);
            }
        }

        #[test]
        fn arbitrary_tables_never_panic(table in proptest::collection::vec(any::<u8>(), 0..300), count in 0usize..20) {
            if let Ok(entries) = decode(&table, count, 1 << 40) {
                prop_assert_eq!(encode(&entries), table);
            }
        }
    }
}
