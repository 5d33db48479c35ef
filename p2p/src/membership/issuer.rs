//! Being an authority: a key, its certificate, and the certificates that it gives.
//!
//! ```text
//! <directory>/            0700
//!   authority.key         PKCS #8, 0600: who reads it can let anybody in
//!   authority.pem         its certificate; others after it are of authorities that members believe as well
//!   cluster               the cluster's name
//! ```

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use super::key::TheirKey;
use super::pem::{self, PemError};
use super::{Key, Member, is_cluster};
use crate::identity::{Identity, IdentityError, PeerId};

/// How long an authority's own certificate is good.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Certificates are good from a moment before they are given: clocks differ.
const BACKDATED: Duration = Duration::from_secs(300);

/// An authority.
#[derive(Debug)]
pub struct Issuer {
    cluster: String,
    key: Key,
    id: PeerId,
    /// Its own first, and one at least.
    believed: Vec<CertificateDer<'static>>,
}

/// An authority that cannot be made, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The name of the cluster.
    #[error("{0:?} is no name of a cluster: expected lowercase letters, digits, '.', '-' or '_', such as prod.example")]
    Cluster(String),
    /// Something is there.
    #[error("{0} exists and holds an authority, which is not replaced")]
    Exists(PathBuf),
    /// Others may read it.
    #[error(
        "{0} can be entered by others than its owner; chmod 0700, and make a new authority if somebody may have read it"
    )]
    Open(PathBuf),
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key.
    #[error(transparent)]
    Key(#[from] IdentityError),
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] PemError),
    /// Key and certificate do not belong together.
    #[error("{0} does not begin with the certificate of the authority's key")]
    Mismatch(PathBuf),
    /// Making a certificate failed.
    #[error("no certificate could be made: {0}")]
    Issue(#[from] rcgen::Error),
}

impl Issuer {
    /// Makes an authority for `cluster` in `directory`, which must hold none.
    pub fn create(directory: &Path, cluster: &str) -> Result<Self, IssuerError> {
        if !is_cluster(cluster) {
            return Err(IssuerError::Cluster(cluster.to_owned()));
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| IssuerError::Io { path, source }
        };
        let make = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        make.map_err(failed(directory))?;
        private(directory)?;
        if directory.join("authority.key").exists() {
            return Err(IssuerError::Exists(directory.to_owned()));
        }
        let identity = Arc::new(Identity::load_or_create(&directory.join("authority.key"))?);
        let key = Key::new(&identity);
        let now = SystemTime::now();
        let mut parameters = authority(cluster, identity.id());
        (parameters.not_before, parameters.not_after) = ((now - BACKDATED).into(), (now + AUTHORITY_LIFETIME).into());
        let certificate = parameters.self_signed(&key)?.der().clone();
        let name = directory.join("cluster");
        std::fs::write(&name, format!("{cluster}\n")).map_err(failed(&name))?;
        pem::write_certificates(&directory.join("authority.pem"), std::slice::from_ref(&certificate))?;
        Ok(Self { cluster: cluster.to_owned(), key, id: identity.id(), believed: vec![certificate] })
    }

    /// Opens the authority that [`create`](Self::create) made.
    pub fn open(directory: &Path) -> Result<Self, IssuerError> {
        private(directory)?;
        let path = directory.join("cluster");
        let cluster = std::fs::read_to_string(&path).map_err(|source| IssuerError::Io { path, source })?;
        let cluster = cluster.trim_end().to_owned();
        if !is_cluster(&cluster) {
            return Err(IssuerError::Cluster(cluster));
        }
        let path = directory.join("authority.key");
        std::fs::metadata(&path).map_err(|source| IssuerError::Io { path: path.clone(), source })?;
        let identity = Arc::new(Identity::load_or_create(&path)?);
        let path = directory.join("authority.pem");
        let believed = pem::certificates(&path)?;
        if super::key_of(&believed[0]) != Some(identity.id()) {
            return Err(IssuerError::Mismatch(path));
        }
        Ok(Self { cluster, key: Key::new(&identity), id: identity.id(), believed })
    }

    /// The cluster that it lets nodes into.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.believed[0]
    }

    /// The authorities that members are to believe: itself, and those beside it, while a cluster goes from one to another.
    pub fn believed(&self) -> &[CertificateDer<'static>] {
        &self.believed
    }

    /// Lets `peer` take part as `member` says, for `lifetime`. Gives the certificate, and this authority's after it.
    pub fn issue(
        &self,
        member: &Member,
        peer: PeerId,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, IssuerError> {
        let member = Member { cluster: self.cluster.clone(), peer: Some(peer), ..member.clone() };
        let now = SystemTime::now();
        let mut parameters = CertificateParams::default();
        parameters.serial_number = Some(serial());
        (parameters.not_before, parameters.not_after) = ((now - BACKDATED).into(), (now + lifetime).into());
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, peer.short());
        parameters.subject_alt_names = vec![SanType::URI(member.to_string().try_into()?)];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = rcgen::Issuer::new(authority(&self.cluster, self.id), self.key.clone());
        let certificate = parameters.signed_by(&TheirKey(peer), &issuer)?.der().clone();
        Ok(vec![certificate, self.certificate().clone()])
    }
}

/// What an authority's certificate says; the same each time, but for its dates.
fn authority(cluster: &str, id: PeerId) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.serial_number = Some(serial());
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::OrganizationName, "Lapwing");
    parameters.distinguished_name.push(DnType::CommonName, cluster);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.key_identifier_method = KeyIdMethod::PreSpecified(Sha256::digest(id.as_bytes())[..20].to_vec());
    parameters
}

/// A positive number that nobody can foresee (RFC 5280, 4.1.2.2).
fn serial() -> SerialNumber {
    let mut bytes = [0; 16];
    // What cannot be foreseen matters for hashes that collide, which SHA-512 in Ed25519 does not.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn private(directory: &Path) -> Result<(), IssuerError> {
    let found =
        std::fs::metadata(directory).map_err(|source| IssuerError::Io { path: directory.to_owned(), source })?;
    if found.mode() & 0o077 != 0 {
        return Err(IssuerError::Open(directory.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use rustls::pki_types::UnixTime;

    use super::*;
    use crate::membership::{Authorities, Credentials, NotAMember, Role, Roles, Rules, Shown, Side};

    fn member(peer: PeerId) -> Member {
        let roles = Roles::of([Role::Node]);
        Member { cluster: "prod.example".into(), group: "team".into(), roles, peer: Some(peer) }
    }

    const DAY: Duration = Duration::from_secs(86_400);

    fn believing(issuer: &Issuer) -> Authorities {
        Authorities::new(vec![issuer.certificate().clone()], Rules::default()).unwrap()
    }

    #[test]
    fn who_believes_an_authority_believes_what_it_gives_while_it_is_good() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca");
        let made = Issuer::create(&path, "prod.example").unwrap();
        assert!(matches!(Issuer::create(&path, "other"), Err(IssuerError::Exists(_))));
        let opened = Issuer::open(&path).unwrap();
        let peer = Identity::generate().unwrap().id();
        let now = UnixTime::now();
        for issuer in [&made, &opened] {
            let chain = issuer.issue(&member(peer), peer, DAY).unwrap();
            let authorities = believing(&made);
            for side in [Side::Dialer, Side::Listener] {
                assert_eq!(authorities.member(&chain, side, now), Ok(member(peer)));
            }
            let good_until = authorities.good_until(&chain, Side::Dialer, now).unwrap().as_secs();
            assert!(good_until.abs_diff(now.as_secs() + 86_400) < 60, "{good_until}");
            let last = UnixTime::since_unix_epoch(Duration::from_secs(good_until - 1));
            assert!(authorities.member(&chain, Side::Dialer, last).is_ok());
            let later = UnixTime::since_unix_epoch(Duration::from_secs(good_until));
            assert!(matches!(authorities.member(&chain, Side::Dialer, later), Err(NotAMember::Unproven(_))));
            assert_eq!(authorities.good_until(&chain, Side::Dialer, later), None);
        }
    }

    #[test]
    fn certificates_of_another_authority_or_key_make_no_member() {
        let directory = tempfile::tempdir().unwrap();
        let ours = Issuer::create(&directory.path().join("ours"), "prod.example").unwrap();
        let theirs = Issuer::create(&directory.path().join("theirs"), "prod.example").unwrap();
        let (peer, other) = (Identity::generate().unwrap().id(), Identity::generate().unwrap().id());
        let now = UnixTime::now();
        let chain = theirs.issue(&member(peer), peer, DAY).unwrap();
        assert!(matches!(believing(&ours).member(&chain, Side::Dialer, now), Err(NotAMember::Unproven(_))));
        assert!(matches!(believing(&ours).member(&[], Side::Dialer, now), Err(NotAMember::Other(_))));
        let own = ours.certificate().clone();
        assert!(believing(&ours).member(&[own], Side::Dialer, now).is_err(), "the authority itself is no member");
        // A member cannot let others in.
        let identity = Arc::new(Identity::generate().unwrap());
        let mut upstart = Issuer { cluster: "prod.example".into(), key: Key::new(&identity), ..ours };
        upstart.id = identity.id();
        let chain = upstart.issue(&member(other), other, DAY).unwrap();
        assert!(believing(&upstart).member(&chain, Side::Dialer, now).is_err());
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca");
        Issuer::create(&path, "prod.example").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(Issuer::open(&path), Err(IssuerError::Open(_))));
        for name in ["", "Prod", "a b", "a/b"] {
            let created = Issuer::create(&directory.path().join("x"), name);
            assert!(matches!(created, Err(IssuerError::Cluster(_))), "{name}");
        }
    }

    /// A key of another kind, as SPIRE and cert-manager make them.
    struct Ecdsa(EcdsaKeyPair);

    impl rcgen::PublicKeyData for Ecdsa {
        fn der_bytes(&self) -> &[u8] {
            self.0.public_key().as_ref()
        }

        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            &rcgen::PKCS_ECDSA_P256_SHA256
        }
    }

    #[test]
    fn members_of_a_foreign_authority_belong_by_their_ids() {
        let directory = tempfile::tempdir().unwrap();
        let issuer = Issuer::create(&directory.path().join("ca"), "prod.example").unwrap();
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let key = directory.path().join("key.pem");
        let encoded = BASE64_STANDARD.encode(pair.to_pkcs8v1().unwrap().as_ref());
        std::fs::write(&key, format!("-----BEGIN PRIVATE KEY-----\n{encoded}\n-----END PRIVATE KEY-----\n")).unwrap();
        let certificate = |ids: &[&str], key: &Ecdsa| {
            let mut parameters = CertificateParams::default();
            parameters.serial_number = Some(serial());
            parameters.subject_alt_names =
                ids.iter().map(|id| SanType::URI((*id).to_owned().try_into().unwrap())).collect();
            let signer = rcgen::Issuer::new(authority("prod.example", issuer.id), issuer.key.clone());
            vec![parameters.signed_by(key, &signer).unwrap().der().clone()]
        };
        let rules = Rules { members: vec!["spiffe://prod.example/ns/lapwing/*".into()], group: "team".into() };
        let authorities = Authorities::new(vec![issuer.certificate().clone()], rules).unwrap();
        let pair = Ecdsa(pair);
        let id = "spiffe://prod.example/ns/lapwing/sa/node";
        let chain = certificate(&[id], &pair);
        let shown = Shown::with_key_file(chain.clone(), &key).unwrap();
        let own = Credentials::new(shown, authorities.clone()).unwrap().own();
        assert_eq!((&*own.cluster, &*own.group, own.roles, own.peer), ("prod.example", "team", Roles::ALL, None));

        let other = Ecdsa(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap());
        let not_its_key = Shown::with_key_file(certificate(&[id], &other), &key).unwrap_err().to_string();
        assert!(not_its_key.contains("key.pem"), "{not_its_key}");
        let peer = Identity::generate().unwrap().id();
        let named = format!("spiffe://prod.example/lapwing/team/node/{peer}");
        for ids in [vec!["spiffe://prod.example/ns/web/sa/node"], vec![id, id], vec![], vec![&*named]] {
            let refused = authorities.member(&certificate(&ids, &pair), Side::Dialer, UnixTime::now());
            assert!(refused.is_err(), "{ids:?}");
        }
    }
}
