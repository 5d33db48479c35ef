//! A connection of the piece wire as a peer sees it that is no node.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use lapwing_p2p::identity::{Identity, PeerId};
use lapwing_p2p::membership::Side;
use lapwing_p2p::tls::{Expected, Protocol, Tls};
use lapwing_p2p::wire::handshake::{Channel, GREETING_LENGTH, Greeting, PLAINTEXT};
use lapwing_p2p::wire::{Frame, HEADER_LENGTH, Header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::either::Either;

pub(crate) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// Takes a connection as the test's mode wants it.
pub(crate) async fn accept(stream: TcpStream, identity: &Arc<Identity>) -> std::io::Result<Stream> {
    accept_with(0, stream, identity).await
}

/// The same, with features that it offers.
pub(crate) async fn accept_with(features: u16, stream: TcpStream, identity: &Arc<Identity>) -> std::io::Result<Stream> {
    if crate::INSECURE {
        return greet(features, Either::Left(stream), identity, &PLAINTEXT, &PLAINTEXT).await;
    }
    let tls = Tls::new(Protocol::Wire, identity, None).unwrap();
    let stream = TlsAcceptor::from(tls.server()).accept(stream).await?;
    let channel = tls.proven(stream.get_ref().1, Side::Dialer).unwrap().binding;
    greet(features, Either::Right(stream.into()), identity, &channel, &channel).await
}

/// Connects within TLS, whatever the test's mode is. Says nothing yet.
pub(crate) async fn connect(identity: &Arc<Identity>, peer: PeerId, address: SocketAddr) -> (Stream, Channel) {
    let stream = TcpStream::connect(address).await.unwrap();
    let tls = Tls::new(Protocol::Wire, identity, None).unwrap();
    let connector = TlsConnector::from(tls.client(Expected::Peer(peer)));
    let stream = connector.connect(Tls::name(), stream).await.unwrap();
    let channel = tls.proven(stream.get_ref().1, Side::Listener).unwrap().binding;
    (Either::Right(stream.into()), channel)
}

/// Says who it is, proven for the channel `signed`, and checks who is there on `channel`.
pub(crate) async fn shake_hands(
    stream: Stream,
    identity: &Identity,
    signed: &Channel,
    channel: &Channel,
) -> std::io::Result<Stream> {
    greet(0, stream, identity, signed, channel).await
}

async fn greet(
    features: u16,
    mut stream: Stream,
    identity: &Identity,
    signed: &Channel,
    channel: &Channel,
) -> std::io::Result<Stream> {
    let sent = Greeting { features, peer: identity.id(), nonce: [5; 32] };
    stream.write_all(&sent.encode()).await?;
    stream.flush().await?;
    let mut bytes = [0; GREETING_LENGTH];
    stream.read_exact(&mut bytes).await?;
    let theirs = Greeting::decode(&bytes).map_err(std::io::Error::other)?;
    stream.write_all(&theirs.prove(&sent, identity, signed)).await?;
    stream.flush().await?;
    let mut proof = [0; 64];
    stream.read_exact(&mut proof).await?;
    theirs.check(&sent, &proof, channel).map_err(std::io::Error::other)?;
    Ok(stream)
}

/// Sends one frame.
pub(crate) async fn send(stream: &mut Stream, frame: &Frame) -> std::io::Result<()> {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    stream.write_all(&out).await?;
    stream.flush().await
}

/// Waits for the next frame.
pub(crate) async fn receive(stream: &mut Stream) -> std::io::Result<Frame> {
    let mut head = [0; HEADER_LENGTH];
    stream.read_exact(&mut head).await?;
    let header = Header::decode(head).map_err(std::io::Error::other)?;
    let mut body = vec![0; header.length()];
    stream.read_exact(&mut body).await?;
    Frame::decode(header, body.into()).map_err(std::io::Error::other)
}
