//! Refusals in the form of the distribution specification ("Error Codes").

use std::fmt;

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use lapwing_p2p::node::{OpenError, ReadError};
use lapwing_p2p::origin::OriginError;
use lapwing_plugins::registry::{Denied, ForwardError, InvalidName};

/// An answer that is not what was asked for.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// Boxed to keep results small.
    headers: Box<HeaderMap>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Box::default() }
    }

    /// The runtime shall go on to its next host.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "UNAVAILABLE", message)
    }

    /// Whether it is [`Self::unavailable`].
    pub(super) fn is_unavailable(&self) -> bool {
        self.status == StatusCode::BAD_GATEWAY
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "this is a mirror to pull from: only GET and HEAD are served";
        let mut refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message);
        refusal.headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        refusal
    }

    pub(super) fn range_not_satisfiable(length: u64) -> Self {
        let message = format!("the range is not within the blob's {length} bytes");
        let mut refusal = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", message);
        if let Ok(value) = HeaderValue::try_from(format!("bytes */{length}")) {
            refusal.headers.insert(CONTENT_RANGE, value);
        }
        refusal
    }

    pub(super) fn into_response(self) -> Response {
        let body = serde_json::json!({ "errors": [{ "code": self.code, "message": self.message }] });
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        *response.headers_mut() = *self.headers;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status.as_u16(), self.code, self.message)
    }
}

impl From<InvalidName> for Refusal {
    fn from(error: InvalidName) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", error.to_string())
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let message = denied.to_string();
        match denied {
            Denied::Refused { status, challenges, .. } => {
                let code = if status == StatusCode::UNAUTHORIZED { "UNAUTHORIZED" } else { "DENIED" };
                let mut refusal = Self::new(status, code, message);
                for challenge in challenges {
                    refusal.headers.append(WWW_AUTHENTICATE, challenge);
                }
                refusal
            }
            Denied::Missing { .. } => Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", message),
            Denied::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message),
            Denied::Unavailable { .. } => Self::unavailable(message),
        }
    }
}

impl From<ForwardError> for Refusal {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", error.to_string()),
            ForwardError::Unavailable { .. } => Self::unavailable(error.to_string()),
        }
    }
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        match &error {
            ReadError::Origin { source: OriginError::NotFound { .. }, .. } => {
                Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", error.to_string())
            }
            _ => Self::unavailable(error.to_string()),
        }
    }
}
