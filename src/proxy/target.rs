//! What a request to a proxy is for (RFC 9112, section 3.2: absolute-form, and authority-form for CONNECT).

use std::fmt;

use http::Uri;
use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::RepositoryName;

use crate::limits::MAX_URL_BYTES;

/// A URL, taken apart as far as rules and origins need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub tls: bool,
    /// In lower case, an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
    /// With the query, as the client wrote it.
    pub path: String,
}

impl Target {
    #[cfg(test)]
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        Self::absolute(&text.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?)
    }

    /// Of a request in absolute-form.
    pub(super) fn absolute(uri: &Uri) -> Result<Self, String> {
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(other) => return Err(format!("{other} is not a scheme that is passed on")),
            None => {
                return Err("this is a forward proxy: it takes whole URLs (absolute-form), and CONNECT; \
                            for a registry mirror see mirror.listen"
                    .into());
            }
        };
        let (host, port) = host_and_port(uri, if tls { 443 } else { 80 })?;
        Self { tls, host, port, path: String::new() }.with_path(uri)
    }

    /// Of CONNECT: host and port, both of them.
    pub(super) fn authority(uri: &Uri) -> Result<Self, String> {
        if uri.scheme().is_some() || uri.port_u16().is_none() {
            return Err("CONNECT takes host:port".into());
        }
        let (host, port) = host_and_port(uri, 0)?;
        Ok(Self { tls: true, host, port, path: "/".into() })
    }

    /// The same server, another path.
    pub(super) fn with_path(&self, uri: &Uri) -> Result<Self, String> {
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        if path.len() > MAX_URL_BYTES {
            return Err(format!("the URL is longer than {MAX_URL_BYTES} bytes"));
        }
        if !path.starts_with('/') {
            return Err("the path does not begin with /".into());
        }
        Ok(Self { path: path.to_owned(), ..self.clone() })
    }

    /// `host`, or `host:port` where the port is not the scheme's own; an IPv6 address in brackets.
    pub(super) fn authority_text(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default = if self.tls { 443 } else { 80 };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }

    /// The blob that is meant, if it is one: `/v2/<name>/blobs/<digest>`, without a query, which could mean anything.
    pub(super) fn blob(&self) -> Option<(RepositoryName, Digest)> {
        let (front, digest) = self.path.strip_prefix("/v2/")?.rsplit_once('/')?;
        let name = front.strip_suffix("/blobs")?;
        Some((name.parse().ok()?, digest.parse().ok()?))
    }
}

/// As rules see it.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority_text(), self.path)
    }
}

fn host_and_port(uri: &Uri, default: u16) -> Result<(String, u16), String> {
    let authority = uri.authority().ok_or("there is no host")?;
    if authority.as_str().contains('@') {
        return Err("a user name in a URL is not passed on: use Authorization".into());
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    // A final dot names the same host past every rule.
    let host = host.trim_end_matches('.').to_owned();
    let port = match authority.as_str().rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => port.parse().map_err(|_| format!("{port:?} is not a port"))?,
        _ => default,
    };
    if host.is_empty() || port == 0 || host.contains('%') {
        return Err(format!("{authority} is not a host"));
    }
    let host = as_dialled(&host).ok_or_else(|| format!("{authority} is not a host"))?;
    Ok((host, port))
}

/// The host as whoever dials the URL reads it: `127.1`, `2130706433` and `0x7f.1` are addresses (URL Standard, section 3.5), and not names
/// whose addresses would be checked when they are resolved.
fn as_dialled(host: &str) -> Option<String> {
    if host.parse::<std::net::Ipv6Addr>().is_ok() {
        return Some(host.to_owned());
    }
    let url = reqwest::Url::parse(&format!("http://{host}/")).ok()?;
    url.host_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_addresses_are_taken_for_addresses() {
        for odd in ["127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1."] {
            let target = Target::parse(&format!("http://{odd}:80/")).unwrap();
            assert_eq!(target.host, "127.0.0.1", "{odd}");
        }
        assert_eq!(Target::parse("http://[::1]:80/").unwrap().host, "::1");
    }

    #[test]
    fn urls() {
        let cases = [
            ("http://Reg.Example/v2/?a=b", "http://reg.example/v2/?a=b"),
            ("https://reg.example.:443/x", "https://reg.example/x"),
            ("http://reg.example:443/x", "http://reg.example:443/x"),
            ("http://[2001:DB8::1]:5000", "http://[2001:db8::1]:5000/"),
        ];
        for (text, shown) in cases {
            assert_eq!(Target::parse(text).unwrap().to_string(), shown);
        }
        for bad in ["ftp://x/", "/v2/", "http://u:p@x/", "http://x:0/", "http://x:99999/", "http://:80/"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
        assert!(Target::parse(&format!("http://x/{}", "a".repeat(20_000))).is_err());
        let connect = |text: &str| Target::authority(&text.parse().unwrap());
        assert_eq!(connect("reg.example:443").unwrap().to_string(), "https://reg.example/");
        assert!(connect("reg.example").is_err() && connect("http://x:1/").is_err());
    }

    #[test]
    fn blobs() {
        let digest = Digest::of(b"x");
        let blob =
            |path: &str| Target::parse(&format!("http://r{path}")).unwrap().blob().map(|(name, _)| name.to_string());
        assert_eq!(blob(&format!("/v2/team/app/blobs/{digest}")).as_deref(), Some("team/app"));
        for other in [
            format!("/v2/team/app/manifests/{digest}"),
            format!("/v2/team/app/blobs/{digest}?x=y"),
            format!("/v2/Team/blobs/{digest}"),
            format!("/v2/../blobs/{digest}"),
            format!("/x/v2/team/blobs/{digest}"),
            "/v2/team/blobs/uploads/".to_owned(),
            "/v2/team/blobs/sha256:1".to_owned(),
        ] {
            assert_eq!(blob(&other), None, "{other}");
        }
    }
}
