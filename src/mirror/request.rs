//! What a request asks for: path, query, `ns` (distribution spec 1.1, "Endpoints"; containerd's `docs/hosts.md`).

use std::fmt;

use axum::extract::Query;
use axum::http::header::{ACCEPT, AUTHORIZATION};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{Reference, RegistryName, RepositoryName};

use super::answer::Refusal;
use crate::limits::{MAX_ACCEPT, MAX_QUERY_BYTES};

/// One request, parsed.
#[derive(Debug)]
pub(super) struct Asked {
    pub head: bool,
    pub registry: RegistryName,
    pub repository: RepositoryName,
    pub thing: Thing,
    /// The query without `ns`.
    pub query: Option<String>,
    pub headers: HeaderMap,
}

/// What of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Thing {
    Manifest(Reference),
    Blob(Digest),
    Referrers(Digest),
    Tags,
}

impl Thing {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Manifest(_) => "manifest",
            Self::Blob(_) => "blob",
            Self::Referrers(_) => "referrers",
            Self::Tags => "tags",
        }
    }
}

impl Asked {
    /// The client's `Authorization`.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.headers.get(AUTHORIZATION)
    }

    pub(super) fn accept(&self) -> Vec<HeaderValue> {
        self.headers.get_all(ACCEPT).iter().take(MAX_ACCEPT).cloned().collect()
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.thing {
            Thing::Manifest(Reference::Tag(tag)) => write!(f, ":{tag}"),
            Thing::Manifest(Reference::Digest(digest)) | Thing::Blob(digest) => write!(f, "@{digest}"),
            Thing::Referrers(digest) => write!(f, "@{digest} (referrers)"),
            Thing::Tags => f.write_str(" (tags)"),
        }
    }
}

/// Parses a request; `None` for the ping of the API's root.
pub(super) fn parse<B>(request: &Request<B>, default_registry: &RegistryName) -> Result<Option<Asked>, Refusal> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Err(Refusal::method_not_allowed());
    }
    let path = request.uri().path();
    if path == "/v2/" || path == "/v2" {
        return Ok(None);
    }
    let unknown = || Refusal::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint on this mirror");
    let rest = path.strip_prefix("/v2/").ok_or_else(unknown)?;
    let (front, last) = rest.rsplit_once('/').ok_or_else(unknown)?;
    let (name, kind) = front.rsplit_once('/').ok_or_else(unknown)?;
    let thing = match (kind, last) {
        ("manifests", reference) => Thing::Manifest(reference.parse()?),
        ("blobs", digest) => Thing::Blob(parse_digest(digest)?),
        ("referrers", digest) => Thing::Referrers(parse_digest(digest)?),
        ("tags", "list") => Thing::Tags,
        _ => return Err(unknown()),
    };
    let repository = name.parse()?;
    let (registry, query) = registry_and_query(request, default_registry)?;
    let headers = request.headers().clone();
    Ok(Some(Asked { head: request.method() == Method::HEAD, registry, repository, thing, query, headers }))
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    let invalid = |error: lapwing_p2p::digest::InvalidDigest| {
        Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string())
    };
    text.parse().map_err(invalid)
}

fn registry_and_query<B>(
    request: &Request<B>,
    default_registry: &RegistryName,
) -> Result<(RegistryName, Option<String>), Refusal> {
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", message);
    if request.uri().query().is_some_and(|query| query.len() > MAX_QUERY_BYTES) {
        return Err(bad(format!("the query is longer than {MAX_QUERY_BYTES} bytes")));
    }
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(request.uri())
        .map_err(|error| bad(format!("the query cannot be read: {error}")))?;
    let (ns, others): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(key, _)| key == "ns");
    let registry = match ns.as_slice() {
        [] => default_registry.clone(),
        [(_, name)] => name.parse()?,
        _ => return Err(bad("ns is given more than once".to_owned())),
    };
    Ok((registry, encode(&others)))
}

fn encode(pairs: &[(String, String)]) -> Option<String> {
    let mut url = reqwest::Url::parse("http://query.invalid/").ok()?;
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().filter(|query| !query.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, uri: &str) -> Result<Option<Asked>, Refusal> {
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        parse(&request, &RegistryName::docker_hub())
    }

    fn shown(uri: &str) -> String {
        ask("GET", uri).unwrap().unwrap().to_string()
    }

    #[test]
    fn endpoints() {
        let digest = Digest::of(b"x");
        assert!(ask("GET", "/v2/").unwrap().is_none());
        assert_eq!(shown("/v2/library/debian/manifests/12"), "docker.io/library/debian:12");
        assert_eq!(shown("/v2/a/manifests/12?ns=reg.example%3A443"), "reg.example:443/a:12");
        assert_eq!(shown(&format!("/v2/a/manifests/{digest}?ns=10.0.0.1:5000")), format!("10.0.0.1:5000/a@{digest}"));
        assert_eq!(shown(&format!("/v2/blobs/blobs/blobs/{digest}")), format!("docker.io/blobs/blobs@{digest}"));
        let tags = ask("GET", "/v2/a/b/tags/list?n=5&ns=r.example&last=x%26y").unwrap().unwrap();
        assert_eq!((&tags.thing, tags.query.as_deref()), (&Thing::Tags, Some("n=5&last=x%26y")));
        assert!(ask("HEAD", &format!("/v2/a/referrers/{digest}")).unwrap().unwrap().head);
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let digest = Digest::of(b"x");
        let cases = [
            ("POST", "/v2/a/blobs/uploads/".to_owned(), 405, "UNSUPPORTED"),
            ("GET", "/".to_owned(), 404, "UNSUPPORTED"),
            ("GET", "/v1/search".to_owned(), 404, "UNSUPPORTED"),
            ("GET", "/v2/_catalog".to_owned(), 404, "UNSUPPORTED"),
            ("GET", "/v2/manifests/x".to_owned(), 404, "UNSUPPORTED"),
            ("GET", format!("/v2/A/blobs/{digest}"), 400, "NAME_INVALID"),
            ("GET", format!("/v2/../blobs/{digest}"), 400, "NAME_INVALID"),
            ("GET", format!("/v2/a/%2e%2e/blobs/{digest}"), 400, "NAME_INVALID"),
            ("GET", format!("/v2/{}/blobs/{digest}", "a".repeat(256)), 400, "NAME_INVALID"),
            ("GET", "/v2/a/manifests/.x".to_owned(), 400, "NAME_INVALID"),
            ("GET", "/v2/a/blobs/sha256:zz".to_owned(), 400, "DIGEST_INVALID"),
            ("GET", format!("/v2/a/blobs/{digest}?ns=http://169.254.169.254/"), 400, "NAME_INVALID"),
            ("GET", format!("/v2/a/blobs/{digest}?ns="), 400, "NAME_INVALID"),
            ("GET", format!("/v2/a/blobs/{digest}?ns=a&ns=b"), 400, "UNSUPPORTED"),
            ("GET", format!("/v2/a/tags/list?x={}", "y".repeat(5000)), 400, "UNSUPPORTED"),
        ];
        for (method, uri, status, code) in cases {
            let refusal = ask(method, &uri).unwrap_err();
            assert!(refusal.to_string().starts_with(&format!("{status} {code}")), "{uri}: {refusal}");
            assert_eq!(refusal.into_response().status().as_u16(), status);
        }
    }
}
