//! Which URL a client means, whether it may be fetched, and whose rights its headers stand for.

use http::header::{HeaderMap, HeaderName};
use lapwing_p2p::digest::Digest;
use reqwest::Url;

use super::cache::Validator;
use crate::limits::{MAX_FILTERED_QUERY, MAX_URL_LENGTH};
use crate::registry::client::Route;

/// A URL that cannot be fetched, or may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// Not of the form `<http|https>/<host>/<path>`.
    #[error("not a URL that can be fetched: {0}; the form is /url/<http|https>/<host[:port]>/<path>")]
    Malformed(String),
    /// No entry of `http.allow` names its host.
    #[error("{0} is not a host that URLs may be fetched from; add it to http.allow in the configuration")]
    NotAllowed(String),
}

/// An entry of `http.allow` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host, host:port, *.domain or *")]
pub struct InvalidPattern(String);

/// The hosts that URLs may be fetched from.
///
/// * `host`, `host:port`: that host, at whatever address it has; the operator named it. Without a port, the scheme's own.
/// * `*.domain`, `*.domain:port`: every host below, where it has a public address: names below a domain may be made by many.
/// * `*`: every host with a public address, at the scheme's own port.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    patterns: Vec<Pattern>,
    /// Whatever the patterns say.
    anywhere: bool,
}

#[derive(Debug, Clone)]
struct Pattern {
    /// In lower case; after `*.` where `below`. Empty: any.
    host: String,
    port: Option<u16>,
    below: bool,
}

impl Allowed {
    /// Reads the patterns of the configuration.
    pub fn parse(patterns: &[String]) -> Result<Self, InvalidPattern> {
        patterns
            .iter()
            .map(|text| Pattern::parse(text).ok_or_else(|| InvalidPattern(text.clone())))
            .collect::<Result<_, _>>()
            .map(|patterns| Self { patterns, anywhere: false })
    }

    /// Every host at every address, for the user who named the URL at his own command line.
    pub(crate) const fn anywhere() -> Self {
        Self { patterns: Vec::new(), anywhere: true }
    }

    /// Whether an entry names the host of this URL.
    pub fn allows(&self, url: &str) -> bool {
        Url::parse(url).is_ok_and(|url| self.route(&url).is_some())
    }

    /// By which client the URL may be reached, if at all.
    pub(crate) fn route(&self, url: &Url) -> Option<Route> {
        let named = self.anywhere || self.patterns.iter().any(|pattern| !pattern.below && pattern.matches(url));
        let below = || self.patterns.iter().any(|pattern| pattern.below && pattern.matches(url));
        if named { Some(Route::Listed) } else { below().then_some(Route::Public) }
    }
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self { host: String::new(), port: None, below: true });
        }
        let (below, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        crate::registry::name::check_host(rest).ok()?;
        // Written as the URL parser writes hosts, so that they compare equal.
        let url = Url::parse(&format!("scheme-without-port://{rest}/")).ok()?;
        let host = Url::parse(&format!("http://{rest}/")).ok()?.host_str()?.to_owned();
        Some(Self { host, port: url.port(), below })
    }

    fn matches(&self, url: &Url) -> bool {
        let default = if url.scheme() == "https" { 443 } else { 80 };
        if url.port_or_known_default() != Some(self.port.unwrap_or(default)) {
            return false;
        }
        let Some(host) = url.host_str() else { return false };
        match (self.below, self.host.as_str()) {
            (true, "") => true,
            (true, domain) => host.strip_suffix(domain).is_some_and(|front| front.len() > 1 && front.ends_with('.')),
            (false, own) => host == own,
        }
    }
}

/// A URL as a client of the node names it, with the headers that go along.
#[derive(Debug, Clone)]
pub struct Target {
    pub(crate) url: Url,
    /// Headers for the origin that say whose rights are used, or what nobody knows the meaning of.
    pub(crate) personal: HeaderMap,
    /// Headers for the origin that anybody might send.
    pub(crate) neutral: HeaderMap,
    /// Query parameters that do not choose the content, as the client says: sorted, in lower case.
    pub(crate) filter: Vec<String>,
}

/// Header by which a client names query parameters that do not choose the content: `name` or `prefix*`, with commas between.
pub const FILTER_QUERY: HeaderName = HeaderName::from_static("lapwing-filter-query");

/// Headers that do not tell one client from another. What is not among them may.
const NEUTRAL: [&str; 32] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "dnt",
    "expect",
    "forwarded",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "pragma",
    "priority",
    "proxy-connection",
    "range",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "upgrade-insecure-requests",
    "user-agent",
    "via",
];

/// Of the neutral ones, those that go to the origin when the node asks in its own name.
const PASSED: [&str; 3] = ["accept", "accept-language", "user-agent"];

/// Headers that are meant for the next hop only (RFC 9110, 7.6.1).
const HOP: [&str; 9] = [
    "connection",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

fn is_one_of(name: &HeaderName, names: &[&str]) -> bool {
    names.contains(&name.as_str())
}

fn is_neutral(name: &HeaderName) -> bool {
    let name_text = name.as_str();
    is_one_of(name, &NEUTRAL)
        || is_one_of(name, &HOP)
        || ["x-forwarded-", "sec-fetch-", "sec-ch-", "lapwing-"].iter().any(|prefix| name_text.starts_with(prefix))
}

/// The headers of a message without those for the next hop.
pub fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let mut passed = HeaderMap::new();
    for (name, value) in headers {
        let hop = is_one_of(name, &HOP) || *name == http::header::TRANSFER_ENCODING;
        if !hop && !named.iter().any(|hop| hop == name.as_str()) {
            passed.append(name, value.clone());
        }
    }
    passed
}

impl Target {
    /// Reads what follows `/url/` in the path of a request: `<scheme>/<host>/<path>`, still percent-encoded, and its query.
    pub fn parse(rest: &str, query: Option<&str>, headers: &HeaderMap) -> Result<Self, BadTarget> {
        let malformed = |reason: &str| BadTarget::Malformed(reason.to_owned());
        if rest.len() + query.map_or(0, str::len) > MAX_URL_LENGTH {
            return Err(malformed(&format!("it is longer than {MAX_URL_LENGTH} bytes")));
        }
        let (scheme, rest) = rest.split_once('/').ok_or_else(|| malformed("there is no host"))?;
        if !matches!(scheme, "http" | "https") {
            return Err(malformed("the scheme is neither http nor https"));
        }
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        crate::registry::name::check_host(host).map_err(malformed)?;
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let url =
            Url::parse(&format!("{scheme}://{host}/{path}{query}")).map_err(|error| malformed(&error.to_string()))?;
        let filter = filter_of(headers).map_err(malformed)?;
        let mut target = Self { url, personal: HeaderMap::new(), neutral: HeaderMap::new(), filter };
        for (name, value) in &end_to_end(headers) {
            if !is_neutral(name) {
                target.personal.append(name, value.clone());
            } else if is_one_of(name, &PASSED) {
                target.neutral.append(name, value.clone());
            }
        }
        Ok(target)
    }

    /// Where it is, for people: no query, which may be a signature.
    pub fn describe(&self) -> String {
        describe(&self.url)
    }

    /// The host it is asked of; empty if it has none.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Stands for the URL, its query included, and the rights it is asked for with: who brings others is answered by the
    /// origin anew.
    pub(crate) fn key(&self) -> Digest {
        let mut text = self.url.as_str().as_bytes().to_vec();
        for (name, value) in &self.personal {
            text.push(0);
            text.extend_from_slice(name.as_str().as_bytes());
            text.push(b':');
            text.extend_from_slice(value.as_bytes());
        }
        Digest::of(&text)
    }

    /// The name of one version of the content in the swarm: the same on every node that was told the same URL, validator
    /// and length. Who leaves out parameters of his own choice shares with those who leave out the same, and with nobody else:
    /// his choice may be wrong.
    pub(crate) fn version_name(&self, ignored: &[String], validator: &Validator, length: u64) -> Digest {
        let kind = match validator {
            Validator::ETag(_) => "etag",
            Validator::LastModified(_) => "date",
        };
        let url = without_ignored(&self.url, ignored);
        let filtered = without_ignored(&url, &self.filter);
        let choice = if filtered == url { String::new() } else { format!("\0filter\0{}", self.filter.join(",")) };
        Digest::name(format!("url\0{filtered}\0{kind}\0{}\0{length}{choice}", validator.as_str()).as_bytes())
    }
}

fn filter_of(headers: &HeaderMap) -> Result<Vec<String>, &'static str> {
    let mut filter = Vec::new();
    for value in headers.get_all(FILTER_QUERY) {
        let text = value.to_str().map_err(|_| "the query filter is not text")?;
        filter.extend(text.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()));
    }
    filter.sort_unstable();
    filter.dedup();
    if filter.len() > MAX_FILTERED_QUERY { Err("the query filter names too many parameters") } else { Ok(filter) }
}

pub(crate) fn describe(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.into()
}

/// The URL without the query parameters that do not choose the content: `name`, or `prefix*`.
pub fn without_ignored(url: &Url, ignored: &[String]) -> Url {
    let is_ignored = |name: &str| {
        ignored.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => {
                name.len() >= prefix.len() && name.as_bytes()[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
            }
            None => name.eq_ignore_ascii_case(pattern),
        })
    };
    let Some(query) = url.query() else { return url.clone() };
    // Compared as they are written: to decode and encode again could make two queries one.
    let kept: Vec<&str> =
        query.split('&').filter(|pair| !is_ignored(pair.split('=').next().unwrap_or_default())).collect();
    let mut stripped = url.clone();
    stripped.set_query(if kept.is_empty() { None } else { Some(kept.join("&")) }.as_deref());
    stripped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(rest: &str, query: Option<&str>) -> Result<Target, BadTarget> {
        Target::parse(rest, query, &HeaderMap::new())
    }

    #[test]
    fn urls_of_requests() {
        let url = |rest: &str, query| target(rest, query).map(|target| target.url.to_string()).ok();
        let cases = [
            ("https/files.example/a/b.bin", None, Some("https://files.example/a/b.bin")),
            ("http/Files.Example:8080/a%20b/", Some("x=1&y=%26"), Some("http://files.example:8080/a%20b/?x=1&y=%26")),
            ("https/files.example:443/a", None, Some("https://files.example/a")),
            ("https/files.example", None, Some("https://files.example/")),
            ("http/[::1]:80/x", None, Some("http://[::1]/x")),
            ("http/2130706433/x", None, Some("http://127.0.0.1/x")),
            ("https/h/a/../../b", None, Some("https://h/b")),
            ("ftp/h/a", None, None),
            ("file//etc/passwd", None, None),
            ("https", None, None),
            ("https/", None, None),
            ("https//x", None, None),
            ("https/user@h/x", None, None),
            ("https/user:pass@h/x", None, None),
            ("https/h%2f/x", None, None),
            ("https/h:0/x", None, None),
            ("https/h:99999/x", None, None),
            ("https/a b/x", None, None),
        ];
        for (rest, query, expected) in cases {
            assert_eq!(url(rest, query).as_deref(), expected, "{rest}");
        }
        assert!(target(&format!("https/h/{}", "x".repeat(MAX_URL_LENGTH)), None).is_err());
    }

    #[test]
    fn hosts_that_are_allowed() {
        let patterns =
            ["files.example", "10.0.0.5:8080", "*.cdn.example", "*.dev.example:8443", "[::1]:80", "FILES2.example:443"];
        let allowed = Allowed::parse(&patterns.map(str::to_owned)).unwrap();
        let cases = [
            ("https://files.example/x", Some(Route::Listed)),
            ("http://files.example/x", Some(Route::Listed)),
            ("https://files.example:444/x", None),
            ("http://files.example:443/x", None),
            ("https://afiles.example/x", None),
            ("https://files.example.evil/x", None),
            ("http://10.0.0.5:8080/x", Some(Route::Listed)),
            ("http://10.0.0.5/x", None),
            ("https://a.cdn.example/x", Some(Route::Public)),
            ("https://a.b.cdn.example/x", Some(Route::Public)),
            ("https://cdn.example/x", None),
            ("https://.cdn.example/x", None),
            ("https://evilcdn.example/x", None),
            ("https://a.dev.example:8443/x", Some(Route::Public)),
            ("https://a.dev.example/x", None),
            ("http://[::1]/x", Some(Route::Listed)),
            ("https://files2.example/x", Some(Route::Listed)),
            ("http://files2.example/x", None),
            ("https://other.example/x", None),
        ];
        for (url, expected) in cases {
            let Ok(parsed) = Url::parse(url) else { continue };
            assert_eq!(allowed.route(&parsed), expected, "{url}");
        }
        let any = Allowed::parse(&["*".to_owned()]).unwrap();
        assert_eq!(any.route(&Url::parse("https://x.example/").unwrap()), Some(Route::Public));
        assert_eq!(any.route(&Url::parse("https://x.example:22/").unwrap()), None);
        assert_eq!(Allowed::default().route(&Url::parse("https://x.example/").unwrap()), None);
        for bad in ["", "http://x", "x/y", "*.", "a*b", "**", "*:80", "x:0", "user@x"] {
            assert!(Allowed::parse(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_filter_shares_with_the_same_filter_alone() {
        let name = |filter: &str, query: Option<&str>| {
            let mut headers = HeaderMap::new();
            if !filter.is_empty() {
                headers.insert(FILTER_QUERY, filter.parse().unwrap());
            }
            let target = Target::parse("https/h/f", query, &headers).unwrap();
            target.version_name(&[], &Validator::ETag("\"1\"".to_owned()), 5)
        };
        assert_eq!(name("sig", Some("sig=1")), name("Sig", Some("sig=2")));
        assert_eq!(name("a*, b", Some("ax=1&b=2")), name("b,a*", Some("ay=3")));
        assert_eq!(name("sig", Some("a=1")), name("", Some("a=1")), "nothing is left out");
        assert_ne!(name("sig", Some("sig=1")), name("", None), "nor poisoned");
        assert_ne!(name("sig", Some("sig=1")), name("si*", Some("sig=1")));
        let mut headers = HeaderMap::new();
        headers.insert(FILTER_QUERY, vec!["x1"; MAX_FILTERED_QUERY + 1].join(",").parse().unwrap());
        assert!(Target::parse("https/h/f", None, &headers).is_ok(), "the same one again and again");
        let many: Vec<String> = (0..=MAX_FILTERED_QUERY).map(|n| n.to_string()).collect();
        headers.insert(FILTER_QUERY, many.join(",").parse().unwrap());
        assert!(Target::parse("https/h/f", None, &headers).is_err());
    }

    #[test]
    fn names_tell_versions_apart() {
        let tag = |text: &str| Validator::ETag(text.to_owned());
        let ignored = ["X-Amz-*".to_owned(), "token".to_owned()];
        let name = |query: Option<&str>, validator: &Validator, length| {
            target("https/h/f", query).unwrap().version_name(&ignored, validator, length)
        };
        let base = name(None, &tag("\"1\""), 5);
        assert!(base.is_name());
        assert_eq!(base, name(Some("x-amz-date=1&TOKEN=2&X-Amz-Signature=%00"), &tag("\"1\""), 5));
        for other in [
            name(None, &tag("\"2\""), 5),
            name(None, &tag("\"1\""), 6),
            name(None, &Validator::LastModified("\"1\"".to_owned()), 5),
            name(Some("a=1"), &tag("\"1\""), 5),
            name(Some("tokens=1"), &tag("\"1\""), 5),
            target("http/h/f", None).unwrap().version_name(&ignored, &tag("\"1\""), 5),
        ] {
            assert_ne!(base, other);
        }
        assert_ne!(name(Some("a=1&b=2"), &tag("\"1\""), 5), name(Some("a=1"), &tag("\"1\""), 5));
    }

    #[test]
    fn headers_of_clients() {
        let headers: HeaderMap = [
            ("accept", "text/plain"),
            ("user-agent", "curl/8"),
            ("range", "bytes=0-1"),
            ("host", "127.0.0.1:7080"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("proxy-authorization", "Basic eA=="),
            ("authorization", "Bearer secret"),
            ("cookie", "session=1"),
            ("x-api-key", "k"),
        ]
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
        .collect();
        let asked = Target::parse("https/h/f", None, &headers).unwrap();
        let names = |map: &HeaderMap| {
            let mut names: Vec<_> = map.keys().map(HeaderName::to_string).collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(names(&asked.personal), "authorization cookie x-api-key");
        assert_eq!(names(&asked.neutral), "accept user-agent");
        assert_eq!(names(&end_to_end(&headers)), "accept authorization cookie range user-agent x-api-key");
        let nobody = Target::parse("https/h/f", None, &HeaderMap::new()).unwrap();
        assert_ne!(asked.key(), nobody.key());
        assert!(nobody.personal.is_empty());
    }
}
