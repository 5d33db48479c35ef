//! The names of images, as people write them.

use std::fmt;
use std::str::FromStr;

use lapwing_plugins::registry::{Reference, RegistryName, RepositoryName};

use super::limits::MAX_NAME;

/// A registry, a repository of it, and a tag or digest. Without a registry Docker Hub is meant, without a tag `latest`, as docker and nerdctl
/// understand it (`distribution/reference`, "ParseNormalizedNamed").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageName {
    pub(crate) registry: RegistryName,
    pub(crate) repo: RepositoryName,
    pub(crate) reference: Reference,
}

impl FromStr for ImageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |reason: &dyn fmt::Display| {
            let shown: String = text.chars().take(120).collect();
            format!("{shown:?} is not the name of an image: {reason}; the form is REGISTRY/REPOSITORY:TAG")
        };
        if text.len() > MAX_NAME {
            return Err(bad(&format_args!("it is longer than {MAX_NAME} bytes")));
        }
        let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
        let (registry, path) = match text.split_once('/') {
            Some((host, path)) if is_host(host) => (host, path),
            _ => ("docker.io", text),
        };
        let (path, digest) = path.split_once('@').map_or((path, None), |(path, digest)| (path, Some(digest)));
        let (path, tag) = path.split_once(':').map_or((path, None), |(path, tag)| (path, Some(tag)));
        let registry: RegistryName = registry.parse().map_err(|error| bad(&error))?;
        let official = registry == RegistryName::docker_hub() && !path.contains('/');
        let path = if official { format!("library/{path}") } else { path.to_owned() };
        let reference = match digest {
            Some(digest) if !digest.contains(':') => return Err(bad(&"what follows @ is no digest")),
            Some(digest) => digest,
            None => tag.unwrap_or("latest"),
        };
        Ok(Self {
            registry,
            repo: path.parse().map_err(|error| bad(&error))?,
            reference: reference.parse().map_err(|error| bad(&error))?,
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if matches!(self.reference, Reference::Digest(_)) { '@' } else { ':' };
        write!(f, "{}/{}{mark}{}", self.registry, self.repo, self.reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("reg.example:5000/team/app:1.0", "reg.example:5000/team/app:1.0".to_owned()),
            ("reg.example/app", "reg.example/app:latest".to_owned()),
            ("localhost/app:1", "localhost/app:1".to_owned()),
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            ("team/app:2", "docker.io/team/app:2".to_owned()),
            (&format!("reg.example/app:1@{digest}"), format!("reg.example/app@{digest}")),
        ];
        for (text, full) in cases {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), full);
        }
        for text in ["", "reg.example/", "reg.example/App", "http://reg.example/app", "a b", "reg.example/app@x", "-/x"]
        {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
        }
        assert!(format!("reg.example/{}", "a".repeat(2000)).parse::<ImageName>().unwrap_err().len() < 300);
    }
}
