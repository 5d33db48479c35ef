//! Credentials: whose rights a request to a registry uses.
//!
//! None of these types shows a secret by `Debug` or `Display`, and none is written anywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::config::RegistryConfig;
use crate::limits::MAX_CREDENTIAL_FILE;

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
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What a token is fetched with.
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

/// Credentials named in the configuration that cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot read the credentials of {registry} from {path}: {reason}")]
pub(crate) struct UnreadableCredentials {
    registry: String,
    path: String,
    reason: String,
}

/// The node's own secret for a registry, read anew.
pub(crate) fn configured(registry: &str, config: &RegistryConfig) -> Result<Secret, UnreadableCredentials> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |reason: String| UnreadableCredentials { registry: registry.to_owned(), path, reason }
    };
    if let (Some(username), Some(path)) = (&config.username, &config.password_file) {
        let password = read_bounded(path).map_err(failed(path))?;
        let password = password.trim_end_matches(['\n', '\r']).to_owned();
        return Ok(Secret::Password { username: username.clone(), password });
    }
    let Some(path) = &config.docker_config else {
        return Ok(Secret::None);
    };
    let file = read_bounded(path).map_err(failed(path))?;
    from_docker_config(registry, &file).map_err(failed(path))
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_CREDENTIAL_FILE).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerAuth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// Picks the entry of `registry` from a docker `config.json`. Docker Hub's is named by an old URL there.
fn from_docker_config(registry: &str, text: &str) -> Result<Secret, String> {
    // serde_json's message may quote the input, which holds secrets: only the position is passed on.
    let config: DockerConfig = serde_json::from_str(text)
        .map_err(|error| format!("not a docker config.json (line {}, column {})", error.line(), error.column()))?;
    let hub = ["https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io"];
    let same = |name: &str| {
        let bare = name.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        bare == registry || (registry == "docker.io" && hub.contains(&name))
    };
    let Some((_, entry)) = config.auths.into_iter().find(|(name, _)| same(name)) else {
        return Ok(Secret::None);
    };
    if !entry.identitytoken.is_empty() {
        return Ok(Secret::Identity(entry.identitytoken));
    }
    if !entry.username.is_empty() {
        return Ok(Secret::Password { username: entry.username, password: entry.password });
    }
    let decoded = STANDARD.decode(entry.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    let (username, password) = pair.ok_or_else(|| format!("the entry of {registry} has no usable auth"))?;
    Ok(Secret::Password { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic_of(registry: &str, text: &str) -> Option<String> {
        from_docker_config(registry, text).unwrap().basic().map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn docker_config_entries() {
        let auth = STANDARD.encode("user:pa:ss");
        let text = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}},"https://reg.example:443":{{"username":"u","password":"p"}},
            "id.example":{{"identitytoken":"t"}},"broken.example":{{"auth":"!"}}}},"credsStore":"pass"}}"#
        );
        assert_eq!(basic_of("docker.io", &text), Some(format!("Basic {}", STANDARD.encode("user:pa:ss"))));
        assert_eq!(basic_of("reg.example:443", &text), Some(format!("Basic {}", STANDARD.encode("u:p"))));
        assert_eq!(basic_of("reg.example", &text), None, "another port is another registry");
        assert!(matches!(from_docker_config("id.example", &text), Ok(Secret::Identity(token)) if token == "t"));
        assert!(from_docker_config("broken.example", &text).is_err());
    }

    #[test]
    fn errors_and_debug_show_no_secret() {
        let error = from_docker_config("x", r#"{"auths": "hunter2"}"#).err().unwrap();
        assert!(!error.contains("hunter2"), "{error}");
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
