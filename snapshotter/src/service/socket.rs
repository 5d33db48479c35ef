//! The unix socket that containerd's `proxy_plugins` section names.

use std::fs::{self, DirBuilder, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::Snapshotter;
use super::diff::Diffs;
use super::proto::diff::diff_server::DiffServer;
use super::proto::snapshots_server::SnapshotsServer;

/// How long requests may go on after the shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket, or its directory, cannot be made.
    #[error("snapshotter socket {path}: {source}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process answers there.
    #[error("snapshotter socket {0} is served by another process: stop it, or choose another socket")]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{0} is no socket: remove it, or choose another path for the snapshotter socket")]
    NoSocket(PathBuf),
    /// The server failed.
    #[error("snapshots service: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// A listening unix socket, mode 0600; it is there for clients from [`Socket::bind`] on.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

impl Socket {
    /// Binds, in place of a stale socket. Needs a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        let listener = listen(path)?;
        Ok(Self { listener, path: path.to_owned(), inode: inode(path) })
    }

    /// Serves `snapshotter`, and takes layers that are to be unpacked for it to `diffs`, until `shutdown` ends, then gives open requests a few seconds. Mounts stay as they are.
    pub async fn serve(
        self,
        snapshotter: Snapshotter,
        diffs: Option<Diffs>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        tracing::info!(socket = %self.path.display(), "snapshots service is up");
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _ = stopped.await;
        };
        let server = Server::builder()
            .add_service(SnapshotsServer::new(snapshotter))
            .add_optional_service(diffs.map(DiffServer::new));
        let incoming = UnixListenerStream::new(self.listener);
        let mut server = Box::pin(server.serve_with_incoming_shutdown(incoming, stopped));
        let served = tokio::select! {
            failed = &mut server => failed,
            () = shutdown => {
                let _ = stop.send(());
                tokio::time::timeout(DRAIN, &mut server).await.unwrap_or(Ok(()))
            }
        };
        if self.inode.is_some() && self.inode == inode(&self.path) {
            let _ = fs::remove_file(&self.path);
        }
        Ok(served?)
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Binds under another name and renames, so that the socket appears with its mode, and in place of a stale one.
fn listen(socket: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Socket { path: socket.to_owned(), source };
    if let Some(directory) = socket.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o711).create(directory).map_err(failed)?;
    }
    match fs::symlink_metadata(socket) {
        Ok(found) if !found.file_type().is_socket() => return Err(ServeError::NoSocket(socket.to_owned())),
        Ok(_) if UnixStream::connect(socket).is_ok() => return Err(ServeError::InUse(socket.to_owned())),
        _ => {}
    }
    let mut fresh = socket.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&fresh, socket).map_err(failed)?;
    Ok(listener)
}
