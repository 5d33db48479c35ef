//! Lapwing's mirror in a `hosts.toml`, before the hosts that the operator has there.
//!
//! containerd asks the `[host]` tables in the order in which they stand in the file, then `server`, or else the registry itself
//! (docs/hosts.md of containerd).

use toml_edit::{Array, Document, DocumentMut, Item, Table};

use super::edit::{malformed, set};

/// A mirror whose port swallows packets costs a pull this long for each request.
const DIAL_TIMEOUT: &str = "1s";

/// The file with `mirror` as its first host. `server` is the registry's own URL, for a file that is not there yet and a registry that is not
/// reached by https.
pub(super) fn edit(text: Option<&str>, mirror: &str, server: Option<&str>) -> Result<String, String> {
    let Some(text) = text else {
        let server = server.map(|url| format!("server = {url:?}\n\n")).unwrap_or_default();
        return Ok(format!("{server}{}", block(mirror)));
    };
    let document = Document::parse(text).map_err(|error| malformed(text, &error))?;
    let hosts = match document.get("host") {
        None => return Ok(append(text, mirror)),
        Some(Item::Table(hosts)) if !hosts.is_dotted() && hosts.iter().all(|(_, host)| is_plain(host)) => hosts,
        Some(_) => {
            return Err(
                "write its hosts as tables with headers of their own, [host.\"URL\"]: their order counts".into()
            );
        }
    };
    let Some(first) = hosts.iter().filter_map(|(_, host)| starts_at(host)).min() else {
        return Ok(append(text, mirror));
    };
    match hosts.get(mirror) {
        Some(own) if starts_at(own) == Some(first) => mend(text, mirror),
        Some(_) => edit(Some(&without(text, mirror)?), mirror, None),
        None => Ok(before(text, first, mirror)),
    }
}

fn block(mirror: &str) -> String {
    format!(
        "# Lapwing's mirror. If it does not run, its port refuses at once and containerd goes on.\n\
         [host.{mirror:?}]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = {DIAL_TIMEOUT:?}\n"
    )
}

fn append(text: &str, mirror: &str) -> String {
    let gap = match text {
        "" => "",
        _ if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    format!("{text}{gap}{}", block(mirror))
}

fn is_plain(host: &Item) -> bool {
    host.as_table().is_some_and(|table| !table.is_dotted())
}

/// Where the first header of a host stands, its own or one below it.
fn starts_at(host: &Item) -> Option<usize> {
    let table = host.as_table()?;
    let own = if table.is_implicit() { None } else { table.span().map(|span| span.start) };
    table.iter().filter_map(|(_, item)| starts_at(item)).chain(own).min()
}

/// The text with the mirror before the header at `first`, and before the comment that belongs to it.
fn before(text: &str, first: usize, mirror: &str) -> String {
    let mut at = text[..first].rfind('\n').map_or(0, |end| end + 1);
    while let Some(line) = text[..at].lines().next_back().filter(|line| line.trim_start().starts_with('#')) {
        at = text[..at - 1].rfind('\n').map_or(0, |end| end + 1);
        debug_assert!(text[at..].starts_with(line), "a whole line");
    }
    format!("{}{}\n{}", &text[..at], block(mirror), &text[at..])
}

/// Its own table with what it must have; what the operator added stays.
fn mend(text: &str, mirror: &str) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|error| malformed(text, &error))?;
    let hosts = document.get_mut("host").and_then(Item::as_table_mut);
    let Some(own) = hosts.and_then(|hosts| hosts.get_mut(mirror)).and_then(Item::as_table_mut) else {
        return Err(format!("no table for {mirror}"));
    };
    if !pulls_only(own) {
        set(own, "capabilities", Array::from_iter(["pull", "resolve"]), "  ");
    }
    if own.get("dial_timeout").and_then(Item::as_str).unwrap_or_default().is_empty() {
        set(own, "dial_timeout", DIAL_TIMEOUT, "  ");
    }
    Ok(document.to_string())
}

/// A host without capabilities has all of them; what is pushed to a mirror fails.
fn pulls_only(host: &Table) -> bool {
    let Some(listed) = host.get("capabilities").and_then(Item::as_array) else { return false };
    let has = |name: &str| listed.iter().any(|value| value.as_str() == Some(name));
    has("pull") && has("resolve") && !has("push")
}

fn without(text: &str, mirror: &str) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|error| malformed(text, &error))?;
    if let Some(hosts) = document.get_mut("host").and_then(Item::as_table_mut) {
        hosts.remove(mirror);
    }
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIRROR: &str = "http://127.0.0.1:7080";

    fn edited(text: &str) -> String {
        let once = edit(Some(text), MIRROR, None).unwrap();
        assert_eq!(edit(Some(&once), MIRROR, None).unwrap(), once, "a second time changes nothing");
        once
    }

    /// The hosts in the order in which they stand.
    fn order(text: &str) -> Vec<String> {
        let headers = text.lines().filter(|line| line.trim_start().starts_with("[host.") && !line.contains("header"));
        headers.map(|line| line.split('"').nth(1).unwrap().to_owned()).collect()
    }

    #[test]
    fn a_new_file_is_what_contrib_shows() {
        let shipped: toml::Table = toml::from_str(include_str!("../../../contrib/containerd/hosts.toml")).unwrap();
        let written: toml::Table = toml::from_str(&edit(None, MIRROR, None).unwrap()).unwrap();
        assert_eq!(written, shipped);
        let with_server = edit(None, MIRROR, Some("http://reg.example:5000")).unwrap();
        let table: toml::Table = toml::from_str(&with_server).unwrap();
        assert_eq!(table["server"].as_str(), Some("http://reg.example:5000"));
        edited(&with_server);
    }

    #[test]
    fn the_operators_hosts_stay_below_with_their_comments() {
        let text = "# ours\nserver = \"https://reg.example\" # behind\n\n# the rack's cache,\n# second floor\n\
                    [host.\"https://cache.example\"]\n  ca = \"/etc/ca.pem\" # keep\n  skip_verify = false\n\n\
                    [host.\"https://other.example\".header]\n  x = [\"y\"]\n[host.\"https://other.example\"]\n";
        let after = edited(text);
        assert_eq!(order(&after), [MIRROR, "https://cache.example", "https://other.example"]);
        // Nothing is gone, and the comment still stands above its host.
        assert_eq!(after.replace(&format!("{}\n", block(MIRROR)), ""), text);
        assert!(after.contains("# second floor\n[host.\"https://cache.example\"]"), "{after}");
    }

    #[test]
    fn a_file_without_hosts_gets_one() {
        for text in
            ["", "server = \"https://reg.example\"", "# nothing yet\n", "server = \"x\"\n[header]\n  a = \"b\"\n"]
        {
            let after = edited(text);
            assert!(after.starts_with(text) && order(&after) == [MIRROR], "{after}");
            toml::from_str::<toml::Table>(&after).unwrap();
        }
    }

    #[test]
    fn a_mirror_that_is_not_first_or_lacks_something_is_mended() {
        let other = "[host.\"https://a\"]\n  capabilities = [\"pull\"]\n";
        let own = format!(
            "[host.\"{MIRROR}\"]\n  # mine\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n  override_path = false\n"
        );
        let later = edited(&format!("{other}\n{own}"));
        assert_eq!(order(&later), [MIRROR, "https://a"], "{later}");
        let first = edited(&format!("{own}\n{other}"));
        assert_eq!(order(&first), [MIRROR, "https://a"]);
        assert!(first.contains("# mine") && first.contains("override_path") && !first.contains("push"), "{first}");
        assert!(first.contains("dial_timeout = \"1s\""), "{first}");
    }

    #[test]
    fn what_has_no_order_is_refused() {
        for text in [
            "host = {}\n",
            "[host]\n\"https://a\" = { capabilities = [\"pull\"] }\n",
            "host.\"https://a\".ca = \"x\"\n",
        ] {
            assert!(edit(Some(text), MIRROR, None).unwrap_err().contains("[host."), "{text}");
        }
        assert!(edit(Some("\n[host\n"), MIRROR, None).unwrap_err().contains("line 2"));
    }
}
