//! TLS of the piece wire: version 1.3 alone, both sides show a certificate, and the key in it is the node's identity.
//!
//! Nobody signs these certificates but the node itself: what counts is the key, as in the TLS of libp2p. The handshake
//! of TLS proves that the other side has it. Who dials goes on only if the key is the [`PeerId`] that it wanted; who
//! listens learns from it who is there. Names, dates and everything else in the certificate are ignored.
//!
//! What this protects: nobody on the way can read or change what two peers say, or pass for the peer that discovery
//! named. What it does not: there is no authority yet, so everybody may make a key and connect; and who can lie to
//! discovery can name a peer of his own.

use std::sync::Arc;

use rcgen::{CertificateParams, PublicKeyData};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureAlgorithm,
    SignatureScheme, version,
};

use crate::identity::{Identity, PeerId};

/// What both sides must offer, so that no other protocol's server is taken for a node.
const PROTOCOL: &[u8] = b"lapwing-wire";
/// Label of the keying material (RFC 8446, 7.5) that the handshake of the wire signs.
const BINDING_LABEL: &[u8] = b"EXPORTER-lapwing-wire";
/// A SubjectPublicKeyInfo of Ed25519 (RFC 8410) up to the key.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A node's side of TLS connections.
#[derive(Debug, Clone)]
pub struct Tls {
    server: Arc<ServerConfig>,
    client: ClientConfig,
}

/// Why a node's side of TLS could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate.
    #[error("no certificate could be made for the piece wire: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The settings.
    #[error("no TLS for the piece wire: {0}")]
    Settings(#[from] Error),
}

impl Tls {
    /// The sides that prove to be `identity`.
    pub fn new(identity: &Arc<Identity>) -> Result<Self, TlsError> {
        let key = Key(Arc::clone(identity), *identity.id().as_bytes());
        let mut parameters = CertificateParams::default();
        parameters.serial_number = Some(1_u64.into());
        let certificate = parameters.self_signed(&key)?.der().clone();
        let shown = Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], Arc::new(key))));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(Arc::new(Anybody))
            .with_cert_resolver(Arc::clone(&shown) as _);
        // A resumed session would not show the other side's key again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Only(identity.id())))
            .with_client_cert_resolver(shown);
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self { server: Arc::new(server), client })
    }

    /// For connections that others open.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For a connection to `peer` and nobody else.
    pub fn client(&self, peer: PeerId) -> Arc<ClientConfig> {
        let mut client = self.client.clone();
        client.dangerous().set_certificate_verifier(Arc::new(Only(peer)));
        Arc::new(client)
    }

    /// The name to give to a TLS library that demands one; it is neither sent nor checked.
    pub fn name() -> ServerName<'static> {
        ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
    }
}

/// Who the other side of an established connection is, and what binds the wire's handshake to this connection.
pub fn peer<C>(connection: &rustls::ConnectionCommon<C>) -> Result<(PeerId, [u8; 32]), Error> {
    let shown = connection.peer_certificates().and_then(<[_]>::first).ok_or(Error::NoCertificatesPresented)?;
    let binding = connection.export_keying_material([0; 32], BINDING_LABEL, None)?;
    Ok((peer_of(shown)?, binding))
}

fn peer_of(certificate: &CertificateDer<'_>) -> Result<PeerId, Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let spki = parsed.subject_public_key_info();
    let key = spki.strip_prefix(&SPKI_PREFIX).and_then(|key| key.try_into().ok());
    key.map(PeerId::from_bytes).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))
}

/// The identity as the TLS libraries want a key.
#[derive(Debug, Clone)]
struct Key(Arc<Identity>, [u8; 32]);

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.1
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.sign(message).to_vec())
    }
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(self.clone()) as _)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.sign(message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let peer = peer_of(certificate)?;
    if signature.scheme == SignatureScheme::ED25519 && peer.verify(message, signature.signature()) {
        Ok(HandshakeSignatureValid::assertion())
    } else {
        Err(Error::InvalidCertificate(CertificateError::BadSignature))
    }
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("the piece wire speaks TLS 1.3 alone".to_owned()))
}

/// Accepts the certificate of one peer.
#[derive(Debug)]
struct Only(PeerId);

impl ServerCertVerifier for Only {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if peer_of(end_entity)? == self.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Accepts the certificate of whoever has its key.
#[derive(Debug)]
struct Anybody;

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        peer_of(end_entity).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConnection, ServerConnection};

    fn identity() -> Arc<Identity> {
        Arc::new(Identity::generate().unwrap())
    }

    /// Carries bytes to and fro until both are done or one refuses.
    fn shake_hands(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), Error> {
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok(())
    }

    #[test]
    fn both_sides_learn_who_the_other_is() {
        let (dialer, listener) = (identity(), identity());
        let dialing = Tls::new(&dialer).unwrap().client(listener.id());
        let mut client = ClientConnection::new(dialing, Tls::name()).unwrap();
        let mut server = ServerConnection::new(Tls::new(&listener).unwrap().server()).unwrap();
        shake_hands(&mut client, &mut server).unwrap();
        let (seen_by_client, seen_by_server) = (peer(&client).unwrap(), peer(&server).unwrap());
        assert_eq!((seen_by_client.0, seen_by_server.0), (listener.id(), dialer.id()));
        assert_eq!(seen_by_client.1, seen_by_server.1, "the binding is one of the connection");
        assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }

    #[test]
    fn a_dialer_accepts_only_the_peer_it_dialled() {
        let (dialer, listener, other) = (identity(), identity(), identity());
        let dialing = Tls::new(&dialer).unwrap().client(other.id());
        let mut client = ClientConnection::new(dialing, Tls::name()).unwrap();
        let mut server = ServerConnection::new(Tls::new(&listener).unwrap().server()).unwrap();
        let refused = shake_hands(&mut client, &mut server).unwrap_err();
        assert_eq!(refused, Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
    }

    /// Shows another's certificate, for which it has no key.
    #[test]
    fn a_certificate_without_its_key_is_worth_nothing() {
        let (dialer, listener, victim) = (identity(), identity(), identity());
        let of_victim = {
            let mut parameters = CertificateParams::default();
            parameters.serial_number = Some(1_u64.into());
            parameters.self_signed(&Key(Arc::clone(&victim), *victim.id().as_bytes())).unwrap().der().clone()
        };
        assert_eq!(peer_of(&of_victim), Ok(victim.id()));
        let stolen = |thief: &Arc<Identity>| {
            let key = Key(Arc::clone(thief), *thief.id().as_bytes());
            Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![of_victim.clone()], Arc::new(key))))
        };
        let bad_signature = Error::InvalidCertificate(CertificateError::BadSignature);

        let mut impostor = Tls::new(&listener).unwrap();
        Arc::make_mut(&mut impostor.server).cert_resolver = stolen(&listener);
        let dialing = Tls::new(&dialer).unwrap().client(victim.id());
        let mut client = ClientConnection::new(dialing, Tls::name()).unwrap();
        let mut server = ServerConnection::new(impostor.server()).unwrap();
        assert_eq!(shake_hands(&mut client, &mut server).unwrap_err(), bad_signature);

        let mut impostor = Tls::new(&dialer).unwrap();
        impostor.client.client_auth_cert_resolver = stolen(&dialer);
        let mut client = ClientConnection::new(impostor.client(listener.id()), Tls::name()).unwrap();
        let mut server = ServerConnection::new(Tls::new(&listener).unwrap().server()).unwrap();
        assert_eq!(shake_hands(&mut client, &mut server).unwrap_err(), bad_signature);
    }

    #[derive(Debug)]
    struct Nothing;

    impl rustls::client::ResolvesClientCert for Nothing {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            None
        }

        fn has_certs(&self) -> bool {
            false
        }
    }

    #[test]
    fn who_shows_no_certificate_is_refused() {
        let listener = identity();
        let mut nameless = Tls::new(&identity()).unwrap();
        nameless.client.client_auth_cert_resolver = Arc::new(Nothing);
        let mut client = ClientConnection::new(nameless.client(listener.id()), Tls::name()).unwrap();
        let mut server = ServerConnection::new(Tls::new(&listener).unwrap().server()).unwrap();
        assert_eq!(shake_hands(&mut client, &mut server).unwrap_err(), Error::NoCertificatesPresented);
    }
}
