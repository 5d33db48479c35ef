//! What this machine itself can do for a job: fetch a blob, and have it indexed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::node::{Node, ReadError};
use lapwing_p2p::origin::Locator;
use lapwing_plugins::registry::{Credential, Denied, Registries, RegistryName, RepositoryName};

use crate::layers::build::Builder;

/// How often a blob is tried again that does not come, and after which pause.
const TRIES: u32 = 3;
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// A blob whose length is known.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) registry: RegistryName,
    pub(crate) repo: RepositoryName,
    pub(crate) digest: Digest,
    pub(crate) length: u64,
}

impl Wish {
    pub(crate) fn locator(&self) -> Locator {
        Locator { namespace: self.registry.to_string(), repository: self.repo.to_string() }
    }
}

/// A daemon that jobs run on.
///
/// Contract: `fetch` and `index` return when the blob, or its index, is here and verified, or say why it will not be; both may be called again,
/// and what several ask for is done once. They use this machine's own credentials and no others.
pub(crate) trait Machine: Send + Sync + 'static {
    /// Whether it is a seed: then what is meant for seeds is its own to do.
    fn is_seed(&self) -> bool;

    /// Has all of a blob come here.
    fn fetch(&self, wish: Wish) -> BoxFuture<'_, Result<(), String>>;

    /// Has a layer that is here indexed; what is no layer needs no index.
    fn index(&self, wish: Wish) -> BoxFuture<'_, Result<(), String>>;
}

/// A worker.
pub(crate) struct Worker {
    pub(crate) node: Arc<Node>,
    pub(crate) registries: Arc<Registries>,
    pub(crate) builder: Arc<Builder>,
}

impl Machine for Worker {
    fn is_seed(&self) -> bool {
        false
    }

    fn fetch(&self, wish: Wish) -> BoxFuture<'_, Result<(), String>> {
        self.bring(wish).boxed()
    }

    fn index(&self, wish: Wish) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let blob = self.node.open(wish.digest, wish.length, None).map_err(|error| error.to_string())?;
            self.builder.index_ahead(&blob).await
        }
        .boxed()
    }
}

impl Worker {
    async fn bring(&self, wish: Wish) -> Result<(), String> {
        let Wish { registry, repo, digest, length } = wish;
        if self.node.store().is_verified(&digest) {
            return Ok(());
        }
        grant(&self.registries, &registry, &repo, digest, Some(length)).await?;
        let origin = self.registries.origin(&registry, &repo, digest, length, Credential::Configured);
        let origin = Arc::new(origin.map_err(|error| error.to_string())?);
        for tried in 1.. {
            let opened = self.node.open(digest, length, Some(Arc::clone(&origin) as _));
            match opened.map_err(|error| error.to_string())?.verified().await {
                Ok(()) => break,
                Err(error @ (ReadError::ShutDown | ReadError::DigestMismatch { .. })) => return Err(error.to_string()),
                Err(error) if tried == TRIES => return Err(error.to_string()),
                Err(error) => {
                    tracing::info!(%digest, %error, tried, "blob does not come: tried again");
                    tokio::time::sleep(TRY_AGAIN * tried).await;
                }
            }
        }
        Ok(())
    }
}

/// The length of a blob that this machine may have; an error if that is not `expected`.
pub(crate) async fn grant(
    registries: &Registries,
    registry: &RegistryName,
    repo: &RepositoryName,
    digest: Digest,
    expected: Option<u64>,
) -> Result<u64, String> {
    let grant = registries.authorize(registry, repo, digest, &Credential::Configured).await;
    let grant = grant.map_err(|denied| match denied {
        Denied::Refused { .. } => format!("{denied}; give this machine credentials under registries.hosts"),
        denied => denied.to_string(),
    })?;
    match expected {
        Some(expected) if expected != grant.length => {
            Err(format!("the registry's {digest} has {} bytes and not {expected}", grant.length))
        }
        _ => Ok(grant.length),
    }
}
