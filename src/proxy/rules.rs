//! What is done with which request: patterns of hosts, and expressions for URLs.

use regex::{Regex, RegexBuilder};

use super::target::Target;
use crate::config::{Proxy, ProxyAction};

/// Most memory that one expression may take, in bytes.
const MAX_EXPRESSION_BYTES: usize = 1 << 20;

/// `host`, `host:port`, `*.domain`, `*.domain:port` or `*`, in lower case. Without a port: any.
#[derive(Debug, Clone)]
pub(super) struct HostPattern {
    /// After `*` where `below`. Empty: any.
    host: String,
    port: Option<u16>,
    below: bool,
}

impl HostPattern {
    fn parse(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is not host, host:port, *.domain or *");
        let (below, rest) = match text.strip_prefix('*') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        // "[::1]:5000" and "host:5000" have a port, "::1" and "host" have none.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, Some(port.parse().map_err(|_| refused())?))
            }
            _ => (rest, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let known = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        let any = below && host.is_empty();
        if (host.is_empty() && !any) || (below && !any && !host.starts_with('.')) || !host.chars().all(known) {
            return Err(refused());
        }
        Ok(Self { host, port, below })
    }

    pub(super) fn matches(&self, host: &str, port: u16) -> bool {
        let named =
            if self.below { host.len() > self.host.len() && host.ends_with(&self.host) } else { host == self.host };
        named && self.port.is_none_or(|own| own == port)
    }
}

#[derive(Debug)]
struct Rule {
    host: Option<HostPattern>,
    url: Option<Regex>,
    action: ProxyAction,
}

/// The rules in their order, and the hosts that may be anywhere.
#[derive(Debug)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
    private_hosts: Vec<HostPattern>,
}

impl Rules {
    /// `Err`: the key below `proxy`, and what is wrong with it.
    pub(crate) fn new(config: &Proxy) -> Result<Self, (String, String)> {
        let mut rules = Vec::new();
        for (number, rule) in config.rules.iter().enumerate() {
            let key = |name: &str| format!("rules[{number}].{name}");
            if rule.host.is_empty() && rule.url.is_empty() {
                return Err((key("host"), "a rule names a host, a url, or both".into()));
            }
            let host = (!rule.host.is_empty()).then(|| HostPattern::parse(&rule.host)).transpose();
            let expression = || RegexBuilder::new(&rule.url).size_limit(MAX_EXPRESSION_BYTES).build();
            let url = (!rule.url.is_empty()).then(expression).transpose();
            rules.push(Rule {
                host: host.map_err(|error| (key("host"), error))?,
                url: url.map_err(|error| (key("url"), error.to_string()))?,
                action: rule.action,
            });
        }
        let private = config.private_hosts.iter().map(|text| HostPattern::parse(text)).collect::<Result<_, _>>();
        Ok(Self { rules, private_hosts: private.map_err(|error| ("private_hosts".to_owned(), error))? })
    }

    /// The first rule that matches decides.
    pub(super) fn action(&self, target: &Target) -> ProxyAction {
        let matches = |rule: &&Rule| {
            rule.host.as_ref().is_none_or(|host| host.matches(&target.host, target.port))
                && rule.url.as_ref().is_none_or(|url| url.is_match(&target.to_string()))
        };
        self.rules.iter().find(matches).map_or(ProxyAction::Swarm, |rule| rule.action)
    }

    /// What of a tunnel, of which nothing but the host is known, rules can decide: those that look at URLs do not apply.
    pub(super) fn refuses_tunnel(&self, host: &str, port: u16) -> bool {
        let of_host =
            |rule: &&Rule| rule.url.is_none() && rule.host.as_ref().is_some_and(|own| own.matches(host, port));
        self.rules.iter().find(of_host).is_some_and(|rule| rule.action == ProxyAction::Refuse)
    }

    /// Whether a rule names the host, so that its TLS is ended here where there is a CA for it.
    pub(super) fn names(&self, host: &str, port: u16) -> bool {
        self.rules.iter().any(|rule| rule.host.as_ref().is_some_and(|own| own.matches(host, port)))
    }

    /// Whether the host may have a private address, or one of this machine.
    pub(super) fn may_be_private(&self, host: &str, port: u16) -> bool {
        self.private_hosts.iter().any(|own| own.matches(host, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Rules, (String, String)> {
        Rules::new(&toml::from_str(text).unwrap())
    }

    #[test]
    fn hosts() {
        let cases = [
            ("reg.example", "reg.example", 443, true),
            ("Reg.example", "reg.example", 5000, true),
            ("reg.example:5000", "reg.example", 443, false),
            ("reg.example:5000", "reg.example", 5000, true),
            ("reg.example", "sub.reg.example", 443, false),
            ("*.example", "reg.example", 443, true),
            ("*.example", "a.reg.example", 443, true),
            ("*.example", ".example", 443, false),
            ("*.example", "badexample", 443, false),
            ("*.example:80", "reg.example", 443, false),
            ("*", "anything", 1, true),
            ("*:443", "anything", 1, false),
            ("10.0.0.1", "10.0.0.1", 1, true),
            ("[::1]:5000", "::1", 5000, true),
            ("::1", "::1", 5000, true),
        ];
        for (pattern, host, port, expected) in cases {
            assert_eq!(HostPattern::parse(pattern).unwrap().matches(host, port), expected, "{pattern} {host}:{port}");
        }
        for bad in ["", "http://x", "x/y", "*x", "a:b", "a b", "host:", "a:99999"] {
            assert!(HostPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let text = "private_hosts = [\"10.0.0.1\"]\n\
                    [[rules]]\nhost = \"a.example\"\nurl = \"/secret/\"\naction = \"refuse\"\n\
                    [[rules]]\nhost = \"*.example\"\naction = \"direct\"\n\
                    [[rules]]\nurl = \"^http://evil\"\naction = \"refuse\"\n\
                    [[rules]]\nhost = \"no.test\"\naction = \"refuse\"\n";
        let rules = rules(text).unwrap();
        let action = |url: &str| rules.action(&Target::parse(url).unwrap());
        assert_eq!(action("http://a.example/secret/x"), ProxyAction::Refuse);
        assert_eq!(action("http://a.example/v2/"), ProxyAction::Direct);
        assert_eq!(action("http://evil.test/"), ProxyAction::Refuse);
        assert_eq!(action("https://evil.test/"), ProxyAction::Swarm);
        assert!(rules.names("b.example", 443) && !rules.names("evil.test", 443));
        assert!(rules.refuses_tunnel("no.test", 443) && !rules.refuses_tunnel("a.example", 443));
        assert!(rules.may_be_private("10.0.0.1", 1) && !rules.may_be_private("10.0.0.2", 1));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, key) in [
            ("[[rules]]\naction = \"direct\"\n", "rules[0].host"),
            (
                "[[rules]]\nhost = \"x\"\naction = \"direct\"\n[[rules]]\nurl = \"(\"\naction = \"direct\"\n",
                "rules[1].url",
            ),
            ("[[rules]]\nurl = \"(a{1000}){1000}\"\naction = \"direct\"\n", "rules[0].url"),
            ("private_hosts = [\"10.0.0.0/8\"]\n", "private_hosts"),
        ] {
            assert_eq!(rules(text).unwrap_err().0, key, "{text}");
        }
    }
}
