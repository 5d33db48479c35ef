//! The beginning of a connection: TLS unless the operator wants plaintext, then the wire's handshake.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::ConnectionError;
use super::channel::{self, Incoming, Outgoing, Socket};
use crate::identity::{Identity, PeerId, SIGNATURE_LENGTH};
use crate::membership::Side;
use crate::node::{Node, NodeConfig};
use crate::tls::{Expected, Tls};
use crate::wire::TAKES_TRACES;
use crate::wire::handshake::{self, GREETING_LENGTH, Greeting, PLAINTEXT};
use crate::wire::packing::TAKES_PACKED;
use crate::wire::telling::TELLS_HOLDERS;

const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of a connection that may wait in this machine for their turn on the network, beyond what is under way.
const UNSENT_BYTES: u32 = 128 << 10;

/// A connection whose other end has proven who it is.
pub(in crate::node) struct Channel {
    pub(in crate::node) peer: PeerId,
    /// The address of the other end.
    pub(super) remote: IpAddr,
    /// Whether the other side asks who has a blob, and tells.
    pub(in crate::node) tells: bool,
    /// Whether the other side takes contexts of traces.
    pub(in crate::node) takes_traces: bool,
    /// Whether the other side takes packed pieces.
    pub(super) packs: bool,
    /// How long the other side's certificate is good.
    pub(super) lasts: Option<Duration>,
    pub(super) read: Incoming,
    pub(super) write: Outgoing,
}

impl Channel {
    fn new(theirs: &Greeting, remote: IpAddr, (read, write): (Incoming, Outgoing)) -> Self {
        let offers = |feature| theirs.features & feature != 0;
        let (packs, tells, takes_traces) = (offers(TAKES_PACKED), offers(TELLS_HOLDERS), offers(TAKES_TRACES));
        Self { peer: theirs.peer, remote, tells, takes_traces, packs, lasts: None, read, write }
    }
}

/// Connects to `peer`; whoever else is there is refused.
pub(in crate::node) async fn dial(address: SocketAddr, peer: PeerId, node: &Node) -> Result<Channel, ConnectionError> {
    let connecting = timeout(DIAL_TIMEOUT, TcpStream::connect(address));
    let stream = connecting.await.map_err(|_| ConnectionError::TimedOut)??;
    tune(&stream)?;
    let remote = stream.peer_addr()?.ip();
    // What the kernel does not have was complained of at the start. Connections that others open are born with it.
    let _ = control_congestion(&stream, &node.config);
    let greeting = async {
        let channel = match &node.tls {
            Some(tls) => {
                let connecting = TlsConnector::from(tls.client(Expected::Peer(peer)))
                    .connect(Tls::name(), channel::beneath_tls(stream));
                greet_within_tls(connecting.await.map_err(ConnectionError::Tls)?.into(), remote, tls, node).await
            }
            None => greet_in_plaintext(stream, node).await,
        }?;
        if channel.peer == peer {
            Ok(channel)
        } else {
            Err(ConnectionError::SomebodyElse { found: channel.peer, expected: peer })
        }
    };
    timeout(HANDSHAKE_TIMEOUT, greeting).await.map_err(|_| ConnectionError::TimedOut)?
}

/// Lets frames go at once, and keeps the kernel from taking in pieces long before it can send them: an upload slot would be free while
/// its bytes still wait, and slots for two peers would become connections to many that share the uplink.
fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)
}

/// Sets the congestion control that the configuration names; of a listener it is that of all its connections.
pub(in crate::node) fn control_congestion(socket: &impl AsFd, config: &NodeConfig) -> std::io::Result<()> {
    match &*config.congestion_control {
        "" => Ok(()),
        name => Ok(rustix::net::sockopt::set_tcp_congestion(socket, name)?),
    }
}

/// Takes a connection that somebody opened.
pub(in crate::node) async fn accept(stream: TcpStream, node: &Node) -> Result<Channel, ConnectionError> {
    tune(&stream)?;
    let remote = stream.peer_addr()?.ip();
    let greeting = async {
        match &node.tls {
            Some(tls) => {
                let accepting = TlsAcceptor::from(tls.server()).accept(channel::beneath_tls(stream));
                greet_within_tls(accepting.await.map_err(ConnectionError::Tls)?.into(), remote, tls, node).await
            }
            None => greet_in_plaintext(stream, node).await,
        }
    };
    timeout(HANDSHAKE_TIMEOUT, greeting).await.map_err(|_| ConnectionError::TimedOut)?
}

async fn greet_in_plaintext(mut stream: TcpStream, node: &Node) -> Result<Channel, ConnectionError> {
    let remote = stream.peer_addr()?.ip();
    let theirs = shake_hands(&mut stream, node, &PLAINTEXT).await?;
    Ok(Channel::new(&theirs, remote, channel::plaintext(stream)))
}

async fn greet_within_tls(
    mut stream: TlsStream<Socket>,
    remote: IpAddr,
    tls: &Tls,
    node: &Node,
) -> Result<Channel, ConnectionError> {
    let proven = match &stream {
        TlsStream::Client(stream) => tls.proven(stream.get_ref().1, Side::Listener)?,
        TlsStream::Server(stream) => tls.proven(stream.get_ref().1, Side::Dialer)?,
    };
    let theirs = shake_hands(&mut stream, node, &proven.binding).await?;
    if let Some(expected) = proven.peer.filter(|proven| *proven != theirs.peer) {
        return Err(ConnectionError::SomebodyElse { found: theirs.peer, expected });
    }
    Ok(Channel { lasts: proven.lasts, ..Channel::new(&theirs, remote, channel::encrypted(stream)) })
}

/// Says who is who. Gives the other side's greeting, proven.
async fn shake_hands(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    node: &Node,
    channel: &handshake::Channel,
) -> Result<Greeting, ConnectionError> {
    let identity = &*node.config.identity;
    let features = if node.config.compression { TAKES_PACKED } else { 0 } | TELLS_HOLDERS | TAKES_TRACES;
    let sent = Greeting { features, peer: identity.id(), nonce: nonce(identity) };
    stream.write_all(&sent.encode()).await?;
    stream.flush().await?;
    let mut bytes = [0; GREETING_LENGTH];
    stream.read_exact(&mut bytes).await?;
    let theirs = Greeting::decode(&bytes)?;
    if theirs.peer == identity.id() {
        return Err(ConnectionError::Oneself);
    }
    stream.write_all(&theirs.prove(&sent, identity, channel)).await?;
    stream.flush().await?;
    let mut proof = [0; SIGNATURE_LENGTH];
    stream.read_exact(&mut proof).await?;
    theirs.check(&sent, &proof, channel)?;
    Ok(theirs)
}

/// Bytes nobody can foresee.
fn nonce(identity: &Identity) -> [u8; 32] {
    let mut nonce = [0; 32];
    if aws_lc_rs::rand::fill(&mut nonce).is_err() {
        // A signature over the time cannot be foreseen either without the key.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let signature = identity.sign(&now.as_nanos().to_be_bytes());
        nonce.copy_from_slice(&signature[..32]);
    }
    nonce
}
