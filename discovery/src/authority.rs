//! Letting nodes into a cluster, on trackers that were given its authority.
//!
//! A stranger shows its own key and a [token](tokens); a member shows its certificate and gets another. Who is to be
//! expelled is [revoked](Authority::revoke): its certificate runs out within its lifetime, and there is no other for it.
//!
//! * [`tokens`]: secrets that let strangers in for a while, in a file
//! * `ledger`: who was let in, as what, in another
//! * `service`: the calls; [`join`] and [`renew`] are a node's side of them
//!
//! The directory is the authority: copied to another tracker, that is the same authority, which knows of strangers that
//! joined at the first only when they show a certificate that is good.

mod asking;
mod ledger;
mod proto;
mod service;
pub mod tokens;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapwing_p2p::identity::PeerId;
use lapwing_p2p::membership::{Issuer, IssuerError, Member};

pub use self::asking::{AskError, Membership, join, renew};
pub use self::ledger::Entry;
use self::ledger::Ledger;
pub(crate) use self::service::service;
use self::tokens::{Token, TokenError};

/// An X.509 certificate in DER.
pub type Certificate = lapwing_p2p::membership::Certificate;

/// An authority, open.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer,
    lifetime: Duration,
    ledger: Mutex<Ledger>,
}

/// Why somebody is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It was expelled.
    #[error("the node {0} was revoked by the operator of this cluster")]
    Revoked(PeerId),
    /// It never joined here.
    #[error(
        "the node {0} never joined here, and shows no certificate that is good; join with a token (lapwing ca join)"
    )]
    Unknown(PeerId),
    /// Its certificate is another authority's.
    #[error("certificates of other authorities are renewed by these")]
    Foreign,
    /// The authority failed.
    #[error("the authority of this cluster failed; its log says why")]
    Failed(#[from] AuthorityError),
}

/// An authority that cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Key and certificates.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl AuthorityError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

impl Authority {
    /// Opens what `lapwing ca init` made in `directory`. Certificates are good for `lifetime`.
    pub fn open(directory: &Path, lifetime: Duration) -> Result<Self, AuthorityError> {
        let issuer = Issuer::open(directory)?;
        let ledger = Ledger::open(&directory.join("members"))?;
        Ok(Self { directory: directory.to_owned(), issuer, lifetime, ledger: Mutex::new(ledger) })
    }

    /// Key and certificate.
    pub const fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Every entry is put in whole.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who was let in, by key.
    pub fn members(&self) -> Vec<(PeerId, Entry)> {
        self.ledger().entries()
    }

    /// A certificate for this process itself.
    pub fn certify(&self, member: &Member, peer: PeerId) -> Result<Membership, AuthorityError> {
        let certificates = self.issuer.issue(member, peer, self.lifetime)?;
        Ok(Membership { certificates, authorities: self.issuer.believed().to_vec() })
    }

    /// Lets `peer` in because the operator says so.
    pub fn admit(&self, member: &Member, peer: PeerId) -> Result<Membership, Refused> {
        self.refuse_revoked(peer)?;
        self.let_in(peer, &Token { group: member.group.clone(), roles: member.roles })
    }

    /// Lets `peer` in, which has its key and brought `token`.
    fn join(&self, token: &str, peer: PeerId) -> Result<Membership, Refused> {
        let token = tokens::redeem(&self.directory, token, now())?;
        self.refuse_revoked(peer)?;
        self.let_in(peer, &token)
    }

    /// Gives `peer`, which has its key, another certificate: like that which it showed, if it did, or the last.
    fn renew(&self, peer: PeerId, shown: Option<&Member>) -> Result<Membership, Refused> {
        self.refuse_revoked(peer)?;
        // Members of another cluster that is believed here are members of that one.
        let token = match shown.filter(|member| member.cluster == self.issuer.cluster()) {
            Some(member) => Token { group: member.group.clone(), roles: member.roles },
            None => {
                let known = self.ledger().get(&peer).cloned().ok_or(Refused::Unknown(peer))?;
                Token { group: known.group, roles: known.roles }
            }
        };
        self.let_in(peer, &token)
    }

    fn refuse_revoked(&self, peer: PeerId) -> Result<(), Refused> {
        let mut ledger = self.ledger();
        // `lapwing ca revoke` is another process.
        ledger.refresh()?;
        if ledger.get(&peer).is_some_and(|entry| entry.revoked) { Err(Refused::Revoked(peer)) } else { Ok(()) }
    }

    fn let_in(&self, peer: PeerId, token: &Token) -> Result<Membership, Refused> {
        let Token { group, roles } = token.clone();
        let member = Member { cluster: self.issuer.cluster().to_owned(), group, roles, peer: Some(peer) };
        let membership = self.certify(&member, peer)?;
        let Member { group, roles, .. } = member;
        self.ledger().note(peer, Entry { group, roles, at: now(), revoked: false })?;
        Ok(membership)
    }

    /// Gives `peer` no certificate any more. False if it never had one from here.
    pub fn revoke(&self, peer: PeerId) -> Result<bool, AuthorityError> {
        let mut ledger = self.ledger();
        ledger.refresh()?;
        let Some(known) = ledger.get(&peer).cloned() else { return Ok(false) };
        ledger.note(peer, Entry { at: now(), revoked: true, ..known })?;
        Ok(true)
    }
}

/// Since the Unix epoch.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
