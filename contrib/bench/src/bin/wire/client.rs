//! Roles that receive and are no nodes: one that speaks the piece wire, one that speaks HTTP. Both read alike.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use bytes::BytesMut;
use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::identity::{Identity, PeerId};
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::membership::Side;
use lapwing_p2p::tls::{Expected, Protocol, Tls};
use lapwing_p2p::wire::handshake::{Channel, GREETING_LENGTH, Greeting, PLAINTEXT};
use lapwing_p2p::wire::{BlobNumber, Frame, HEADER_LENGTH, Header, PieceHead};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::web;
use crate::{Wire, cpu_of, say};

/// Both receivers read in steps of up to this.
const BUFFER: usize = 1 << 20;
/// Pieces asked for and not yet here.
const WINDOW: u32 = 8;

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

fn timed(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (started, cpu) = (Instant::now(), cpu_of(std::process::id())?);
    runtime.block_on(work)?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_of(std::process::id())? - cpu);
    say(&json!({ "seconds": seconds, "cpu_s": cpu.as_secs_f64() }))
}

/// Takes a blob from a node, and drops it.
pub(crate) fn drain(address: SocketAddr, peer: PeerId, wire: Wire, digest: Digest, length: u64) -> anyhow::Result<()> {
    let identity = Arc::new(Identity::generate()?);
    timed(async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        match wire {
            Wire::Plaintext => drain_from(stream, &identity, &PLAINTEXT, digest, length).await,
            Wire::Tls => {
                let tls = Tls::new(Protocol::Wire, &identity, None)?;
                let connector = TlsConnector::from(tls.client(Expected::Peer(peer)));
                let stream = connector.connect(Tls::name(), stream).await?;
                let channel = tls.proven(stream.get_ref().1, Side::Listener)?.binding;
                drain_from(stream, &identity, &channel, digest, length).await
            }
        }
    })
}

async fn drain_from(
    mut stream: impl Stream,
    identity: &Identity,
    channel: &Channel,
    digest: Digest,
    length: u64,
) -> anyhow::Result<()> {
    let sent = Greeting { features: 0, peer: identity.id(), nonce: [5; 32] };
    stream.write_all(&sent.encode()).await?;
    stream.flush().await?;
    let mut greeting = [0; GREETING_LENGTH];
    stream.read_exact(&mut greeting).await?;
    let theirs = Greeting::decode(&greeting)?;
    stream.write_all(&theirs.prove(&sent, identity, channel)).await?;
    stream.flush().await?;
    stream.read_exact(&mut [0; 64]).await?;

    let layout = PieceLayout::new(length)?;
    let (blob, have) = (BlobNumber(0), Bitfield::empty(layout.piece_count()));
    let mut out = BytesMut::new();
    Frame::Hello { blob, digest, layout, have }.encode(&mut out);
    let mut asked = 0;
    let ask = |out: &mut BytesMut, asked: &mut u32| {
        if *asked < layout.piece_count() {
            Frame::Request { blob, piece: PieceIndex(*asked), urgent: false }.encode(out);
            *asked += 1;
        }
    };
    (0..WINDOW).for_each(|_| ask(&mut out, &mut asked));
    let mut buffer = vec![0; BUFFER + PieceHead::MAX_LENGTH];
    let mut came = 0;
    while came < length {
        if !out.is_empty() {
            stream.write_all(&out).await?;
            stream.flush().await?;
            out.clear();
        }
        let mut head = [0; HEADER_LENGTH];
        stream.read_exact(&mut head).await?;
        let header = Header::decode(head)?;
        let body = &mut buffer[..header.length()];
        stream.read_exact(body).await?;
        if header.is_piece() {
            came += header.piece_length(&PieceHead::decode(body)?)? as u64;
            ask(&mut out, &mut asked);
        }
    }
    Ok(())
}

/// Takes the file of the web server, and drops it, or keeps it in the file `sink` and hashes it.
pub(crate) fn get(address: SocketAddr, wire: Wire, sink: &str) -> anyhow::Result<()> {
    let keep = (sink != "drop").then_some(sink);
    timed(async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        match wire {
            Wire::Plaintext => get_from(stream, keep).await,
            Wire::Tls => {
                let connector = TlsConnector::from(web::client_config()?);
                get_from(connector.connect(Tls::name(), stream).await?, keep).await
            }
        }
    })
}

async fn get_from(mut stream: impl Stream, keep: Option<&str>) -> anyhow::Result<()> {
    stream.write_all(b"GET /data HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    stream.flush().await?;
    let mut buffer = vec![0; BUFFER];
    let mut filled = 0;
    let body = loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        anyhow::ensure!(read > 0, "the web server hung up");
        filled += read;
        if let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..body]).to_lowercase();
    anyhow::ensure!(head.starts_with("http/1.1 200"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
    let mut missing = length.trim().parse::<usize>()?;
    let mut kept = keep.map(std::fs::File::create).transpose()?;
    let mut hash = Sha256::new();
    let mut take = |bytes: &[u8]| {
        missing -= bytes.len();
        if let Some(file) = &mut kept {
            hash.update(bytes);
            file.write_all(bytes)?;
        }
        Ok::<_, std::io::Error>(missing)
    };
    let mut left = take(&buffer[body..filled])?;
    while left > 0 {
        let read = stream.read(&mut buffer).await?;
        anyhow::ensure!(read > 0, "the web server hung up");
        left = take(&buffer[..read])?;
    }
    std::hint::black_box(hash.finalize());
    Ok(())
}
