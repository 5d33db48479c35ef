//! What is below the calls: TCP, or TLS between members of a cluster.
//!
//! Who listens learns with each call where it came from and what its caller has proven ([`Arrival`]); what a caller may say
//! is [`Arrival::check`]. Handshakes go on beside each other, each within [`HANDSHAKE_TIMEOUT`], at most
//! [`MAX_HANDSHAKES`] of them: who opens connections and says nothing keeps others waiting for so long at most.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use lapwing_p2p::identity::PeerId;
use lapwing_p2p::membership::{Member, Role, Side};
use lapwing_p2p::tls::{Expected, Proven, Tls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::limits::{ACCEPT_PAUSE, CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_HANDSHAKES, STRANGER_STAYS};

/// Where a call came from, and what its caller has proven. Addresses are in their plain form: a socket bound to `::` sees IPv4
/// peers as mapped addresses.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// The caller's end of the connection.
    pub(crate) remote: IpAddr,
    /// This end.
    pub(crate) local: IpAddr,
    /// Nothing within plain TCP, where callers are taken at their word.
    pub(crate) proven: Option<Proven>,
}

/// What a caller says of itself.
pub(crate) struct Claim<'a> {
    pub(crate) group: &'a str,
    pub(crate) node: PeerId,
    pub(crate) role: Role,
}

impl Arrival {
    /// Of the connection that `request` came over.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Arc<Self>, Status> {
        let missing = || Status::failed_precondition("the address of the caller is unknown: TCP is required");
        request.extensions().get::<Arc<Self>>().cloned().ok_or_else(missing)
    }

    /// Whether the caller may say that it is this.
    pub(crate) fn check(&self, claim: &Claim<'_>) -> Result<(), Status> {
        let Some(member) = self.check_group(claim.group, claim.role)? else { return Ok(()) };
        if member.peer.is_some_and(|peer| peer != claim.node) {
            return Err(denied(member, &format!("is not of the node {}", claim.node)));
        }
        Ok(())
    }

    /// Whether the caller has this role in that group. Gives what it has proven to be; nobody proves anything in plain TCP.
    pub(crate) fn check_group(&self, group: &str, role: Role) -> Result<Option<&Member>, Status> {
        let Some(proven) = &self.proven else { return Ok(None) };
        let Some(member) = &proven.member else {
            return Err(Status::unauthenticated(
                "the caller is no member of this cluster: it shows no certificate of its authority (lapwing ca join)",
            ));
        };
        if member.group != group {
            return Err(denied(member, &format!("is not of the group {group}")));
        }
        if !member.roles.has(role) {
            return Err(denied(member, &format!("is not of a {role}")));
        }
        Ok(Some(member))
    }
}

fn denied(member: &Member, what: &str) -> Status {
    Status::permission_denied(format!("the certificate {member} {what}"))
}

/// A connection that calls come over.
pub(crate) struct Connection {
    stream: Box<dyn Bytes>,
    arrival: Arc<Arrival>,
    /// Until the caller's certificate runs out, or for a while if it has none that is good; then it finds the connection closed, and opens
    /// another with the next one.
    end: Option<Pin<Box<Sleep>>>,
}

trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytes for T {}

impl Connected for Connection {
    type ConnectInfo = Arc<Arrival>;

    fn connect_info(&self) -> Arc<Arrival> {
        Arc::clone(&self.arrival)
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Connections to `listener`, for as long as the stream lives.
pub(crate) fn incoming(listener: TcpListener, tls: Option<Tls>) -> impl Stream<Item = io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(MAX_HANDSHAKES);
    tokio::spawn(async move {
        let shaking = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let stream = tokio::select! {
                stream = listener.accept() => stream,
                () = accepted.closed() => return,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // A connection that was given up meanwhile, or no descriptor left: neither ends the listening.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&shaking).acquire_owned().await else { return };
            let (accepted, tls) = (accepted.clone(), tls.clone());
            tokio::spawn(async move {
                let _permit = permit;
                match timeout(HANDSHAKE_TIMEOUT, receive(stream, tls)).await {
                    Ok(Ok(connection)) => {
                        // The server has ended.
                        let _ = accepted.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "a caller is refused"),
                    Err(_) => tracing::debug!("a caller did not end its handshake"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

async fn receive(stream: TcpStream, tls: Option<Tls>) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let plain = |address: SocketAddr| address.ip().to_canonical();
    let (remote, local) = (plain(stream.peer_addr()?), plain(stream.local_addr()?));
    let Some(tls) = tls else {
        let arrival = Arc::new(Arrival { remote, local, proven: None });
        return Ok(Connection { stream: Box::new(stream), arrival, end: None });
    };
    let stream = TlsAcceptor::from(tls.server()).accept(stream).await?;
    let proven = tls.proven(stream.get_ref().1, Side::Dialer).map_err(io::Error::other)?;
    let stranger = tls.has_cluster() && proven.member.is_none();
    let lasts = if stranger { Some(STRANGER_STAYS) } else { proven.lasts };
    let end = lasts.map(|lasts| Box::pin(tokio::time::sleep(lasts)));
    let arrival = Arc::new(Arrival { remote, local, proven: Some(proven) });
    Ok(Connection { stream: Box::new(stream), arrival, end })
}

/// A way to `endpoint`, opened when it is first used, to who is `expected` there if it is within TLS.
pub(crate) fn channel(endpoint: &Endpoint, tls: Option<&Tls>, expected: Expected) -> Channel {
    let Some(tls) = tls.cloned() else { return endpoint.connect_lazy() };
    let connector = tower::service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move {
            // As one limit for all that comes before the first call.
            let opening = timeout(CONNECT_TIMEOUT, open(uri, tls, expected));
            opening.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        }
    });
    endpoint.connect_with_connector_lazy(connector)
}

async fn open(uri: Uri, tls: Tls, expected: Expected) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or_default())).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(tls.client(expected)).connect(Tls::name(), stream).await
}
