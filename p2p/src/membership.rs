//! Who belongs to a cluster, and as what: certificates of an authority.
//!
//! A node is its key ([`crate::identity`]); a certificate (X.509, RFC 5280) says that an authority lets the holder of that
//! key take part: in one group, in some roles. It says so in one URI among its subject alternative names, in the form of a
//! SPIFFE ID (SPIFFE-ID, section 2):
//!
//! ```text
//! spiffe://<cluster>/lapwing/<group>/<roles, joined by "+">/<peer id, 64 hexadecimal digits>
//! ```
//!
//! Addresses and host names are neither written nor looked at. Certificates of other authorities (SPIRE, an operator's
//! own) carry other IDs and other kinds of keys: which of them belong is a list of [patterns](Rules).
//!
//! * `authority`: whom this machine believes, and what a certificate of theirs says
//! * `credentials`: that, and what this machine shows of itself, replaced while connections come and go
//! * `issuer`: being an authority
//! * `key`: the identity as the TLS libraries want a key
//! * `pem`: the files
//!
//! What is not guaranteed: there are no revocation lists. Certificates live for hours, who is expelled is not given another,
//! and a connection ends with the certificate that opened it.

use std::fmt;
use std::str::FromStr;

use crate::identity::PeerId;
use crate::limits::{MAX_CLUSTER_BYTES, MAX_GROUP_BYTES};

mod authority;
mod credentials;
mod issuer;
mod key;
mod pem;
mod validity;

pub(crate) use authority::key_of;
pub use authority::{Authorities, NotAMember, Rules, Side, fingerprint};
pub use credentials::{Credentials, CredentialsError, Shown};
pub use issuer::{Issuer, IssuerError};
pub(crate) use key::Key;
pub use pem::{PemError, certificates, write_certificates};

/// An X.509 certificate in DER.
pub type Certificate = rustls::pki_types::CertificateDer<'static>;

/// What a member may be to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Fetches for the containers of its machine, and serves others.
    Node,
    /// Fetches for all.
    Seed,
    /// Says who holds what.
    Tracker,
}

/// One role or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Roles(u8);

/// Text that names no roles.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no list of roles: expected node, seed and tracker, joined by '+'")]
pub struct InvalidRoles(String);

/// What a certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The cluster, which is the authority's name; SPIFFE's trust domain.
    pub cluster: String,
    /// Members of different groups have nothing to do with each other, except for trackers.
    pub group: String,
    /// What it may be.
    pub roles: Roles,
    /// Its key; of another authority's members it is not in the certificate.
    pub peer: Option<PeerId>,
}

/// An ID that [`Member`] cannot be read from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no ID of a member: expected spiffe://<cluster>/lapwing/<group>/<roles>/<peer id>")]
pub struct InvalidId(String);

const ROLES: [(Role, &str); 3] = [(Role::Node, "node"), (Role::Seed, "seed"), (Role::Tracker, "tracker")];

impl Role {
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ROLES[*self as usize].1)
    }
}

impl Roles {
    /// Every role.
    pub const ALL: Self = Self(0b111);

    /// Just these.
    pub fn of(roles: impl IntoIterator<Item = Role>) -> Self {
        Self(roles.into_iter().fold(0, |bits, role| bits | role.bit()))
    }

    /// Whether `role` is among them.
    pub const fn has(self, role: Role) -> bool {
        self.0 & role.bit() != 0
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<&str> = ROLES.iter().filter(|(role, _)| self.has(*role)).map(|(_, name)| *name).collect();
        f.write_str(&named.join("+"))
    }
}

impl FromStr for Roles {
    type Err = InvalidRoles;

    fn from_str(text: &str) -> Result<Self, InvalidRoles> {
        let find = |name: &str| ROLES.iter().find(|(_, known)| *known == name).map(|(role, _)| *role);
        let roles: Option<Vec<Role>> = text.split('+').map(find).collect();
        let roles = roles.ok_or_else(|| InvalidRoles(text.chars().take(64).collect()))?;
        Ok(Self::of(roles))
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/lapwing/{}/{}", self.cluster, self.group, self.roles)?;
        self.peer.map_or(Ok(()), |peer| write!(f, "/{peer}"))
    }
}

impl FromStr for Member {
    type Err = InvalidId;

    fn from_str(id: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId(id.chars().take(256).collect());
        let parts: Vec<&str> = id.strip_prefix("spiffe://").ok_or_else(invalid)?.split('/').collect();
        let [cluster, "lapwing", group, roles, peer] = parts[..] else { return Err(invalid()) };
        if !is_cluster(cluster) || !is_group(group) {
            return Err(invalid());
        }
        Ok(Self {
            cluster: cluster.to_owned(),
            group: group.to_owned(),
            roles: roles.parse().map_err(|_| invalid())?,
            peer: Some(peer.parse().map_err(|_| invalid())?),
        })
    }
}

/// Whether `name` can be a cluster's: a trust domain (SPIFFE-ID, section 2.1).
pub fn is_cluster(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    !name.is_empty() && name.len() <= MAX_CLUSTER_BYTES && name.bytes().all(allowed)
}

/// Whether `name` can be a group's.
pub fn is_group(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && name.len() <= MAX_GROUP_BYTES && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_cluster_group_roles_and_key() {
        let peer = PeerId::from_bytes([7; 32]);
        let roles = Roles::of([Role::Seed, Role::Node]);
        let member = Member { cluster: "prod.example".into(), group: "team-a".into(), roles, peer: Some(peer) };
        let id = member.to_string();
        assert_eq!(id, format!("spiffe://prod.example/lapwing/team-a/node+seed/{peer}"));
        assert_eq!(id.parse(), Ok(member));
        assert!(roles.has(Role::Node) && roles.has(Role::Seed) && !roles.has(Role::Tracker));
    }

    #[test]
    fn ids_of_another_form_are_refused() {
        let peer = PeerId::from_bytes([7; 32]);
        for id in [
            String::new(),
            format!("https://prod.example/lapwing/g/node/{peer}"),
            format!("spiffe://prod.example/g/node/{peer}"),
            format!("spiffe://prod.example/lapwing/g/node/{peer}/more"),
            format!("spiffe://prod.example/lapwing/../node/{peer}x"),
            format!("spiffe:///lapwing/g/node/{peer}"),
            format!("spiffe://prod.example:1/lapwing/g/node/{peer}"),
            format!("spiffe://prod.example/lapwing/{}/node/{peer}", "g".repeat(MAX_GROUP_BYTES + 1)),
            format!("spiffe://prod.example/lapwing/g h/node/{peer}"),
            format!("spiffe://prod.example/lapwing/g//{peer}"),
            format!("spiffe://prod.example/lapwing/g/root/{peer}"),
            "spiffe://prod.example/lapwing/g/node/abc".to_owned(),
        ] {
            assert!(id.parse::<Member>().is_err(), "{id}");
        }
    }
}
