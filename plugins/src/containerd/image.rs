//! The images of one of containerd's namespaces, and their blobs: read, and added to.
//!
//! What is written is kept by a [`Lease`] until something refers to it, as in a pull; a lease that a node leaves behind ends by
//! itself after an hour.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use lapwing_p2p::digest::Digest;
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use super::proto::services::content::v1::content_client::ContentClient;
use super::proto::services::content::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
};
use super::proto::services::images::v1::GetImageRequest;
use super::proto::services::images::v1::images_client::ImagesClient;
use super::proto::services::leases::v1::leases_client::LeasesClient;
use super::proto::services::leases::v1::{CreateRequest, DeleteRequest};
use super::{Containerd, ContainerdError, within};
use crate::limits::{MAX_CONTAINERD_MESSAGE, MAX_MANIFEST_LENGTH};

/// How long a lease lasts whose owner died.
const LEASE: Duration = Duration::from_secs(3600);

/// What an image's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Of its manifest or index.
    pub digest: Digest,
}

/// One namespace of containerd.
#[derive(Debug, Clone)]
pub struct Namespace {
    containerd: Containerd,
    name: String,
}

/// Keeps what is written under it. [`Lease::end`] it; one that is dropped is ended in the background.
#[derive(Debug)]
pub struct Lease {
    namespace: Namespace,
    id: String,
    ended: bool,
}

/// Why a blob is not in containerd now.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// containerd did not take it.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// Its bytes did not come.
    #[error("blob {digest} did not come: {reason}")]
    Source {
        /// Which.
        digest: Digest,
        /// Why.
        reason: String,
    },
}

impl Namespace {
    /// That namespace, whether it exists or not.
    pub const fn new(containerd: Containerd, name: String) -> Self {
        Self { containerd, name }
    }

    fn content(&self) -> ContentClient<tonic::transport::Channel> {
        ContentClient::new(self.containerd.channel.clone()).max_decoding_message_size(MAX_CONTAINERD_MESSAGE)
    }

    /// The image of that name; none if there is none.
    pub async fn image(&self, name: &str) -> Result<Option<Target>, ContainerdError> {
        let mut client = ImagesClient::new(self.containerd.channel.clone());
        let asking = async {
            let request = within(&self.name, GetImageRequest { name: name.to_owned() })?;
            let image = unless_missing(client.get(request).await)?.and_then(|answer| answer.into_inner().image);
            image.and_then(|image| image.target).map(|target| target.digest).map_or(Ok(None), |digest| {
                let digest =
                    digest.parse().map_err(|_| Status::unimplemented(format!("{digest} is not by SHA-256")))?;
                Ok(Some(Target { digest }))
            })
        };
        self.containerd.answer("look up the image", asking).await
    }

    /// The labels of a blob; none if it is not there.
    pub async fn labels(&self, digest: &Digest) -> Result<Option<HashMap<String, String>>, ContainerdError> {
        let mut client = self.content();
        let asking = async {
            let request = within(&self.name, InfoRequest { digest: digest.to_string() })?;
            let answer = unless_missing(client.info(request).await)?;
            Ok(answer.map(|answer| answer.into_inner().info.unwrap_or_default().labels))
        };
        self.containerd.answer("look up a blob", asking).await
    }

    /// Sets labels of a blob and leaves its others.
    pub async fn add_labels(&self, digest: &Digest, labels: HashMap<String, String>) -> Result<(), ContainerdError> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_string(), labels, ..Info::default() };
        let request = UpdateRequest { info: Some(info), update_mask: Some(prost_types::FieldMask { paths }) };
        let mut client = self.content();
        let asking = async { client.update(within(&self.name, request)?).await };
        self.containerd.answer("label a blob", asking).await.map(drop)
    }

    /// A manifest, index or configuration, held against its digest; none if it is not there.
    pub async fn read_small(&self, digest: &Digest) -> Result<Option<Bytes>, ContainerdError> {
        let mut client = self.content();
        let reading = async {
            let request = ReadContentRequest { digest: digest.to_string(), ..ReadContentRequest::default() };
            let Some(chunks) = unless_missing(client.read(within(&self.name, request)?).await)? else {
                return Ok(None);
            };
            let (mut chunks, mut bytes) = (chunks.into_inner(), Vec::new());
            // In a stream, "not there" may come with the first message.
            while let Some(Some(chunk)) = unless_missing(chunks.message().await)? {
                bytes.extend_from_slice(&chunk.data);
                if bytes.len() > MAX_MANIFEST_LENGTH {
                    return Err(Status::out_of_range(format!("{digest} is longer than {MAX_MANIFEST_LENGTH} bytes")));
                }
            }
            match Digest::of(&bytes) == *digest {
                true => Ok(Some(Bytes::from(bytes))),
                false if bytes.is_empty() => Ok(None),
                false => Err(Status::data_loss(format!("what it keeps as {digest} is something else"))),
            }
        };
        self.containerd.answer("read a blob", reading).await
    }

    /// Begins a lease.
    pub async fn lease(&self) -> Result<Lease, ContainerdError> {
        let id = format!("lapwing-{:032x}", fastrand::u128(..));
        let expire = prost_types::Timestamp::from(SystemTime::now() + LEASE).to_string();
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expire)]);
        let mut client = LeasesClient::new(self.containerd.channel.clone());
        let asking = async { client.create(within(&self.name, CreateRequest { id: id.clone(), labels })?).await };
        self.containerd.answer("begin a lease", asking).await?;
        Ok(Lease { namespace: self.clone(), id, ended: false })
    }

    async fn end_lease(&self, id: String) -> Result<(), ContainerdError> {
        let mut client = LeasesClient::new(self.containerd.channel.clone());
        let asking =
            async { unless_missing(client.delete(within(&self.name, DeleteRequest { id, sync: false })?).await) };
        self.containerd.answer("end a lease", asking).await.map(drop)
    }
}

impl Lease {
    /// Ends it: what nothing refers to by now goes.
    pub async fn end(mut self) -> Result<(), ContainerdError> {
        self.ended = true;
        self.namespace.end_lease(self.id.clone()).await
    }

    /// Writes a blob of that length. containerd holds it against its digest; one that is there meanwhile is no error.
    pub async fn write<E: std::fmt::Display>(
        &self,
        digest: Digest,
        length: u64,
        labels: HashMap<String, String>,
        bytes: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), WriteError> {
        let name = format!("lapwing-{digest}");
        let written = match Writer::begin(self, &name, digest, length).await {
            Ok(mut writer) => writer.write(labels, bytes).await,
            Err(error) => Err(error.into()),
        };
        match written {
            Err(WriteError::Containerd(ContainerdError::Present)) => Ok(()),
            Err(error) => {
                let mut client = self.namespace.content();
                let abort = async { client.abort(self.request(AbortRequest { r#ref: name })?).await };
                if let Err(error) = self.namespace.containerd.answer("abort a write", abort).await {
                    tracing::debug!(%digest, %error, "an ingest is left to the end of its lease");
                }
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = within(&self.namespace.name, message)?;
        let id = MetadataValue::try_from(&self.id).map_err(|_| Status::internal("a lease of a strange name"))?;
        request.metadata_mut().insert("containerd-lease", id);
        Ok(request)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (namespace, id) = (self.namespace.clone(), self.id.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = namespace.end_lease(id).await {
                    tracing::warn!(%error, "a lease ends by itself within the hour");
                }
            });
        }
    }
}

/// One write, message by message: each is answered before the next is sent.
struct Writer {
    containerd: Containerd,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: tonic::Streaming<super::proto::services::content::v1::WriteContentResponse>,
    digest: Digest,
    length: u64,
    /// What containerd has of it, from this or another namespace.
    offset: u64,
}

impl Writer {
    async fn begin(lease: &Lease, name: &str, digest: Digest, length: u64) -> Result<Self, ContainerdError> {
        let (requests, receiver) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: name.to_owned(),
            total: i64::try_from(length).unwrap_or(i64::MAX),
            expected: digest.to_string(),
            ..WriteContentRequest::default()
        };
        // Into an empty queue.
        let _ = requests.try_send(first);
        let outgoing =
            futures_util::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        let mut client = lease.namespace.content();
        let beginning = async {
            let mut answers = client.write(lease.request(outgoing)?).await?.into_inner();
            let first = answers.message().await?.ok_or_else(|| Status::aborted("no answer to a write"))?;
            Ok((answers, first.offset))
        };
        let containerd = lease.namespace.containerd.clone();
        let (answers, offset) = containerd.answer("begin a write", beginning).await?;
        Ok(Self { containerd, requests, answers, digest, length, offset: u64::try_from(offset).unwrap_or(0) })
    }

    async fn write<E: std::fmt::Display>(
        &mut self,
        labels: HashMap<String, String>,
        bytes: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), WriteError> {
        let source = |reason: String| WriteError::Source { digest: self.digest, reason };
        let digest = self.digest;
        if self.offset != self.length {
            let mut bytes = std::pin::pin!(bytes);
            let mut offset = 0;
            while let Some(chunk) = bytes.next().await {
                let chunk = chunk.map_err(|error| source(error.to_string()))?;
                let request = WriteContentRequest {
                    action: WriteAction::Write.into(),
                    offset,
                    data: chunk.to_vec(),
                    ..WriteContentRequest::default()
                };
                Self::send(&self.containerd, &self.requests, &mut self.answers, request).await?;
                offset += chunk.len() as i64;
            }
            self.offset = u64::try_from(offset).unwrap_or(0);
        }
        let commit = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            total: i64::try_from(self.length).unwrap_or(i64::MAX),
            expected: digest.to_string(),
            labels,
            ..WriteContentRequest::default()
        };
        Self::send(&self.containerd, &self.requests, &mut self.answers, commit).await.map_err(Into::into)
    }

    async fn send(
        containerd: &Containerd,
        requests: &mpsc::Sender<WriteContentRequest>,
        answers: &mut tonic::Streaming<super::proto::services::content::v1::WriteContentResponse>,
        request: WriteContentRequest,
    ) -> Result<(), ContainerdError> {
        let sending = async {
            // If nobody takes it, the answer says why.
            let _ = requests.send(request).await;
            answers.message().await?.ok_or_else(|| Status::aborted("no answer to a write"))
        };
        containerd.answer("write a blob", sending).await.map(drop)
    }
}

/// None for "not found".
fn unless_missing<T>(answer: Result<T, Status>) -> Result<Option<T>, Status> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}
