//! Inflate with block boundaries, bit offsets and preset windows.
//!
//! The one place that calls zlib's C interface, here its Rust implementation `libz-rs-sys`: no safe crate offers
//! `Z_BLOCK`, `inflatePrime` and `inflateGetDictionary`, which random access needs (zlib's `examples/zran.c`). Formats:
//! RFC 1951 (deflate) and RFC 1952 (gzip).
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};

use libz_rs_sys as z;

/// How far back a deflate stream may refer, in bytes.
pub(crate) const WINDOW_BYTES: usize = 32 << 10;

/// What surrounds the deflate stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrapper {
    /// Nothing.
    Raw,
    /// One gzip member, whose CRC-32 and length are checked.
    Gzip,
}

impl Wrapper {
    fn window_bits(self) -> c_int {
        match self {
            Self::Raw => -15,
            Self::Gzip => 15 + 16,
        }
    }
}

/// Where [`Inflater::step`] may stop before it runs out of input or room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// After the header of a member and after each deflate block.
    AtBlocks,
    /// Only at the end of a member.
    AtEnd,
}

/// Why a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Input or room is used up.
    Pause,
    /// A block begins here, or (`last`) the final block has ended.
    Boundary {
        /// Bits of the last consumed byte that belong to what follows (0 to 7).
        bits: u8,
        /// The block that ended was the last of its member.
        last: bool,
    },
    /// The member has ended; reset before going on.
    End,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) consumed: usize,
    pub(crate) produced: usize,
    pub(crate) event: Event,
}

/// The stream is not valid deflate or gzip; holds zlib's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Corrupt(pub(crate) String);

/// A zlib inflate stream.
pub(crate) struct Inflater {
    stream: Box<z::z_stream>,
}

// SAFETY: the stream owns its state exclusively. `next_in` and `next_out` are set anew by every step and are never read
// between steps, so no pointer of one thread is followed on another.
unsafe impl Send for Inflater {}

impl Inflater {
    pub(crate) fn new(wrapper: Wrapper) -> Self {
        let mut stream = Box::new(z::z_stream::default());
        // SAFETY: `stream` is a valid z_stream with the default allocator; version and size are those of this very crate.
        let code = unsafe {
            z::inflateInit2_(&mut *stream, wrapper.window_bits(), z::zlibVersion(), size_of::<z::z_stream>() as c_int)
        };
        assert_eq!(code, z::Z_OK, "inflateInit2 fails only for wrong arguments or for want of memory");
        Self { stream }
    }

    /// Begins anew with the next bytes given.
    pub(crate) fn reset(&mut self, wrapper: Wrapper) {
        // SAFETY: the stream was initialised by `new` and not ended.
        let code = unsafe { z::inflateReset2(&mut *self.stream, wrapper.window_bits()) };
        assert_eq!(code, z::Z_OK, "inflateReset2 of a valid stream with a valid window");
    }

    /// Begins a raw stream inside a byte: its first `bits` bits are the high ones of `byte`; its window is `window`.
    pub(crate) fn resume(&mut self, bits: u8, byte: u8, window: &[u8]) {
        assert!(bits < 8 && window.len() <= WINDOW_BYTES);
        self.reset(Wrapper::Raw);
        if bits > 0 {
            // SAFETY: the stream is valid; fewer than 8 bits go into an empty bit buffer.
            let code = unsafe { z::inflatePrime(&mut *self.stream, bits.into(), c_int::from(byte >> (8 - bits))) };
            assert_eq!(code, z::Z_OK, "inflatePrime of fewer than 8 bits after a reset");
        }
        if !window.is_empty() {
            // SAFETY: the stream is valid and raw; pointer and length are those of a live slice, which is only read.
            let code = unsafe { z::inflateSetDictionary(&mut *self.stream, window.as_ptr(), window.len() as z::uInt) };
            assert_eq!(code, z::Z_OK, "inflateSetDictionary of a raw stream");
        }
    }

    /// The last bytes that came out of the current member, at most [`WINDOW_BYTES`].
    pub(crate) fn window(&self) -> Vec<u8> {
        let mut window = vec![0; WINDOW_BYTES];
        let mut length: z::uInt = 0;
        // SAFETY: the stream is valid and `window` has room for the 32768 bytes that are the most it writes.
        let code = unsafe { z::inflateGetDictionary(&*self.stream, window.as_mut_ptr(), &mut length) };
        assert_eq!(code, z::Z_OK, "inflateGetDictionary of a valid stream");
        window.truncate(length as usize);
        window
    }

    /// Inflates from `input` into `output` until one of them is used up or a stop comes.
    pub(crate) fn step(&mut self, input: &[u8], output: &mut [u8], stop: Stop) -> Result<Step, Corrupt> {
        let stream = &mut *self.stream;
        let given = z::uInt::try_from(input.len()).unwrap_or(z::uInt::MAX);
        let room = z::uInt::try_from(output.len()).unwrap_or(z::uInt::MAX);
        stream.next_in = input.as_ptr().cast_mut();
        stream.avail_in = given;
        stream.next_out = output.as_mut_ptr();
        stream.avail_out = room;
        stream.msg = std::ptr::null_mut();
        let flush = if stop == Stop::AtBlocks { z::Z_BLOCK } else { z::Z_NO_FLUSH };
        // SAFETY: the stream is valid; next_in and next_out with their lengths are live slices for the whole call, of which
        // the first is only read.
        let code = unsafe { z::inflate(stream, flush) };
        let event = match code {
            z::Z_OK | z::Z_BUF_ERROR => boundary(stream.data_type, stop),
            z::Z_STREAM_END => Event::End,
            _ => return Err(self.corrupt(code)),
        };
        let consumed = (given - stream.avail_in) as usize;
        let produced = (room - stream.avail_out) as usize;
        Ok(Step { consumed, produced, event })
    }

    fn corrupt(&self, code: c_int) -> Corrupt {
        if self.stream.msg.is_null() {
            return Corrupt(format!("inflate failed with code {code}"));
        }
        // SAFETY: a message that zlib sets is a static string that ends with NUL; `step` cleared any older one.
        let message = unsafe { CStr::from_ptr(self.stream.msg) };
        Corrupt(message.to_string_lossy().into_owned())
    }
}

/// Reads zlib's `data_type` (zlib.h, at `inflate`): unused bits, 64 in the last block, 128 at a boundary.
fn boundary(data_type: c_int, stop: Stop) -> Event {
    if stop == Stop::AtBlocks && data_type & 128 != 0 {
        Event::Boundary { bits: (data_type & 7) as u8, last: data_type & 64 != 0 }
    } else {
        Event::Pause
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised by `new` and is ended only here.
        unsafe { z::inflateEnd(&mut *self.stream) };
    }
}
