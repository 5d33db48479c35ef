//! PAX extended headers (POSIX.1-2001 pax, "pax Extended Header"), read as Go's archive/tar reads them.

use std::collections::{BTreeMap, HashMap};

use crate::limits::{MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES};

const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// What one extended header says about the entry after it. An empty value means "as in the header block".
#[derive(Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    /// Seconds and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.*`, the prefix removed; `map` is put together from pairs in version 0.0.
    pub(super) sparse: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Pax {
    pub(super) fn parse(mut records: &[u8]) -> Result<Self, String> {
        let mut pax = Self::default();
        let mut pairs: Vec<&[u8]> = Vec::new();
        // Where each attribute is: a header has room for 40,000 of them.
        let mut places: HashMap<&[u8], usize> = HashMap::new();
        while !records.is_empty() {
            let (key, value) = record(&mut records)?;
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let is_length = key.ends_with(b"numbytes");
                    if is_length == pairs.len().is_multiple_of(2) || value.contains(&b',') {
                        return Err("sparse map of PAX format 0.0 is out of order".to_owned());
                    }
                    pairs.push(value);
                }
                _ => match key.strip_prefix(XATTR) {
                    Some(name) => pax.set_xattr(name, value, &mut places)?,
                    None => pax.set(key, value)?,
                },
            }
        }
        if !pairs.is_empty() {
            pax.sparse.insert(b"map".to_vec(), pairs.join(&b','));
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        if let Some(name) = key.strip_prefix(SPARSE) {
            self.sparse.insert(name.to_vec(), value.to_vec());
            return Ok(());
        }
        let value = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = value.map(<[u8]>::to_vec),
            b"linkpath" => self.linkpath = value.map(<[u8]>::to_vec),
            b"size" => self.size = value.map(integer).transpose()?,
            b"uid" => self.uid = value.map(integer).transpose()?,
            b"gid" => self.gid = value.map(integer).transpose()?,
            b"mtime" => self.mtime = value.map(time).transpose()?,
            // Ignored, but not if they are none.
            b"atime" | b"ctime" => drop(value.map(time).transpose()?),
            _ => {}
        }
        Ok(())
    }

    fn set_xattr<'a>(
        &mut self,
        name: &'a [u8],
        value: &[u8],
        places: &mut HashMap<&'a [u8], usize>,
    ) -> Result<(), String> {
        if name.is_empty() || name.len() > MAX_XATTR_NAME_BYTES || value.len() > MAX_XATTR_VALUE_BYTES {
            return Err("extended attribute beyond the kernel's limits".to_owned());
        }
        match places.get(name).and_then(|place| self.xattrs.get_mut(*place)) {
            Some((_, known)) => *known = value.to_vec(),
            None => {
                places.insert(name, self.xattrs.len());
                self.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
        Ok(())
    }

    /// Whether any record would change an entry.
    pub(super) fn is_plain(&self) -> bool {
        self.path.is_none()
            && self.linkpath.is_none()
            && self.size.is_none()
            && self.uid.is_none()
            && self.gid.is_none()
            && self.mtime.is_none()
            && self.xattrs.is_empty()
            && self.sparse.is_empty()
    }
}

/// Splits `LENGTH KEY=VALUE\n` off; LENGTH counts the whole record.
fn record<'a>(records: &mut &'a [u8]) -> Result<(&'a [u8], &'a [u8]), String> {
    let bad = || "malformed PAX record".to_owned();
    let blank = records.iter().take(20).position(|byte| *byte == b' ').ok_or_else(bad)?;
    let length = usize::try_from(integer(&records[..blank])?).map_err(|_| bad())?;
    if length < 5 || length > records.len() || length <= blank + 1 {
        return Err(bad());
    }
    let (record, rest) = records.split_at(length);
    let body = record[blank + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
    let equals = body.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    let is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    if key.is_empty() || key.contains(&0) || (is_text && value.contains(&0)) {
        return Err(bad());
    }
    *records = rest;
    Ok((key, value))
}

/// A decimal number.
pub(super) fn integer(text: &[u8]) -> Result<i64, String> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| format!("not a number: {:?}", String::from_utf8_lossy(text)))
}

/// Seconds with an optional fraction, cut (not rounded) to nanoseconds.
fn time(text: &[u8]) -> Result<(i64, u32), String> {
    let dot = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let seconds = integer(&text[..dot])?;
    let digits = text.get(dot + 1..).unwrap_or_default();
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(format!("not a time: {:?}", String::from_utf8_lossy(text)));
    }
    let digit = |index: usize| u32::from(digits.get(index).map_or(0, |digit| digit - b'0'));
    let nanos = (0..9).fold(0, |nanos, index| nanos * 10 + digit(index));
    if text.starts_with(b"-") && nanos > 0 {
        let seconds = seconds.checked_sub(1).ok_or_else(|| "time out of range".to_owned())?;
        return Ok((seconds, 1_000_000_000 - nanos));
    }
    Ok((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_records_win_and_empty_ones_reset() {
        let pax = Pax::parse(b"10 path=a\n10 path=b\n11 size=12\n8 size=\n17 comment=hello\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(pax.size, None);
    }

    #[test]
    fn keeps_empty_and_binary_attributes() {
        let pax = Pax::parse(b"24 SCHILY.xattr.user.a=\n27 SCHILY.xattr.user.b=\0=\n\n").unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"".to_vec()), (b"user.b".to_vec(), b"\0=\n".to_vec())]);
    }

    #[test]
    fn a_later_attribute_takes_the_place_of_an_earlier_one() {
        let records = b"22 SCHILY.xattr.a.a=1\n22 SCHILY.xattr.b.b=2\n22 SCHILY.xattr.a.a=3\n";
        let pax = Pax::parse(records).unwrap();
        assert_eq!(pax.xattrs, [(b"a.a".to_vec(), b"3".to_vec()), (b"b.b".to_vec(), b"2".to_vec())]);
    }

    #[test]
    fn reads_times() {
        assert_eq!(time(b"1.5").unwrap(), (1, 500_000_000));
        assert_eq!(time(b"12").unwrap(), (12, 0));
        assert_eq!(time(b"1.0000000019").unwrap(), (1, 1));
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(time(b"-0.5").unwrap(), (-1, 500_000_000));
        for bad in ["", ".", "x", "1.x", "1.-5", "--1"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn refuses_malformed_records() {
        for bad in [
            &b"x"[..],
            b"4 a=\n",
            b"6 a=b\n6",
            b"99 a=b\n",
            b"6 a=bc",
            b"6 =ab\n",
            b"-6 a=b\n",
            b"11 path=a\0\n",
            b"18446744073709551616 a=b\n",
            b"25 GNU.sparse.numbytes=1\n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
