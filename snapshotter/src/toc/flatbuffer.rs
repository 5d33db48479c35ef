//! As much of FlatBuffers as a zTOC needs, read where it lies (FlatBuffers, "Internals"): every offset is checked before it is followed.
//!
//! ```text
//! buffer: u32 offset of the root table
//! table:  i32 distance back to its vtable, then its fields     vtable: u16 its length, u16 the table's, u16 offset of each field, 0 if absent
//! string, vector: u32 length, then bytes or elements; elements that are tables or strings are u32 offsets from themselves
//! ```

use super::{TocError, malformed};

/// A table in a buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    buffer: &'a [u8],
    at: usize,
    vtable: usize,
    vtable_bytes: usize,
}

/// A vector of tables or strings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vector<'a> {
    buffer: &'a [u8],
    /// The first element.
    at: usize,
    length: usize,
}

fn array<const N: usize>(buffer: &[u8], at: usize) -> Result<[u8; N], TocError> {
    let bytes = buffer.get(at..).and_then(|rest| rest.first_chunk::<N>());
    bytes.copied().ok_or_else(|| malformed("an offset leads out of the zTOC"))
}

/// Where the offset at `at` leads.
fn follow(buffer: &[u8], at: usize) -> Result<usize, TocError> {
    let offset = u32::from_le_bytes(array(buffer, at)?) as usize;
    at.checked_add(offset).filter(|to| *to < buffer.len()).ok_or_else(|| malformed("an offset leads out of the zTOC"))
}

/// The bytes of the string or vector of bytes at `at`.
fn bytes(buffer: &[u8], at: usize) -> Result<&[u8], TocError> {
    let length = u32::from_le_bytes(array(buffer, at)?) as usize;
    let content = buffer.get(at + 4..).and_then(|rest| rest.get(..length));
    content.ok_or_else(|| malformed("a string leads out of the zTOC"))
}

impl<'a> Table<'a> {
    /// The root table of a buffer.
    pub(super) fn root(buffer: &'a [u8]) -> Result<Self, TocError> {
        Self::at(buffer, follow(buffer, 0)?)
    }

    fn at(buffer: &'a [u8], at: usize) -> Result<Self, TocError> {
        let back = i64::from(i32::from_le_bytes(array(buffer, at)?));
        let vtable = usize::try_from(at as i64 - back).map_err(|_| malformed("a table without a vtable"))?;
        let vtable_bytes = usize::from(u16::from_le_bytes(array(buffer, vtable)?));
        Ok(Self { buffer, at, vtable, vtable_bytes })
    }

    /// Where a field lies, if it is there. `field` counts from 0 in the order of the schema.
    fn field(&self, field: usize) -> Result<Option<usize>, TocError> {
        let entry = 4 + 2 * field;
        if entry + 2 > self.vtable_bytes {
            return Ok(None);
        }
        let offset = usize::from(u16::from_le_bytes(array(self.buffer, self.vtable + entry)?));
        Ok((offset != 0).then_some(self.at + offset))
    }

    fn number<const N: usize>(&self, field: usize) -> Result<Option<[u8; N]>, TocError> {
        self.field(field)?.map(|at| array(self.buffer, at)).transpose()
    }

    pub(super) fn i64(&self, field: usize) -> Result<i64, TocError> {
        Ok(self.number(field)?.map_or(0, i64::from_le_bytes))
    }

    pub(super) fn u32(&self, field: usize) -> Result<u32, TocError> {
        Ok(self.number(field)?.map_or(0, u32::from_le_bytes))
    }

    /// A byte, or its default.
    pub(super) fn byte(&self, field: usize, default: u8) -> Result<u8, TocError> {
        Ok(self.number::<1>(field)?.map_or(default, |[byte]| byte))
    }

    /// A string or vector of bytes; empty if it is not there.
    pub(super) fn bytes(&self, field: usize) -> Result<&'a [u8], TocError> {
        match self.field(field)? {
            Some(at) => bytes(self.buffer, follow(self.buffer, at)?),
            None => Ok(&[]),
        }
    }

    pub(super) fn table(&self, field: usize) -> Result<Option<Table<'a>>, TocError> {
        self.field(field)?.map(|at| Table::at(self.buffer, follow(self.buffer, at)?)).transpose()
    }

    /// A vector of offsets; empty if it is not there.
    pub(super) fn vector(&self, field: usize) -> Result<Vector<'a>, TocError> {
        let Some(at) = self.field(field)? else { return Ok(Vector { buffer: self.buffer, at: 0, length: 0 }) };
        let start = follow(self.buffer, at)?;
        let length = u32::from_le_bytes(array(self.buffer, start)?) as usize;
        let fits = length.checked_mul(4).and_then(|bytes| (start + 4).checked_add(bytes));
        if fits.is_none_or(|end| end > self.buffer.len()) {
            return Err(malformed("a vector leads out of the zTOC"));
        }
        Ok(Vector { buffer: self.buffer, at: start + 4, length })
    }
}

impl<'a> Vector<'a> {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn tables(self) -> impl Iterator<Item = Result<Table<'a>, TocError>> {
        (0..self.length).map(move |index| Table::at(self.buffer, follow(self.buffer, self.at + 4 * index)?))
    }

    pub(super) fn strings(self) -> impl Iterator<Item = Result<&'a [u8], TocError>> {
        (0..self.length).map(move |index| bytes(self.buffer, follow(self.buffer, self.at + 4 * index)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A table with a number, a string, and a vector of two strings; the fourth field is absent.
    fn buffer() -> Vec<u8> {
        let mut bytes = vec![0; 64];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &16u32.to_le_bytes());
        put(4, &12u16.to_le_bytes());
        put(6, &20u16.to_le_bytes());
        for (field, offset) in [4u16, 12, 16, 0].iter().enumerate() {
            put(8 + 2 * field, &offset.to_le_bytes());
        }
        put(16, &12i32.to_le_bytes());
        put(20, &(-7i64).to_le_bytes());
        put(28, &8u32.to_le_bytes());
        put(32, &12u32.to_le_bytes());
        put(36, b"\x03\0\0\0abc\0");
        put(44, &2u32.to_le_bytes());
        put(48, &8u32.to_le_bytes());
        put(52, &4u32.to_le_bytes());
        put(56, b"\x02\0\0\0de");
        bytes
    }

    type Read = Result<(i64, Vec<u8>, Vec<Vec<u8>>, Vec<u8>), TocError>;

    fn read(bytes: &[u8]) -> Read {
        let table = Table::root(bytes)?;
        let strings = table.vector(2)?.strings().map(|string| string.map(<[u8]>::to_vec)).collect::<Result<_, _>>()?;
        for inner in table.vector(2)?.tables().flatten() {
            let _ = (inner.u32(0), inner.byte(1, 0), inner.bytes(2), inner.table(3));
        }
        Ok((table.i64(0)?, table.bytes(1)?.to_vec(), strings, table.bytes(3)?.to_vec()))
    }

    #[test]
    fn fields_are_found_and_absent_ones_empty() {
        let (number, string, strings, absent) = read(&buffer()).unwrap();
        assert_eq!((number, string.as_slice()), (-7, &b"abc"[..]));
        assert_eq!(strings, [b"de", b"de"]);
        assert!(absent.is_empty());
    }

    #[test]
    fn what_leads_out_is_refused() {
        for end in 0..62 {
            assert!(read(&buffer()[..end]).is_err(), "cut at {end}");
        }
        for (at, value) in
            [(0, u32::MAX), (0, 64), (28, u32::MAX), (36, 1000), (44, u32::MAX), (44, 1 << 30), (52, 200)]
        {
            let mut bytes = buffer();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(read(&bytes).is_err(), "{value} at {at}");
        }
    }

    proptest! {
        #[test]
        fn changed_bytes_never_panic(changes in proptest::collection::vec((0usize..64, any::<u8>()), 1..6)) {
            let mut bytes = buffer();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            let _ = read(&bytes);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(&bytes);
        }
    }
}
