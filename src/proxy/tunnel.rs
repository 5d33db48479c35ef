//! CONNECT (RFC 9110, section 9.3.6): bytes carried blindly, or TLS ended here.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::Session;
use super::refusal::Refusal;
use super::target::Target;
use crate::idle::Idle;

/// How long a client may take for its part of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(20);

impl Session {
    pub(super) async fn connect(&self, request: Request<Incoming>) -> (&'static str, Result<Response<Body>, Refusal>) {
        let target = match Target::authority(request.uri()) {
            Ok(target) => target,
            Err(reason) => return ("refused", Err(Refusal::bad(reason))),
        };
        if let Err(refusal) = self.may_connect(&target) {
            return ("refused", Err(refusal));
        }
        let upgrade = hyper::upgrade::on(request);
        let proxy = &self.proxy;
        if let Some(certificates) = &proxy.certificates
            && proxy.rules.names(&target.host, target.port)
        {
            let server = certificates.server(&target.host).map_err(|error| {
                let reason = format!("no certificate for {}: {error:#}", target.host);
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
            });
            return ("intercept", server.map(|server| self.end_here(upgrade, target, server)));
        }
        ("tunnel", proxy.upstream.dial(&target, &proxy.rules).await.map(|server| self.carry(upgrade, target, server)))
    }

    fn may_connect(&self, target: &Target) -> Result<(), Refusal> {
        let rules = &self.proxy.rules;
        let refused =
            |why: &str| Err(Refusal::new(StatusCode::FORBIDDEN, format!("{}:{} {why}", target.host, target.port)));
        if rules.refuses_tunnel(&target.host, target.port) {
            return refused("is refused by proxy.rules");
        }
        let named = rules.may_be_private(&target.host, target.port) || self.proxy.upstream.registry(target).is_some();
        if !named && !self.proxy.connect_ports.contains(&target.port) {
            return refused("is at a port that proxy.connect_ports does not list");
        }
        Ok(())
    }

    /// A blind tunnel: the client is told that it stands, and gets it.
    fn carry(&self, upgrade: OnUpgrade, target: Target, server: TcpStream) -> Response<Body> {
        // The session counts as a connection until the tunnel is gone.
        let session = self.clone();
        self.proxy.tasks.spawn(async move {
            let carrying = async {
                let mut client = Idle::new(TokioIo::new(upgrade.await?), session.proxy.idle);
                let mut server = Idle::new(server, session.proxy.idle);
                tokio::io::copy_bidirectional(&mut client, &mut server).await?;
                anyhow::Ok(())
            };
            if let Some(Err(error)) = session.proxy.shutdown.run_until_cancelled(carrying).await {
                tracing::debug!(server = target.authority_text(), %error, "a tunnel was cut");
            }
        });
        Response::new(Body::empty())
    }

    /// TLS with the client as that server, and requests inside answered like all others.
    fn end_here(&self, upgrade: OnUpgrade, target: Target, server: Arc<ServerConfig>) -> Response<Body> {
        let mut session = self.clone();
        self.proxy.tasks.spawn(async move {
            let accepting = async {
                let client = TokioIo::new(upgrade.await?);
                let stream = Idle::new(client, session.proxy.idle);
                anyhow::Ok(tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(server).accept(stream)).await??)
            };
            match accepting.await {
                Ok(stream) => {
                    session.ended = Some(target);
                    session.serve(stream).await;
                }
                Err(error) => {
                    let server = target.authority_text();
                    tracing::info!(server, %error, "a client does not take the certificate of the proxy's CA");
                }
            }
        });
        Response::new(Body::empty())
    }
}
