//! containerd's diff service, asked to unpack what [`Diffs`](lapwing_snapshotter::service::Diffs) cannot spare it.

use futures_core::future::BoxFuture;
use futures_util::FutureExt as _;
use lapwing_snapshotter::service::Unpacker;
use lapwing_snapshotter::service::proto::diff::diff_client::DiffClient;
use lapwing_snapshotter::service::proto::diff::{ApplyRequest, ApplyResponse};
use tonic::{Code, Status};

use super::{Containerd, within};

impl Unpacker for Containerd {
    /// Takes as long as unpacking takes: whoever asked waits, and gives up when he likes.
    fn unpack(&self, namespace: String, request: ApplyRequest) -> BoxFuture<'_, Result<ApplyResponse, Status>> {
        let mut client = DiffClient::new(self.channel.clone());
        async move {
            let asked = client.apply(within(&namespace, request)?).await;
            Ok(asked.map_err(|status| self.cannot_unpack(status))?.into_inner())
        }
        .boxed()
    }
}

impl Containerd {
    /// What containerd itself says stays as it is; that it cannot be reached is another thing.
    fn cannot_unpack(&self, status: Status) -> Status {
        if status.code() != Code::Unavailable {
            return status;
        }
        Status::unavailable(format!(
            "Lapwing cannot mount this layer and asked containerd at {} to unpack it: {}; is that its socket? Name it in \
             containerd.socket of Lapwing's configuration",
            self.socket.display(),
            status.message()
        ))
    }
}
