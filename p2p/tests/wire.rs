//! What peers send, with changes: every frame is refused or is exactly what it says, whatever its bytes are, and so is every metainfo and
//! every packed piece.
//!
//! The corpus is a valid message of each kind. `LAPWING_TEST_FUZZ_SECONDS` says for how long inputs go on (otherwise a fixed number of them),
//! `LAPWING_TEST_FUZZ_SEED` from which number on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use lapwing_evidence::Evidence;
use lapwing_evidence::fuzz::Inputs;
use lapwing_evidence::random::Random;
use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::limits::{MAX_CONTROL_FRAME, MAX_PIECE_FRAME};
use lapwing_p2p::statement::{PieceStatement, STATEMENT_LENGTH};
use lapwing_p2p::verify::Metainfo;
use lapwing_p2p::wire::handshake::Greeting;
use lapwing_p2p::wire::packing::{pack, unpack};
use lapwing_p2p::wire::telling::{Telling, ToldHolder};
use lapwing_p2p::wire::{BlobNumber, Frame, HEADER_LENGTH, Header, PieceHead};

/// Whether an input was taken for what it says, or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Taken,
    Refused,
}

/// Gives a parser `rounds` inputs, in the fault campaign twenty times as many, or as many as there is time for.
fn fuzz(target: &str, rounds: u32, judge: impl Fn(&mut Random) -> Verdict) {
    let mut evidence = Evidence::new(4, &format!("{target} that are changed at random"));
    let (mut taken, mut refused, mut inputs) = (0, 0, Inputs::new(rounds));
    inputs.judge(target, Duration::from_secs(10), judge, |took, verdict| {
        evidence.ended(took, verdict == Verdict::Taken);
        *if verdict == Verdict::Taken { &mut taken } else { &mut refused } += 1;
    });
    evidence.faults(target, inputs.drawn());
    eprintln!("{target}: {} inputs: {refused} refused, {taken} taken", inputs.drawn());
    assert!(!inputs.is_whole() || (refused > 0 && taken > 0), "{target}: changes do too much or too little");
}

/// What is taken encodes to the bytes that it was read from.
fn exact<E>(encoded: Result<Vec<u8>, E>, bytes: &[u8]) -> Verdict {
    let Ok(encoded) = encoded else { return Verdict::Refused };
    assert_eq!(encoded, bytes);
    Verdict::Taken
}

/// One of each kind.
fn frames(random: &mut Random) -> Vec<Frame> {
    let (blob, piece) = (BlobNumber(random.draw() as u32), PieceIndex(random.edge() as u32));
    let digest = Digest::of(&random.bytes(8));
    let layout = PieceLayout::new(random.draw() % (1 << 36)).unwrap();
    let have = match random.below(3) {
        0 => Bitfield::full(layout.piece_count()),
        _ => Bitfield::empty(layout.piece_count()),
    };
    let statement = PieceStatement::decode(random.bytes(STATEMENT_LENGTH).first_chunk().unwrap());
    let statement = random.one_in(2).then_some(statement);
    let content = vec![random.draw() as u8; random.below(5000)];
    let packed = pack(&content).unwrap_or_else(|| content.clone());
    let told = |port: u16| ToldHolder {
        peer: PeerId::from_bytes([port as u8; 32]),
        address: if port.is_multiple_of(2) {
            ([10, 0, 0, 1], port).into()
        } else {
            ([0xfd, 0, 0, 0, 0, 0, 0, 1], port).into()
        },
        holding: if port.is_multiple_of(3) { Holding::Complete } else { Holding::Partial },
    };
    let telling = Telling {
        digest,
        own: random.one_in(2).then_some(Holding::Partial),
        metainfo: random.one_in(2).then_some((digest, random.edge())),
        others: (1..=random.below(20) as u16).map(told).collect(),
    };
    vec![
        Frame::Hello { blob, digest, layout, have },
        Frame::Have { blob, pieces: (0..random.below(40) as u32).map(PieceIndex).collect() },
        Frame::Request { blob, piece, urgent: random.one_in(2) },
        Frame::Cancel { blob, piece },
        Frame::NotHere { digest, piece: random.one_in(2).then_some(PieceIndex(3)) },
        Frame::Piece { blob, piece, statement, bytes: content.into() },
        Frame::Packed { blob, piece, statement, bytes: packed.into() },
        Frame::Ping,
        Frame::Bye,
        Frame::Free { blob },
        Frame::Here { port: random.draw() as u16, group: *digest.as_bytes() },
        Frame::AskHolders { digest },
        Frame::Holders(telling),
        Frame::Traced { blob, trace: [7; 16], span: [8; 8] },
    ]
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out.to_vec()
}

/// Reads one frame after the other, as a connection does: what is taken encodes to the bytes that it was read from.
fn read(mut stream: Bytes) -> Verdict {
    while let Some(head) = stream.first_chunk::<HEADER_LENGTH>() {
        let Ok(header) = Header::decode(*head) else { return Verdict::Refused };
        // What a connection allocates on the word of a header.
        let most = if header.is_piece() { MAX_PIECE_FRAME } else { MAX_CONTROL_FRAME };
        assert!(header.length() <= most, "{} bytes are allowed, at most {most} should be", header.length());
        if stream.len() < HEADER_LENGTH + header.length() {
            return Verdict::Refused;
        }
        let whole = stream.split_to(HEADER_LENGTH + header.length());
        let mut body = whole.clone();
        body.advance(HEADER_LENGTH);
        // A connection reads the bytes of a piece apart from its head.
        if header.is_piece()
            && let Ok(head) = PieceHead::decode(&body)
            && let Ok(length) = header.piece_length(&head)
        {
            assert!(length <= body.len(), "a piece of {length} bytes in a body of {}", body.len());
        }
        let Ok(frame) = Frame::decode(header, body) else { return Verdict::Refused };
        assert_eq!(encoded(&frame), &whole[..], "{frame:?} is not what its bytes say");
    }
    if stream.is_empty() { Verdict::Taken } else { Verdict::Refused }
}

#[test]
fn changed_frames_are_refused_or_are_what_they_say() {
    fuzz("frames", 40_000, |random| {
        let corpus: Vec<Vec<u8>> = frames(random).iter().map(encoded).collect();
        let (one, other) = (random.pick(&corpus).clone(), random.pick(&corpus).clone());
        let mut stream = one;
        match random.below(3) {
            // Lengths stay right, so that bodies are read.
            0 if stream.len() > HEADER_LENGTH => random.nudge(&mut stream[HEADER_LENGTH..]),
            1 => stream.extend(&other),
            _ => random.mutate(&mut stream, &other),
        }
        if random.one_in(4) {
            let length = (stream.len().max(HEADER_LENGTH) - HEADER_LENGTH) as u32;
            stream.resize(stream.len().max(HEADER_LENGTH), 0);
            stream[1..HEADER_LENGTH].copy_from_slice(&length.to_be_bytes());
        }
        read(stream.into())
    });
}

#[test]
fn changed_greetings_are_refused_or_are_what_they_say() {
    let greeting = |random: &mut Random| Greeting {
        peer: PeerId::from_bytes(*random.bytes(32).first_chunk().unwrap()),
        nonce: *random.bytes(32).first_chunk().unwrap(),
        features: random.draw() as u16,
    };
    fuzz("greetings", 20_000, |random| {
        let mut bytes = greeting(random).encode();
        random.nudge(&mut bytes);
        exact(Greeting::decode(&bytes).map(|read| read.encode().to_vec()), &bytes)
    });
}

#[test]
fn changed_metainfo_is_refused_or_is_what_it_says() {
    fuzz("metainfo", 20_000, |random| {
        let length = random.draw() % (1 << 28);
        let pieces = PieceLayout::new(length).unwrap().piece_count();
        let hashes = (0..pieces).map(|piece| [piece as u8; 32]).collect();
        let mut bytes = Metainfo::new(Digest::of(b"blob"), length, hashes).unwrap().encode();
        let other = bytes.clone();
        match random.below(2) {
            0 => random.nudge(&mut bytes),
            _ => random.mutate(&mut bytes, &other),
        }
        exact(Metainfo::decode(&bytes).map(|read| read.encode()), &bytes)
    });
}

/// Bytes that are packed unpack to a piece of the length that is known beforehand, or not at all: never to more.
#[test]
fn changed_packed_pieces_fill_the_piece_or_are_refused() {
    fuzz("packed pieces", 10_000, |random| {
        let content: Vec<u8> = (0..random.below(20_000)).map(|at| (at / 50) as u8).collect();
        let Some(mut packed) = pack(&content) else { return Verdict::Refused };
        let other = packed.clone();
        random.mutate(&mut packed, &other);
        // Also where the announced length lies.
        let length = if random.one_in(4) { random.below(40_000) } else { content.len() };
        let mut piece = vec![0; length];
        if unpack(&packed, &mut piece) { Verdict::Taken } else { Verdict::Refused }
    });
}
