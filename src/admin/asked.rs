//! Whom the listener answers. It knows no users, and a web page may ask what its browser can reach: a page whose name is made to
//! mean this machine's address ("DNS rebinding") even as if it came from here. So only requests that name this machine are answered;
//! metrics and health, which have no secrets and change nothing, are answered by any name.

use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// What anybody may ask for who reaches the listener, by whatever name he knows it: probes and scrapers go by service names.
const OPEN: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

/// Refuses what a web page of another origin had its browser ask for.
pub(super) async fn only_here(request: Request, next: Next) -> Response {
    let machine = rustix::system::uname();
    match refusal(request.method(), request.uri(), request.headers(), &machine.nodename().to_string_lossy()) {
        Some(reason) => (StatusCode::FORBIDDEN, format!("{reason}\n")).into_response(),
        None => next.run(request).await,
    }
}

fn refusal(method: &Method, uri: &Uri, headers: &HeaderMap, machine: &str) -> Option<String> {
    if OPEN.contains(&uri.path()) {
        return None;
    }
    let named = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or("?"));
    let named = named.chain(uri.authority().map(|authority| authority.as_str()));
    if let Some(other) = named.into_iter().find(|host| !is_here(host, machine)) {
        let shown: String = other.chars().take(80).collect();
        return Some(format!(
            "{shown:?} is no name of this machine's admin listener: ask it by its address, as localhost, or as {machine:?}; by other names \
             it tells metrics and health alone"
        ));
    }
    let says = |name: &str, value: &str| headers.get(name).is_some_and(|says| says == value);
    // Somebody may follow a link to the dashboard: the page that has it sees nothing of what comes.
    let is_link = method == Method::GET && says("sec-fetch-mode", "navigate") && says("sec-fetch-dest", "document");
    (says("sec-fetch-site", "cross-site") && !is_link).then(|| {
        "a page of another site asks for this; the admin listener answers its own pages and programs".to_owned()
    })
}

/// Whether `host`, with or without a port, names this machine in a way that nobody else can give a meaning to.
fn is_here(host: &str, machine: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(address) => {
            let Some((address, port)) = address.split_once(']') else { return false };
            return address.parse::<std::net::Ipv6Addr>().is_ok()
                && (port.is_empty() || is_port(port.strip_prefix(':')));
        }
        None => match host.split_once(':') {
            Some((name, port)) if is_port(Some(port)) => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.is_empty()
        || name.parse::<std::net::Ipv4Addr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case(machine)
}

fn is_port(text: Option<&str>) -> bool {
    text.is_some_and(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(method: &Method, uri: &str, headers: &[(&'static str, &str)]) -> Option<String> {
        let headers = headers.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect();
        refusal(method, &uri.parse().unwrap(), &headers, "node-7.example")
    }

    #[test]
    fn the_machine_is_asked_by_its_own_names() {
        for host in [
            "127.0.0.1:7082",
            "10.0.0.9",
            "[::1]:7082",
            "[fd00::9]",
            "localhost:7082",
            "LocalHost",
            "node-7.example:7082",
            "NODE-7.example",
            "",
        ] {
            assert_eq!(refused(&Method::PUT, "/api/v1/gc", &[("host", host)]), None, "{host}");
        }
        assert_eq!(refused(&Method::PUT, "/api/v1/gc", &[]), None);
    }

    #[test]
    fn a_name_that_somebody_else_gives_a_meaning_to_is_refused() {
        for host in [
            "evil.example:7082",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "node-7.example.evil.example",
            "node-7",
            "localhost:80:evil.example",
            "127.0.0.1@evil.example",
            "[::1].evil.example",
            "[evil.example]:7082",
            "[::1",
        ] {
            for (method, uri) in
                [(Method::PUT, "/api/v1/gc"), (Method::GET, "/api/v1/state"), (Method::GET, "/dashboard/")]
            {
                let reason = refused(&method, uri, &[("host", host)]);
                assert!(reason.is_some_and(|reason| reason.contains(host)), "{host}");
            }
            for open in OPEN {
                assert_eq!(refused(&Method::GET, open, &[("host", host)]), None, "{host} {open}");
            }
        }
        assert!(refused(&Method::GET, "http://evil.example/api/v1/state", &[("host", "localhost")]).is_some());
        assert!(refused(&Method::GET, "/api/v1/state", &[("host", "localhost"), ("host", "evil.example")]).is_some());
        assert!(refused(&Method::GET, "/metrics/../api/v1/state", &[("host", "evil.example")]).is_some());
    }

    #[test]
    fn what_a_page_of_another_site_asks_for_is_refused_but_a_link_may_be_followed() {
        let here = ("host", "127.0.0.1:7082");
        let site = |site| ("sec-fetch-site", site);
        assert!(refused(&Method::GET, "/api/v1/state", &[here, site("cross-site")]).is_some());
        for own in ["same-origin", "none"] {
            assert_eq!(refused(&Method::PUT, "/api/v1/gc", &[here, site(own)]), None, "{own}");
        }
        let link = [here, site("cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert_eq!(refused(&Method::GET, "/dashboard/", &link), None);
        assert!(refused(&Method::POST, "/api/v1/preheat/jobs", &link).is_some());
        let framed = [here, site("cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
        assert!(refused(&Method::GET, "/dashboard/", &framed).is_some());
    }
}
