//! A blob that is passed on whole, and not shown whole before it is what its digest says.

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use lapwing_p2p::digest::Digest;
use sha2::{Digest as _, Sha256};

#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    #[error("the registry sends {0} in the place of {1}")]
    Wrong(String, Digest),
    #[error(transparent)]
    Upstream(#[from] axum::Error),
}

/// The stream with its last part held back until all of it is right; an error, which cuts the connection, if it is not.
pub(super) fn checked(
    stream: impl Stream<Item = Result<Bytes, axum::Error>> + Send + 'static,
    digest: Digest,
) -> impl Stream<Item = Result<Bytes, CheckError>> + Send + 'static {
    let state = (Box::pin(stream), Some(Sha256::new()), Bytes::new());
    futures_util::stream::unfold(state, move |(mut stream, hasher, held)| async move {
        let mut hasher = hasher?;
        match stream.next().await {
            Some(Ok(bytes)) => {
                hasher.update(&bytes);
                Some((Ok(held), (stream, Some(hasher), bytes)))
            }
            Some(Err(error)) => Some((Err(error.into()), (stream, None, Bytes::new()))),
            None => {
                let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                let found = format!("sha256:{found}");
                let last = if found == digest.to_string() { Ok(held) } else { Err(CheckError::Wrong(found, digest)) };
                if let Err(error) = &last {
                    tracing::warn!(%digest, %error, "a blob that was passed on is cut");
                }
                Some((last, (stream, None, Bytes::new())))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wrong_bytes_are_never_shown_whole() {
        let all = |digest| {
            let parts = ["one", "two", "three"].map(|part| Ok(Bytes::from(part)));
            checked(futures_util::stream::iter(parts), digest).collect::<Vec<_>>()
        };
        let right = all(Digest::of(b"onetwothree")).await;
        let text: Vec<u8> = right.into_iter().flat_map(Result::unwrap).collect();
        assert_eq!(text, b"onetwothree");
        let wrong = all(Digest::of(b"other")).await;
        assert!(matches!(wrong.last(), Some(Err(CheckError::Wrong(..)))));
        let shown: usize = wrong.iter().flatten().map(Bytes::len).sum();
        assert!(shown < 11, "{shown} bytes");
    }
}
