//! The service: check the message, ask the fetcher, answer.

use std::future::Future;
use std::sync::Arc;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::IndexStand;
use lapwing_p2p::membership::Role;
use lapwing_p2p::origin::Locator;
use lapwing_p2p::tls::Tls;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use super::proto::fetch_reply::{Accepted, Outcome, Reason, Refused};
use super::proto::seed_service_server::{SeedService, SeedServiceServer};
use super::proto::{FetchReply, FetchRequest, IndexState, Urgency};
use super::{Fetcher, Refusal, Taken, Wanted};
use crate::limits::{
    CALL_TIMEOUT, MAX_CALLS_PER_CONNECTION, MAX_NAMESPACE_BYTES, MAX_REPOSITORY_BYTES, MAX_SEED_REASON_BYTES,
    MAX_SEED_REQUEST_BYTES,
};
use crate::traced;
use crate::transport::{self, Arrival};

/// A seed's service that cannot be reached any more.
#[derive(Debug, thiserror::Error)]
#[error("the seed's service on {address} stopped: {source}; check that nothing else uses the port")]
pub struct ServeError {
    /// Where it listened.
    address: String,
    /// What the transport said.
    source: tonic::transport::Error,
}

/// Answers the members of a seed's group, or everybody without `tls`, on `listener` until `shutdown` ends.
pub async fn serve(
    listener: TcpListener,
    fetcher: Arc<dyn Fetcher>,
    tls: Option<Tls>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string());
    let service =
        SeedServiceServer::new(Service { fetcher, group: tls.as_ref().and_then(Tls::own).map(|own| own.group) })
            .max_decoding_message_size(MAX_SEED_REQUEST_BYTES);
    tonic::transport::Server::builder()
        .timeout(CALL_TIMEOUT)
        .max_concurrent_streams(MAX_CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(2 * CALL_TIMEOUT))
        .http2_keepalive_timeout(Some(CALL_TIMEOUT))
        .add_service(service)
        .serve_with_incoming_shutdown(transport::incoming(listener, tls), shutdown)
        .await
        .map_err(|source| ServeError { address, source })
}

struct Service {
    fetcher: Arc<dyn Fetcher>,
    /// Whose members may ask.
    group: Option<String>,
}

#[tonic::async_trait]
impl SeedService for Service {
    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchReply>, Status> {
        if let Some(group) = &self.group {
            Arrival::of(&request)?.check_group(group, Role::Node)?;
        }
        let mut span = traced::answer("seed.fetch", &request);
        let wanted = read(request.into_inner()).map_err(Status::invalid_argument)?;
        let outcome = match span.around(self.fetcher.fetch(wanted)).await {
            Ok(taken) => Outcome::Accepted(accepted(taken)),
            Err(refusal) => {
                span.fail("refused");
                let reason = match &refusal {
                    Refusal::Busy(_) => Reason::Busy,
                    Refusal::NotListed(_) => Reason::NotListed,
                    Refusal::NotAllowed(_) => Reason::NotAllowed,
                    Refusal::NotThere(_) => Reason::NotThere,
                };
                Outcome::Refused(Refused { reason: reason.into(), text: refusal.to_string() })
            }
        };
        Ok(Response::new(FetchReply { outcome: Some(outcome) }))
    }
}

fn accepted(taken: Taken) -> Accepted {
    let Taken { complete, have, index } = taken;
    let (index, index_error) = match index {
        IndexStand::NotAsked => (IndexState::Unspecified, String::new()),
        IndexStand::Building => (IndexState::Building, String::new()),
        IndexStand::There => (IndexState::There, String::new()),
        IndexStand::Impossible(reason) => (IndexState::None, shortened(reason, MAX_SEED_REASON_BYTES)),
    };
    Accepted { complete, have, index: index.into(), index_error }
}

/// At most so many bytes, and whole characters.
pub(crate) fn shortened(mut text: String, bytes: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes));
    text
}

fn read(message: FetchRequest) -> Result<Wanted, String> {
    let digest: [u8; 32] = message
        .digest
        .as_slice()
        .try_into()
        .map_err(|_| format!("digest: expected 32 bytes, got {}", message.digest.len()))?;
    for (field, text, limit) in [
        ("registry", &message.registry, MAX_NAMESPACE_BYTES),
        ("repository", &message.repository, MAX_REPOSITORY_BYTES),
    ] {
        if text.is_empty() || text.len() > limit {
            return Err(format!("{field}: expected 1 to {limit} bytes, got {}", text.len()));
        }
    }
    let waited_for = match message.urgency() {
        Urgency::WaitedFor => true,
        Urgency::Background => false,
        Urgency::Unspecified => return Err(format!("urgency: {} is none", message.urgency)),
    };
    Ok(Wanted {
        digest: Digest::from_bytes(digest),
        length: message.length,
        locator: Locator { namespace: message.registry, repository: message.repository },
        waited_for,
        index: message.index,
        follows: message.follows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_refused_by_name() {
        let good = FetchRequest {
            digest: vec![1; 32],
            length: 7,
            registry: "reg.example".to_owned(),
            repository: "a/b".to_owned(),
            urgency: Urgency::WaitedFor.into(),
            index: true,
            follows: true,
        };
        let wanted = read(good.clone()).unwrap();
        assert!(wanted.waited_for && wanted.index && wanted.follows);
        for (bad, hint) in [
            (FetchRequest { digest: vec![1; 31], ..good.clone() }, "digest"),
            (FetchRequest { registry: String::new(), ..good.clone() }, "registry"),
            (FetchRequest { registry: "x".repeat(300), ..good.clone() }, "registry"),
            (FetchRequest { repository: "x".repeat(300), ..good.clone() }, "repository"),
            (FetchRequest { urgency: 0, ..good.clone() }, "urgency"),
            (FetchRequest { urgency: 9, ..good }, "urgency"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.starts_with(hint), "{error}");
        }
    }
}
