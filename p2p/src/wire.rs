//! The piece wire: what two peers say to each other over one TCP connection.
//!
//! Pure: bytes in, frames out, and back. Integers are big-endian. After the [`handshake`] each side sends frames:
//!
//! ```text
//! kind: u8 | length of the body: u32 | body
//!
//! 1 Hello    blob: u32, digest: 32, length: u64, bitfield       takes part in a blob and has these pieces
//! 2 Have     blob: u32, piece: u32 ...                          has got these since
//! 3 Request  blob: u32, piece: u32, urgent: u8
//! 4 Cancel   blob: u32, piece: u32
//! 5 NotHere  digest: 32, piece: u32                             refuses a request, or with piece 2^32-1 the whole blob
//! 6 Piece    blob: u32, piece: u32, stated: u8, [statement: 128], the bytes
//! 7 Ping
//! 8 Bye
//! 9 Free     blob: u32                                        has an upload slot that nobody asks for
//! 10 Packed   like Piece, but the bytes are a zstd frame of them  only to who offers it in the handshake
//! 11 Here       port: u16, group: 32                          where the sender can be dialled, and in which group it is
//! 12 AskHolders digest: 32                                    asks who has a blob
//! 13 Holders    the answer: see [`telling`]                     11 to 13 only to who offers them in the handshake
//! 14 Traced     blob: u32, trace: 16, span: 8                 only to who offers it in the handshake: see [`TAKES_TRACES`]
//! ```
//!
//! A blob's number is chosen by whoever says it, in the `Hello` that precedes, and holds for that direction. A peer
//! names content by digest and index only: never a path or a URL. Addresses of third parties come in `Holders` alone, as
//! hints.

pub mod handshake;
pub mod packing;
pub mod telling;

use self::telling::Telling;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::bitfield::{Bitfield, InvalidBitfield};
use crate::digest::Digest;
use crate::layout::{PieceIndex, PieceLayout, TooLong};
use crate::limits::{MAX_CONTROL_FRAME, MAX_HAVES, MAX_PIECE_FRAME, MAX_PIECE_LENGTH};
use crate::statement::{PieceStatement, STATEMENT_LENGTH};

/// Bytes before the body of a frame.
pub const HEADER_LENGTH: usize = 5;

const HELLO: u8 = 1;
const HAVE: u8 = 2;
const REQUEST: u8 = 3;
const CANCEL: u8 = 4;
const NOT_HERE: u8 = 5;
const PIECE: u8 = 6;
const PING: u8 = 7;
const BYE: u8 = 8;
const FREE: u8 = 9;
const PACKED: u8 = 10;
const HERE: u8 = 11;
const ASK_HOLDERS: u8 = 12;
const HOLDERS: u8 = 13;

const TRACED: u8 = 14;

/// Feature bit of the handshake: takes `Traced`.
pub const TAKES_TRACES: u16 = 4;

const WHOLE_BLOB: u32 = u32::MAX;

/// The number that one side of a connection gave to a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobNumber(pub u32);

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The sender takes part in the swarm of a blob.
    Hello {
        /// The number the sender gives it.
        blob: BlobNumber,
        /// Its name.
        digest: Digest,
        /// How it is cut.
        layout: PieceLayout,
        /// The pieces that the sender serves.
        have: Bitfield,
    },
    /// The sender has got more pieces.
    Have {
        /// The sender's number of the blob.
        blob: BlobNumber,
        /// The new pieces.
        pieces: Vec<PieceIndex>,
    },
    /// The sender wants a piece.
    Request {
        /// The sender's number of the blob.
        blob: BlobNumber,
        /// Which.
        piece: PieceIndex,
        /// Whether a read is blocked on it.
        urgent: bool,
    },
    /// The sender no longer wants it.
    Cancel {
        /// The sender's number of the blob.
        blob: BlobNumber,
        /// Which.
        piece: PieceIndex,
    },
    /// The sender does not give that.
    NotHere {
        /// The blob.
        digest: Digest,
        /// The piece; none for all of the blob.
        piece: Option<PieceIndex>,
    },
    /// A piece that was asked for.
    Piece {
        /// The sender's number of the blob.
        blob: BlobNumber,
        /// Which.
        piece: PieceIndex,
        /// Who states its hash; none where the receiver needs nobody's word.
        statement: Option<PieceStatement>,
        /// Its bytes.
        bytes: Bytes,
    },
    /// A piece that was asked for, [packed](packing).
    Packed {
        /// The sender's number of the blob.
        blob: BlobNumber,
        /// Which.
        piece: PieceIndex,
        /// Who states the hash of the piece as it is unpacked.
        statement: Option<PieceStatement>,
        /// Its bytes, packed.
        bytes: Bytes,
    },
    /// Nothing, so that the receiver knows the sender is alive.
    Ping,
    /// The sender closes the connection and means it.
    Bye,
    /// The sender has an upload slot that nobody asks for, and pieces that the receiver lacks.
    Free {
        /// The sender's number of the blob.
        blob: BlobNumber,
    },
    /// Where the sender listens, on the address of this connection, and which group it is of.
    Here {
        /// The port of its piece wire.
        port: u16,
        /// Hash of the group's name.
        group: [u8; 32],
    },
    /// The sender cannot reach a tracker and asks who has this blob.
    AskHolders {
        /// Which.
        digest: Digest,
    },
    /// The answer.
    Holders(Telling),
    /// What the sender asks of this blob from now on belongs to that span of a trace (W3C Trace Context); with zeros, to none any more.
    /// It changes nothing of what is given, and who does not understand the numbers ignores them.
    Traced {
        /// The sender's number of the blob.
        blob: BlobNumber,
        /// The trace.
        trace: [u8; 16],
        /// The span.
        span: [u8; 8],
    },
}

/// Bytes that are no frame. The connection cannot go on after any of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A kind that this version does not know.
    #[error("frame of unknown kind {0}; the peer speaks another version")]
    Kind(u8),
    /// A body longer than its kind allows.
    #[error("frame of kind {kind} announces {length} bytes, more than the limit of {limit}")]
    TooLong {
        /// The kind.
        kind: u8,
        /// What it announced.
        length: u32,
        /// What is allowed.
        limit: usize,
    },
    /// A body that ends early or has bytes left over.
    #[error("body of a frame of kind {0} has the wrong length")]
    Length(u8),
    /// A flag that is neither 0 nor 1.
    #[error("a flag of a frame is neither 0 nor 1")]
    Flag,
    /// A blob longer than any may be.
    #[error(transparent)]
    Blob(#[from] TooLong),
    /// A bitfield that does not fit its blob.
    #[error(transparent)]
    Bitfield(#[from] InvalidBitfield),
}

/// The first bytes of a frame, checked: it is safe to allocate [`Self::length`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    kind: u8,
    length: u32,
}

impl Header {
    /// Reads a header and checks the announced length against the limit of its kind.
    pub fn decode(bytes: [u8; HEADER_LENGTH]) -> Result<Self, WireError> {
        let [kind, length @ ..] = bytes;
        let length = u32::from_be_bytes(length);
        let limit = match kind {
            HELLO => MAX_CONTROL_FRAME,
            HAVE => 4 + 4 * MAX_HAVES,
            REQUEST => 9,
            CANCEL => 8,
            NOT_HERE => 36,
            PIECE | PACKED => MAX_PIECE_FRAME,
            PING | BYE => 0,
            FREE => 4,
            HERE => 34,
            ASK_HOLDERS => 32,
            HOLDERS => telling::MAX_LENGTH,
            TRACED => 28,
            _ => return Err(WireError::Kind(kind)),
        };
        if length as usize > limit {
            return Err(WireError::TooLong { kind, length, limit });
        }
        Ok(Self { kind, length })
    }

    /// Length of the body in bytes.
    pub const fn length(&self) -> usize {
        self.length as usize
    }

    /// Whether the body is a piece: its bytes are better read to where they shall stay, after its [`PieceHead`].
    pub const fn is_piece(&self) -> bool {
        matches!(self.kind, PIECE | PACKED)
    }

    /// Whether the body is a piece that must be unpacked.
    pub const fn is_packed(&self) -> bool {
        self.kind == PACKED
    }

    /// Bytes of the piece itself, packed or not, in a body that begins with that head.
    pub fn piece_length(&self, head: &PieceHead) -> Result<usize, WireError> {
        let length = self.length().checked_sub(head.encoded_length()).ok_or(WireError::Length(self.kind))?;
        if length as u64 > MAX_PIECE_LENGTH { Err(WireError::Length(self.kind)) } else { Ok(length) }
    }
}

/// What stands before the bytes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceHead {
    /// The sender's number of the blob.
    pub blob: BlobNumber,
    /// Which piece.
    pub piece: PieceIndex,
    /// Who states its hash; none where the receiver needs nobody's word.
    pub statement: Option<PieceStatement>,
}

impl PieceHead {
    /// Bytes that say how long the head is.
    pub const MIN_LENGTH: usize = 9;
    /// Length of the longest head in bytes.
    pub const MAX_LENGTH: usize = Self::MIN_LENGTH + STATEMENT_LENGTH;

    /// Length in bytes of the head that begins with these.
    pub fn length(first: &[u8; Self::MIN_LENGTH]) -> Result<usize, WireError> {
        match first[Self::MIN_LENGTH - 1] {
            0 => Ok(Self::MIN_LENGTH),
            1 => Ok(Self::MAX_LENGTH),
            _ => Err(WireError::Flag),
        }
    }

    /// Reads the head at the beginning of `body`.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let short = WireError::Length(PIECE);
        let first = body.first_chunk().ok_or(short)?;
        let head = body.get(..Self::length(first)?).ok_or(short)?;
        let statement = head[Self::MIN_LENGTH..].first_chunk().map(PieceStatement::decode);
        let number = |at: usize| u32::from_be_bytes([first[at], first[at + 1], first[at + 2], first[at + 3]]);
        Ok(Self { blob: BlobNumber(number(0)), piece: PieceIndex(number(4)), statement })
    }

    const fn encoded_length(&self) -> usize {
        if self.statement.is_some() { Self::MAX_LENGTH } else { Self::MIN_LENGTH }
    }

    /// Appends everything of a `Piece` frame before its `piece_length` bytes, which the caller writes itself.
    pub fn encode(&self, out: &mut BytesMut, piece_length: usize) {
        self.encode_as(PIECE, out, piece_length);
    }

    /// The same of a `Packed` frame.
    pub fn encode_packed(&self, out: &mut BytesMut, packed_length: usize) {
        self.encode_as(PACKED, out, packed_length);
    }

    fn encode_as(&self, kind: u8, out: &mut BytesMut, length: usize) {
        out.put_u8(kind);
        out.put_u32((self.encoded_length() + length) as u32);
        self.put(out);
    }

    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.blob.0);
        out.put_u32(self.piece.0);
        out.put_u8(u8::from(self.statement.is_some()));
        if let Some(statement) = &self.statement {
            out.put_slice(&statement.encode());
        }
    }
}

impl Frame {
    /// Appends the frame, header and all.
    pub fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u8(self.kind());
        out.put_u32(0);
        match self {
            Self::Hello { blob, digest, layout, have } => {
                out.put_u32(blob.0);
                out.put_slice(digest.as_bytes());
                out.put_u64(layout.length());
                out.put_slice(have.as_bytes());
            }
            Self::Have { blob, pieces } => {
                out.put_u32(blob.0);
                pieces.iter().for_each(|piece| out.put_u32(piece.0));
            }
            Self::Request { blob, piece, urgent } => {
                out.put_u32(blob.0);
                out.put_u32(piece.0);
                out.put_u8(u8::from(*urgent));
            }
            Self::Cancel { blob, piece } => {
                out.put_u32(blob.0);
                out.put_u32(piece.0);
            }
            Self::NotHere { digest, piece } => {
                out.put_slice(digest.as_bytes());
                out.put_u32(piece.map_or(WHOLE_BLOB, |piece| piece.0));
            }
            Self::Piece { blob, piece, statement, bytes } | Self::Packed { blob, piece, statement, bytes } => {
                PieceHead { blob: *blob, piece: *piece, statement: *statement }.put(out);
                out.put_slice(bytes);
            }
            Self::Free { blob } => out.put_u32(blob.0),
            Self::Here { port, group } => {
                out.put_u16(*port);
                out.put_slice(group);
            }
            Self::AskHolders { digest } => out.put_slice(digest.as_bytes()),
            Self::Holders(telling) => telling.put(out),
            Self::Traced { blob, trace, span } => {
                out.put_u32(blob.0);
                out.put_slice(trace);
                out.put_slice(span);
            }
            Self::Ping | Self::Bye => {}
        }
        let length = (out.len() - start - HEADER_LENGTH) as u32;
        out[start + 1..start + HEADER_LENGTH].copy_from_slice(&length.to_be_bytes());
    }

    /// Reads the body that follows `header`; exactly [`Header::length`] bytes.
    pub fn decode(header: Header, mut body: Bytes) -> Result<Self, WireError> {
        let short = WireError::Length(header.kind);
        if body.len() != header.length() {
            return Err(short);
        }
        let number = |body: &mut Bytes| body.try_get_u32().map_err(|_| short);
        let frame = match header.kind {
            HELLO => return Self::decode_hello(body),
            HAVE => {
                let blob = BlobNumber(number(&mut body)?);
                let mut pieces = Vec::with_capacity(body.len() / 4);
                while !body.is_empty() {
                    pieces.push(PieceIndex(number(&mut body)?));
                }
                Self::Have { blob, pieces }
            }
            REQUEST => Self::Request {
                blob: BlobNumber(number(&mut body)?),
                piece: PieceIndex(number(&mut body)?),
                urgent: flag(&mut body)?,
            },
            CANCEL => Self::Cancel { blob: BlobNumber(number(&mut body)?), piece: PieceIndex(number(&mut body)?) },
            NOT_HERE => {
                let digest = digest(&mut body).ok_or(short)?;
                let piece = number(&mut body)?;
                Self::NotHere { digest, piece: (piece != WHOLE_BLOB).then_some(PieceIndex(piece)) }
            }
            PIECE | PACKED => {
                let head = PieceHead::decode(&body)?;
                body.advance(head.encoded_length());
                let (PieceHead { blob, piece, statement }, bytes) = (head, body);
                return Ok(match header.kind {
                    PACKED => Self::Packed { blob, piece, statement, bytes },
                    _ => Self::Piece { blob, piece, statement, bytes },
                });
            }
            PING => Self::Ping,
            BYE => Self::Bye,
            FREE => Self::Free { blob: BlobNumber(number(&mut body)?) },
            HERE => {
                let port = body.try_get_u16().map_err(|_| short)?;
                let group = *body.first_chunk().ok_or(short)?;
                body.advance(group.len());
                Self::Here { port, group }
            }
            ASK_HOLDERS => Self::AskHolders { digest: digest(&mut body).ok_or(short)? },
            HOLDERS => return Telling::decode(body).map(Self::Holders),
            TRACED => {
                let blob = BlobNumber(number(&mut body)?);
                let trace = array(&mut body).ok_or(short)?;
                Self::Traced { blob, trace, span: array(&mut body).ok_or(short)? }
            }
            kind => return Err(WireError::Kind(kind)),
        };
        if body.is_empty() { Ok(frame) } else { Err(short) }
    }

    fn decode_hello(mut body: Bytes) -> Result<Self, WireError> {
        let short = WireError::Length(HELLO);
        let blob = BlobNumber(body.try_get_u32().map_err(|_| short)?);
        let digest = digest(&mut body).ok_or(short)?;
        let layout = PieceLayout::new(body.try_get_u64().map_err(|_| short)?)?;
        let have = Bitfield::from_bytes(layout.piece_count(), &body)?;
        Ok(Self::Hello { blob, digest, layout, have })
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => HELLO,
            Self::Have { .. } => HAVE,
            Self::Request { .. } => REQUEST,
            Self::Cancel { .. } => CANCEL,
            Self::NotHere { .. } => NOT_HERE,
            Self::Piece { .. } => PIECE,
            Self::Packed { .. } => PACKED,
            Self::Ping => PING,
            Self::Bye => BYE,
            Self::Free { .. } => FREE,
            Self::Here { .. } => HERE,
            Self::AskHolders { .. } => ASK_HOLDERS,
            Self::Holders(_) => HOLDERS,
            Self::Traced { .. } => TRACED,
        }
    }
}

fn flag(body: &mut Bytes) -> Result<bool, WireError> {
    match body.try_get_u8() {
        Ok(0) => Ok(false),
        Ok(1) => Ok(true),
        _ => Err(WireError::Flag),
    }
}

fn digest(body: &mut Bytes) -> Option<Digest> {
    array(body).map(Digest::from_bytes)
}

fn array<const N: usize>(body: &mut Bytes) -> Option<[u8; N]> {
    let bytes = *body.first_chunk()?;
    body.advance(N);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let id = any::<u32>().prop_map(BlobNumber);
        let piece = any::<u32>().prop_map(PieceIndex);
        let digest = any::<[u8; 32]>().prop_map(Digest::from_bytes);
        let statement = any::<[u8; STATEMENT_LENGTH]>().prop_map(|bytes| PieceStatement::decode(&bytes));
        prop_oneof![
            (id.clone(), digest.clone(), 0u64..(1 << 32), any::<bool>()).prop_map(|(blob, digest, length, full)| {
                let layout = PieceLayout::new(length).unwrap();
                let count = layout.piece_count();
                let have = if full { Bitfield::full(count) } else { Bitfield::empty(count) };
                Frame::Hello { blob, digest, layout, have }
            }),
            (id.clone(), prop::collection::vec(piece.clone(), 0..50))
                .prop_map(|(blob, pieces)| Frame::Have { blob, pieces }),
            (id.clone(), piece.clone(), any::<bool>()).prop_map(|(blob, piece, urgent)| Frame::Request {
                blob,
                piece,
                urgent
            }),
            (id.clone(), piece.clone()).prop_map(|(blob, piece)| Frame::Cancel { blob, piece }),
            (digest.clone(), prop::option::of((0..u32::MAX).prop_map(PieceIndex)))
                .prop_map(|(digest, piece)| Frame::NotHere { digest, piece }),
            id.clone().prop_map(|blob| Frame::Free { blob }),
            any::<(u16, [u8; 32])>().prop_map(|(port, group)| Frame::Here { port, group }),
            digest.clone().prop_map(|digest| Frame::AskHolders { digest }),
            telling::tests::tellings().prop_map(Frame::Holders),
            any::<(u32, [u8; 16], [u8; 8])>().prop_map(|(blob, trace, span)| Frame::Traced {
                blob: BlobNumber(blob),
                trace,
                span
            }),
            (id, piece, prop::option::of(statement), prop::collection::vec(any::<u8>(), 0..300), any::<bool>())
                .prop_map(|(blob, piece, statement, bytes, packed)| match packed {
                    true => Frame::Packed { blob, piece, statement, bytes: bytes.into() },
                    false => Frame::Piece { blob, piece, statement, bytes: bytes.into() },
                }),
            Just(Frame::Ping),
            Just(Frame::Bye),
        ]
    }

    fn decode(mut bytes: Bytes) -> Result<(Frame, Bytes), WireError> {
        let header = Header::decode(*bytes.first_chunk().unwrap())?;
        bytes.advance(HEADER_LENGTH);
        let body = bytes.split_to(header.length());
        Ok((Frame::decode(header, body)?, bytes))
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(frames in prop::collection::vec(frames(), 1..5)) {
            let mut out = BytesMut::new();
            frames.iter().for_each(|frame| frame.encode(&mut out));
            let mut rest = out.freeze();
            for frame in frames {
                let (read, after) = decode(rest).unwrap();
                prop_assert_eq!(read, frame);
                rest = after;
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn the_head_of_a_piece_is_that_of_its_frame(blob: u32, piece: u32, stated: bool, bytes: Vec<u8>) {
            let statement = stated.then(|| PieceStatement::decode(&[9; STATEMENT_LENGTH]));
            let head = PieceHead { blob: BlobNumber(blob), piece: PieceIndex(piece), statement };
            let mut sent = BytesMut::new();
            head.encode(&mut sent, bytes.len());
            sent.put_slice(&bytes);
            let mut whole = BytesMut::new();
            let frame = Frame::Piece { blob: head.blob, piece: head.piece, statement, bytes: bytes.clone().into() };
            frame.encode(&mut whole);
            prop_assert_eq!(&sent, &whole);

            let header = Header::decode(*sent.first_chunk().unwrap()).unwrap();
            prop_assert!(header.is_piece() && !header.is_packed());
            let (mut packed, mut whole) = (BytesMut::new(), BytesMut::new());
            head.encode_packed(&mut packed, bytes.len());
            packed.put_slice(&bytes);
            let frame = Frame::Packed { blob: head.blob, piece: head.piece, statement, bytes: bytes.clone().into() };
            frame.encode(&mut whole);
            prop_assert_eq!(&packed, &whole);
            let packed = Header::decode(*packed.first_chunk().unwrap()).unwrap();
            prop_assert!(packed.is_piece() && packed.is_packed());
            let body = &sent[HEADER_LENGTH..];
            let read = PieceHead::decode(body).unwrap();
            prop_assert_eq!(read, head);
            prop_assert_eq!(PieceHead::length(body.first_chunk().unwrap()), Ok(body.len() - bytes.len()));
            prop_assert_eq!(header.piece_length(&read), Ok(bytes.len()));
        }

        /// What is accepted is the encoding of what was read, and nothing else; and no input panics.
        #[test]
        fn arbitrary_bytes_are_a_frame_or_an_error(kind in 0u8..16, body in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut head = [kind, 0, 0, 0, 0];
            head[1..].copy_from_slice(&(body.len() as u32).to_be_bytes());
            let Ok(header) = Header::decode(head) else { return Ok(()) };
            if let Ok(frame) = Frame::decode(header, body.clone().into()) {
                let mut out = BytesMut::new();
                frame.encode(&mut out);
                prop_assert_eq!(&out[HEADER_LENGTH..], &body[..]);
            }
        }
    }

    #[test]
    fn lengths_are_bounded_before_anything_is_allocated() {
        for kind in
            [HELLO, HAVE, REQUEST, CANCEL, NOT_HERE, PIECE, PING, BYE, FREE, PACKED, HERE, ASK_HOLDERS, HOLDERS, TRACED]
        {
            let head = [kind, 0xff, 0xff, 0xff, 0xff];
            assert!(matches!(Header::decode(head), Err(WireError::TooLong { .. })), "{kind}");
        }
        assert_eq!(Header::decode([0, 0, 0, 0, 0]), Err(WireError::Kind(0)));
        // A head that claims a statement for which its body has no room.
        let head = PieceHead { blob: BlobNumber(0), piece: PieceIndex(0), statement: None };
        let short = Header::decode([PIECE, 0, 0, 0, 8]).unwrap();
        assert_eq!(short.piece_length(&head), Err(WireError::Length(PIECE)));
        let long = Header { kind: PIECE, length: MAX_PIECE_FRAME as u32 };
        assert_eq!(long.piece_length(&head), Err(WireError::Length(PIECE)));
    }
}
