//! What a process must know of a connection to `/dev/fuse` that another one opened; it travels beside the descriptor.
//!
//! ```text
//! "LWFUSE" | version (u16) | kernel's protocol: major, minor (u32 each) | flags of INIT (u64) | longest read (u32) |
//! device number of the mount: major, minor (u32 each) | CRC32C (u32)
//! ```
//!
//! Integers are little endian. The version stands for more than these fields: with version 2 node ids of data
//! files are the first eight bytes of a layer's digest without the highest bit, their names are `<hex>.tar`; those of trees have that bit, 36
//! bits of the image's name and 27 of the inode's number in it, and the roots' names are these 36 bits; opens carry no state. A process that does not know the
//! version must not serve the connection.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, SealFlags};

const MAGIC: &[u8; 6] = b"LWFUSE";
/// The version that this program writes, and the only one it understands.
const VERSION: u16 = 2;
const LENGTH: usize = 40;

/// What was agreed on in the INIT exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The kernel's protocol, major and minor.
    pub protocol: (u32, u32),
    /// The flags that both sides know.
    pub flags: u64,
    /// The longest read that the kernel sends, in bytes.
    pub max_read_bytes: u32,
}

/// A connection's terms, and which mount it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What was agreed on.
    pub terms: Terms,
    /// Device number of the FUSE mount, major and minor: no two living connections have the same.
    pub device: (u32, u32),
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Written by a version that serves connections otherwise.
    #[error("its format is {0}, and this version of Lapwing knows {VERSION}")]
    Version(u16),
    /// Not a record.
    #[error("what came with it is no record of a connection")]
    Damaged,
    /// It cannot be read or made.
    #[error("the record of the connection: {0}")]
    System(#[from] io::Error),
}

impl Record {
    /// A sealed file in memory that says this; it lives as long as somebody has it open.
    ///
    /// # Errors
    ///
    /// When descriptors or memory run out.
    pub fn to_descriptor(&self) -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
        let file = match rustix::fs::memfd_create("lapwing-record", flags) {
            // Kernels before 6.3 do not know NOEXEC_SEAL.
            Err(rustix::io::Errno::INVAL) => {
                rustix::fs::memfd_create("lapwing-record", flags - MemfdFlags::NOEXEC_SEAL)?
            }
            made => made?,
        };
        let file = File::from(file);
        file.write_all_at(&self.encode(VERSION), 0)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(file.into())
    }

    /// Reads it back.
    ///
    /// # Errors
    ///
    /// When it is of another version, or none.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, RecordError> {
        let mut bytes = [0; LENGTH];
        File::from(descriptor).read_exact_at(&mut bytes, 0)?;
        Self::decode(&bytes)
    }

    fn encode(&self, version: u16) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(version.to_le_bytes());
        for number in [self.terms.protocol.0, self.terms.protocol.1] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.terms.flags.to_le_bytes());
        for number in [self.terms.max_read_bytes, self.device.0, self.device.1] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; LENGTH]) -> Result<Self, RecordError> {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..6] != MAGIC[..] {
            return Err(RecordError::Damaged);
        }
        // Before the checksum: another version may be laid out otherwise from here on.
        let version = u16::from_le_bytes([bytes[6], bytes[7]]);
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        if number(LENGTH - 4) != crc32c::crc32c(&bytes[..LENGTH - 4]) {
            return Err(RecordError::Damaged);
        }
        let terms = Terms {
            protocol: (number(8), number(12)),
            flags: u64::from(number(16)) | u64::from(number(20)) << 32,
            max_read_bytes: number(24),
        };
        Ok(Self { terms, device: (number(28), number(32)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Record =
        Record { terms: Terms { protocol: (7, 45), flags: 0x80_4244_8001, max_read_bytes: 1 << 20 }, device: (0, 77) };

    #[test]
    fn comes_back_and_cannot_be_changed() {
        let descriptor = RECORD.to_descriptor().unwrap();
        let file = File::from(descriptor.try_clone().unwrap());
        assert!(file.write_all_at(b"x", 0).is_err() && file.set_len(0).is_err());
        assert_eq!(Record::from_descriptor(descriptor).unwrap(), RECORD);
    }

    #[test]
    fn what_is_of_another_version_or_damaged_is_refused() {
        let other: [u8; LENGTH] = RECORD.encode(3).try_into().unwrap();
        assert!(matches!(Record::decode(&other), Err(RecordError::Version(3))));
        let good: [u8; LENGTH] = RECORD.encode(VERSION).try_into().unwrap();
        assert_eq!(Record::decode(&good).unwrap(), RECORD);
        for at in 0..LENGTH {
            let mut bad = good;
            bad[at] ^= 4;
            assert!(Record::decode(&bad).is_err(), "byte {at}");
        }
    }
}
