//! The calls to an authority.

use std::sync::Arc;

use lapwing_p2p::identity::PeerId;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::proto::authority_service_server::{AuthorityService, AuthorityServiceServer};
use super::proto::{JoinRequest, Membership, RenewRequest};
use super::{Authority, Refused};
use crate::limits::{MAX_ADMISSIONS, MAX_TOKEN_BYTES};
use crate::transport::Arrival;

pub(crate) fn service(authority: Arc<Authority>) -> AuthorityServiceServer<Service> {
    AuthorityServiceServer::new(Service { authority, admissions: Semaphore::new(MAX_ADMISSIONS) })
        .max_decoding_message_size(4 * MAX_TOKEN_BYTES)
}

pub(crate) struct Service {
    authority: Arc<Authority>,
    /// Strangers may call: they do not get all threads that block.
    admissions: Semaphore,
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match &refused {
            Refused::Failed(error) => {
                tracing::error!(%error, "the cluster's authority gives no certificates");
                Self::internal(refused.to_string())
            }
            Refused::Revoked(_) | Refused::Foreign => Self::permission_denied(refused.to_string()),
            Refused::Token(_) | Refused::Unknown(_) => Self::unauthenticated(refused.to_string()),
        }
    }
}

impl Service {
    /// Files are read and written: not on the threads that answer calls.
    async fn carry_out(
        &self,
        act: impl FnOnce(&Authority) -> Result<super::Membership, Refused> + Send + 'static,
    ) -> Result<Response<Membership>, Status> {
        let closed = |_| Status::unavailable("the cluster's authority is ending");
        let _admission = self.admissions.acquire().await.map_err(closed)?;
        let authority = Arc::clone(&self.authority);
        let done = tokio::task::spawn_blocking(move || act(&authority)).await;
        let membership = done.map_err(|_| Status::internal("the cluster's authority failed"))??;
        let der = |certificates: Vec<_>| certificates.iter().map(|one: &super::Certificate| one.to_vec()).collect();
        let super::Membership { certificates, authorities } = membership;
        Ok(Response::new(Membership { certificates: der(certificates), authorities: der(authorities) }))
    }
}

/// The key that the caller has shown that it has.
fn key<T>(request: &Request<T>) -> Result<(Arc<Arrival>, PeerId), Status> {
    let arrival = Arrival::of(request)?;
    let proven = arrival.proven.as_ref().ok_or_else(|| {
        Status::failed_precondition("an authority answers over TLS alone: the tracker has no certificate of its own")
    })?;
    let peer = proven.peer.ok_or_else(|| Status::from(Refused::Foreign))?;
    Ok((arrival, peer))
}

#[tonic::async_trait]
impl AuthorityService for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Membership>, Status> {
        let (arrival, peer) = key(&request)?;
        let token = request.into_inner().token;
        let joined = self.carry_out(move |authority| authority.join(&token, peer)).await;
        match &joined {
            Ok(_) => tracing::info!(%peer, address = %arrival.remote, "a node joins the cluster"),
            Err(status) => {
                tracing::warn!(%peer, address = %arrival.remote, reason = status.message(), "a node may not join");
            }
        }
        joined
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Membership>, Status> {
        let (arrival, peer) = key(&request)?;
        let shown = arrival.proven.as_ref().and_then(|proven| proven.member.clone());
        self.carry_out(move |authority| authority.renew(peer, shown.as_ref())).await
    }
}
