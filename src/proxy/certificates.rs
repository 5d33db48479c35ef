//! Certificates for hosts whose TLS is ended here, issued by the operator's own CA.
//!
//! One key for all of them, made at the start and never written down. A certificate is valid for a week and used for a day.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use lru::LruCache;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use crate::limits::MAX_PROXIED_HOSTS;

/// A client's clock may be late by this.
const BEFORE: Duration = Duration::from_secs(3600);
const VALID: Duration = Duration::from_secs(7 * 24 * 3600);
const USED: Duration = Duration::from_secs(24 * 3600);
/// Longest common name (RFC 5280, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

/// The operator's CA, and what it issued.
pub(super) struct Certificates {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, and those above it that the file has.
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    issued: Mutex<LruCache<String, (Instant, Arc<ServerConfig>)>>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the CA's certificate and its key.
    pub(super) fn load(ca_file: &Path, ca_key_file: &Path) -> anyhow::Result<Self> {
        let of_file = || format!("configuration key proxy.ca_file: {}", ca_file.display());
        let of_key = || format!("configuration key proxy.ca_key_file: {}", ca_key_file.display());
        let chain: Vec<_> =
            CertificateDer::pem_file_iter(ca_file).and_then(Iterator::collect::<Result<_, _>>).with_context(of_file)?;
        let own = chain.first().context("there is no certificate in it").with_context(of_file)?;
        let pem = std::fs::read_to_string(ca_key_file).with_context(of_key)?;
        let ca_key = KeyPair::from_pem(&pem).with_context(of_key)?;
        let public = ca_key.der_bytes().to_vec();
        ensure!(
            own.windows(public.len()).any(|bytes| bytes == public),
            "{}: it is not the key of the certificate in {}",
            of_key(),
            ca_file.display()
        );
        let issuer = Issuer::from_ca_cert_der(own, ca_key).with_context(of_file)?;
        let issued = Mutex::new(LruCache::new(MAX_PROXIED_HOSTS));
        Ok(Self { issuer, chain, key: KeyPair::generate()?, issued })
    }

    /// What a server called `host` speaks TLS with.
    pub(super) fn server(&self, host: &str) -> anyhow::Result<Arc<ServerConfig>> {
        let known = self.issued.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned();
        if let Some((since, server)) = known
            && since.elapsed() < USED
        {
            return Ok(server);
        }
        let leaf = self.issue(host)?;
        let chain = [leaf].into_iter().chain(self.chain.iter().cloned()).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let mut server = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let server = Arc::new(server);
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        issued.put(host.to_owned(), (Instant::now(), server.clone()));
        Ok(server)
    }

    fn issue(&self, host: &str) -> anyhow::Result<CertificateDer<'static>> {
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        if host.len() <= MAX_COMMON_NAME && host.parse::<IpAddr>().is_err() {
            params.distinguished_name.push(DnType::CommonName, host);
        }
        let now = SystemTime::now();
        params.not_before = OffsetDateTime::from(now - BEFORE);
        params.not_after = OffsetDateTime::from(now + VALID);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&self.key, &self.issuer)?.der().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, IsCa};

    /// A CA's certificate and key in files.
    fn ca(dir: &Path, name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let (cert_file, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        std::fs::write(&cert_file, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        (cert_file, key_file)
    }

    #[test]
    fn a_host_keeps_its_certificate_and_there_is_an_end_to_hosts() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = ca(dir.path(), "ca");
        let certificates = Certificates::load(&cert, &key).unwrap();
        let first = certificates.server("reg.example").unwrap();
        assert!(Arc::ptr_eq(&first, &certificates.server("reg.example").unwrap()));
        assert!(certificates.server("10.0.0.1").is_ok() && certificates.server("2001:db8::1").is_ok());
        for number in 0..MAX_PROXIED_HOSTS.get() {
            certificates.server(&format!("h{number}.example")).unwrap();
        }
        assert_eq!(certificates.issued.lock().unwrap().len(), MAX_PROXIED_HOSTS.get());
        assert!(!Arc::ptr_eq(&first, &certificates.server("reg.example").unwrap()));
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let ((cert, key), (_, other)) = (ca(dir.path(), "ca"), ca(dir.path(), "other"));
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        for (cert, key, named) in [
            (&cert, &other, "proxy.ca_key_file"),
            (&empty, &key, "proxy.ca_file"),
            (&cert, &empty, "proxy.ca_key_file"),
        ] {
            let error = format!("{:#}", Certificates::load(cert, key).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
