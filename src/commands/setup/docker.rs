//! Lapwing's mirror in dockerd's `daemon.json`, as `contrib/docker/` shows it.
//!
//! The file is edited as text, so that its layout stays: JSON has no comments, but people indent it as they like.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::value::RawValue;

use super::error::SetupError;
use super::plan::{Plan, read};

const KEY: &str = "registry-mirrors";

/// What is to be done so that the dockerd that reads the file at `path` asks `mirror` first.
pub(super) fn plan(path: &Path, mirror: &str) -> Result<Plan, SetupError> {
    let (path, before) = read(path)?;
    let after = edit(before.as_deref().unwrap_or_default(), mirror).map_err(|why| SetupError::refused(&path, why))?;
    let mut plan = Plan::default();
    plan.file(&path, before, after);
    if !plan.changes.is_empty() {
        plan.notes.push("dockerd uses mirrors for docker.io alone".into());
        plan.notes.push(
            "a dockerd that has --registry-mirror on its command line refuses to start with the key in this file, too"
                .into(),
        );
        plan.afterwards.push("systemctl reload docker".into());
    }
    Ok(plan)
}

fn edit(text: &str, mirror: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Ok(format!("{{\n  {KEY:?}: [{mirror:?}]\n}}\n"));
    }
    let keys: BTreeMap<String, &RawValue> =
        serde_json::from_str(text).map_err(|error| format!("not a JSON object, as dockerd wants it: {error}"))?;
    let open = text.find('{').ok_or("not a JSON object")?;
    let Some(present) = keys.get(KEY) else {
        let inside = &text[open + 1..];
        let next = inside.find('"').map(|at| &inside[..at]);
        // The first key's own indentation for the new one; an object on one line stays on one line.
        let added = match next {
            Some(gap) => format!("{gap}{KEY:?}: [{mirror:?}],"),
            None => format!("\n  {KEY:?}: [{mirror:?}]\n"),
        };
        let rest = if next.is_some() { inside } else { inside.trim_start() };
        return Ok(format!("{}{{{added}{rest}", &text[..open]));
    };
    let list: Vec<String> =
        serde_json::from_str(present.get()).map_err(|error| format!("{KEY} is not a list of URLs: {error}"))?;
    let is_own = |url: &String| url.trim_end_matches('/') == mirror;
    if list.first().is_some_and(is_own) {
        return Ok(text.to_owned());
    }
    let urls: Vec<String> =
        [mirror.to_owned()].into_iter().chain(list.into_iter().filter(|url| !is_own(url))).collect();
    let written = serde_json::to_string(&urls).map_err(|error| error.to_string())?.replace("\",\"", "\", \"");
    // A RawValue borrows from the text that it was read from.
    let start = present.get().as_ptr() as usize - text.as_ptr() as usize;
    Ok(format!("{}{written}{}", &text[..start], &text[start + present.get().len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const MIRROR: &str = "http://127.0.0.1:7080";

    fn edited(text: &str) -> String {
        let once = edit(text, MIRROR).unwrap();
        assert_eq!(edit(&once, MIRROR).unwrap(), once, "a second time changes nothing");
        let after: Value = serde_json::from_str(&once).unwrap();
        assert_eq!(after[KEY][0], MIRROR);
        once
    }

    #[test]
    fn a_new_file_is_what_contrib_shows() {
        let shipped: Value = serde_json::from_str(include_str!("../../../contrib/docker/daemon.json")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&edited("")).unwrap(), shipped);
        assert_eq!(edited("{}"), edited("{ }\n").trim_end());
    }

    #[test]
    fn what_is_there_keeps_its_order_and_layout() {
        let text =
            "{\n\t\"log-driver\": \"journald\",\n\t\"features\": {\"z\": 1, \"a\": 1.50},\n\t\"debug\" : true\n}\n";
        assert_eq!(
            edited(text),
            text.replacen("{\n\t", "{\n\t\"registry-mirrors\": [\"http://127.0.0.1:7080\"],\n\t", 1)
        );
        assert_eq!(edited("{\"debug\":true}"), "{\"registry-mirrors\": [\"http://127.0.0.1:7080\"],\"debug\":true}");
    }

    #[test]
    fn the_operators_mirrors_stay_below() {
        let text = "{\n  \"registry-mirrors\": [ \"https://a.example\",\n     \"http://127.0.0.1:7080/\" ], \"debug\": true\n}";
        let expected =
            "{\n  \"registry-mirrors\": [\"http://127.0.0.1:7080\", \"https://a.example\"], \"debug\": true\n}";
        assert_eq!(edited(text), expected);
    }

    #[test]
    fn what_dockerd_would_not_read_is_refused() {
        for text in ["[]", "{", "{\"registry-mirrors\": \"x\"}", "// c\n{}"] {
            assert!(edit(text, MIRROR).is_err(), "{text}");
        }
    }
}
