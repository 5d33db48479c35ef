//! Chunks of files' contents, as eStargz and zstd:chunked cut layers: each is the start of what its gzip member or zstd
//! frame gives, and has a digest of its own. The member goes on with padding and the next headers of the tar.

use sha2::{Digest as _, Sha256};

use super::{Compression, gzip, zstd};

/// Contents of a file within a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Where its member begins, from the first compressed byte of the span on.
    pub(crate) member: u64,
    /// Output of the member before it, in bytes.
    pub(crate) skip: u64,
    /// Length in bytes.
    pub(crate) length: u64,
    /// Where it lies in the span's output.
    pub(crate) at: u64,
    /// SHA-256.
    pub(crate) digest: [u8; 32],
}

impl Chunk {
    /// Output of the member up to the end of this chunk.
    pub(crate) fn reach(&self) -> u64 {
        self.skip + self.length
    }
}

/// Decodes a span of `length` bytes. Each chunk is checked; the rest is zeros.
pub(super) fn decode(
    compression: Compression,
    chunks: &[Chunk],
    compressed: &[u8],
    length: usize,
) -> Result<Vec<u8>, String> {
    let mut output = vec![0; length];
    for members in chunks.chunk_by(|one, next| one.member == next.member) {
        let (Some(first), Some(reach)) = (members.first(), members.iter().map(Chunk::reach).max()) else { continue };
        let (start, reach) = (first.member as usize, reach as usize);
        let input = compressed.get(start..).ok_or("its bytes end before a member")?;
        let decoded = match compression {
            Compression::None => input.get(..reach).ok_or("its bytes end before a chunk")?.to_vec(),
            Compression::Gzip => gzip::member(input, reach)?,
            Compression::Zstd => zstd::decompress(input, reach)?,
        };
        for chunk in members {
            let bytes = &decoded[chunk.skip as usize..chunk.reach() as usize];
            if Sha256::digest(bytes)[..] != chunk.digest {
                return Err(format!("the chunk at byte {} of it has another digest", chunk.at));
            }
            let place = output.get_mut(chunk.at as usize..).and_then(|rest| rest.get_mut(..bytes.len()));
            place.ok_or("a chunk lies outside of it")?.copy_from_slice(bytes);
        }
    }
    Ok(output)
}
