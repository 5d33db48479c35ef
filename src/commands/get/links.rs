//! The entries of a directory listing, as web servers write them in HTML.
//!
//! Apache, nginx, Python's `http.server` and the like all write one `<a href="...">` for each entry, relative to the directory; an entry
//! that ends in a slash is a directory. Whatever else stands on the page does not lead below it: parents, other hosts, and the
//! links by which columns are sorted, which have a query.

use reqwest::Url;

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub url: Url,
    /// Below the listing, still encoded; ends in a slash for a directory.
    pub path: String,
}

/// The entries of the listing at `base`, which ends in a slash, in their order, each once.
pub(super) fn links(html: &str, base: &Url) -> Vec<Link> {
    let mut found: Vec<Link> = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            rest = comment.split_once("-->").map_or("", |(_, after)| after);
            continue;
        }
        let end = end_of_tag(rest);
        let (tag, after) = rest.split_at(end);
        rest = after;
        let Some(link) = href(tag).and_then(|href| below(base, &href)) else { continue };
        if !found.iter().any(|known| known.url == link.url) {
            found.push(link);
        }
    }
    found
}

/// Where the tag ends: at `>` outside of quotes.
fn end_of_tag(text: &str) -> usize {
    let mut quote = None;
    for (at, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (None, b'>') => return at,
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    text.len()
}

/// The value of `href` in a tag `a`.
fn href(tag: &str) -> Option<String> {
    let mut rest = tag.strip_prefix(['a', 'A'])?;
    if !rest.starts_with(|character: char| character.is_ascii_whitespace()) {
        return None;
    }
    loop {
        rest = rest.trim_start();
        let end = rest.find(|character: char| character == '=' || character.is_ascii_whitespace())?;
        let name = &rest[..end];
        rest = rest[end..].trim_start();
        let Some(value) = rest.strip_prefix('=') else { continue };
        let value = value.trim_start();
        let (value, after) = match value.chars().next()? {
            quote @ ('"' | '\'') => value[1..].split_once(quote)?,
            _ => value.split_at(value.find(|character: char| character.is_ascii_whitespace()).unwrap_or(value.len())),
        };
        if name.eq_ignore_ascii_case("href") {
            return Some(unescape(value));
        }
        rest = after;
    }
}

/// The references that URLs need.
fn unescape(text: &str) -> String {
    let named = text.replace("&quot;", "\"").replace("&#34;", "\"").replace("&#39;", "'").replace("&#x27;", "'");
    named.replace("&lt;", "<").replace("&gt;", ">").replace("&#38;", "&").replace("&amp;", "&")
}

fn below(base: &Url, href: &str) -> Option<Link> {
    let mut url = base.join(href).ok()?;
    url.set_fragment(None);
    let path = url.path().strip_prefix(base.path()).filter(|path| !path.is_empty())?.to_owned();
    (url.origin() == base.origin() && url.query().is_none()).then_some(Link { url, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(html: &str) -> Vec<String> {
        let base = Url::parse("http://h/pub/data/").unwrap();
        links(html, &base).into_iter().map(|link| link.path).collect()
    }

    #[test]
    fn listings_of_servers() {
        let nginx = "<html><head><title>Index of /pub/data/</title></head><body><h1>Index of /pub/data/</h1><hr><pre>\
                     <a href=\"../\">../</a>\n<a href=\"sub/\">sub/</a> 01-Jan-2026 -\n\
                     <a href=\"a%20b.bin\">a b.bin</a> 01-Jan-2026 10\n</pre></body></html>";
        assert_eq!(paths(nginx), ["sub/", "a%20b.bin"]);
        let apache = "<tr><th><a href=\"?C=N;O=D\">Name</a></th></tr><tr><td><a href=\"/pub/\">Parent Directory</a></td></tr>\
                      <tr><td valign=\"top\"><img src=\"/icons/unknown.gif\" alt=\"[ > ]\"></td><td><a class='x' HREF='x&amp;y.txt'>x</a>";
        assert_eq!(paths(apache), ["x&y.txt"]);
        let python = "<ul>\n<li><a href=\"a.txt\">a.txt</a></li>\n<li><a href=d/>d/</a></li>\n</ul>";
        assert_eq!(paths(python), ["a.txt", "d/"]);
    }

    #[test]
    fn nothing_leads_elsewhere() {
        for html in [
            "<a href=\"http://other/pub/data/x\">",
            "<a href=\"//other/pub/data/x\">",
            "<a href=\"/etc/x\">",
            "<a href=\"../../x\">",
            "<a href=\"./\">",
            "<a href=\"#top\">",
            "<a href=\"javascript:x\">",
            "<abbr href=\"x\">",
            "<!-- <a href=\"x\"> -->",
            "<a name=\"x\">",
            "<a href",
            "<a href=\"x",
        ] {
            assert_eq!(paths(html), Vec::<String>::new(), "{html}");
        }
        assert_eq!(
            paths("<a href=\"x\"><a href=\"./x\"><a href=\"/pub/data/x\"><a href=\"http://h/pub/data/x#y\">"),
            ["x"]
        );
        assert_eq!(paths("<a href=\"d/%2e%2e/%2e%2e/x\">"), Vec::<String>::new());
    }
}
