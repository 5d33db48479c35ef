//! One 512-byte tar header (POSIX.1-1988 ustar, GNU tar, Unix v7, star).

/// Length of a header and unit of everything in a tar, in bytes.
pub(super) const BLOCK: usize = 512;

/// One block.
pub(super) type Block = [u8; BLOCK];

/// Which program's layout a header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// The fields of a header, numbers as they stand.
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) flag: u8,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size: i64,
    pub(super) mtime: i64,
    pub(super) major: i64,
    pub(super) minor: i64,
    /// Whether GNU's own fields (the sparse map) are there.
    pub(super) gnu: bool,
}

impl Header {
    /// Parses a block after checking its checksum.
    pub(super) fn parse(block: &Block) -> Result<Self, String> {
        check(block)?;
        let format = format(block);
        let device = |field: &[u8]| if format == Format::V7 { Ok(0) } else { number(field) };
        let mut name = text(&block[..100]).to_vec();
        let prefix = prefix(block, format)?;
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        Ok(Self {
            name,
            link: text(&block[157..257]).to_vec(),
            flag: block[156],
            mode: number(&block[100..108])?,
            uid: number(&block[108..116])?,
            gid: number(&block[116..124])?,
            size: number(&block[124..136])?,
            mtime: number(&block[136..148])?,
            major: device(&block[329..337])?,
            minor: device(&block[337..345])?,
            gnu: format == Format::Gnu,
        })
    }
}

fn format(block: &Block) -> Format {
    match (&block[257..263], &block[263..265]) {
        (b"ustar\0", _) if &block[508..] == b"tar\0" => Format::Star,
        (b"ustar\0", _) => Format::Ustar,
        (b"ustar ", b" \0") => Format::Gnu,
        _ => Format::V7,
    }
}

/// What stands before the name, which only some formats have.
fn prefix(block: &Block, format: Format) -> Result<&[u8], String> {
    // Access and change time, which follow the prefix in star and stand in its place in GNU.
    let times = |start: usize| number(&block[start..start + 12]).and(number(&block[start + 12..start + 24]));
    match format {
        Format::Ustar => Ok(text(&block[345..500])),
        Format::Star => times(476).map(|_| text(&block[345..476])),
        // Go before 1.8 wrote prefixes into GNU headers too; Go tells them by times that are none.
        Format::Gnu if times(345).is_err() => {
            Ok(text(&block[345..500])).map(|text| if text.is_ascii() { text } else { &[] })
        }
        Format::V7 | Format::Gnu => Ok(&[]),
    }
}

/// The sum of all bytes, the field itself taken as blanks; old programs summed signed bytes.
fn check(block: &Block) -> Result<(), String> {
    let stored = octal(&block[148..156])?;
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (index, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&index) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte as i8);
    }
    if stored == unsigned || stored == signed {
        Ok(())
    } else {
        Err(format!("header checksum is {unsigned:o}, not {stored:o} as it says"))
    }
}

/// Up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// An octal number, or GNU's base-256 (top bit set, big endian, two's complement).
pub(super) fn number(field: &[u8]) -> Result<i64, String> {
    let first = field[0];
    if first & 0x80 == 0 {
        return octal(field);
    }
    let invert = if first & 0x40 != 0 { 0xff } else { 0 };
    let mut value = 0u64;
    for (index, byte) in field.iter().enumerate() {
        let byte = (byte ^ invert) & if index == 0 { 0x7f } else { 0xff };
        if value >> 56 != 0 {
            return Err("base-256 number does not fit 64 bits".to_owned());
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).map_err(|_| "base-256 number does not fit 64 bits".to_owned())?;
    Ok(if invert == 0 { value } else { !value })
}

fn octal(field: &[u8]) -> Result<i64, String> {
    let padding = |byte: &u8| matches!(*byte, b' ' | 0);
    let start = field.iter().position(|byte| !padding(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !padding(byte)).map_or(start, |last| last + 1);
    let digits = text(&field[start..end]);
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' if value >> 59 == 0 => Ok(value << 3 | i64::from(digit - b'0')),
        _ => Err(format!("not an octal number: {:?}", String::from_utf8_lossy(field))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_as_go_does() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   755 \0").unwrap(), 0o755);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0").unwrap(), 0);
        assert_eq!(number(b"77777777777\0").unwrap(), (8 << 30) - 1);
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0").unwrap(), 8 << 30);
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff").unwrap(), -1);
        assert_eq!(number(b"\x80\x7f\xff\xff\xff\xff\xff\xff\xff").unwrap(), i64::MAX);
        for bad in [&b"0000648\0"[..], b"-1\0\0\0\0\0\0", b"12 34\0\0\0", b"\x80\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert!(number(bad).is_err(), "{bad:?}");
        }
    }
}
