//! `s3://BUCKET/KEY`: listed and signed with the user's own credentials; the bytes then come as those of any URL.

use std::path::Path;
use std::time::Duration;

use reqwest::Url;

use super::outcome::{Failed, Fault};

/// How long a link to an object is good: a transfer must end before, or be gone on with by another run.
const LINK_LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// The parameters of a signature: they do not choose the content.
pub(super) const SIGNATURE: &str = "X-Amz-*";

/// What follows `s3://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub bucket: String,
    pub key: String,
}

impl Location {
    pub(super) fn parse(rest: &str) -> Result<Self, Failed> {
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if bucket.is_empty() || !bucket.bytes().all(good) {
            return Err(Failed::new(Fault::Usage, format!("s3://{rest}: the form is s3://BUCKET/KEY")));
        }
        Ok(Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// The same as a prefix that ends in a slash.
    pub(super) fn as_prefix(&self) -> String {
        if self.key.is_empty() || self.key.ends_with('/') { self.key.clone() } else { format!("{}/", self.key) }
    }

    /// The last part of the key.
    pub(super) fn name(&self) -> &str {
        Path::new(&self.key).file_name().and_then(|name| name.to_str()).unwrap_or(&self.bucket)
    }
}

#[cfg(not(feature = "object-storage"))]
pub(super) use none::Bucket;
#[cfg(feature = "object-storage")]
pub(super) use real::Bucket;

#[cfg(feature = "object-storage")]
mod real {
    use std::collections::BTreeMap;

    use lapwing_plugins::storage;

    use super::super::limits::MAX_FILES;
    use super::{Failed, Fault, LINK_LIFE, Url};

    /// A bucket as the environment says where it is, and who asks.
    #[derive(Clone)]
    pub(in super::super) struct Bucket(storage::Bucket);

    impl Bucket {
        pub(in super::super) fn open(name: &str) -> Result<Self, Failed> {
            let mut options = BTreeMap::new();
            for (option, variables) in [
                ("endpoint", &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"][..]),
                ("region", &["AWS_REGION", "AWS_DEFAULT_REGION"]),
            ] {
                let found =
                    variables.iter().find_map(|name| std::env::var(name).ok()).filter(|value| !value.is_empty());
                options.extend(found.map(|value| (option.to_owned(), value)));
            }
            options.entry("region".to_owned()).or_insert_with(|| "us-east-1".to_owned());
            let opened = storage::Bucket::open(name, options);
            opened.map(Self).map_err(|error| Failed::new(Fault::Other, error.to_string()))
        }

        pub(in super::super) async fn keys(&self, prefix: &str) -> Result<Vec<String>, Failed> {
            self.0.keys(prefix, MAX_FILES).await.map_err(|error| Failed::network(error.to_string()))
        }

        pub(in super::super) async fn link(&self, key: &str) -> Result<Url, Failed> {
            let link = self.0.link(key, LINK_LIFE).await.map_err(|error| {
                let remedy =
                    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL for another store than AWS";
                Failed::new(Fault::Credentials, format!("{error}; {remedy}"))
            })?;
            Url::parse(&link).map_err(|error| Failed::new(Fault::Protocol, error.to_string()))
        }
    }
}

#[cfg(not(feature = "object-storage"))]
mod none {
    use super::{Failed, Fault, Url};

    /// Not in this build.
    #[derive(Clone)]
    pub(in super::super) enum Bucket {}

    impl Bucket {
        pub(in super::super) fn open(_: &str) -> Result<Self, Failed> {
            Err(Failed::new(Fault::Usage, "this build has no s3://; build with the feature object-storage"))
        }

        pub(in super::super) async fn keys(&self, _: &str) -> Result<Vec<String>, Failed> {
            match *self {}
        }

        pub(in super::super) async fn link(&self, _: &str) -> Result<Url, Failed> {
            match *self {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let location = Location::parse("models/llama/weights.bin").unwrap();
        assert_eq!((location.bucket.as_str(), location.key.as_str()), ("models", "llama/weights.bin"));
        assert_eq!((location.name(), location.as_prefix().as_str()), ("weights.bin", "llama/weights.bin/"));
        let all = Location::parse("models").unwrap();
        assert_eq!((all.name(), all.as_prefix().as_str()), ("models", ""));
        for bad in ["", "/x", "A/x", "a b/x", "user@x/y"] {
            assert!(Location::parse(bad).is_err(), "{bad:?}");
        }
    }
}
