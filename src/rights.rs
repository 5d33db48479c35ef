//! Rights that a registry granted to clients of other nodes (`trust.rights_key_file`).
//!
//! Off unless the operator gives the nodes of a group one secret. Then a node to whose client a registry said yes tells the group so, and
//! another node that the same client asks for the same blob of the same repository takes that for the registry's answer, until the
//! first node's own memory of it ends. What is told is a statement at the tracker ([`StatementKind::Right`]):
//!
//! ```text
//! subject: the name of MAC("subject", registry, repository, digest)
//! object:  blob's length in bytes : 8 | end, in seconds since 1970 : 8 | first 16 bytes of MAC("right", all of that, credential's key)
//! ```
//!
//! MAC is BLAKE3 keyed by the secret, integers are big-endian. Neither the credential nor a plain hash of it leaves the node, so that
//! nobody without the secret can guess at a password; nor can he, be it a tracker, make a proof or carry one over to another blob,
//! repository or client. Who has the secret can: he is believed. He gains little by a lie, since the piece wire gives blobs to all members
//! of a group.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Statement, StatementKind};
use lapwing_p2p::limits::MAX_BLOB_LENGTH;
use lapwing_p2p::node::Node;
use lapwing_plugins::limits::GRANT_AGE;
use lapwing_plugins::registry::{Right, Witnesses};

/// What a secret file may hold, in bytes.
const SHORTEST_SECRET: usize = 32;
const LONGEST_SECRET: u64 = 4096;
/// How long an answer of the tracker is waited for before the registry is asked.
const PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of a MAC that are kept: beyond guessing at a tracker.
const MAC_BYTES: usize = 16;

/// See the module's documentation.
pub(crate) struct Rights {
    secret: Secret,
    node: Arc<Node>,
}

struct Secret([u8; 32]);

impl Rights {
    /// Reads the group's secret.
    pub(crate) fn open(file: &Path, node: Arc<Node>) -> anyhow::Result<Arc<Self>> {
        let mut bytes = Vec::new();
        let read = File::open(file).and_then(|file| file.take(LONGEST_SECRET + 1).read_to_end(&mut bytes));
        read.with_context(|| format!("trust.rights_key_file: cannot read {}", file.display()))?;
        let secret = Secret::new(&bytes).with_context(|| {
            format!(
                "trust.rights_key_file: {} has to hold {SHORTEST_SECRET} to {LONGEST_SECRET} bytes that nobody can guess \
                 (head -c 32 /dev/urandom | base64), the same on all nodes of the group",
                file.display()
            )
        })?;
        Ok(Arc::new(Self { secret, node }))
    }
}

impl Witnesses for Rights {
    fn ask<'a>(&'a self, right: &'a Right) -> BoxFuture<'a, Option<(u64, Duration)>> {
        Box::pin(async move {
            let asking = self.node.stated(self.secret.subject(right), StatementKind::Right);
            let stated = tokio::time::timeout(PATIENCE, asking).await.ok()?;
            let now = since_epoch();
            let (length, left) = stated.iter().find_map(|object| self.secret.read(right, object, now))?;
            tracing::info!(
                registry = %right.registry, repo = %right.repository, digest = %right.digest, left_seconds = left.as_secs(),
                "another node's proof stands for the registry's yes"
            );
            Some((length, left))
        })
    }

    fn tell(&self, right: &Right, length: u64, left: Duration) {
        let until = (since_epoch() + left).as_secs();
        let statement = Statement {
            subject: self.secret.subject(right),
            kind: StatementKind::Right,
            object: self.secret.object(right, length, until),
            length: 1,
        };
        let node = Arc::clone(&self.node);
        tokio::spawn(async move { node.tell(statement).await });
    }
}

impl Secret {
    /// None for what is too short or too long.
    fn new(file: &[u8]) -> Option<Self> {
        let text = file.trim_ascii_end();
        let fits = text.len() >= SHORTEST_SECRET && file.len() as u64 <= LONGEST_SECRET;
        fits.then(|| Self(blake3::derive_key("lapwing rights of clients, 1", text)))
    }

    /// Each part with its length before it, so that no two lists of parts are one text.
    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }

    fn subject(&self, right: &Right) -> Digest {
        let (registry, repository) = (right.registry.as_str(), right.repository.as_str());
        let parts = [&b"subject"[..], registry.as_bytes(), repository.as_bytes(), right.digest.as_bytes()];
        Digest::name(&self.mac(&parts))
    }

    fn object(&self, right: &Right, length: u64, until: u64) -> Digest {
        let (registry, repository) = (right.registry.as_str(), right.repository.as_str());
        let (length, until) = (length.to_be_bytes(), until.to_be_bytes());
        let mac = self.mac(&[
            b"right",
            registry.as_bytes(),
            repository.as_bytes(),
            right.digest.as_bytes(),
            &length,
            &until,
            right.credential.as_bytes(),
        ]);
        let mut object = [0; 32];
        object[..8].copy_from_slice(&length);
        object[8..16].copy_from_slice(&until);
        object[16..].copy_from_slice(&mac[..MAC_BYTES]);
        Digest::from_bytes(object)
    }

    /// The blob's length, and how long the right still counts, if this is a proof of it.
    fn read(&self, right: &Right, object: &Digest, now: Duration) -> Option<(u64, Duration)> {
        let number = |at: usize| object.as_bytes()[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        let (length, until) = (number(0)?, number(8)?);
        // Of keyed hashes, which whoever is told how far they agree cannot make, either.
        if self.object(right, length, until) != *object || length > MAX_BLOB_LENGTH {
            return None;
        }
        // Beyond that the other node's clock is wrong, or this one's.
        let left = Duration::from_secs(until).checked_sub(now).filter(|left| !left.is_zero() && *left <= GRANT_AGE)?;
        Some((length, left))
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use lapwing_plugins::registry::{Credential, RegistryName};

    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn right(token: &'static str) -> Right {
        Right {
            registry: RegistryName::docker_hub(),
            repository: "team/app".parse().unwrap(),
            digest: Digest::of(b"layer"),
            credential: Credential::Header(HeaderValue::from_static(token)).key(),
        }
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.as_bytes()).unwrap()
    }

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_proof_is_of_one_client_one_blob_and_one_repository() {
        let (secret, one) = (secret(SECRET), right("Bearer one"));
        let object = secret.object(&one, 7, NOW.as_secs() + 60);
        assert_eq!(secret.read(&one, &object, NOW), Some((7, Duration::from_secs(60))));
        let others = [
            right("Bearer two"),
            Right { repository: "team/other".parse().unwrap(), ..one.clone() },
            Right { registry: "ghcr.io".parse().unwrap(), ..one.clone() },
            Right { digest: Digest::of(b"other"), ..one.clone() },
        ];
        for other in &others {
            assert_eq!(secret.read(other, &object, NOW), None, "{other:?}");
        }
        for other in &others[1..] {
            assert_ne!(secret.subject(other), secret.subject(&one));
        }
        assert_eq!(secret.subject(&others[0]), secret.subject(&one), "found before it is known whose it is");
    }

    #[test]
    fn whoever_lacks_the_secret_makes_none_and_changes_none() {
        let (ours, theirs, one) = (secret(SECRET), secret(&SECRET.replace('0', "9")), right("Bearer one"));
        let object = ours.object(&one, 7, NOW.as_secs() + 60);
        assert_eq!(theirs.read(&one, &object, NOW), None);
        assert_ne!(theirs.subject(&one), ours.subject(&one));
        for at in 0..32 {
            let mut bytes = *object.as_bytes();
            bytes[at] ^= 1;
            assert_eq!(ours.read(&one, &Digest::from_bytes(bytes), NOW), None, "byte {at}");
        }
    }

    #[test]
    fn a_proof_ends() {
        let (secret, one) = (secret(SECRET), right("Bearer one"));
        let until = |left: u64| secret.object(&one, 7, NOW.as_secs() + left);
        assert_eq!(secret.read(&one, &until(1), NOW), Some((7, Duration::from_secs(1))));
        assert_eq!(secret.read(&one, &until(0), NOW), None);
        assert_eq!(secret.read(&one, &until(60), NOW + Duration::from_secs(61)), None);
        assert!(secret.read(&one, &until(GRANT_AGE.as_secs()), NOW).is_some());
        assert_eq!(secret.read(&one, &until(GRANT_AGE.as_secs() + 1), NOW), None, "longer than any node remembers");
        assert_eq!(secret.read(&one, &secret.object(&one, 7, u64::MAX), NOW), None);
        assert_eq!(secret.read(&one, &secret.object(&one, MAX_BLOB_LENGTH + 1, NOW.as_secs() + 9), NOW), None);
    }

    #[test]
    fn secrets_that_could_be_guessed_are_refused() {
        for text in ["", "short", &SECRET[1..], &SECRET.repeat(200)] {
            assert!(Secret::new(text.as_bytes()).is_none(), "{text}");
        }
        let with_newline = secret(&format!("{SECRET}\n"));
        assert_eq!(with_newline.0, secret(SECRET).0, "as an editor leaves it");
    }
}
