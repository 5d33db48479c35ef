//! containerd's diff service, asked to unpack what [`Diffs`](lapwing_snapshotter::service::Diffs) cannot spare it; and whether containerd asks
//! that service at all.

use std::path::Path;

use futures_core::future::BoxFuture;
use futures_util::FutureExt as _;
use lapwing_snapshotter::service::Unpacker;
use lapwing_snapshotter::service::proto::diff::diff_client::DiffClient;
use lapwing_snapshotter::service::proto::diff::{ApplyRequest, ApplyResponse};
use tonic::{Code, Status};

use super::proto::services::introspection::v1::PluginsRequest;
use super::proto::services::introspection::v1::introspection_client::IntrospectionClient;
use super::{Containerd, ContainerdError, within};

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
    /// Whether it has a differ behind that socket.
    pub async fn has_differ(&self, socket: &Path) -> Result<bool, ContainerdError> {
        let mut client = IntrospectionClient::new(self.channel.clone());
        let filters = vec!["type==io.containerd.differ.v1".to_owned()];
        let plugins =
            self.answer("list its differs", client.plugins(PluginsRequest { filters })).await?.into_inner().plugins;
        let address = |address: &String| Path::new(address.strip_prefix("unix://").unwrap_or(address)) == socket;
        Ok(plugins.iter().any(|plugin| plugin.exports.get("address").is_some_and(address)))
    }

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
