//! HTTP clients, and what every answer is held to.

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::RETRY_AFTER;
use reqwest::Client;

use super::address::PublicOnly;
use super::config::RegistriesConfig;
use crate::limits::{DEFAULT_RETRY_AFTER, MAX_CREDENTIAL_FILE, MAX_RETRY_AFTER};

/// By which client a URL is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Named by the operator: any address, and the registry's own CA.
    Listed,
    /// Named by a stranger: public addresses only.
    Public,
}

/// Makes a client. Redirects are never followed by it: [`super::endpoint`] does that by hand.
///
/// HTTP/1.1 only: several transfers of a big blob over one HTTP/2 connection share one congestion window. No proxy is
/// taken from the environment, because the addresses it dials could not be checked.
pub(crate) fn build(config: &RegistriesConfig, ca_file: Option<&Path>, route: Route) -> Result<Client, String> {
    let mut builder = Client::builder()
        .user_agent(concat!("lapwing/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(config.connect_timeout_seconds.max(1)))
        .read_timeout(Duration::from_secs(config.read_timeout_seconds.max(1)))
        .pool_idle_timeout(Duration::from_secs(60));
    if route == Route::Public {
        builder = builder.dns_resolver(Arc::new(PublicOnly));
    }
    if let Some(path) = ca_file {
        builder = builder.tls_certs_merge(certificates(path)?);
    }
    builder.build().map_err(|error| format!("cannot make an HTTPS client: {}", transport_reason(error)))
}

fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, String> {
    let failed = |reason: String| format!("cannot read certificates from ca_file {}: {reason}", path.display());
    let size = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_CREDENTIAL_FILE {
        return Err(failed(format!("{size} bytes are more than the limit of {MAX_CREDENTIAL_FILE}")));
    }
    let pem = fs::read(path).map_err(|error| failed(error.to_string()))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.to_string()))?;
    if found.is_empty() { Err(failed("there is none in it".to_owned())) } else { Ok(found) }
}

/// What went wrong, with its causes and without the URL, whose query may be a signature.
pub(crate) fn transport_reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The whole body, if it has at most `limit` bytes.
pub(crate) async fn read_bounded(mut response: reqwest::Response, limit: usize) -> Result<Bytes, String> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(transport_reason)? {
        if body.len() + chunk.len() > limit {
            return Err(format!("sent more than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// How long to leave the sender of a 429 or 503 alone; `None` for a 503 that does not say.
pub(crate) fn pause(status: u16, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(|text| {
        let seconds = text.trim().parse::<u64>().ok().map(Duration::from_secs);
        let until = || httpdate::parse_http_date(text).ok().map(|at| at.duration_since(now).unwrap_or_default());
        seconds.or_else(until)
    });
    match (status, asked) {
        (429 | 503, Some(pause)) => Some(pause.min(MAX_RETRY_AFTER)),
        (429, None) => Some(DEFAULT_RETRY_AFTER),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let date = httpdate::fmt_http_date(now + Duration::from_secs(30));
        let past = httpdate::fmt_http_date(now - Duration::from_secs(30));
        let cases = [
            (429, Some("7"), Some(7)),
            (503, Some("7"), Some(7)),
            (503, None, None),
            (500, Some("7"), None),
            (429, None, Some(5)),
            (429, Some("soon"), Some(5)),
            (429, Some("999999999999"), Some(600)),
            (429, Some(date.as_str()), Some(30)),
            (429, Some(past.as_str()), Some(0)),
        ];
        for (status, value, expected) in cases {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(RETRY_AFTER, value.parse().unwrap());
            }
            assert_eq!(pause(status, &headers, now).map(|pause| pause.as_secs()), expected, "{status} {value:?}");
        }
    }
}
