//! One exchange with a web server: redirects followed by hand, each to where it may lead.

use std::sync::Arc;

use http::HeaderMap;
use reqwest::{Client, Method, Response, Url};
use tokio::sync::Semaphore;

use super::target::{Allowed, describe};
use crate::limits::MAX_REDIRECTS;
use crate::registry::client::{Route, transport_reason};
use crate::registry::endpoint::{check_literal, is_redirect, location};

/// The clients, and where they may go.
pub(crate) struct Fetcher {
    pub(crate) allowed: Allowed,
    /// Reaches any address.
    pub(crate) free: Client,
    /// Reaches public addresses.
    pub(crate) public: Client,
    /// One permit for each transfer of content.
    pub(crate) turns: Arc<Semaphore>,
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0}")]
    Transport(String),
    #[error("redirect refused: {0}")]
    Redirect(String),
    #[error("{0} is not allowed by http.allow")]
    NotAllowed(String),
}

impl Fetcher {
    /// Sends, and follows redirects. `personal` headers go to the URL's own scheme, host and port only.
    pub(crate) async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        personal: &HeaderMap,
    ) -> Result<Response, FetchError> {
        let own = url.origin();
        let mut url = url.clone();
        let mut route = self.allowed.route(&url).ok_or_else(|| FetchError::NotAllowed(describe(&url)))?;
        let mut left_home = false;
        for _ in 0..=MAX_REDIRECTS {
            if route == Route::Public {
                check_literal(&url).map_err(FetchError::Redirect)?;
            }
            let client = if route == Route::Listed { &self.free } else { &self.public };
            let mut request = client.request(method.clone(), url.clone()).headers(headers.clone());
            if !left_home {
                request = request.headers(personal.clone());
            }
            let response = request.send().await.map_err(|error| FetchError::Transport(transport_reason(error)))?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            url = location(&url, response.headers()).map_err(FetchError::Redirect)?;
            left_home = left_home || url.origin() != own;
            // A public host that nobody listed may be led to: a content delivery network.
            route = self.allowed.route(&url).unwrap_or(Route::Public);
        }
        Err(FetchError::Redirect(format!("more than {MAX_REDIRECTS} in a row")))
    }
}
