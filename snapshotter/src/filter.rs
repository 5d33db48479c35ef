//! The filters of List, in containerd's grammar (`pkg/filters/parser.go`):
//!
//! ```text
//! selectors := selector ("," selector)*
//! selector  := fieldpath (operator value)?
//! fieldpath := field ("." field)*
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="
//! value     := quoted | [^\s,]+
//! quoted    := Go string syntax between double quotes; for "~=" also between slashes or bars
//! ```
//!
//! All selectors of a filter must match, and one filter of a list. Fields are `name`, `parent`, `kind` and
//! `labels.<key>`. As in containerd, a field that is absent differs from every non-empty value, and an expression that
//! does not compile matches nothing.

use regex::{Regex, RegexBuilder};

use crate::graph::Info;
use crate::limits::{MAX_FILTER_BYTES, MAX_FILTER_REGEX_BYTES, MAX_FILTER_SELECTORS, MAX_FILTERS};

mod scan;

use scan::{Scanner, Token};

/// A filter that does not parse, or is out of bounds; the message holds the filter and the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}, at byte {at}: {problem}")]
pub struct FilterError {
    filter: String,
    at: usize,
    problem: String,
}

/// A parsed list of filters.
#[derive(Debug, Clone)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug, Clone)]
struct Selector {
    field: Field,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
    /// One that snapshots do not have.
    Unknown,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// `None` matches nothing.
    Matches(Option<Regex>),
}

impl Filters {
    /// Parses a list of filters; an empty list, and an empty filter, accept everything.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, FilterError> {
        if filters.len() > MAX_FILTERS {
            return Err(problem("", 0, format!("{} filters, at most {MAX_FILTERS} are taken", filters.len())));
        }
        filters.iter().map(|filter| parse_one(filter.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether one of the filters accepts `info`.
    pub fn accepts(&self, info: &Info) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|selector| selector.accepts(info)))
    }
}

impl Selector {
    fn accepts(&self, info: &Info) -> bool {
        let value = self.field.of(info);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(expression) => {
                expression.as_ref().is_some_and(|expression| expression.is_match(value.unwrap_or_default()))
            }
        }
    }
}

impl Field {
    fn from_path(path: &[String]) -> Self {
        match path.first().map(String::as_str) {
            Some("name") => Self::Name,
            Some("parent") => Self::Parent,
            Some("kind") => Self::Kind,
            Some("labels") => Self::Label(path[1..].join(".")),
            _ => Self::Unknown,
        }
    }

    fn of<'i>(&self, info: &'i Info) -> Option<&'i str> {
        match self {
            Self::Name => Some(&info.name),
            Self::Parent => Some(&info.parent),
            Self::Kind => Some(info.kind.as_str()),
            Self::Label(key) => info.labels.get(key).map(String::as_str),
            Self::Unknown => None,
        }
    }
}

fn problem(filter: &str, at: usize, problem: impl Into<String>) -> FilterError {
    FilterError { filter: filter.chars().take(200).collect(), at, problem: problem.into() }
}

fn parse_one(filter: &str) -> Result<Vec<Selector>, FilterError> {
    if filter.len() > MAX_FILTER_BYTES {
        return Err(problem(filter, 0, format!("{} bytes, at most {MAX_FILTER_BYTES} are taken", filter.len())));
    }
    let mut selectors = Vec::new();
    if filter.is_empty() {
        return Ok(selectors);
    }
    let mut scanner = Scanner::new(filter);
    loop {
        let (selector, end) = selector(&mut scanner)?;
        selectors.push(selector);
        if selectors.len() > MAX_FILTER_SELECTORS {
            return Err(scanner.problem(format!("more than {MAX_FILTER_SELECTORS} selectors")));
        }
        match end {
            Token::End => return Ok(selectors),
            Token::Comma => {}
            other => return Err(scanner.problem(format!("expected a comma or the end, found {other}"))),
        }
    }
}

/// One selector and the token behind it.
fn selector(scanner: &mut Scanner<'_>) -> Result<(Selector, Token), FilterError> {
    let mut path = Vec::new();
    let operator = loop {
        match scanner.next()? {
            Token::Word(field) | Token::Quoted('"', field) => path.push(field),
            other => return Err(scanner.problem(format!("expected a field, found {other}"))),
        }
        match scanner.next()? {
            Token::Dot => {}
            other => break other,
        }
    };
    let field = Field::from_path(&path);
    let Token::Operator(operator) = operator else {
        return Ok((Selector { field, test: Test::Present }, operator));
    };
    let is_expression = operator == "~=";
    let value = match scanner.next_value()? {
        Token::Word(value) | Token::Quoted('"', value) => value,
        Token::Quoted(_, value) if is_expression => value,
        other => return Err(scanner.problem(format!("expected a value, found {other}"))),
    };
    let test = match operator.as_str() {
        "==" => Test::Equal(value),
        "!=" => Test::NotEqual(value),
        "~=" => Test::Matches(RegexBuilder::new(&value).size_limit(MAX_FILTER_REGEX_BYTES).build().ok()),
        other => return Err(scanner.problem(format!("unsupported operator {other:?}"))),
    };
    Ok((Selector { field, test }, scanner.next()?))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use crate::graph::{Kind, Labels};

    fn info(name: &str, parent: &str, kind: Kind, labels: &[(&str, &str)]) -> Info {
        let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let (created, updated) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
        Info { name: name.to_owned(), parent: parent.to_owned(), kind, labels, created, updated }
    }

    #[test]
    fn selects_as_containerd_does() {
        let layer = info(
            "ns/3/sha256:aa",
            "",
            Kind::Committed,
            &[("containerd.io/snapshot.ref", "sha256:aa"), ("app", "we\"b, x"), ("a.b", "c")],
        );
        for (filter, expected) in [
            ("", true),
            ("name==ns/3/sha256:aa", true),
            ("name==ns/3/sha256:a", false),
            ("name==\"ns/3/sha256:aa\"", true),
            ("name == ns/3/sha256:aa , kind == committed", true),
            ("name!=x", true),
            ("kind==committed", true),
            ("kind==active", false),
            ("kind!=active,kind!=view", true),
            ("parent==\"\"", true),
            ("parent!=\"\"", false),
            ("parent", true),
            ("labels.app", true),
            ("labels.other", false),
            ("labels.other!=x", true),
            ("labels.other==\"\"", false),
            ("labels.other!=\"\"", false),
            (r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent=="""#, true),
            (r#"labels."containerd.io/snapshot.ref"==sha256:aa,parent==p"#, false),
            (r#"labels.app=="we\"b, x""#, true),
            (r#"labels.app=="we\x22b\u002c\040x""#, true),
            ("labels.a.b==c", true),
            (r#"labels."a.b"==c"#, true),
            (r#"name~="^ns/[0-9]+/""#, true),
            ("name~=/sha256:a{2}$/", true),
            ("name~=|^sha256|", false),
            ("name~=sha256", true),
            ("name~=\"(\"", false),
            ("unknown", false),
            ("unknown!=x", true),
        ] {
            let filters = Filters::parse(&[filter]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(filters.accepts(&layer), expected, "{filter}");
        }
    }

    #[test]
    fn a_list_accepts_what_any_filter_accepts() {
        let view = info("v", "p", Kind::View, &[]);
        assert!(Filters::parse(&["kind==active", "parent==p"]).unwrap().accepts(&view));
        assert!(!Filters::parse(&["kind==active", "parent==q"]).unwrap().accepts(&view));
        assert!(Filters::parse::<&str>(&[]).unwrap().accepts(&view));
    }

    #[test]
    fn refuses_what_is_no_filter() {
        let long = format!("name=={}", "x".repeat(MAX_FILTER_BYTES));
        let many = vec!["name"; MAX_FILTER_SELECTORS + 1].join(",");
        for bad in [
            "name==",
            "==x",
            "name=x",
            "name=!x",
            "name==x,",
            ",",
            "name..x",
            "name.",
            "name==\"x",
            "name==\"\\q\"",
            "name==/x/",
            "name==x y",
            "name x",
            "name==\"\\ud800\"",
            "a\0b",
            "name==\"\\400\"",
            "name==\"a\nb\"",
            &long,
            &many,
        ] {
            assert!(Filters::parse(&[bad]).is_err(), "{bad:?}");
        }
        assert!(Filters::parse(&vec!["name"; MAX_FILTERS + 1]).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(filter in r#"[a-z."\\/|=!~, \x00\u{e9}0-9]{0,40}"#) {
            let _ = Filters::parse(&[filter]);
        }

        #[test]
        fn a_quoted_value_means_itself(name in "[ -~]{0,40}") {
            let quoted = format!("name==\"{}\"", name.replace('\\', r"\\").replace('"', "\\\""));
            let filters = Filters::parse(&[quoted]).unwrap();
            prop_assert!(filters.accepts(&info(&name, "", Kind::Active, &[])));
        }
    }
}
