//! A peer that takes part in a swarm by the rules and sends wrong bytes: the real piece wire, the real tracker client, and one bit of each
//! piece turned over.

use crate::host::Host;
use anyhow::{Context, Result, anyhow};
use bytes::BytesMut;
use lapwing_discovery::client::{ClientConfig, TrackerClient};
use lapwing_p2p::bitfield::Bitfield;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Discovery as _, Holding, LeaseReply, LeaseRequest, Settlement};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::layout::{PieceIndex, PieceLayout};
use lapwing_p2p::statement::PieceStatement;
use lapwing_p2p::verify::piece_hash;
use lapwing_p2p::wire::handshake::{GREETING_LENGTH, Greeting, PLAINTEXT};
use lapwing_p2p::wire::{BlobNumber, Frame, HEADER_LENGTH, Header};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const PORT: u16 = 7081;
const POLL: Duration = Duration::from_millis(20);
const BLOB: BlobNumber = BlobNumber(0);

/// A running corrupting peer; dropping it ends it.
///
/// It announces a blob as complete, so that everybody is sent to it, and asks for leases until it is a lessee, whose statements count; it
/// gives each lease back at once. It states the hashes of the right pieces, so that the blame for the wrong bytes is its own.
pub struct CorruptingPeer {
    /// Ends the thread by being dropped.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
    liar: Arc<Liar>,
}

impl CorruptingPeer {
    /// Starts it on `host`; `content` is the blob that it spoils.
    pub fn start(host: &Host, tracker: &str, content: Vec<u8>) -> Result<Self> {
        let liar = Arc::new(Liar {
            identity: Identity::generate().context("no random numbers")?,
            digest: Digest::of(&content),
            layout: PieceLayout::new(content.len() as u64)?,
            content,
            sent: AtomicU64::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let (host, tracker, thread_liar) = (host.clone(), tracker.to_owned(), Arc::clone(&liar));
        let thread = std::thread::spawn(move || {
            host.within(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let listener = TcpListener::bind(SocketAddr::from((host.address(), PORT))).await?;
                    tokio::select! {
                        _ = stopped => Ok(()),
                        ended = thread_liar.take_part(listener, tracker) => ended,
                    }
                })
            })
        });
        Ok(Self { stop: Some(stop), thread: Some(thread), liar })
    }

    /// How many pieces it has sent, to all together.
    pub fn sent(&self) -> u64 {
        self.liar.sent.load(Ordering::Relaxed)
    }

    /// Ends it; an error when it could not take part.
    pub fn stop(mut self) -> Result<()> {
        self.end().unwrap_or(Ok(()))
    }

    fn end(&mut self) -> Option<Result<()>> {
        drop(self.stop.take());
        let thread = self.thread.take()?;
        Some(thread.join().unwrap_or_else(|_| Err(anyhow!("a panic of the corrupting peer"))))
    }
}

impl Drop for CorruptingPeer {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.end() {
            eprintln!("the corrupting peer: {error:#}");
        }
    }
}

struct Liar {
    identity: Identity,
    digest: Digest,
    layout: PieceLayout,
    content: Vec<u8>,
    sent: AtomicU64,
}

impl Liar {
    async fn take_part(self: &Arc<Self>, listener: TcpListener, tracker: String) -> Result<()> {
        let config = ClientConfig { piece_port: PORT, ..ClientConfig::new(vec![tracker], self.identity.id()) };
        let tracker = TrackerClient::new(config)?;
        tracker.announce(self.digest, Some(Holding::Complete)).await?;
        let become_lessee = async {
            let mut request = LeaseRequest::new(self.digest, self.content.len() as u64);
            request.missing.push(0..self.layout.piece_count());
            while let Ok(reply) = tracker.lease(request.clone()).await {
                match reply {
                    LeaseReply::Granted(lease) => {
                        let _ = tracker.settle(Settlement::new(lease.id, self.digest, 0)).await;
                        break;
                    }
                    LeaseReply::Wait(_) | LeaseReply::Exhausted => tokio::time::sleep(POLL).await,
                }
            }
            std::future::pending::<()>().await;
        };
        let accept = async {
            loop {
                let (stream, _) = listener.accept().await?;
                let liar = Arc::clone(self);
                // A connection that ends is how the others should treat it.
                tokio::spawn(async move { liar.serve(stream).await });
            }
        };
        tokio::select! {
            () = become_lessee => Ok(()),
            ended = accept => ended,
        }
    }

    async fn serve(&self, mut stream: TcpStream) -> Result<()> {
        self.shake_hands(&mut stream).await?;
        let have = Bitfield::full(self.layout.piece_count());
        send(&mut stream, &Frame::Hello { blob: BLOB, digest: self.digest, layout: self.layout, have }).await?;
        let mut spoken_of = HashMap::new();
        loop {
            let mut head = [0; HEADER_LENGTH];
            stream.read_exact(&mut head).await?;
            let header = Header::decode(head)?;
            let mut body = vec![0; header.length()];
            stream.read_exact(&mut body).await?;
            match Frame::decode(header, body.into())? {
                Frame::Hello { blob, digest, .. } => drop(spoken_of.insert(blob, digest)),
                Frame::Request { blob, piece, .. } if spoken_of.get(&blob) == Some(&self.digest) => {
                    self.sent.fetch_add(1, Ordering::Relaxed);
                    send(&mut stream, &self.lie(piece)).await?;
                }
                _ => {}
            }
        }
    }

    async fn shake_hands(&self, stream: &mut TcpStream) -> Result<()> {
        let sent = Greeting { features: 0, peer: self.identity.id(), nonce: [5; 32] };
        stream.write_all(&sent.encode()).await?;
        let mut greeting = [0; GREETING_LENGTH];
        stream.read_exact(&mut greeting).await?;
        let theirs = Greeting::decode(&greeting)?;
        stream.write_all(&theirs.prove(&sent, &self.identity, &PLAINTEXT)).await?;
        let mut proof = [0; 64];
        stream.read_exact(&mut proof).await?;
        Ok(theirs.check(&sent, &proof, &PLAINTEXT)?)
    }

    fn lie(&self, piece: PieceIndex) -> Frame {
        let range = self.layout.range(piece);
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(self.content.len());
        let right = &self.content[at(range.start)..at(range.end)];
        let hash = piece_hash(right);
        let statement = PieceStatement::sign(&self.identity, &self.digest, self.layout.length(), piece, hash);
        let mut wrong = right.to_vec();
        if let Some(byte) = wrong.first_mut() {
            *byte ^= 1;
        }
        Frame::Piece { blob: BLOB, piece, statement: Some(statement), bytes: wrong.into() }
    }
}

async fn send(stream: &mut TcpStream, frame: &Frame) -> Result<()> {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    Ok(stream.write_all(&out).await?)
}
