//! TLS between Lapwing's parts: version 1.3 alone, both sides show a certificate, nobody's name or address counts.
//!
//! Without an authority a node signs its certificate itself: what counts is the key, as in the TLS of libp2p. Who dials goes
//! on only if the key is the [`PeerId`] that it wanted; who listens learns from it who is there. That protects from those
//! who sit between two peers that discovery named, and from nobody else: everybody may make a key and connect.
//!
//! With [`Credentials`], both sides must be [members](crate::membership), of one group unless one is a tracker, in a role
//! that fits. Members of other authorities may have other keys than their node's: those prove who they are in the wire's
//! own [handshake](crate::wire::handshake), which signs the [binding](Proven::binding) of the connection.
//!
//! * [`Protocol`]: what is spoken above, so that no other protocol's server is taken for a part of Lapwing
//! * `verify`: whom each side accepts

use std::sync::Arc;
use std::time::Duration;

use rcgen::CertificateParams;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, Error, ServerConfig, SignatureScheme, version};

use crate::identity::{Identity, PeerId};
use crate::membership::{Credentials, Key, Member, Role, Side, key_of};

mod verify;

use verify::{Dialled, Dialler};

/// Label of the keying material (RFC 8446, 7.5) that the handshake of the wire signs.
const BINDING_LABEL: &[u8] = b"EXPORTER-lapwing-wire";

/// What is spoken within TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Pieces, between nodes.
    Wire,
    /// Calls to trackers and seeds: gRPC.
    Calls,
}

/// Who is expected to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// This node.
    Peer(PeerId),
    /// A member with this role.
    Role(Role),
    /// A tracker of the authority with this [fingerprint](crate::membership::fingerprint), which is not believed yet.
    Authority([u8; 32]),
}

/// This machine's side of TLS connections.
#[derive(Debug, Clone)]
pub struct Tls {
    server: Arc<ServerConfig>,
    client: ClientConfig,
    cluster: Option<Arc<Credentials>>,
}

/// Why this machine's side of TLS could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate.
    #[error("no certificate could be made for TLS: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The settings.
    #[error("no TLS: {0}")]
    Settings(#[from] Error),
}

/// What the other side of a connection has proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The node that it is; a member of a foreign authority proves that elsewhere.
    pub peer: Option<PeerId>,
    /// What an authority says of it; nothing of those that nobody asked to be members.
    pub member: Option<Member>,
    /// How long that is believed; the connection is to end then.
    pub lasts: Option<Duration>,
    /// Keying material of the connection, the same on both sides and on no other connection.
    pub binding: [u8; 32],
}

impl Protocol {
    /// The name in ALPN (RFC 7301).
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Wire => b"lapwing-wire",
            Self::Calls => b"h2",
        }
    }
}

impl Tls {
    /// The sides that prove to be `identity`, among the members of a `cluster` or everybody.
    pub fn new(
        protocol: Protocol,
        identity: &Arc<Identity>,
        cluster: Option<&Arc<Credentials>>,
    ) -> Result<Self, TlsError> {
        let shown = match cluster {
            Some(credentials) => Arc::new(OfMember(Arc::clone(credentials))) as Arc<dyn Certificates>,
            None => Arc::new(self_signed(identity)?) as _,
        };
        let cluster = cluster.cloned();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(Arc::new(Dialler::new(protocol, cluster.clone())))
            .with_cert_resolver(Arc::clone(&shown) as _);
        // A resumed session would not show the other side's certificate again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![protocol.name().to_vec()];
        let nobody = Dialled::new(Expected::Peer(identity.id()), cluster.clone());
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(nobody))
            .with_client_cert_resolver(shown);
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        client.alpn_protocols = vec![protocol.name().to_vec()];
        Ok(Self { server: Arc::new(server), client, cluster })
    }

    /// Whether those who call are asked to be members of a cluster.
    pub const fn has_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// For connections that others open.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For a connection to who is expected and nobody else.
    pub fn client(&self, expected: Expected) -> Arc<ClientConfig> {
        let mut client = self.client.clone();
        client.dangerous().set_certificate_verifier(Arc::new(Dialled::new(expected, self.cluster.clone())));
        Arc::new(client)
    }

    /// Who the other side of an established connection is, which is on `side` of it.
    pub fn proven<C>(&self, connection: &rustls::ConnectionCommon<C>, side: Side) -> Result<Proven, Error> {
        let chain = connection.peer_certificates().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or(Error::NoCertificatesPresented)?;
        let binding = connection.export_keying_material([0; 32], BINDING_LABEL, None)?;
        // Strangers write what they like into certificates of their own: it is proven here as in the handshake.
        let now = UnixTime::now();
        let authorities = self.cluster.as_ref().map(|credentials| credentials.authorities());
        let member = authorities.as_ref().and_then(|authorities| authorities.member(chain, side, now).ok());
        let peer = member.as_ref().map_or_else(|| key_of(&chain[0]), |member| member.peer);
        let until = member.as_ref().and(authorities).and_then(|authorities| authorities.good_until(chain, side, now));
        let lasts = until.map(|until| Duration::from_secs(until.as_secs().saturating_sub(now.as_secs())));
        Ok(Proven { peer, member, lasts, binding })
    }

    /// What this machine's own certificate says, if it has one of an authority.
    pub fn own(&self) -> Option<Member> {
        self.cluster.as_ref().map(|credentials| credentials.own())
    }

    /// The name to give to a TLS library that demands one; it is neither sent nor checked.
    pub fn name() -> ServerName<'static> {
        ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
    }
}

/// Both sides' way to a certificate.
trait Certificates: ResolvesServerCert + ResolvesClientCert {}

impl<T: ResolvesServerCert + ResolvesClientCert> Certificates for T {}

/// The certificate that a node makes for itself.
fn self_signed(identity: &Arc<Identity>) -> Result<SingleCertAndKey, TlsError> {
    let key = Key::new(identity);
    let mut parameters = CertificateParams::default();
    parameters.serial_number = Some(1_u64.into());
    let certificate = parameters.self_signed(&key)?.der().clone();
    Ok(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], Arc::new(key))))
}

/// What a member shows at the moment.
#[derive(Debug)]
struct OfMember(Arc<Credentials>);

impl ResolvesServerCert for OfMember {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.shown())
    }
}

impl ResolvesClientCert for OfMember {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.shown())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
