//! Where the bytes of a transfer come from, for clients that show it (`lapwing get`).
//!
//! An answer out of the swarm carries `lapwing-content: <name>; peers=<bytes>; origin=<bytes>`: what the content is called here, and
//! how much of it had come from where when the transfer began. `GET /sources/<name>` tells the same later. Counters alone: a
//! name is no permission to the bytes.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use lapwing_p2p::node::Blob;
use lru::LruCache;
use serde::{Deserialize, Serialize};

/// What the path of such a request begins with.
pub(crate) const PREFIX: &str = "/sources/";
/// The header of an answer out of the swarm.
pub(crate) const CONTENT: HeaderName = HeaderName::from_static("lapwing-content");
/// The header of a client that takes its time: no more is fetched for it than it is about to take.
pub(crate) const PACE: HeaderName = HeaderName::from_static("lapwing-pace");
/// Transfers that can be asked for; the oldest are forgotten.
const MAX_WATCHED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Bytes of one content that came to this node since it opened it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Came {
    pub bytes_from_peers: u64,
    pub bytes_from_origin: u64,
}

/// The contents that clients were given lately, by name as text: names of URLs' versions cannot be read, so that nobody asks for their bytes.
pub(super) struct Watched(Mutex<LruCache<String, Transfer>>);

struct Transfer {
    blob: Weak<Blob>,
    /// When the last transfer of it ended: the blob is closed soon after, and its counters with it.
    last: Came,
}

impl Default for Watched {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MAX_WATCHED)))
    }
}

impl Watched {
    /// Takes up a transfer that begins; the header that tells of it.
    pub(super) fn begin(&self, blob: &Arc<Blob>) -> Option<HeaderValue> {
        let came = came(blob);
        self.lock().put(blob.digest().to_string(), Transfer { blob: Arc::downgrade(blob), last: came });
        let Came { bytes_from_peers, bytes_from_origin } = came;
        let text = format!("{}; peers={bytes_from_peers}; origin={bytes_from_origin}", blob.digest());
        HeaderValue::try_from(text).ok()
    }

    /// Answers `/sources/<name>`.
    pub(super) fn answer(&self, name: &str) -> Response {
        let found = self.lock().get(name).map(|known| known.blob.upgrade().map_or(known.last, |blob| came(&blob)));
        found.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |came| Json(came).into_response())
    }

    /// A transfer ends.
    pub(super) fn end(&self, blob: &Arc<Blob>) {
        if let Some(known) =
            self.lock().get_mut(&blob.digest().to_string()).filter(|known| known.blob.ptr_eq(&Arc::downgrade(blob)))
        {
            known.last = came(blob);
        }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<String, Transfer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn came(blob: &Blob) -> Came {
    let sources = blob.sources();
    Came { bytes_from_peers: sources.bytes_from_peers, bytes_from_origin: sources.bytes_from_origin }
}

/// Reads [`CONTENT`].
pub(crate) fn parse(header: &HeaderValue) -> Option<(String, Came)> {
    let mut parts = header.to_str().ok()?.split("; ");
    let name = parts.next()?.to_owned();
    let mut number = |key: &str| parts.next()?.strip_prefix(key)?.strip_prefix('=')?.parse().ok();
    let came = Came { bytes_from_peers: number("peers")?, bytes_from_origin: number("origin")? };
    Some((name, came))
}

#[cfg(test)]
mod tests {
    use lapwing_p2p::digest::Digest;

    use super::*;

    #[test]
    fn the_header_is_read_as_it_is_written() {
        let name = Digest::of(b"x").to_string();
        let header = |text: &str| parse(&HeaderValue::from_str(text).unwrap());
        let came = Came { bytes_from_peers: 3, bytes_from_origin: 4 };
        assert_eq!(header(&format!("{name}; peers=3; origin=4")), Some((name.clone(), came)));
        for bad in [
            name.clone(),
            format!("{name}; peers=3"),
            format!("{name}; origin=3; peers=4"),
            format!("{name}; peers=-1; origin=1"),
        ] {
            assert_eq!(header(&bad), None, "{bad}");
        }
    }
}
