//! containerd's diff service, asked to unpack what [`Diffs`](lapwing_snapshotter::service::Diffs) cannot spare it.

use futures_core::future::BoxFuture;
use futures_util::FutureExt as _;
use lapwing_snapshotter::service::Unpacker;
use lapwing_snapshotter::service::proto::diff::diff_client::DiffClient;
use lapwing_snapshotter::service::proto::diff::{ApplyRequest, ApplyResponse};
use tonic::Status;

use super::{Containerd, within};

impl Unpacker for Containerd {
    /// Takes as long as unpacking takes: whoever asked waits, and gives up when he likes.
    fn unpack(&self, namespace: String, request: ApplyRequest) -> BoxFuture<'_, Result<ApplyResponse, Status>> {
        let mut client = DiffClient::new(self.channel.clone());
        async move { Ok(client.apply(within(&namespace, request)?).await?.into_inner()) }.boxed()
    }
}
