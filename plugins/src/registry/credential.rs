//! Credentials: whose rights a request to a registry uses.
//!
//! None of these types shows a secret by `Debug` or `Display`, and none is written anywhere.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use sha2::{Digest as _, Sha256};

/// Whose rights a request uses.
#[derive(Clone)]
pub enum Credential {
    /// Nobody's. A token for anonymous use is fetched where the registry wants one.
    Anonymous,
    /// The node's own, from the registry's entry in the configuration; anonymous where that names none.
    Configured,
    /// A user name and password, exchanged for tokens where the registry wants that.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// The `Authorization` header that a client sent, used as it is.
    Header(HeaderValue),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Configured => "the node's own",
            Self::Basic { .. } => "basic",
            Self::Header(_) => "the client's header",
        })
    }
}

impl Credential {
    /// The credential of a client that sent this `Authorization` header, or none.
    pub fn of_client(header: Option<&HeaderValue>) -> Self {
        header.map_or(Self::Anonymous, |header| Self::Header(header.clone()))
    }

    /// What stands for this credential in caches: a hash, so that no cache holds a secret.
    pub fn key(&self) -> CredentialKey {
        let mut hash = Sha256::new();
        match self {
            Self::Anonymous => hash.update(b"anonymous"),
            Self::Configured => hash.update(b"configured"),
            Self::Basic { username, password } => {
                hash.update(b"basic");
                hash.update((username.len() as u64).to_be_bytes());
                hash.update(username);
                hash.update(password);
            }
            Self::Header(header) => {
                hash.update(b"header");
                hash.update(header.as_bytes());
            }
        }
        CredentialKey(hash.finalize().into())
    }
}

/// Stands for a credential in caches, for as long as the process lives: it is no secret, but some could be guessed from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialKey([u8; 32]);

impl fmt::Debug for CredentialKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a credential")
    }
}

impl CredentialKey {
    /// Its bytes. Whoever is shown them can try guesses: they go into a keyed hash or stay where they are.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What a token is fetched with.
#[derive(Clone)]
pub(crate) enum Secret {
    None,
    Password {
        username: String,
        password: String,
    },
    /// A docker `identitytoken`: an OAuth2 refresh token.
    Identity(String),
}

impl Secret {
    /// `Authorization: Basic` for this secret.
    pub(crate) fn basic(&self) -> Option<HeaderValue> {
        let Self::Password { username, password } = self else {
            return None;
        };
        let mut value =
            HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let credential = Credential::Header(HeaderValue::from_static("Bearer hunter2"));
        assert!(!format!("{credential:?}").contains("hunter2"));
    }

    #[test]
    fn keys_tell_credentials_apart() {
        let basic = |username: &str, password: &str| {
            Credential::Basic { username: username.to_owned(), password: password.to_owned() }.key()
        };
        assert!(basic("ab", "c") != basic("a", "bc"));
        assert!(Credential::Anonymous.key() != Credential::Configured.key());
    }
}
