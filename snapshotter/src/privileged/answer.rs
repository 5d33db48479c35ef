//! What the mounter says, as bytes: the error's number (0: none), and either its text or what was asked for.

use std::collections::BTreeMap;
use std::io;

use super::request::{Malformed, Reader, Writer};
use crate::erofs::Attributes;
use crate::limits::{MAX_EROFS_XATTR_BYTES, MAX_PROBLEM_BYTES, MAX_XATTR_NAME_BYTES};

/// What of an error has no number.
const OTHER: u32 = rustix::io::Errno::IO.raw_os_error() as u32;

/// An error's number where it has one, and else its text.
pub(super) fn encode(outcome: &io::Result<Vec<u8>>) -> Vec<u8> {
    let mut out = Writer::default();
    match outcome {
        Ok(said) => {
            out.u32(0);
            out.0.extend_from_slice(said);
        }
        Err(error) => match error.raw_os_error().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => {
                out.u32(number);
            }
            None => {
                let text = error.to_string();
                let end = text.floor_char_boundary(MAX_PROBLEM_BYTES);
                out.u32(OTHER).0.extend_from_slice(&text.as_bytes()[..end]);
            }
        },
    }
    out.0
}

/// The same as it was before.
pub(super) fn decode(packet: &[u8]) -> io::Result<Vec<u8>> {
    let mut rest = Reader(packet);
    match rest.u32().map_err(io::Error::other)? {
        0 => Ok(rest.0.to_vec()),
        number if rest.0.is_empty() => Err(io::Error::from_raw_os_error(number.cast_signed())),
        _ => Err(io::Error::other(String::from_utf8_lossy(rest.0).into_owned())),
    }
}

/// Attributes of directories by their number in the question.
pub(super) fn encode_attributes(found: &BTreeMap<u32, Attributes>) -> Vec<u8> {
    let mut out = Writer::default();
    for (number, attributes) in found {
        let Attributes { mode, uid, gid, mtime, mtime_nanos, xattrs } = attributes;
        out.u32(*number).u32(u32::from(*mode)).u32(*uid).u32(*gid).u64(mtime.cast_unsigned()).u32(*mtime_nanos);
        out.u32(u32::try_from(xattrs.len()).unwrap_or(u32::MAX));
        for (name, value) in xattrs {
            out.bytes(name).bytes(value);
        }
    }
    out.0
}

/// The same as it was before.
pub(super) fn decode_attributes(bytes: &[u8]) -> Result<BTreeMap<u32, Attributes>, Malformed> {
    let mut rest = Reader(bytes);
    let mut found = BTreeMap::new();
    while !rest.0.is_empty() {
        let number = rest.u32()?;
        let mode = u16::try_from(rest.u32()?).map_err(|_| Malformed)?;
        let (uid, gid) = (rest.u32()?, rest.u32()?);
        let (mtime, mtime_nanos) = (rest.u64()?.cast_signed(), rest.u32()?);
        let count = rest.u32()?;
        let mut xattrs = BTreeMap::new();
        for _ in 0..count {
            xattrs.insert(rest.bytes(MAX_XATTR_NAME_BYTES)?, rest.bytes(MAX_EROFS_XATTR_BYTES)?);
        }
        found.insert(number, Attributes { mode, uid, gid, mtime, mtime_nanos, xattrs });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_errors_come_back_as_they_were() {
        let back = |outcome: io::Result<Vec<u8>>| decode(&encode(&outcome));
        assert_eq!(back(Ok(vec![1, 2])).unwrap(), [1, 2]);
        assert!(back(Ok(Vec::new())).unwrap().is_empty());
        let numbered = back(Err(io::Error::from_raw_os_error(15))).unwrap_err();
        assert_eq!(numbered.raw_os_error(), Some(15), "callers tell ENOTBLK from others");
        let told = back(Err(io::Error::other("not this"))).unwrap_err();
        assert_eq!((told.raw_os_error(), told.to_string().as_str()), (None, "not this"));
        assert!(decode(&[1, 0]).is_err());
    }

    #[test]
    fn attributes_come_back_as_they_were() {
        let xattrs = BTreeMap::from([(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), Vec::new())]);
        let one = Attributes { mode: 0o7755, uid: 1, gid: u32::MAX, mtime: -5, mtime_nanos: 9, xattrs };
        let other = Attributes { xattrs: BTreeMap::new(), ..one.clone() };
        let found = BTreeMap::from([(0, one), (7, other)]);
        let bytes = encode_attributes(&found);
        assert_eq!(decode_attributes(&bytes), Ok(found));
        for cut in [1, 10, bytes.len() - 1] {
            assert!(decode_attributes(&bytes[..cut]).is_err(), "{cut}");
        }
    }
}
