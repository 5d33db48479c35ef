//! Profiles in the swarm: objects that derive from an image's chain id ([`StatementKind::Profile`]).

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Statement, StatementKind};
use lapwing_p2p::node::{Blob, Priority};
use lapwing_snapshotter::profile::merge::Extent;
use lapwing_snapshotter::profile::{Profile, Start};

use super::Profiles;
use crate::limits::MAX_PROFILE_CANDIDATES;

/// How long others may take to bring one.
const PATIENCE: Duration = Duration::from_secs(10);

/// A profile that others state.
pub(super) struct Theirs {
    pub(super) profile: Profile,
    statement: Statement,
}

impl Profiles {
    /// Takes up what was seen at starts of an image, keeps it, and tells the others unless they know.
    pub(super) async fn learn(&self, chain: Digest, starts: Vec<Start>) -> anyhow::Result<Profile> {
        let known = self.kept(chain).await;
        let before = known.as_ref().map_or(0, |known| Extent::of(known.reads()).bytes());
        let mut starts = starts.into_iter();
        let mut own = match (known, starts.next()) {
            (Some(mut known), Some(start)) => {
                known.absorb(start);
                known
            }
            (Some(known), None) => known,
            (None, Some(start)) => Profile::new(chain, start),
            (None, None) => anyhow::bail!("a profile without a start"),
        };
        for start in starts {
            own.absorb(start);
        }
        let shelf = Arc::clone(&self.shelf);
        let (own, put) = tokio::task::spawn_blocking(move || {
            let put = shelf.put(&own);
            (own, put)
        })
        .await?;
        put.context("the directory of profiles")?;
        let after = Extent::of(own.reads()).bytes();
        if is_news(before, after) {
            self.tell(&own).await?;
        }
        Ok(own)
    }

    /// States the others' profile that serves this node as well as its own, else its own.
    async fn tell(&self, own: &Profile) -> anyhow::Result<()> {
        let mine = Extent::of(own.reads());
        for theirs in self.theirs(own.chain).await {
            if serves(&Extent::of(theirs.profile.reads()), &mine) {
                self.node.prove(theirs.statement).await;
                return Ok(());
            }
        }
        self.node.publish(StatementKind::Profile, own.chain, own.encode().into()).await?;
        tracing::debug!(chain = %own.chain, "told the others a profile");
        Ok(())
    }

    /// This node's own profile of an image, and those that others state, the most agreed first.
    pub(super) async fn gather(&self, chain: Digest) -> (Option<Profile>, Vec<Profile>) {
        let own = self.kept(chain).await;
        let theirs = self.theirs(chain).await;
        (own, theirs.into_iter().map(|theirs| theirs.profile).collect())
    }

    async fn kept(&self, chain: Digest) -> Option<Profile> {
        let shelf = Arc::clone(&self.shelf);
        tokio::task::spawn_blocking(move || shelf.get(&chain)).await.ok().flatten()
    }

    async fn theirs(&self, chain: Digest) -> Vec<Theirs> {
        let mut found = Vec::new();
        for object in self.node.all_derived(chain, StatementKind::Profile, MAX_PROFILE_CANDIDATES).await {
            let statement = Statement {
                subject: chain,
                kind: StatementKind::Profile,
                object: object.digest(),
                length: object.length(),
            };
            let bytes = match tokio::time::timeout(PATIENCE, whole(&object)).await {
                Ok(Ok(bytes)) => bytes,
                Ok(Err(error)) => {
                    tracing::debug!(%chain, object = %statement.object, error, "a profile does not come");
                    continue;
                }
                Err(_) => continue,
            };
            match Profile::decode(&bytes) {
                Ok(profile) if profile.chain == chain => {
                    self.node.accept(statement).await;
                    found.push(Theirs { profile, statement });
                }
                _ => self.node.refute(statement).await,
            }
        }
        found
    }
}

/// Whether others should hear of a profile that grew from so many bytes.
const fn is_news(before: u64, after: u64) -> bool {
    before == 0 || after > before + before / 20
}

/// Whether a profile lists nearly all that was read here, and not much more: one that lists everything serves nobody.
fn serves(theirs: &Extent, mine: &Extent) -> bool {
    let common = mine.common_bytes(theirs);
    common >= mine.bytes() / 10 * 9 && common >= theirs.bytes() / 2
}

async fn whole(object: &Arc<Blob>) -> Result<bytes::Bytes, String> {
    object.verified().await.map_err(|error| error.to_string())?;
    object.read(0..object.length(), Priority::Prefetch).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_serves_if_it_lists_what_was_read_and_little_else() {
        let layer = Digest::of(b"layer");
        let extent = |range: std::ops::Range<u64>| {
            let mut extent = Extent::default();
            extent.add(&layer, &range);
            extent
        };
        let mine = extent(1000..2000);
        for (theirs, expected) in
            [(1000..2000, true), (1050..2000, true), (1200..2000, false), (0..2500, false), (500..2000, true)]
        {
            assert_eq!(serves(&extent(theirs.clone()), &mine), expected, "{theirs:?}");
        }
    }

    #[test]
    fn others_hear_of_what_is_new() {
        assert!(is_news(0, 10) && is_news(100, 106));
        assert!(!is_news(100, 100) && !is_news(100, 105));
    }
}
