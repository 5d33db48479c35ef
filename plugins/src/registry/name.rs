//! Names of the distribution specification: registries, repositories, tags. Parsed once at the edge.

use std::fmt;
use std::str::FromStr;

use lapwing_p2p::digest::Digest;

use crate::limits::{MAX_HOST_LENGTH, MAX_REPOSITORY_LENGTH, MAX_TAG_LENGTH};

/// A name that the specification does not allow; the message says what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {shown:?} is not valid: {wrong}")]
pub struct InvalidName {
    kind: &'static str,
    shown: String,
    wrong: &'static str,
}

impl InvalidName {
    fn new(kind: &'static str, text: &str, wrong: &'static str) -> Self {
        Self { kind, shown: text.chars().take(80).collect(), wrong }
    }
}

/// The name of a registry as images carry it: `host` or `host:port`, lowercase. Never a URL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryName(String);

impl RegistryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Docker Hub, where names without a registry point to.
    pub fn docker_hub() -> Self {
        Self("docker.io".to_owned())
    }
}

impl FromStr for RegistryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        check_host(text).map_err(|wrong| InvalidName::new("registry", text, wrong))?;
        let name = text.to_ascii_lowercase();
        Ok(match name.as_str() {
            "index.docker.io" | "registry-1.docker.io" => Self::docker_hub(),
            _ => Self(name),
        })
    }
}

/// Checks `host[:port]`: a DNS name, an IPv4 address, or an IPv6 address in brackets.
pub(crate) fn check_host(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > MAX_HOST_LENGTH {
        return Err("it must have 1 to 259 characters");
    }
    let (host, port) = split_port(text);
    if let Some(port) = port
        && !(port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0))
    {
        return Err("the port must be a number from 1 to 65535");
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().map(drop).map_err(|_| "not an IPv6 address in the brackets");
    }
    if host.split('.').all(is_label) { Ok(()) } else { Err("expected host or host:port, nothing else") }
}

fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// The name of a repository, without its registry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(String);

impl RepositoryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = |wrong| Err(InvalidName::new("repository name", text, wrong));
        if text.is_empty() || text.len() > MAX_REPOSITORY_LENGTH {
            return invalid("it must have 1 to 255 characters");
        }
        if !text.split('/').all(is_component) {
            return invalid("each component is lowercase letters and digits, separated by '.', '_', '__' or dashes");
        }
        Ok(Self(text.to_owned()))
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alphanumeric(first)
        && alphanumeric(last)
        && bytes.split(|&byte| alphanumeric(byte)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-')
        })
}

/// What a manifest is asked for by.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A name that may point elsewhere tomorrow.
    Tag(String),
    /// The content itself.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.contains(':') {
            let wrong = "a digest is sha256: and 64 lowercase hexadecimal digits";
            return text.parse().map(Self::Digest).map_err(|_| InvalidName::new("reference", text, wrong));
        }
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let good = (1..=MAX_TAG_LENGTH).contains(&text.len())
            && word(text.as_bytes()[0])
            && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
        if good {
            Ok(Self::Tag(text.to_owned()))
        } else {
            Err(InvalidName::new("tag", text, "1 to 128 letters, digits, '_', '.', '-', not beginning with '.' or '-'"))
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

macro_rules! text_as_is {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
text_as_is!(RegistryName, RepositoryName);

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_hosts_and_nothing_else() {
        for good in ["docker.io", "reg.example:443", "10.0.0.1:5000", "[::1]:5000", "localhost", "a_b.c"] {
            assert_eq!(good.parse::<RegistryName>().unwrap().as_str(), good);
        }
        assert_eq!("REGISTRY-1.docker.io".parse::<RegistryName>().unwrap(), RegistryName::docker_hub());
        let long = "a.".repeat(140);
        for bad in [
            "",
            "http://169.254.169.254/",
            "../..",
            "a b",
            "a/b",
            "user@host",
            "host:0",
            "host:70000",
            "host:+80",
            "host:",
            "host:80:80",
            "a..b",
            "-a.b",
            "[::1",
            "[zz]",
            "::1",
            "a?b",
            "a#b",
            "a%2fb",
            "a\r\nb",
            "a\\b",
            "\u{e9}.fr",
            &long,
        ] {
            assert!(bad.parse::<RegistryName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn repositories_follow_the_grammar() {
        for good in ["library/debian", "a", "a__b/c-d", "a.b", "a---b", "0/1/2"] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good}");
        }
        let long = "a".repeat(256);
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a___b", "a..b", "..", "a/../b", "-a", "a-", "a%2f", "a b", "a._b", &long,
        ] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn references_are_tags_or_digests() {
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse::<Reference>().unwrap(), Reference::Digest(digest));
        assert_eq!("v1.0_x-y".parse::<Reference>().unwrap(), Reference::Tag("v1.0_x-y".to_owned()));
        let long = "a".repeat(129);
        for bad in ["", ".a", "-a", "a/b", "a b", "..", "sha256:x", "sha512:00", &long] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }
}
