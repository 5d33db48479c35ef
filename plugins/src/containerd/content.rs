//! What containerd's content store holds, in all of its namespaces: [`ContentStore`], a
//! [`ForeignStore`](lapwing_p2p::foreign::ForeignStore).
//!
//! Blobs are listed by the content service, so an ingest that is under way is none of them, and read as files of
//! containerd's own `local` store: `<root>/blobs/sha256/<hex>`, which it makes by renaming what is complete
//! (containerd, plugins/content/local). Where `<root>` is, containerd says by its introspection service.
//!
//! Only blobs count that a registry has: containerd labels what it pulled, and what it pushed, with where that was
//! (`containerd.io/distribution.source.<host>`). What was built or imported here and never left the machine stays on it.
//!
//! containerd 2.x tells of each blob that it commits, 1.x only of images: then there is a listing, since the labels come after the
//! commit. Neither tells of what its garbage collection removes; the node sees the files go.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::FutureExt as _;
use lapwing_p2p::digest::Digest;
use lapwing_p2p::foreign::{ForeignError, ForeignStore, Listing, News, NewsStream};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::proto::services::content::v1::content_client::ContentClient;
use super::proto::services::content::v1::{Info, ListContentRequest};
use super::proto::services::events::v1::SubscribeRequest;
use super::proto::services::events::v1::events_client::EventsClient;
use super::proto::services::introspection::v1::PluginsRequest;
use super::proto::services::introspection::v1::introspection_client::IntrospectionClient;
use super::proto::services::namespaces::v1::ListNamespacesRequest;
use super::proto::services::namespaces::v1::namespaces_client::NamespacesClient;
use super::{Containerd, ContainerdError, within};
use crate::limits::{MAX_CONTAINERD_MESSAGE, MAX_CONTAINERD_NAMESPACES};

/// The subscription stands when its request has arrived, of which containerd says nothing until the first event: after so
/// long there is one more listing, for what happened before.
const SUBSCRIBED: Duration = Duration::from_secs(2);
/// Events that wait to be read.
const QUEUED: usize = 256;
/// What begins the label of a blob that a registry has.
const SOURCE: &str = "containerd.io/distribution.source.";
const TOPICS: [&str; 2] = ["topic~=\"^/content/\"", "topic~=\"^/images/\""];

/// The content store of one containerd.
#[derive(Debug, Clone)]
pub struct ContentStore {
    containerd: Containerd,
    root: Option<PathBuf>,
}

impl ContentStore {
    /// `root` is the directory of its `local` content plug-in, if containerd is not to be asked for it.
    pub const fn new(containerd: Containerd, root: Option<PathBuf>) -> Self {
        Self { containerd, root }
    }

    async fn listing(&self) -> Result<Listing, ContainerdError> {
        let directory = self.directory().await?;
        let mut blobs = HashSet::new();
        for namespace in self.namespaces().await? {
            blobs.extend(self.blobs_in(&namespace).await?);
        }
        Ok(Listing { directory, blobs })
    }

    async fn namespaces(&self) -> Result<Vec<String>, ContainerdError> {
        let mut client = NamespacesClient::new(self.containerd.channel.clone());
        let listed = client.list(ListNamespacesRequest::default());
        let listed = self.containerd.answer("list namespaces", listed).await?.into_inner();
        let names = listed.namespaces.into_iter().map(|namespace| namespace.name);
        Ok(names.take(MAX_CONTAINERD_NAMESPACES).collect())
    }

    /// None in one that is gone meanwhile.
    async fn blobs_in(&self, namespace: &str) -> Result<HashSet<Digest>, ContainerdError> {
        let mut client =
            ContentClient::new(self.containerd.channel.clone()).max_decoding_message_size(MAX_CONTAINERD_MESSAGE);
        let listing = async {
            let mut blobs = HashSet::new();
            let mut batches = client.list(within(namespace, ListContentRequest::default())?).await?.into_inner();
            while let Some(batch) = batches.message().await? {
                // Of other algorithms there is no blob in a swarm.
                blobs
                    .extend(batch.info.iter().filter(has_source).filter_map(|blob| blob.digest.parse::<Digest>().ok()));
            }
            Ok(blobs)
        };
        let gone = |status: Status| match status.code() {
            Code::NotFound => Ok(HashSet::new()),
            _ => Err(status),
        };
        self.containerd.answer("list content", listing.map(|listed| listed.or_else(gone))).await
    }

    /// Where the blobs are.
    async fn directory(&self) -> Result<PathBuf, ContainerdError> {
        let root = match &self.root {
            Some(root) => root.clone(),
            None => self.exported_root().await?,
        };
        if !root.is_dir() {
            let reason = format!(
                "its content is in {}, which is no directory here; make it visible at that path, or name the path that it has \
                 here in containerd.content",
                root.display()
            );
            return Err(ContainerdError::Content { socket: self.containerd.socket.display().to_string(), reason });
        }
        Ok(root.join("blobs/sha256"))
    }

    async fn exported_root(&self) -> Result<PathBuf, ContainerdError> {
        let mut client = IntrospectionClient::new(self.containerd.channel.clone());
        let filters = vec!["type==io.containerd.content.v1,id==content".to_owned()];
        let plugins = client.plugins(PluginsRequest { filters });
        let plugins = self.containerd.answer("find the content store", plugins).await?.into_inner().plugins;
        let root = plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root"));
        root.map(PathBuf::from).filter(|root| root.is_absolute()).ok_or_else(|| ContainerdError::Content {
            socket: self.containerd.socket.display().to_string(),
            reason: "it does not say where its content is (a content store of another kind than \"local\"?); name the \
                     directory in containerd.content"
                .to_owned(),
        })
    }

    fn error(&self, error: &ContainerdError) -> ForeignError {
        ForeignError { store: "containerd's content store".to_owned(), reason: error.to_string() }
    }

    /// Passes events on until there are none, or nobody listens.
    async fn pass_on(self, news: mpsc::Sender<Result<News, ForeignError>>) {
        let mut client = EventsClient::new(self.containerd.channel.clone());
        let filters = TOPICS.map(str::to_owned).to_vec();
        let passing = async {
            let mut events = client.subscribe(SubscribeRequest { filters }).await?.into_inner();
            while let Some(event) = events.message().await? {
                tracing::trace!(topic = event.topic, "containerd's content changed");
                if news.send(Ok(News::Changed)).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let settled = async {
            tokio::time::sleep(SUBSCRIBED).await;
            let _ = news.send(Ok(News::Changed)).await;
            std::future::pending::<()>().await;
        };
        let ended: Result<(), Status> = tokio::select! {
            ended = passing => ended,
            () = settled => return,
            () = news.closed() => return,
        };
        let status = ended.err().unwrap_or_else(|| Status::unavailable("the events ended"));
        let _ = news.send(Err(self.error(&self.containerd.failed("subscribe to events", &status)))).await;
    }
}

/// Whether a registry gave or took it.
fn has_source(blob: &&Info) -> bool {
    blob.labels.keys().any(|label| label.starts_with(SOURCE))
}

impl ForeignStore for ContentStore {
    fn list(&self) -> BoxFuture<'_, Result<Listing, ForeignError>> {
        async { self.listing().await.map_err(|error| self.error(&error)) }.boxed()
    }

    fn follow(&self) -> BoxFuture<'_, Result<NewsStream, ForeignError>> {
        let (sender, receiver) = mpsc::channel(QUEUED);
        tokio::spawn(self.clone().pass_on(sender));
        let stream =
            futures_util::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        async { Ok(Box::pin(stream) as NewsStream) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_registry_has_is_nobody_elses() {
        let labelled = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Info { labels, ..Info::default() }
        };
        let source = ("containerd.io/distribution.source.docker.io", "library/debian");
        let other = ("containerd.io/gc.ref.content.0", "sha256:00");
        assert!(has_source(&&labelled(&[other, source])));
        for built in [&[][..], &[other]] {
            assert!(!has_source(&&labelled(built)));
        }
    }
}
