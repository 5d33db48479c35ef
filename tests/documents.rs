//! What is written beside the code is true of it: links lead somewhere, commands and metrics exist, alert rules and boards are valid by
//! Prometheus' own parsers.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here fails a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use lapwing_lab::{Need, check, lapwing_binary, module_tool, output, require};

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Markdown of the repository, by its path from the root.
fn documents() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(tree().join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.');
            if entry.file_type().unwrap().is_dir() {
                if !hidden && path != Path::new("target") {
                    directories.push(path);
                }
            } else if path.extension().is_some_and(|kind| kind == "md") {
                found.insert(path.clone(), std::fs::read_to_string(tree().join(&path)).unwrap());
            }
        }
    }
    found
}

/// The lines of a document that are not in fenced code, without what is in backticks.
fn prose(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push(line.split('`').step_by(2).collect::<Vec<_>>().join("`"));
        }
    }
    lines
}

/// What inline links of the document lead to.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        found.extend(
            line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()),
        );
    }
    found
}

/// The anchors that the document's headings have on GitHub.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let heading = line.trim_start_matches('#');
        if fenced || heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let anchor: String = heading
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        found.insert(anchor);
    }
    found
}

/// `a/../b` without the detour; `None` if it leads out of the repository.
fn normal(path: &Path) -> Option<PathBuf> {
    path.components().try_fold(PathBuf::new(), |parts, part| match part {
        Component::ParentDir => parts.parent().map(Path::to_owned),
        part => Some(parts.join(part)),
    })
}

/// Why a link in `from` leads nowhere, if it does.
fn dead(from: &Path, target: &str, documents: &BTreeMap<PathBuf, String>) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let file = if path.is_empty() { Some(from.to_owned()) } else { normal(&from.parent().unwrap().join(path)) };
    let Some(file) = file.filter(|file| tree().join(file).exists()) else {
        return Some(format!("{path} is not there"));
    };
    let anchor = anchor?;
    let text = documents.get(&file)?;
    (!anchors(text).contains(anchor)).then(|| format!("{} has no heading #{anchor}", file.display()))
}

#[test]
fn no_link_is_dead() {
    let documents = documents();
    assert!(documents.len() > 10 && documents.contains_key(Path::new("README.md")), "{:?}", documents.keys());
    let mut all = Vec::new();
    let mut count = 0;
    for (from, text) in &documents {
        for target in links(text) {
            count += 1;
            if let Some(reason) = dead(from, &target, &documents) {
                all.push(format!("{}: ]({target}): {reason}", from.display()));
            }
        }
    }
    assert!(count > 50, "only {count} links were found");
    assert!(all.is_empty(), "dead links:\n{}", all.join("\n"));
}

#[test]
fn the_checker_of_links_finds_dead_ones() {
    let text = "# A title, *here*\n[a](b.md) `[no](code.md)`\n```\n[no](fenced.md)\n```\n[c](#a-title-here) [d](#gone)"
        .to_owned();
    assert_eq!(links(&text), ["b.md", "#a-title-here", "#gone"]);
    let from = PathBuf::from("docs/metrics.md");
    let documents = BTreeMap::from([(from.clone(), text)]);
    assert!(dead(&from, "b.md", &documents).is_some());
    assert!(dead(&from, "#gone", &documents).is_some());
    assert!(dead(&from, "#a-title-here", &documents).is_none());
    assert!(dead(&from, "../../outside", &documents).is_some());
    assert!(dead(&from, "../README.md", &documents).is_none());
}

#[test]
fn every_page_of_docs_is_in_its_index() {
    let documents = documents();
    let index = Path::new("docs/README.md");
    let listed: BTreeSet<PathBuf> = links(&documents[index])
        .iter()
        .filter_map(|target| normal(&Path::new("docs").join(target.split('#').next().unwrap())))
        .collect();
    let missing: Vec<_> =
        documents.keys().filter(|path| path.starts_with("docs") && *path != index && !listed.contains(*path)).collect();
    assert!(missing.is_empty(), "not in docs/README.md: {missing:?}");
}

/// Commands in the documents' console blocks, and those between backticks, that begin with `lapwing`.
#[test]
fn the_formats_are_what_the_code_says() {
    let said = Command::new(tree().join("contrib/setup/formats.sh")).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let written = std::fs::read(tree().join("docs/reference/formats.md")).unwrap();
    assert!(
        said.stdout == written,
        "docs/reference/formats.md is stale; renew it: contrib/setup/formats.sh >docs/reference/formats.md"
    );
}

#[test]
fn every_command_that_is_written_down_exists() {
    let help = |arguments: &[&str]| {
        let result = output(Command::new(lapwing_binary().unwrap()).args(arguments).arg("--help")).unwrap();
        (result.status.success(), String::from_utf8_lossy(&result.stdout).into_owned())
    };
    let mut options: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut wrong = BTreeSet::new();
    let mut count = 0;
    for (from, text) in documents() {
        if !from.starts_with("docs") && from != Path::new("README.md") && !from.starts_with("contrib") {
            continue;
        }
        let consoles = text.lines().filter_map(|line| line.strip_prefix("# ").or(line.strip_prefix("$ ")));
        let inline = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
        for line in consoles.chain(inline) {
            let Some(rest) = line.strip_prefix("lapwing ") else { continue };
            let words: Vec<&str> =
                rest.split([' ', ',', ')']).take_while(|word| !["#", "|", ">", "<"].contains(word)).collect();
            let depth = usize::from(["ca", "index", "profile", "setup"].contains(&words[0]) && words.len() > 1) + 1;
            let command = &words[..depth.min(words.len())];
            if !command.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
                || command[0].starts_with('-')
            {
                continue;
            }
            count += 1;
            let known = options.entry(command.join(" ")).or_insert_with(|| {
                let (is_there, help) = help(command);
                is_there.then_some(help)
            });
            match known {
                None => _ = wrong.insert(format!("{}: lapwing {}", from.display(), command.join(" "))),
                Some(help) => {
                    for option in words.iter().filter_map(|word| word.strip_prefix("--")) {
                        let name: String = option.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
                        if !help.contains(&format!("--{name}")) {
                            wrong.insert(format!("{}: lapwing {} has no --{name}", from.display(), command.join(" ")));
                        }
                    }
                }
            }
        }
    }
    assert!(count > 40, "only {count} commands were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn rules_and_board_name_metrics_that_there_are() {
    if !require("rules_and_board_name_metrics_that_there_are", &[Need::Program("go")]) {
        return;
    }
    let monitoring = tree().join("contrib/monitoring");
    let files = ["alerts.yaml", "grafana-lapwing.json"].map(|name| monitoring.join(name));
    let named = check(Command::new(module_tool("prometheus", "rulecheck").unwrap()).args(files)).unwrap();
    // tests/commands.rs holds this table against what the daemons show.
    let documented: BTreeSet<&str> = include_str!("../docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name))
        .collect();
    let unknown: Vec<&str> = named.lines().filter(|name| *name != "up" && !documented.contains(name)).collect();
    assert!(named.lines().count() > 20 && unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
}

#[test]
fn every_alert_is_explained() {
    let operations = std::fs::read_to_string(tree().join("docs/operations.md")).unwrap();
    let rules = std::fs::read_to_string(tree().join("contrib/monitoring/alerts.yaml")).unwrap();
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let unexplained: Vec<_> = alerts.iter().filter(|alert| !operations.contains(&format!("| `{alert}` |"))).collect();
    assert!(alerts.len() > 10 && unexplained.is_empty(), "not in docs/operations.md: {unexplained:?}");
}
