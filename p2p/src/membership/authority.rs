//! Whom this machine believes, and what a certificate of theirs says.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::server::ParsedCertificate;
use sha2::{Digest as _, Sha256};
use webpki::{EndEntityCert, KeyUsage};

use super::validity::not_after;
use super::{Member, Roles};
use crate::identity::PeerId;
use crate::limits::MAX_CERTIFICATES;

/// A SubjectPublicKeyInfo of Ed25519 (RFC 8410, section 4) up to the key.
pub(super) const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Which members of other authorities belong here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// SPIFFE IDs, or beginnings of them that end with `*`.
    pub members: Vec<String>,
    /// The group that they are in, in every role.
    pub group: String,
}

/// Authorities whose certificates are believed.
#[derive(Debug, Clone)]
pub struct Authorities {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    rules: Rules,
}

/// A certificate that makes nobody a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAMember {
    /// It is none, or not of these authorities, or too old or too young.
    #[error("the certificate is not believed: {0}")]
    Unproven(webpki::Error),
    /// It is of theirs, for something else.
    #[error("the certificate makes its holder no member of the cluster: {0}")]
    Other(String),
    /// It is for another key.
    #[error("the certificate is for the key {named}, and its holder has {found}")]
    Key {
        /// In its ID.
        named: PeerId,
        /// What it certifies.
        found: String,
    },
}

/// The side of a connection whose certificate is looked at; certificates may be for one alone (RFC 5280, 4.2.1.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It opened the connection.
    Dialer,
    /// It was dialled.
    Listener,
}

impl Authorities {
    /// Those with these certificates, and nobody that they let for their part.
    pub fn new(certificates: Vec<CertificateDer<'static>>, rules: Rules) -> Result<Self, webpki::Error> {
        let anchors: Result<Vec<_>, _> = certificates
            .iter()
            .map(|certificate| webpki::anchor_from_trusted_cert(certificate).map(|anchor| anchor.to_owned()))
            .collect();
        Ok(Self { anchors: anchors?, certificates, rules })
    }

    /// Their certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// What the authorities say of the holder of `chain`, the holder's own certificate first.
    pub fn member(&self, chain: &[CertificateDer<'_>], side: Side, now: UnixTime) -> Result<Member, NotAMember> {
        let Some((own, others)) = chain.split_first().filter(|_| chain.len() <= MAX_CERTIFICATES) else {
            return Err(NotAMember::Other(format!("{} certificates are shown", chain.len())));
        };
        let certificate = EndEntityCert::try_from(own).map_err(NotAMember::Unproven)?;
        let usage = match side {
            Side::Dialer => KeyUsage::client_auth(),
            Side::Listener => KeyUsage::server_auth(),
        };
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
        certificate
            .verify_for_usage(algorithms, &self.anchors, others, now, usage, None, None)
            .map_err(NotAMember::Unproven)?;
        self.read(own)
    }

    /// When `chain` will not be believed any more; `None` if it is not now.
    pub fn good_until(&self, chain: &[CertificateDer<'_>], side: Side, now: UnixTime) -> Option<UnixTime> {
        self.member(chain, side, now).ok()?;
        // The shortest-lived of all that are shown: that some are not needed costs a connection at worst.
        let last = chain.iter().map(|certificate| not_after(certificate)).min()??;
        // The last second counts (RFC 5280, 4.1.2.5).
        Some(UnixTime::since_unix_epoch(Duration::from_secs(last + 1)))
    }

    /// What a certificate says that has been verified before.
    pub fn read(&self, own: &CertificateDer<'_>) -> Result<Member, NotAMember> {
        let certificate = EndEntityCert::try_from(own).map_err(NotAMember::Unproven)?;
        let ids: Vec<&str> = certificate.valid_uri_names().take(2).collect();
        // An ID is the only URI (X509-SVID, section 2).
        let [id] = ids[..] else {
            return Err(NotAMember::Other(format!("it names {} URIs, expected one SPIFFE ID", ids.len())));
        };
        let member = match id.parse::<Member>() {
            Ok(member) => member,
            Err(error) => self.foreign(id).ok_or_else(|| NotAMember::Other(error.to_string()))?,
        };
        match (member.peer, key_of(own)) {
            (Some(named), Some(found)) if named != found => Err(NotAMember::Key { named, found: found.to_string() }),
            (Some(named), None) => Err(NotAMember::Key { named, found: "one that is not Ed25519".to_owned() }),
            _ => Ok(member),
        }
    }

    fn foreign(&self, id: &str) -> Option<Member> {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => id.starts_with(beginning),
            None => id == pattern,
        };
        let cluster = id.strip_prefix("spiffe://")?.split('/').next()?;
        let belongs = self.rules.members.iter().any(matches);
        belongs.then(|| Member {
            cluster: cluster.to_owned(),
            group: self.rules.group.clone(),
            roles: Roles::ALL,
            peer: None,
        })
    }
}

/// The node with the key of a certificate, if that is an Ed25519 key.
pub(crate) fn key_of(certificate: &CertificateDer<'_>) -> Option<PeerId> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let spki = parsed.subject_public_key_info();
    let key = spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok()?;
    Some(PeerId::from_bytes(key))
}

/// SHA-256 of the public key of a certificate (its SubjectPublicKeyInfo), by which an authority is known before its
/// certificate is.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(Sha256::digest(parsed.subject_public_key_info()).into())
}
