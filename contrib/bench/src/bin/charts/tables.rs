//! The reports as tables of Markdown, and as bars.

use crate::svg::{Bar, Group};
use serde_json::Value;

pub(crate) fn machine(peers: &Value) -> String {
    let (machine, rates) = (&peers["machine"], &peers["rates"]);
    let versions: Vec<String> =
        rows(&peers["versions"]).map(|row| format!("{} {}", text(&row["system"]), text(&row["version"]))).collect();
    format!(
        "{} with {} cores and {:.0} GiB, Linux {}; the registry's link has {} Mbit/s, a worker's {} up and {} down.\n\nVersions: {}.",
        text(&machine["processor"]),
        machine["cores"],
        number(&machine["memory_kb"]) / 1024.0 / 1024.0,
        text(&machine["kernel"]).split('-').next().unwrap_or_default(),
        rates["registry_mbit"],
        rates["worker_up_mbit"],
        rates["worker_down_mbit"],
        versions.join(", "),
    )
}

/// How long, and how much of the registry.
pub(crate) fn pulls(peers: &Value) -> String {
    let mut lines =
        head(&["work", "system", "last worker, s", "half of them, s", "of the bound", "copies from the registry"]);
    lines.extend(rows(&peers["pulls"]).map(|row| {
        line(&[
            text(&row["work"]),
            text(&row["system"]),
            spread(&row["last_s"], 1),
            spread(&row["p50_s"], 1),
            spread(&row["efficiency"], 2),
            spread(&row["registry_copies"], 2),
        ])
    }));
    let mut about: Vec<String> = Vec::new();
    for row in rows(&peers["pulls"]) {
        let line = format!("* `{}`: {}", text(&row["work"]), text(&row["about"]));
        if !about.contains(&line) {
            about.push(line);
        }
    }
    format!(
        "{}\n\n![Seconds until the last worker has the image](pictures/peers-pulls.svg)\n\n{}",
        lines.join("\n"),
        about.join("\n")
    )
}

/// What it takes of a worker.
pub(crate) fn costs(peers: &Value) -> String {
    let mut lines = head(&["work", "system", "CPU s per GB", "MB idle", "MB at most", "disk per byte of the image"]);
    lines.extend(rows(&peers["pulls"]).filter(|row| !row["cpu_s_per_gb"].is_null()).map(|row| {
        line(&[
            text(&row["work"]),
            text(&row["system"]),
            spread(&row["cpu_s_per_gb"], 1),
            spread(&row["rss_idle_mb"], 0),
            spread(&row["rss_max_mb"], 0),
            spread(&row["disk_per_byte"], 2),
        ])
    }));
    lines.join("\n")
}

pub(crate) fn files(peers: &Value) -> String {
    let mut lines = head(&["bytes", "system", "first worker, s", "second worker, s", "copies from the server"]);
    lines.extend(rows(&peers["files"]).map(|row| {
        // Of a small file, requests and headers are most.
        let copies = if number(&row["bytes"]) < 100_000.0 { "-".to_owned() } else { spread(&row["copies"], 2) };
        line(&[
            row["bytes"].to_string(),
            text(&row["system"]),
            spread(&row["first_s"], 3),
            spread(&row["second_s"], 3),
            copies,
        ])
    }));
    whole(&lines)
}

pub(crate) fn private(peers: &Value) -> String {
    let mut lines = head(&["system", "where the layer is", "on another worker", "given away"]);
    let told = |told: &Value| format!("{} and {} bytes", told["status"], told["bytes"]);
    let mut seen: Vec<String> = Vec::new();
    for row in rows(&peers["private"]) {
        let answers = &row["answers"];
        let given = if answers["is_given_away"] == true { "yes" } else { "no" };
        let line =
            line(&[text(&row["system"]), told(&answers["where_it_is"]), told(&answers["elsewhere"]), given.to_owned()]);
        // Each run asks again.
        if !seen.contains(&line) {
            seen.push(line);
        }
    }
    lines.extend(seen);
    whole(&lines)
}

pub(crate) fn failures(peers: &Value) -> String {
    let line =
        |row: &Value, what: &str| format!("* {} {what}: {}", text(&row["system"]), last_words(&text(&row["why"])));
    let failed = rows(&peers["failures"]).map(|row| line(row, &format!("failed at `{}`", text(&row["work"]))));
    let left_out = rows(&peers["left_out"]).map(|row| line(row, "was left out"));
    let lines: Vec<String> = failed.chain(left_out).collect();
    if lines.is_empty() { "None.".to_owned() } else { lines.join("\n") }
}

/// The last line of an error, without what names places of the machine on which it came.
fn last_words(error: &str) -> String {
    let line = error.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let is_place = |word: &&str| word.trim_start_matches(['"', '\'', '(', '=']).starts_with('/') || word.contains("=/");
    let words: Vec<&str> = line.split_whitespace().filter(|word| !is_place(word)).collect();
    let line: String = words.join(" ").chars().take(300).collect();
    line.replace(['<', '>', '|'], " ")
}

pub(crate) fn lazy(lazy: &Value) -> String {
    let mut lines = head(&[
        "image",
        "way",
        "pulled, s",
        "first output, s",
        "ready, s",
        "MB fetched until ready",
        "MB resident",
        "files cold, MB/s",
        "files warm, MB/s",
    ]);
    lines.extend(rows(&lazy["rows"]).map(|row| {
        line(&[
            text(&row["image"]),
            text(&row["way"]),
            spread(&row["pulled_s"], 2),
            spread(&row["first_s"], 2),
            spread(&row["ready_s"], 2),
            spread(&row["fetched_mb"], 1),
            spread(&row["rss_mb"], 0),
            spread(&row["cold_mb_s"], 0),
            spread(&row["warm_mb_s"], 0),
        ])
    }));
    let left_out = lazy["left_out"].as_object().into_iter().flatten();
    let left_out: Vec<String> =
        left_out.map(|(name, why)| format!("* {name} was left out: {}", last_words(&text(why)))).collect();
    format!(
        "{}\n\n![Seconds from the pull until the container is ready](pictures/peers-lazy.svg)\n\n{}",
        lines.join("\n"),
        left_out.join("\n")
    )
}

/// The last worker of each work, by system.
pub(crate) fn last(peers: &Value) -> Vec<Group> {
    grouped(&peers["pulls"], "work", |row| bar(&row["system"], &row["last_s"]))
}

/// When each image was ready, by the way to it.
pub(crate) fn ready(lazy: &Value) -> Vec<Group> {
    grouped(&lazy["rows"], "image", |row| bar(&row["way"], &row["ready_s"]))
}

fn bar(name: &Value, value: &Value) -> Bar {
    let [median, least, most] = ["median", "least", "most"].map(|of| number(&value[of]));
    Bar { name: text(name), value: median, least, most }
}

fn grouped(list: &Value, key: &str, bar: fn(&Value) -> Bar) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for row in rows(list) {
        let name = text(&row[key]);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.bars.push(bar(row)),
            None => groups.push(Group { name, bars: vec![bar(row)] }),
        }
    }
    groups
}

/// A table, unless nothing is below its head.
fn whole(lines: &[String]) -> String {
    if lines.len() > 2 { lines.join("\n") } else { "Not measured yet.".to_owned() }
}

fn rows(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

/// Median and, of several runs, range.
fn spread(value: &Value, digits: usize) -> String {
    let Some(median) = value["median"].as_f64() else { return "-".to_owned() };
    let (least, most) = (number(&value["least"]), number(&value["most"]));
    if least == most {
        format!("{median:.digits$}")
    } else {
        format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
    }
}

fn head(columns: &[&str]) -> Vec<String> {
    let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
    vec![line(&columns), format!("|{}", "---|".repeat(columns.len()))]
}

fn line(columns: &[String]) -> String {
    format!("| {} |", columns.join(" | "))
}
