//! Tokens let strangers in: as many as bring one, in one group and some roles, until it expires or is taken back.
//!
//! ```text
//! lapwing1.<id, 8 bytes>.<secret, 16 bytes>.<fingerprint of the authority, 32 bytes>      in hexadecimal
//! ```
//!
//! The fingerprint tells the stranger whom to believe: who answers at the tracker's address without that authority's key
//! does not get to see the token. The file `tokens` holds a line each, with the hash of the secret:
//!
//! ```text
//! <id> <SHA-256 of the secret> <expires, seconds since the epoch> <group> <roles>
//! ```

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::membership::{Issuer, Roles, fingerprint, is_group};

use super::AuthorityError;
use crate::limits::{MAX_TOKEN_BYTES, MAX_TOKENS, MAX_TOKENS_FILE_BYTES};

const PREFIX: &str = "lapwing1";

/// What a token lets its bearer be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// In this group.
    pub group: String,
    /// In these roles.
    pub roles: Roles,
}

/// A token as the authority keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its public part.
    pub id: String,
    secret: Digest,
    /// Since the Unix epoch.
    pub expires: Duration,
    /// What it is for.
    pub token: Token,
}

/// A token that lets nobody in.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It has another form.
    #[error("that is no token: expected {PREFIX}.<id>.<secret>.<fingerprint>, as lapwing ca token prints it")]
    Malformed,
    /// Nobody knows it, or not its secret.
    #[error("the token is not known here: it has expired, was taken back, or belongs to another authority")]
    Unknown,
    /// The file.
    #[error(transparent)]
    File(#[from] AuthorityError),
}

/// The parts of a token's text.
struct Parts<'a> {
    id: &'a str,
    secret: &'a str,
    authority: [u8; 32],
}

fn split(text: &str) -> Result<Parts<'_>, TokenError> {
    let parts: Vec<&str> = text.trim().split('.').collect();
    let hex = |part: &str, bytes: usize| part.len() == 2 * bytes && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let [PREFIX, id, secret, authority] = parts[..] else { return Err(TokenError::Malformed) };
    if text.len() > MAX_TOKEN_BYTES || !hex(id, 8) || !hex(secret, 16) {
        return Err(TokenError::Malformed);
    }
    let authority = sha256(authority).ok_or(TokenError::Malformed)?;
    Ok(Parts { id, secret, authority: *authority.as_bytes() })
}

fn sha256(digits: &str) -> Option<Digest> {
    format!("sha256:{digits}").parse().ok()
}

/// The authority that a token is of.
pub fn authority_of(text: &str) -> Result<[u8; 32], TokenError> {
    split(text).map(|parts| parts.authority)
}

/// Makes a token of the authority in `directory`. Its text is kept nowhere.
pub fn create(directory: &Path, issuer: &Issuer, token: &Token, expires: Duration) -> Result<String, TokenError> {
    let mut random = [0; 24];
    // Without randomness nothing here is a secret.
    getrandom(&mut random).map_err(AuthorityError::io(&directory.join("tokens")))?;
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    let (id, secret) = (hex(&random[..8]), hex(&random[8..]));
    let pinned = fingerprint(issuer.certificate()).ok_or(TokenError::Malformed)?;
    let kept = Kept { id: id.clone(), secret: Digest::of(secret.as_bytes()), expires, token: token.clone() };
    let mut all = list(directory)?;
    let now = super::now();
    all.retain(|kept| kept.expires > now);
    if all.len() >= MAX_TOKENS {
        let error = std::io::Error::other(format!("holds {MAX_TOKENS} tokens; take some back"));
        return Err(AuthorityError::io(&directory.join("tokens"))(error).into());
    }
    all.push(kept);
    write(directory, &all)?;
    Ok(format!("{PREFIX}.{id}.{secret}.{}", hex(&pinned)))
}

fn getrandom(bytes: &mut [u8]) -> std::io::Result<()> {
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, bytes)
}

/// Takes a token back. False if there is none with that id.
pub fn revoke(directory: &Path, id: &str) -> Result<bool, AuthorityError> {
    let mut all = list(directory)?;
    let before = all.len();
    all.retain(|kept| kept.id != id);
    if all.len() == before {
        return Ok(false);
    }
    write(directory, &all).map(|()| true)
}

/// The tokens of an authority, also those that have expired.
pub fn list(directory: &Path) -> Result<Vec<Kept>, AuthorityError> {
    let path = directory.join("tokens");
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(AuthorityError::io(&path)(error)),
    };
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_TOKENS_FILE_BYTES), &mut text)
        .map_err(AuthorityError::io(&path))?;
    // A line that is no token lets nobody in.
    Ok(text.lines().filter_map(Kept::read).collect())
}

/// What a token that a stranger brought is for.
pub(super) fn redeem(directory: &Path, text: &str, now: Duration) -> Result<Token, TokenError> {
    let parts = split(text)?;
    let hash = Digest::of(parts.secret.as_bytes());
    // Hashes may be compared byte by byte: how far they agree tells nothing of the secret.
    let known = list(directory)?.into_iter().find(|kept| kept.id == parts.id && kept.secret == hash);
    known.filter(|kept| kept.expires > now).map(|kept| kept.token).ok_or(TokenError::Unknown)
}

impl Kept {
    fn read(line: &str) -> Option<Self> {
        let parts: Vec<&str> = line.split(' ').collect();
        let [id, secret, expires, group, roles] = parts[..] else { return None };
        Some(Self {
            id: id.to_owned(),
            secret: sha256(secret)?,
            expires: Duration::from_secs(expires.parse().ok()?),
            token: Token { group: Some(group).filter(|group| is_group(group))?.to_owned(), roles: roles.parse().ok()? },
        })
    }

    fn line(&self) -> String {
        let Self { id, secret, expires, token } = self;
        let secret = secret.hex();
        format!("{id} {secret} {} {} {}\n", expires.as_secs(), token.group, token.roles)
    }
}

fn write(directory: &Path, all: &[Kept]) -> Result<(), AuthorityError> {
    let (path, beside) = (directory.join("tokens"), directory.join("tokens.new"));
    let text: String = all.iter().map(Kept::line).collect();
    let put = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)
    };
    put().map_err(AuthorityError::io(&path))
}

#[cfg(test)]
mod tests {
    use lapwing_p2p::membership::Role;

    use super::*;

    #[test]
    fn a_token_lets_in_until_it_expires_or_is_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca");
        let issuer = Issuer::create(&path, "prod.example").unwrap();
        let wanted = Token { group: "team".to_owned(), roles: Roles::of([Role::Node]) };
        let now = crate::authority::now();
        let expires = now + Duration::from_secs(600);
        let text = create(&path, &issuer, &wanted, expires).unwrap();
        let other = create(&path, &issuer, &wanted, expires).unwrap();
        assert_eq!(authority_of(&text).unwrap(), fingerprint(issuer.certificate()).unwrap());
        assert_eq!(redeem(&path, &text, now).unwrap(), wanted);
        let kept = std::fs::read_to_string(path.join("tokens")).unwrap();
        let secret = text.split('.').nth(2).unwrap();
        assert!(!kept.contains(secret), "the file tells nobody a token");
        let (id, other_secret) = (text.split('.').nth(1).unwrap(), other.split('.').nth(2).unwrap());
        let forged = text.replace(secret, other_secret);
        for (token, at) in [(&forged, now), (&text, expires)] {
            assert!(matches!(redeem(&path, token, at), Err(TokenError::Unknown)), "{token}");
        }
        for token in ["", "lapwing1.a.b.c", &text[1..], &format!("{text}.x")] {
            assert!(matches!(redeem(&path, token, now), Err(TokenError::Malformed)), "{token}");
        }
        assert!(revoke(&path, id).unwrap() && !revoke(&path, id).unwrap());
        assert!(matches!(redeem(&path, &text, now), Err(TokenError::Unknown)));
        assert!(redeem(&path, &other, now).is_ok());
    }
}
