//! Which images a credential is for: `host[:port][/path]`, with `*` and `?` within the labels of the host.
//!
//! The rule of kubelet (`URLsMatchStr` of its `pkg/credentialprovider/keyring.go`; "Kubelet credential provider", matchImages):
//! as many labels, the same port, and the path a prefix. Here the prefix ends where a component does. Keys of a docker
//! `config.json` follow the same rule; they may begin with a scheme and end in `/v1/` or `/v2/`.

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    labels: Vec<String>,
    port: Option<String>,
    /// Without a slash before or after.
    path: String,
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Self {
        let bare = text.split_once("://").map_or(text, |(_, bare)| bare);
        let (authority, path) = bare.split_once('/').unwrap_or((bare, ""));
        let path = path.trim_matches('/');
        let is_endpoint = path == "v1" || path == "v2";
        let (host, port) = split_port(authority);
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            host => host,
        };
        let labels = host.split('.').map(str::to_ascii_lowercase).collect();
        Self { labels, port: port.map(str::to_owned), path: if is_endpoint { String::new() } else { path.to_owned() } }
    }

    /// Whether it is for this repository of this registry.
    pub(super) fn matches(&self, registry: &str, repository: &str) -> bool {
        let (host, port) = split_port(registry);
        let labels: Vec<&str> = host.split('.').collect();
        let under = repository.strip_prefix(self.path.as_str());
        port == self.port.as_deref()
            && labels.len() == self.labels.len()
            && self.labels.iter().zip(labels).all(|(glob, label)| is_like(glob.as_bytes(), label.as_bytes()))
            && under.is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }

    /// Of several that match, that with the greatest is meant.
    pub(super) fn rank(&self) -> (usize, bool) {
        (self.path.len(), !self.labels.iter().any(|label| label.contains(['*', '?'])))
    }
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        // A colon within an IPv6 address is no port's.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// Linear in the product of the lengths.
fn is_like(glob: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from, mut star) = (0, 0, None);
    while from < text.len() {
        match glob.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || byte.eq_ignore_ascii_case(&text[from]) => (at, from) = (at + 1, from + 1),
            _ => match star {
                Some((star_at, began)) => {
                    star = Some((star_at, began + 1));
                    (at, from) = (star_at + 1, began + 1);
                }
                None => return false,
            },
        }
    }
    glob[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_kubelet_matches() {
        let cases = [
            ("reg.example", "reg.example", "a", true),
            ("REG.example", "reg.example", "a", true),
            ("reg.example:5000", "reg.example", "a", false),
            ("reg.example", "reg.example:5000", "a", false),
            ("https://reg.example:5000/v2/", "reg.example:5000", "a", true),
            ("https://index.docker.io/v1/", "docker.io", "library/x", true),
            ("index.docker.io", "docker.io", "library/x", true),
            ("docker.io.evil", "docker.io", "x", false),
            ("*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.eu-1.amazonaws.com", "x", true),
            ("*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.amazonaws.com", "x", false),
            ("*.example", "a.b.example", "x", false),
            ("*.example", "evil.com", "x", false),
            ("reg?.example", "reg1.example", "x", true),
            ("r*g*.example", "registry.example", "x", true),
            ("r*z.example", "registry.example", "x", false),
            ("reg.example/team", "reg.example", "team/app", true),
            ("reg.example/team/", "reg.example", "team", true),
            ("reg.example/team", "reg.example", "teams/app", false),
            ("reg.example/team/app", "reg.example", "team", false),
            ("[::1]:5000", "[::1]:5000", "x", true),
            ("[::1]", "[::1]:5000", "x", false),
        ];
        for (pattern, registry, repository, expected) in cases {
            assert_eq!(
                Pattern::parse(pattern).matches(registry, repository),
                expected,
                "{pattern} {registry}/{repository}"
            );
        }
    }

    #[test]
    fn the_closest_goes_first() {
        let mut all = ["*.example", "reg.example", "*.example/a", "reg.example/a/b"].map(Pattern::parse);
        all.sort_by_key(Pattern::rank);
        assert_eq!(all, ["*.example", "reg.example", "*.example/a", "reg.example/a/b"].map(Pattern::parse));
    }

    #[test]
    fn many_stars_take_no_time() {
        let glob = "*a".repeat(100);
        assert!(!is_like(glob.as_bytes(), "a".repeat(99).as_bytes()));
        assert!(is_like(glob.as_bytes(), "a".repeat(250).as_bytes()));
    }
}
