//! Zstandard: frames (RFC 8878). Inside a frame there is no random access.

use std::io;

use zstd::stream::raw::{Decoder, Operation as _};

use super::IndexError;
use super::ledger::Ledger;

const OUTPUT_BYTES: usize = 128 << 10;

/// Decompresses a layer and cuts it into spans where frames begin.
pub(super) struct ZstdReader {
    decoder: Decoder<'static>,
    output: Vec<u8>,
    in_frame: bool,
}

impl ZstdReader {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { decoder: Decoder::new()?, output: vec![0; OUTPUT_BYTES], in_frame: false })
    }

    pub(super) fn push(&mut self, mut input: &[u8], ledger: &mut Ledger) -> Result<(), IndexError> {
        loop {
            if !self.in_frame {
                if input.is_empty() {
                    return Ok(());
                }
                self.in_frame = true;
                ledger.begin_member();
                if ledger.is_full() {
                    ledger.cut(0, None)?;
                }
            }
            let step = self.decoder.run_on_buffers(input, &mut self.output).map_err(|error| IndexError::BadZstd {
                layer: ledger.layer(),
                offset: ledger.consumed(),
                problem: error.to_string(),
            })?;
            let (eaten, rest) = input.split_at(step.bytes_read);
            input = rest;
            ledger.consume(eaten)?;
            ledger.produce(&self.output[..step.bytes_written])?;
            if step.remaining == 0 {
                self.in_frame = false;
            } else if step.bytes_read == 0 && step.bytes_written == 0 {
                return Ok(());
            }
        }
    }

    /// Whether the layer may end here.
    pub(super) fn is_whole(&self) -> bool {
        !self.in_frame
    }
}

/// Decompresses whole frames to exactly `length` bytes.
pub(super) fn decompress(compressed: &[u8], length: usize) -> Result<Vec<u8>, String> {
    let mut decoder = Decoder::new().map_err(|error| error.to_string())?;
    let mut output = vec![0; length];
    let (mut input, mut filled) = (compressed, 0);
    while filled < length {
        let step = decoder.run_on_buffers(input, &mut output[filled..]).map_err(|error| error.to_string())?;
        input = &input[step.bytes_read..];
        filled += step.bytes_written;
        if step.bytes_read == 0 && step.bytes_written == 0 {
            return Err(format!("it gives {filled} bytes, not {length}"));
        }
    }
    Ok(output)
}
