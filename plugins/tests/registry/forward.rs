//! Manifests, tags and referrers are passed through as they are.

use axum::body::Body;
use http::{HeaderValue, Method};
use lapwing_plugins::registry::{Credential, ForwardError, ForwardMethod, ForwardRequest, Reference, Resource};

use crate::fake::{Fake, challenge, digest, repo, status, with_body};

fn request(fake: &Fake, method: ForwardMethod, resource: Resource) -> ForwardRequest {
    ForwardRequest {
        method,
        registry: fake.name(),
        repository: repo(),
        resource,
        query: None,
        accept: vec![HeaderValue::from_static("a/b"), HeaderValue::from_static("c/d")],
        credential: Credential::Anonymous,
    }
}

fn tag() -> Resource {
    Resource::Manifest(Reference::Tag("v1".to_owned()))
}

#[tokio::test]
async fn what_goes_and_what_comes_back() {
    let fake = Fake::start(|seen| {
        let body = if seen.method == Method::HEAD { Body::empty() } else { Body::from("{}") };
        let headers = [
            ("content-type", "x/y"),
            ("docker-content-digest", "sha256:00"),
            ("content-length", "2"),
            ("link", "<l>"),
            ("set-cookie", "a=b"),
            ("x-other", "1"),
        ];
        with_body(200, &headers, body)
    })
    .await;
    let registries = fake.listed();
    for method in [ForwardMethod::Get, ForwardMethod::Head] {
        let forwarded = registries.forward(&request(&fake, method, tag())).await.unwrap();
        assert_eq!(forwarded.status, 200);
        assert_eq!(forwarded.body.len(), if method == ForwardMethod::Get { 2 } else { 0 });
        let mut names: Vec<_> = forwarded.headers.keys().map(|name| name.as_str().to_owned()).collect();
        names.sort();
        assert_eq!(names, ["content-length", "content-type", "docker-content-digest", "link"]);
    }
    let seen = &fake.seen()[0];
    assert_eq!(seen.uri, "/v2/team/app/manifests/v1");
    let accept: Vec<_> = seen.headers.get_all("accept").iter().collect();
    assert_eq!(accept, ["a/b", "c/d"]);

    let mut tags = request(&fake, ForwardMethod::Get, Resource::Tags);
    tags.query = Some("n=5".to_owned());
    registries.forward(&tags).await.unwrap();
    assert_eq!(fake.seen().last().unwrap().uri, "/v2/team/app/tags/list?n=5");
    registries.forward(&request(&fake, ForwardMethod::Get, Resource::Referrers(digest()))).await.unwrap();
    assert_eq!(fake.seen().last().unwrap().uri, format!("/v2/team/app/referrers/{}", digest()));
}

#[tokio::test]
async fn challenges_and_errors_are_relayed() {
    let fake = Fake::start(|seen| match seen.path() {
        "/token" => status(401, &[]),
        "/v2/team/app/manifests/v1" => challenge(seen),
        _ => with_body(404, &[("content-type", "application/json")], r#"{"errors":[]}"#),
    })
    .await;
    let registries = fake.listed();
    let refused = registries.forward(&request(&fake, ForwardMethod::Get, tag())).await.unwrap();
    assert_eq!(refused.status, 401);
    assert!(refused.headers.contains_key("www-authenticate"));
    let missing = registries.forward(&request(&fake, ForwardMethod::Get, Resource::Tags)).await.unwrap();
    assert_eq!((missing.status.as_u16(), missing.body.as_ref()), (404, br#"{"errors":[]}"#.as_slice()));
}

#[tokio::test]
async fn what_is_too_long_or_too_busy_is_an_error() {
    let fake = Fake::start(|seen| match seen.path() {
        "/v2/team/app/tags/list" => status(429, &[("retry-after", "1")]),
        _ => with_body(200, &[], vec![b' '; (4 << 20) + 1]),
    })
    .await;
    let registries = fake.listed();
    for resource in [tag(), Resource::Tags] {
        let failed = registries.forward(&request(&fake, ForwardMethod::Get, resource)).await;
        assert!(matches!(failed, Err(ForwardError::Unavailable { .. })), "{failed:?}");
    }
}
