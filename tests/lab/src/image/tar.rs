//! A tar writer for entries that no common tool makes on demand: POSIX ustar headers with PAX records
//! (pax, IEEE Std 1003.1, "pax Interchange Format") for what ustar cannot hold, and `SCHILY.xattr.*` for extended attributes.

use anyhow::{Result, ensure};
use std::io::Write;

const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub enum EntryKind<'a> {
    /// A regular file and its content.
    File(&'a [u8]),
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(&'a [u8]),
    /// Another name of an entry that came before.
    Hardlink(&'a [u8]),
    /// A character device: major, minor.
    CharDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry of an archive.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The name without a leading slash, any bytes but NUL.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind<'a>,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner: user and group id.
    pub owner: (u32, u32),
    /// Modification time in seconds since 1970, and nanoseconds.
    pub mtime: (u64, u32),
    /// Extended attributes.
    pub xattrs: &'a [(&'a str, &'a [u8])],
}

impl<'a> Entry<'a> {
    /// An entry of root's with the usual mode.
    pub fn new(path: &'a [u8], kind: EntryKind<'a>) -> Self {
        let mode = match kind {
            EntryKind::Directory => 0o755,
            EntryKind::Symlink(_) => 0o777,
            _ => 0o644,
        };
        Self { path, kind, mode, owner: (0, 0), mtime: (1_700_000_000, 0), xattrs: &[] }
    }

    /// The same with another mode.
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    fn link(&self) -> &'a [u8] {
        match self.kind {
            EntryKind::Symlink(target) | EntryKind::Hardlink(target) => target,
            _ => b"",
        }
    }

    /// The type flag, the content and the device numbers of its header.
    fn header_parts(&self) -> (u8, &'a [u8], (u32, u32)) {
        match self.kind {
            EntryKind::File(data) => (b'0', data, (0, 0)),
            EntryKind::Hardlink(_) => (b'1', b"", (0, 0)),
            EntryKind::Symlink(_) => (b'2', b"", (0, 0)),
            EntryKind::CharDevice(major, minor) => (b'3', b"", (major, minor)),
            EntryKind::BlockDevice(major, minor) => (b'4', b"", (major, minor)),
            EntryKind::Directory => (b'5', b"", (0, 0)),
            EntryKind::Fifo => (b'6', b"", (0, 0)),
        }
    }
}

/// Writes an archive.
pub struct TarWriter<W: Write>(W);

impl<W: Write> TarWriter<W> {
    /// An archive into `out`.
    pub fn new(out: W) -> Self {
        Self(out)
    }

    /// Adds one entry.
    pub fn add(&mut self, entry: &Entry<'_>) -> Result<()> {
        let records = pax_records(entry);
        if !records.is_empty() {
            let extended = Entry::new(b"PaxHeaders/entry", EntryKind::File(&records));
            self.0.write_all(&header(&extended, b'x', &records, (0, 0))?)?;
            self.write_padded(&records)?;
        }
        let (flag, content, device) = entry.header_parts();
        self.0.write_all(&header(entry, flag, content, device)?)?;
        self.write_padded(content)
    }

    /// Ends the archive and gives the writer back.
    pub fn finish(mut self) -> Result<W> {
        self.0.write_all(&[0; 2 * BLOCK])?;
        Ok(self.0)
    }

    fn write_padded(&mut self, content: &[u8]) -> Result<()> {
        self.0.write_all(content)?;
        let rest = content.len() % BLOCK;
        if rest > 0 {
            self.0.write_all(&[0; BLOCK][rest..])?;
        }
        Ok(())
    }
}

fn header(entry: &Entry<'_>, flag: u8, content: &[u8], device: (u32, u32)) -> Result<[u8; BLOCK]> {
    let mut block = [0; BLOCK];
    copy_into(&mut block[..100], entry.path);
    octal(&mut block[100..108], entry.mode.into())?;
    octal(&mut block[108..116], entry.owner.0.into())?;
    octal(&mut block[116..124], entry.owner.1.into())?;
    octal(&mut block[124..136], content.len() as u64)?;
    octal(&mut block[136..148], entry.mtime.0)?;
    block[156] = flag;
    copy_into(&mut block[157..257], entry.link());
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block[329..337], device.0.into())?;
    octal(&mut block[337..345], device.1.into())?;
    // The checksum is made as if its own field held spaces.
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum)?;
    Ok(block)
}

/// Names that are cut here stand whole in a PAX record.
fn copy_into(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

fn octal(field: &mut [u8], value: u64) -> Result<()> {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    ensure!(text.len() == digits, "{value} does not fit a tar field of {digits} octal digits");
    field[..digits].copy_from_slice(text.as_bytes());
    field[digits] = 0;
    Ok(())
}

fn pax_records(entry: &Entry<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &str, value: &[u8]| {
        // "LENGTH KEY=VALUE\n", where the length counts its own digits too.
        let others = key.len() + value.len() + 3;
        let mut total = others + 1;
        while total != others + total.to_string().len() {
            total = others + total.to_string().len();
        }
        records.extend_from_slice(format!("{total} {key}=").as_bytes());
        records.extend_from_slice(value);
        records.push(b'\n');
    };
    if entry.path.len() > 100 {
        add("path", entry.path);
    }
    if entry.link().len() > 100 {
        add("linkpath", entry.link());
    }
    if entry.mtime.1 > 0 {
        add("mtime", format!("{}.{:09}", entry.mtime.0, entry.mtime.1).as_bytes());
    }
    for (name, value) in entry.xattrs {
        add(&format!("SCHILY.xattr.{name}"), value);
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for length in [101, 120, 988, 989, 990, 991] {
            let long = vec![b'a'; length];
            let records = pax_records(&Entry::new(&long, EntryKind::Fifo));
            assert!(String::from_utf8_lossy(&records).starts_with(&format!("{} path=a", records.len())));
        }
    }

    #[test]
    fn other_tar_readers_list_what_was_written() {
        let mut tar = TarWriter::new(Vec::new());
        let long = format!("{}/", "d".repeat(150));
        tar.add(&Entry::new(long.as_bytes(), EntryKind::Directory)).unwrap();
        tar.add(&Entry::new(b"f", EntryKind::File(b"content")).mode(0o4755)).unwrap();
        tar.add(&Entry::new(b"null", EntryKind::CharDevice(1, 3))).unwrap();
        let file = std::env::temp_dir().join(format!("lapwing-lab-tar-{}", std::process::id()));
        std::fs::write(&file, tar.finish().unwrap()).unwrap();
        let listed = crate::check(std::process::Command::new("tar").arg("tvf").arg(&file));
        std::fs::remove_file(&file).unwrap();
        let listed = listed.unwrap();
        assert!(listed.contains(&long), "{listed}");
        assert!(listed.contains("-rwsr-xr-x") && listed.contains("1,3"), "{listed}");
    }
}
