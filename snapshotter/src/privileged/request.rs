//! What the daemon may ask of the mounter, as bytes: a number for the kind, then its fields; integers little-endian, texts with their length
//! (u32) before them. Both sides are the same program, so there are no versions.

use crate::limits::{MAX_INHERIT_ASKED, MAX_PATH_BYTES, MAX_PRIVILEGED_REQUEST, MAX_SNAPSHOT_CHAIN};

/// A request. Paths are relative to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// Mount the connection whose descriptor comes with it.
    MountConnection { at: Vec<u8> },
    /// Mount an image over its device. Answered with the kernel's name of the mount's backing device, if it is known.
    MountImage { image: Vec<u8>, device: Vec<u8>, at: Vec<u8> },
    /// Mount a tree of the FUSE mount.
    MountTree { tree: Vec<u8>, at: Vec<u8> },
    /// Take all mounts away, lazily.
    Detach { at: Vec<u8> },
    /// Take the mount away unless it is used; answered with whether it is gone.
    Release { at: Vec<u8> },
    /// Take away every mount of the lazy layers; answered with their number.
    DetachAll,
    /// Have a mount read ahead as the disk of a file does.
    ReadAhead { bdi: String, tar: Vec<u8> },
    /// Give the root of a snapshot's files an owner.
    Own { files: Vec<u8>, uid: u32, gid: u32 },
    /// Count what a snapshot's files take; answered with inodes and bytes.
    Usage { files: Vec<u8> },
    /// Delete what is left of a removed snapshot, with what is mounted on it.
    Delete { removed: Vec<u8> },
    /// The attributes of directories in the uppermost of these layers that has them; in a memory file.
    Attributes { lowers: Vec<Vec<u8>>, directories: Vec<Vec<u8>> },
    /// The mounts of all namespaces, as `/proc` shows them; in a memory file.
    Tables,
    /// Start the process that keeps the connection: its descriptor, the listening socket and the record come with it.
    Hold,
    /// Take requests from the socket that comes with it as well, at the same time.
    Lane,
}

/// It is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what came is no request")]
pub(super) struct Malformed;

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Self::MountConnection { at } => out.kind(1).bytes(at),
            Self::MountImage { image, device, at } => out.kind(2).bytes(image).bytes(device).bytes(at),
            Self::MountTree { tree, at } => out.kind(3).bytes(tree).bytes(at),
            Self::Detach { at } => out.kind(4).bytes(at),
            Self::Release { at } => out.kind(5).bytes(at),
            Self::DetachAll => out.kind(6),
            Self::ReadAhead { bdi, tar } => out.kind(7).bytes(bdi.as_bytes()).bytes(tar),
            Self::Own { files, uid, gid } => out.kind(8).bytes(files).u32(*uid).u32(*gid),
            Self::Usage { files } => out.kind(9).bytes(files),
            Self::Delete { removed } => out.kind(10).bytes(removed),
            Self::Attributes { lowers, directories } => out.kind(11).list(lowers).list(directories),
            Self::Tables => out.kind(12),
            Self::Hold => out.kind(13),
            Self::Lane => out.kind(14),
        };
        out.0
    }

    pub(super) fn decode(packet: &[u8]) -> Result<Self, Malformed> {
        if packet.len() > MAX_PRIVILEGED_REQUEST {
            return Err(Malformed);
        }
        let mut rest = Reader(packet);
        let path = |rest: &mut Reader<'_>| rest.bytes(MAX_PATH_BYTES);
        let request = match rest.u8()? {
            1 => Self::MountConnection { at: path(&mut rest)? },
            2 => Self::MountImage { image: path(&mut rest)?, device: path(&mut rest)?, at: path(&mut rest)? },
            3 => Self::MountTree { tree: path(&mut rest)?, at: path(&mut rest)? },
            4 => Self::Detach { at: path(&mut rest)? },
            5 => Self::Release { at: path(&mut rest)? },
            6 => Self::DetachAll,
            7 => Self::ReadAhead {
                bdi: String::from_utf8(path(&mut rest)?).map_err(|_| Malformed)?,
                tar: path(&mut rest)?,
            },
            8 => Self::Own { files: path(&mut rest)?, uid: rest.u32()?, gid: rest.u32()? },
            9 => Self::Usage { files: path(&mut rest)? },
            10 => Self::Delete { removed: path(&mut rest)? },
            11 => Self::Attributes {
                lowers: rest.list(MAX_SNAPSHOT_CHAIN, MAX_PATH_BYTES)?,
                directories: rest.list(MAX_INHERIT_ASKED, MAX_PATH_BYTES)?,
            },
            12 => Self::Tables,
            13 => Self::Hold,
            14 => Self::Lane,
            _ => return Err(Malformed),
        };
        if rest.0.is_empty() { Ok(request) } else { Err(Malformed) }
    }

    /// How many descriptors must come with it.
    pub(super) const fn descriptors(&self) -> usize {
        match self {
            Self::MountConnection { .. } | Self::Lane => 1,
            Self::Hold => 3,
            _ => 0,
        }
    }
}

/// Puts fields one behind the other.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    fn kind(&mut self, kind: u8) -> &mut Self {
        self.0.push(kind);
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn list(&mut self, items: &[Vec<u8>]) -> &mut Self {
        self.u32(u32::try_from(items.len()).unwrap_or(u32::MAX));
        for item in items {
            self.bytes(item);
        }
        self
    }
}

/// Takes fields off the front.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn bytes(&mut self, most: usize) -> Result<Vec<u8>, Malformed> {
        let length = usize::try_from(self.u32()?).ok().filter(|length| *length <= most).ok_or(Malformed)?;
        self.take(length).map(<[u8]>::to_vec)
    }

    pub(super) fn list(&mut self, most: usize, longest: usize) -> Result<Vec<Vec<u8>>, Malformed> {
        let count = usize::try_from(self.u32()?).ok().filter(|count| *count <= most).ok_or(Malformed)?;
        (0..count).map(|_| self.bytes(longest)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Request> {
        let text = |text: &str| text.as_bytes().to_vec();
        vec![
            Request::MountConnection { at: text("data") },
            Request::MountImage { image: text("i"), device: text("d"), at: text("a") },
            Request::MountTree { tree: text("t"), at: text("a") },
            Request::Detach { at: text("a") },
            Request::Release { at: text("a") },
            Request::DetachAll,
            Request::ReadAhead { bdi: "erofs-1".to_owned(), tar: text("t") },
            Request::Own { files: text("f"), uid: 1000, gid: u32::MAX },
            Request::Usage { files: text("f") },
            Request::Delete { removed: text("r") },
            Request::Attributes { lowers: vec![text("l"), text("m")], directories: vec![text("etc")] },
            Request::Tables,
            Request::Hold,
            Request::Lane,
        ]
    }

    #[test]
    fn requests_come_back_as_they_were() {
        for request in all() {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_none() {
        for request in all() {
            let whole = request.encode();
            for cut in 0..whole.len() {
                assert!(Request::decode(&whole[..cut]).is_err(), "{request:?} cut to {cut}");
            }
            assert!(Request::decode(&[&whole[..], b"x"].concat()).is_err(), "{request:?} and more");
        }
        let long = Request::Detach { at: vec![b'x'; MAX_PATH_BYTES + 1] };
        assert!(Request::decode(&long.encode()).is_err());
        let many = Request::Attributes { lowers: Vec::new(), directories: vec![Vec::new(); MAX_INHERIT_ASKED + 1] };
        assert!(Request::decode(&many.encode()).is_err());
        for kind in [0, 15, 255] {
            assert!(Request::decode(&[kind]).is_err());
        }
    }
}
