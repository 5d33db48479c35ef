//! What this machine shows of itself and whom it believes, replaced while connections come and go.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use super::pem::{self, PemError};
use super::{Authorities, Key, Member, NotAMember, Side, key_of};
use crate::identity::{Identity, PeerId};

/// Credentials that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file.
    #[error(transparent)]
    File(#[from] PemError),
    /// The key and the certificate.
    #[error("key {0}: {1}")]
    Key(String, String),
    /// The certificate is somebody else's.
    #[error(
        "this machine's certificate is not for its own key, which is {0}; let it join with a token (lapwing ca join), or name \
         the certificate's key"
    )]
    Another(PeerId),
    /// An authority's certificate.
    #[error("an authority's certificate is malformed: {0}")]
    Authority(webpki::Error),
    /// Its own authorities do not believe it.
    #[error("this machine's own certificate: {0}")]
    Own(#[from] NotAMember),
}

/// A certificate with the others that lead to its authority, and its key.
#[derive(Debug, Clone)]
pub struct Shown(Arc<CertifiedKey>);

impl Shown {
    /// Certificates for the key that this node is.
    pub fn with_identity(
        chain: Vec<CertificateDer<'static>>,
        identity: &Arc<Identity>,
    ) -> Result<Self, CredentialsError> {
        if chain.first().and_then(key_of) != Some(identity.id()) {
            return Err(CredentialsError::Another(identity.id()));
        }
        Ok(Self(Arc::new(CertifiedKey::new(chain, Arc::new(Key::new(identity))))))
    }

    /// Certificates for the key in the PEM file `path`.
    pub fn with_key_file(chain: Vec<CertificateDer<'static>>, path: &Path) -> Result<Self, CredentialsError> {
        let text = pem::read_bounded(path)?;
        let failed = |reason: String| CredentialsError::Key(path.display().to_string(), reason);
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| failed(format!("no private key: {error}")))?;
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|e| failed(e.to_string()))?;
        let shown = CertifiedKey::new(chain, key);
        shown.keys_match().map_err(|_| failed("is not the certificate's key".to_owned()))?;
        Ok(Self(Arc::new(shown)))
    }

    /// The certificates, its own first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.cert
    }
}

#[derive(Debug, Clone)]
struct Current {
    shown: Shown,
    authorities: Arc<Authorities>,
    own: Member,
}

/// What this machine shows, and whom it believes, at this moment.
#[derive(Debug)]
pub struct Credentials(RwLock<Current>);

impl Credentials {
    /// Takes what its own authorities believe, or do at another time: as long as a certificate has run out, or begins later by a clock that
    /// is wrong, this machine gets nowhere, but it does run.
    pub fn new(shown: Shown, authorities: Authorities) -> Result<Self, CredentialsError> {
        let current = match Current::new(shown.clone(), authorities.clone()) {
            Err(CredentialsError::Own(NotAMember::Unproven(
                webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. },
            ))) => {
                let own = shown.chain().first().ok_or_else(|| NotAMember::Other("there is none".to_owned()))?;
                let own = authorities.read(own)?;
                Current { shown, authorities: Arc::new(authorities), own }
            }
            current => current?,
        };
        Ok(Self(RwLock::new(current)))
    }

    /// Takes others from now on; what is not good is not taken.
    pub fn replace(&self, shown: Shown, authorities: Authorities) -> Result<(), CredentialsError> {
        let current = Current::new(shown, authorities)?;
        // A whole value is put in place at once.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    fn current(&self) -> Current {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What this machine's own certificate says.
    pub fn own(&self) -> Member {
        self.current().own
    }

    /// Whom it believes.
    pub fn authorities(&self) -> Arc<Authorities> {
        self.current().authorities
    }

    /// Until when it is believed itself.
    pub fn good_until(&self) -> Option<UnixTime> {
        let current = self.current();
        current.authorities.good_until(current.shown.chain(), Side::Listener, UnixTime::now())
    }

    pub(crate) fn shown(&self) -> Arc<CertifiedKey> {
        self.current().shown.0
    }
}

impl Current {
    fn new(shown: Shown, authorities: Authorities) -> Result<Self, CredentialsError> {
        let own = authorities.member(shown.chain(), Side::Listener, UnixTime::now())?;
        Ok(Self { shown, authorities: Arc::new(authorities), own })
    }
}
