//! Where traces go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Where collectors take spans by OTLP over HTTP (OTLP specification 1.x, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";
/// The standard's own variable (OpenTelemetry specification, "OTLP exporter configuration").
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const MAX_ATTRIBUTES: usize = 32;
const MAX_TEXT: usize = 255;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Traces {
    pub endpoint: String,
    pub headers_file: PathBuf,
    pub sample: f64,
    pub service_name: String,
    pub attributes: BTreeMap<String, String>,
}

impl Default for Traces {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            headers_file: PathBuf::new(),
            sample: 1.0,
            service_name: String::new(),
            attributes: BTreeMap::new(),
        }
    }
}

impl Traces {
    /// Where spans are posted to, if anywhere: what the configuration says, else the environment.
    pub(crate) fn url(&self) -> Result<Option<reqwest::Url>, ConfigError> {
        let (key, text) = match self.endpoint.as_str() {
            "" => (ENDPOINT, std::env::var(ENDPOINT).unwrap_or_default()),
            given => ("traces.endpoint", given.to_owned()),
        };
        if text.is_empty() {
            return Ok(None);
        }
        let url = parse(&text).map_err(|reason| ConfigError::Invalid { key: key.to_owned(), reason })?;
        Ok(Some(url))
    }

    pub(crate) fn headers_file(&self) -> Option<&Path> {
        (!self.headers_file.as_os_str().is_empty()).then_some(&*self.headers_file)
    }

    /// Refuses what cannot work.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: String| Err(ConfigError::Invalid { key: format!("traces.{key}"), reason });
        if !self.endpoint.is_empty() {
            self.url()?;
        }
        if !(0.0..=1.0).contains(&self.sample) {
            return invalid("sample", format!("{} is not between 0 (no pull) and 1 (every pull)", self.sample));
        }
        let long = |text: &str| text.len() > MAX_TEXT;
        if long(&self.service_name) {
            return invalid("service_name", format!("longer than {MAX_TEXT} bytes"));
        }
        let wrong = |(key, value): (&String, &String)| key.is_empty() || long(key) || long(value);
        if self.attributes.len() > MAX_ATTRIBUTES || self.attributes.iter().any(wrong) {
            let reason = format!("at most {MAX_ATTRIBUTES}, of names and texts of at most {MAX_TEXT} bytes each");
            return invalid("attributes", reason);
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<reqwest::Url, String> {
    let expected = "expected the HTTP endpoint of a collector, as \"http://collector:4318\"";
    let mut url: reqwest::Url = text.parse().map_err(|error| format!("{error}; {expected}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(expected.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("credentials belong in traces.headers_file; {expected}"));
    }
    let path = format!("{}{PATH}", url.path().trim_end_matches('/').trim_end_matches(PATH));
    url.set_path(&path);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_the_standards_own() {
        let posted = |text: &str| parse(text).map(|url| url.to_string());
        assert_eq!(posted("http://c:4318").as_deref(), Ok("http://c:4318/v1/traces"));
        assert_eq!(posted("https://c/otlp/").as_deref(), Ok("https://c/otlp/v1/traces"));
        assert_eq!(posted("http://c:4318/v1/traces").as_deref(), Ok("http://c:4318/v1/traces"));
        for wrong in ["c:4318", "grpc://c:4317", "http://u:p@c:4318", "http://c:4318/?key=x", "http://"] {
            assert!(posted(wrong).is_err(), "{wrong}");
        }
    }
}
