//! A node's side: becoming a member, and staying one.

use std::sync::Arc;

use lapwing_p2p::identity::Identity;
use lapwing_p2p::limits::MAX_CERTIFICATES;
use lapwing_p2p::membership::{Credentials, Role, fingerprint};
use lapwing_p2p::tls::{Expected, Protocol, Tls, TlsError};
use tokio::time::timeout;
use tonic::{Response, Status};

use super::Certificate;
use super::proto::authority_service_client::AuthorityServiceClient;
use super::proto::{self, JoinRequest, RenewRequest};
use super::tokens::{self, TokenError};
use crate::client::{InvalidConfig, endpoint};
use crate::limits::{DEADLINE, MAX_MEMBERSHIP_BYTES};
use crate::transport;

/// What an authority gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The node's certificate, and those that lead to the authority.
    pub certificates: Vec<Certificate>,
    /// Of the authorities whose members are to be believed.
    pub authorities: Vec<Certificate>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The tracker's address.
    #[error(transparent)]
    Address(#[from] InvalidConfig),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// This node's side of TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No authority is believed.
    #[error("no authority is known whose tracker could be believed")]
    Nobody,
    /// It said no.
    #[error("the tracker {tracker} refuses: {reason}")]
    Refused {
        /// Which.
        tracker: String,
        /// In its words.
        reason: String,
    },
    /// It did not answer.
    #[error("the tracker {tracker} gives no certificate: {reason}")]
    Failed {
        /// Which.
        tracker: String,
        /// What happened.
        reason: String,
    },
}

/// Asks the tracker at `tracker` (`host:port`) to be let in for a token.
pub async fn join(tracker: &str, identity: &Arc<Identity>, token: &str) -> Result<Membership, AskError> {
    let expected = Expected::Authority(tokens::authority_of(token)?);
    let tls = Tls::new(Protocol::Calls, identity, None)?;
    let request = JoinRequest { token: token.trim().to_owned() };
    ask(tracker, &tls, expected, |mut client| async move { client.join(request).await }).await
}

/// Asks for another certificate: with the one that is there while it is good, else with the key alone.
pub async fn renew(
    tracker: &str,
    identity: &Arc<Identity>,
    credentials: &Arc<Credentials>,
) -> Result<Membership, AskError> {
    let (tls, expected) = if credentials.good_until().is_some() {
        (Tls::new(Protocol::Calls, identity, Some(credentials))?, Expected::Role(Role::Tracker))
    } else {
        let authorities = credentials.authorities();
        let believed = authorities.certificates().first().and_then(fingerprint).ok_or(AskError::Nobody)?;
        (Tls::new(Protocol::Calls, identity, None)?, Expected::Authority(believed))
    };
    ask(tracker, &tls, expected, |mut client| async move { client.renew(RenewRequest {}).await }).await
}

async fn ask<F>(
    tracker: &str,
    tls: &Tls,
    expected: Expected,
    call: impl FnOnce(AuthorityServiceClient<tonic::transport::Channel>) -> F,
) -> Result<Membership, AskError>
where
    F: Future<Output = Result<Response<proto::Membership>, Status>>,
{
    let (endpoint, _) = endpoint(tracker)?;
    let channel = transport::channel(&endpoint, Some(tls), expected);
    let client = AuthorityServiceClient::new(channel).max_decoding_message_size(MAX_MEMBERSHIP_BYTES);
    let failed = |reason: String| AskError::Failed { tracker: tracker.to_owned(), reason };
    let reply = timeout(2 * DEADLINE, call(client)).await.map_err(|_| failed("no answer".to_owned()))?;
    let reply = reply.map_err(|status| match status.code() {
        tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => {
            AskError::Refused { tracker: tracker.to_owned(), reason: status.message().to_owned() }
        }
        _ => failed(chain(&status)),
    })?;
    let read = |der: Vec<Vec<u8>>| -> Result<Vec<Certificate>, AskError> {
        if der.is_empty() || der.len() > MAX_CERTIFICATES {
            return Err(failed(format!("{} certificates in its answer, expected 1 to {MAX_CERTIFICATES}", der.len())));
        }
        Ok(der.into_iter().map(Certificate::from).collect())
    };
    let proto::Membership { certificates, authorities } = reply.into_inner();
    Ok(Membership { certificates: read(certificates)?, authorities: read(authorities)? })
}

/// The causes as well: the transport says "transport error" and keeps to itself what TLS found.
fn chain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
