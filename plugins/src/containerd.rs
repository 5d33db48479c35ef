//! containerd's own services, over its socket: what it holds ([`content`]), what it lacks ([`image`]), what it starts ([`container`]), and
//! its unpacking of layers (`unpack`).
//!
//! One connection, made when it is needed and made again after containerd was restarted. Nothing here waits longer than
//! [`CALL`](crate::limits::CONTAINERD_CALL) for an answer, but for the stream of events, which is silent as long as nothing
//! happens, and for unpacking.

use std::path::{Path, PathBuf};

use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::limits::{CONTAINERD_CALL, CONTAINERD_CONNECT};

pub mod container;
pub mod content;
pub mod image;
mod proto;
mod unpack;

/// containerd on this machine.
#[derive(Debug, Clone)]
pub struct Containerd {
    socket: PathBuf,
    channel: Channel,
}

/// Why containerd did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// The path of its socket cannot be one.
    #[error("containerd's socket {0}: expected an absolute path of ASCII characters")]
    Socket(String),
    /// It did not answer, or said no.
    #[error("containerd at {socket}: {call}: {reason}")]
    Call {
        /// Its socket.
        socket: String,
        /// What it was asked for.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// It has that already.
    #[error("containerd has it already")]
    Present,
    /// Its content store cannot be read here.
    #[error("containerd at {socket}: {reason}")]
    Content {
        /// Its socket.
        socket: String,
        /// Why not, and what to do.
        reason: String,
    },
}

impl Containerd {
    /// Its services behind that socket, whether it runs or not.
    pub fn at(socket: &Path) -> Result<Self, ContainerdError> {
        let text = socket.to_str().filter(|text| socket.is_absolute() && text.is_ascii());
        let invalid = || ContainerdError::Socket(socket.display().to_string());
        let endpoint = Endpoint::from_shared(format!("unix://{}", text.ok_or_else(invalid)?)).map_err(|_| invalid())?;
        let channel = endpoint.connect_timeout(CONTAINERD_CONNECT).connect_lazy();
        Ok(Self { socket: socket.to_owned(), channel })
    }

    /// Waits for the answer to a call, not for ever.
    async fn answer<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, ContainerdError> {
        match tokio::time::timeout(CONTAINERD_CALL, answer).await {
            Ok(answer) => answer.map_err(|status| self.failed(call, &status)),
            Err(_) => Err(self.failed(call, &Status::deadline_exceeded("no answer"))),
        }
    }

    fn failed(&self, call: &'static str, status: &Status) -> ContainerdError {
        if status.code() == Code::AlreadyExists {
            return ContainerdError::Present;
        }
        let socket = self.socket.display().to_string();
        let reason = match status.code() {
            Code::Unavailable => format!("{}; is it running, and is this its socket?", status.message()),
            code => format!("{code:?}: {}", status.message()),
        };
        ContainerdError::Call { socket, call, reason }
    }
}

/// A request in one of containerd's namespaces. One whose name is not ASCII does not exist there.
fn within<T>(namespace: &str, message: T) -> Result<Request<T>, Status> {
    let name = MetadataValue::try_from(namespace).map_err(|_| Status::not_found("no such namespace"))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", name);
    Ok(request)
}
