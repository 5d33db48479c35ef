//! What agents send and expect. Go's JSON takes a field's name in any case, and Piccolo's structs spell one of them in two
//! ways: `group` in advertisements, `Group` in signs of life and in answers.

use std::fmt;

use lapwing_p2p::digest::Digest;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::key_digest;
use crate::limits::{MAX_BLOBS_PER_NODE, MAX_PICCOLO_KEY_BYTES};

/// `POST /api/v1/keepalive`.
#[derive(Debug, Deserialize)]
pub(super) struct Sign {
    #[serde(alias = "Host")]
    pub(super) host: String,
    #[serde(alias = "Group")]
    pub(super) group: String,
}

/// `POST /api/v1/distribution/advertise` and `/sync`.
#[derive(Debug, Deserialize)]
pub(super) struct Advertisement {
    #[serde(alias = "Holder")]
    pub(super) holder: String,
    #[serde(alias = "Keys")]
    pub(super) keys: Keys,
    #[serde(alias = "Group")]
    pub(super) group: String,
}

/// The keys of an advertisement, as digests; empty ones are passed over, as Piccolo does.
#[derive(Debug)]
pub(super) struct Keys(pub(super) Vec<Digest>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct KeysVisitor;
        impl<'de> Visitor<'de> for KeysVisitor {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of keys")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut keys: A) -> Result<Keys, A::Error> {
                let mut digests = Vec::new();
                let mut count = 0;
                while let Some(key) = keys.next_element::<String>()? {
                    count += 1;
                    if count > MAX_BLOBS_PER_NODE {
                        return Err(A::Error::custom(format_args!("an agent has at most {MAX_BLOBS_PER_NODE} keys")));
                    }
                    if key.len() > MAX_PICCOLO_KEY_BYTES {
                        let limit = MAX_PICCOLO_KEY_BYTES;
                        return Err(A::Error::custom(format_args!("a key is longer than {limit} bytes")));
                    }
                    if !key.is_empty() {
                        digests.push(key_digest(&key));
                    }
                }
                Ok(Keys(digests))
            }
        }
        from.deserialize_seq(KeysVisitor)
    }
}

/// The query of `GET /api/v1/distribution/findkey`. `request_host` is sent as well; where the asker is, its connection
/// tells.
#[derive(Debug, Deserialize)]
pub(super) struct Question {
    pub(super) key: String,
    pub(super) group: String,
    #[serde(default)]
    pub(super) count: i64,
}

/// The answer to calls that change something.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    pub(super) success: bool,
    pub(super) message: String,
}

/// The answer to a question.
#[derive(Debug, Serialize)]
pub(super) struct Holders {
    pub(super) key: String,
    #[serde(rename = "Group")]
    pub(super) group: String,
    pub(super) holders: Vec<String>,
    /// Always 0, as Piccolo's own.
    pub(super) total: u32,
}

/// The answer to a question that nobody can be named for.
#[derive(Debug, Serialize)]
pub(super) struct NotFound {
    pub(super) message: String,
}

/// The answer to a question that is none.
#[derive(Debug, Serialize)]
pub(super) struct BadQuestion {
    pub(super) error: String,
}
