//! Gzip: members and deflate blocks (RFC 1952, RFC 1951).

use crate::inflate::{Corrupt, Event, Inflater, Stop, Wrapper};

use super::ledger::Ledger;
use super::window::{Probe, unpack};
use super::{Checkpoint, IndexError};

const OUTPUT_BYTES: usize = 128 << 10;
/// CRC-32 and length after the deflate stream of a member.
const TRAILER_BYTES: usize = 8;

/// What the next byte of the layer belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The first member has not begun.
    Start,
    Member,
    /// A member has ended: another one, zeros or the end may follow.
    Between,
    /// Zeros after the last member.
    Zeros,
}

/// Inflates a layer and cuts it into spans at member and block boundaries.
pub(super) struct GzipReader {
    inflater: Inflater,
    output: Vec<u8>,
    place: Place,
    member_output: u64,
    /// The byte consumed last.
    last: u8,
    probe: Probe,
}

impl GzipReader {
    pub(super) fn new() -> Self {
        Self {
            inflater: Inflater::new(Wrapper::Gzip),
            output: vec![0; OUTPUT_BYTES],
            place: Place::Start,
            member_output: 0,
            last: 0,
            probe: Probe::new(),
        }
    }

    pub(super) fn push(&mut self, mut input: &[u8], ledger: &mut Ledger) -> Result<(), IndexError> {
        loop {
            if self.place != Place::Member {
                let Some(first) = input.first() else { return Ok(()) };
                self.begin(*first).map_err(|error| bad(ledger, error))?;
                if self.place == Place::Member {
                    ledger.begin_member();
                }
                if self.place == Place::Zeros {
                    return zeros(input).map_err(|error| bad(ledger, error));
                }
            }
            let step = self.inflater.step(input, &mut self.output, Stop::AtBlocks);
            let step = step.map_err(|error| bad(ledger, error))?;
            let (eaten, rest) = input.split_at(step.consumed);
            input = rest;
            ledger.consume(eaten)?;
            if step.produced > 0 && !ledger.is_open() {
                return Err(bad(ledger, Corrupt("output before the first block".to_owned())));
            }
            ledger.produce(&self.output[..step.produced])?;
            self.member_output += step.produced as u64;
            self.last = eaten.last().copied().unwrap_or(self.last);
            if let Some(window) = self.probe.push(eaten).map_err(|error| bad(ledger, error))? {
                ledger.set_window(window)?;
            }
            match step.event {
                Event::End => self.end_member(ledger)?,
                Event::Boundary { bits, last: false } if ledger.is_full() => self.checkpoint(bits, ledger)?,
                Event::Pause if step.consumed == 0 && step.produced == 0 => return Ok(()),
                Event::Boundary { .. } | Event::Pause => {}
            }
        }
    }

    /// Decides by its first byte what follows the last member.
    fn begin(&mut self, first: u8) -> Result<(), Corrupt> {
        self.place = match (self.place, first) {
            (Place::Start, _) | (Place::Between, 0x1f) => Place::Member,
            (Place::Between | Place::Zeros, 0) => Place::Zeros,
            _ => return Err(Corrupt("garbage after the last member".to_owned())),
        };
        Ok(())
    }

    fn checkpoint(&mut self, bits: u8, ledger: &mut Ledger) -> Result<(), IndexError> {
        ledger.cut(bits, (bits > 0).then_some(self.last))?;
        if self.member_output > 0 {
            self.probe.start(bits, self.last, self.inflater.window());
        }
        Ok(())
    }

    fn end_member(&mut self, ledger: &mut Ledger) -> Result<(), IndexError> {
        if let Some(window) = self.probe.finish().map_err(|error| bad(ledger, error))? {
            ledger.set_window(window)?;
        }
        self.inflater.reset(Wrapper::Gzip);
        self.member_output = 0;
        self.place = Place::Between;
        Ok(())
    }

    /// Whether the layer may end here.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.place, Place::Between | Place::Zeros)
    }
}

fn zeros(input: &[u8]) -> Result<(), Corrupt> {
    if input.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Corrupt("garbage after the last member".to_owned())) }
}

fn bad(ledger: &Ledger, Corrupt(problem): Corrupt) -> IndexError {
    IndexError::BadGzip { layer: ledger.layer(), offset: ledger.consumed(), problem }
}

/// Inflates exactly `length` bytes from a checkpoint.
pub(super) fn inflate(checkpoint: &Checkpoint, compressed: &[u8], length: usize) -> Result<Vec<u8>, String> {
    let mut input = compressed;
    let mut byte = 0;
    if checkpoint.bits > 0 {
        (byte, input) = input.split_first().map(|(first, rest)| (*first, rest)).ok_or("it is empty")?;
    }
    let mut inflater = Inflater::new(Wrapper::Raw);
    inflater.resume(checkpoint.bits, byte, &unpack(&checkpoint.window)?);
    let mut trailer = TRAILER_BYTES;
    let mut output = vec![0; length];
    let mut filled = 0;
    while filled < length {
        let step = inflater.step(input, &mut output[filled..], Stop::AtEnd).map_err(|error| error.to_string())?;
        filled += step.produced;
        input = &input[step.consumed..];
        if step.event == Event::End {
            input = input.get(trailer..).ok_or("it ends inside a trailer")?;
            // From here on whole members, whose trailers zlib reads itself.
            trailer = 0;
            inflater.reset(Wrapper::Gzip);
        } else if step.consumed == 0 && step.produced == 0 {
            return Err(format!("it gives {filled} bytes, not {length}"));
        }
    }
    Ok(output)
}

/// Inflates the first `length` bytes of the member that `compressed` begins with.
pub(super) fn member(compressed: &[u8], length: usize) -> Result<Vec<u8>, String> {
    let mut inflater = Inflater::new(Wrapper::Gzip);
    let mut output = vec![0; length];
    let (mut input, mut filled) = (compressed, 0);
    while filled < length {
        let step = inflater.step(input, &mut output[filled..], Stop::AtEnd).map_err(|error| error.to_string())?;
        filled += step.produced;
        input = &input[step.consumed..];
        if filled < length && (step.event == Event::End || (step.consumed == 0 && step.produced == 0)) {
            return Err(format!("its member gives {filled} bytes, not {length}"));
        }
    }
    Ok(output)
}

/// Inflates all of the member that `compressed` begins with, if that is at most `longest` bytes.
pub(crate) fn gunzip_member(compressed: &[u8], longest: usize) -> Result<Vec<u8>, String> {
    let mut inflater = Inflater::new(Wrapper::Gzip);
    let mut buffer = vec![0; OUTPUT_BYTES];
    let (mut input, mut output) = (compressed, Vec::new());
    loop {
        let step = inflater.step(input, &mut buffer, Stop::AtEnd).map_err(|error| error.to_string())?;
        input = &input[step.consumed..];
        output.extend_from_slice(&buffer[..step.produced]);
        if output.len() > longest {
            return Err(format!("it inflates to more than {longest} bytes"));
        }
        match step.event {
            Event::End => return Ok(output),
            _ if step.consumed == 0 && step.produced == 0 => return Err("it ends inside a gzip member".to_owned()),
            _ => {}
        }
    }
}
