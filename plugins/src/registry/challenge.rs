//! `WWW-Authenticate` challenges (RFC 9110 section 11.6.1; distribution's token authentication specification).

use http::header::{HeaderMap, WWW_AUTHENTICATE};

use crate::limits::{MAX_CHALLENGE_LENGTH, MAX_CHALLENGE_PARAMETERS};

/// How a registry wants to be convinced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// URL of the token service, unchecked.
        realm: String,
        /// What the token service calls the registry.
        service: Option<String>,
    },
}

/// The strongest challenge among the headers of an answer: Bearer before Basic. None when there is none we can meet.
pub(crate) fn strongest(headers: &HeaderMap) -> Option<Challenge> {
    let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let all: Vec<Challenge> = challenges.flat_map(parse).collect();
    all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. })).or(all.first()).cloned()
}

/// The challenges of one header value that we understand; nothing after the first syntax error.
pub(crate) fn parse(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    if text.len() > MAX_CHALLENGE_LENGTH {
        return found;
    }
    let mut scanner = Scanner { rest: text };
    while let Some(scheme) = scanner.scheme() {
        let Some(parameters) = scanner.parameters() else {
            break;
        };
        let value = |name: &str| {
            parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = value("realm")
        {
            found.push(Challenge::Bearer { realm, service: value("service") });
        }
    }
    found
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn skip(&mut self, separators: &[char]) {
        self.rest = self.rest.trim_start_matches(separators);
    }

    fn token(&mut self) -> Option<&'a str> {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)));
        let (token, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    fn scheme(&mut self) -> Option<&'a str> {
        self.skip(&[' ', '\t', ',']);
        self.token()
    }

    /// `name=value` pairs up to the end or to the next scheme, which is a token that no `=` follows.
    fn parameters(&mut self) -> Option<Vec<(&'a str, String)>> {
        let mut parameters = Vec::new();
        loop {
            self.skip(&[' ', '\t', ',']);
            let before = self.rest;
            let Some(name) = self.token() else {
                return self.rest.is_empty().then_some(parameters);
            };
            self.skip(&[' ', '\t']);
            let Some(rest) = self.rest.strip_prefix('=') else {
                self.rest = before;
                return Some(parameters);
            };
            self.rest = rest;
            self.skip(&[' ', '\t']);
            let value = if self.rest.starts_with('"') { self.quoted()? } else { self.token()?.to_owned() };
            if parameters.len() == MAX_CHALLENGE_PARAMETERS {
                return None;
            }
            parameters.push((name, value));
        }
    }

    fn quoted(&mut self) -> Option<String> {
        let mut value = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(characters.next()?.1),
                other => value.push(other),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn parses_what_registries_send() {
        let cases = [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer("https://auth.docker.io/token", Some("registry.docker.io"))],
            ),
            (r#"Basic realm="x""#, vec![Challenge::Basic]),
            ("Basic", vec![Challenge::Basic]),
            (r#"bearer REALM = "https://a/\"b" "#, vec![bearer("https://a/\"b", None)]),
            (r#"Negotiate, Basic realm="a, b", Bearer realm=t"#, vec![Challenge::Basic, bearer("t", None)]),
            (r#"Bearer service="s""#, vec![]),
            (r#"Bearer realm="open"#, vec![]),
            ("", vec![]),
            ("=,=", vec![]),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn bounds_hold() {
        assert!(parse(&format!("Bearer realm=\"{}\"", "x".repeat(5000))).is_empty());
        assert!(parse(&format!("Bearer realm=r{}", ",a=b".repeat(17))).is_empty());
    }

    #[test]
    fn bearer_goes_before_basic() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=x".parse().unwrap());
        headers.append(WWW_AUTHENTICATE, "Bearer realm=y".parse().unwrap());
        assert_eq!(strongest(&headers), Some(bearer("y", None)));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,200}") {
            parse(&text);
        }

        #[test]
        fn finds_any_quoted_realm(realm in "[ -~]{0,60}") {
            let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
            prop_assert_eq!(parse(&format!("Bearer service=s,realm=\"{quoted}\"")), vec![bearer(&realm, Some("s"))]);
        }
    }
}
