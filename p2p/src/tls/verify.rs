//! Whom each side of a connection accepts.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};

use super::{Expected, Protocol};
use crate::membership::{Authorities, Credentials, Member, NotAMember, Role, Rules, Side, fingerprint, key_of};

/// What a certificate may be signed with, and a handshake.
fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("Lapwing speaks TLS 1.3 alone".to_owned()))
}

fn refused(reason: NotAMember) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}

fn another(member: &Member, expected: &str) -> Error {
    refused(NotAMember::Other(format!("it is {member}, expected {expected}")))
}

const NOT_EXPECTED: Error = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);

/// Whether `member` may exchange pieces with this machine.
fn trades(member: &Member, credentials: &Credentials) -> Result<(), Error> {
    let group = credentials.own().group;
    if member.group != group {
        return Err(another(member, &format!("a member of the group {group}")));
    }
    if !member.roles.has(Role::Node) && !member.roles.has(Role::Seed) {
        return Err(another(member, "a node or a seed"));
    }
    Ok(())
}

/// Judges who was dialled.
#[derive(Debug)]
pub(super) struct Dialled {
    expected: Expected,
    cluster: Option<Arc<Credentials>>,
}

impl Dialled {
    pub(super) const fn new(expected: Expected, cluster: Option<Arc<Credentials>>) -> Self {
        Self { expected, cluster }
    }

    fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let own = chain.first().ok_or(Error::NoCertificatesPresented)?;
        let key = key_of(own);
        let Some(credentials) = &self.cluster else {
            return match self.expected {
                Expected::Peer(peer) if key == Some(peer) => Ok(()),
                Expected::Authority(pinned) => judge_pinned(chain, &pinned, now),
                _ => Err(NOT_EXPECTED),
            };
        };
        let member = credentials.authorities().member(chain, Side::Listener, now).map_err(refused)?;
        match self.expected {
            Expected::Peer(peer) => {
                trades(&member, credentials)?;
                // Of a foreign authority's member the wire's handshake tells who it is.
                if member.peer.is_some_and(|found| found != peer) { Err(NOT_EXPECTED) } else { Ok(()) }
            }
            Expected::Role(role) if !member.roles.has(role) => Err(another(&member, &format!("a {role}"))),
            Expected::Role(Role::Tracker) | Expected::Authority(_) => Ok(()),
            Expected::Role(_) => trades(&member, credentials),
        }
    }
}

/// A tracker under the authority that `pinned` names, whose certificate must be among those shown.
fn judge_pinned(chain: &[CertificateDer<'_>], pinned: &[u8; 32], now: UnixTime) -> Result<(), Error> {
    let authority = chain.iter().skip(1).find(|shown| fingerprint(shown).as_ref() == Some(pinned));
    let authority = authority
        .ok_or_else(|| refused(NotAMember::Other("it is not of the authority that the token names".to_owned())))?;
    let authorities = Authorities::new(vec![authority.clone().into_owned()], Rules::default())
        .map_err(|error| refused(NotAMember::Unproven(error)))?;
    let member = authorities.member(&chain[..1], Side::Listener, now).map_err(refused)?;
    if member.roles.has(Role::Tracker) { Ok(()) } else { Err(another(&member, "a tracker")) }
}

impl ServerCertVerifier for Dialled {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(&chain(end_entity, intermediates), now).map(|()| ServerCertVerified::assertion())
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
        verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Judges who dials.
#[derive(Debug)]
pub(super) struct Dialler {
    protocol: Protocol,
    cluster: Option<Arc<Credentials>>,
}

impl Dialler {
    pub(super) const fn new(protocol: Protocol, cluster: Option<Arc<Credentials>>) -> Self {
        Self { protocol, cluster }
    }

    fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let has_node_key = chain.first().is_some_and(|own| key_of(own).is_some());
        let stranger =
            if has_node_key { Ok(()) } else { Err(Error::InvalidCertificate(CertificateError::BadEncoding)) };
        let Some(credentials) = &self.cluster else { return stranger };
        match (credentials.authorities().member(chain, Side::Dialer, now), self.protocol) {
            (Ok(member), Protocol::Wire) => trades(&member, credentials),
            (Ok(_), Protocol::Calls) => Ok(()),
            // Each call says whom it is for: there is one by which strangers become members.
            (Err(_), Protocol::Calls) => stranger,
            (Err(reason), Protocol::Wire) => Err(refused(reason)),
        }
    }
}

impl ClientCertVerifier for Dialler {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(&chain(end_entity, intermediates), now).map(|()| ClientCertVerified::assertion())
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
        verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn chain<'a>(own: &CertificateDer<'a>, others: &[CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(own.clone()).chain(others.iter().cloned()).collect()
}
