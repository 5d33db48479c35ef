//! The commented configuration as a page of Markdown: a heading for each table, an entry for each key, examples as they stand there.

const HEAD: &str = "# Configuration\n\n\
    <!-- Written by `lapwing generate reference docs/reference` from contrib/lapwing.toml; a test holds it against that file. -->\n\n\
    One TOML file, `/etc/lapwing/lapwing.toml` in packages, given to a daemon by `--config` or `LAPWING_CONFIG`. `lapwing config` prints the same as a \
    commented file, `lapwing config --check FILE` checks one.\n";

/// The page for `reference`, a file in the shape of `contrib/lapwing.toml`.
pub(super) fn render(reference: &str) -> String {
    let mut page = HEAD.to_owned();
    let mut table = String::new();
    let mut said: Vec<&str> = Vec::new();
    let mut example: Vec<&str> = Vec::new();
    for line in reference.lines().chain([""]) {
        match line.strip_prefix('#').map(str::trim_start) {
            Some(text) if !example.is_empty() || is_toml(text) => {
                example.push(if is_toml(text) { text } else { line });
                continue;
            }
            Some(text) => {
                said.push(text);
                continue;
            }
            None => {}
        }
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_end_matches(']').to_owned();
            page += &format!("\n## {table}\n");
            paragraph(&mut said, &mut page);
        } else if let Some((key, default)) = line.split_once(" = ") {
            let dot = if table.is_empty() { "" } else { "." };
            page += &format!("\n**`{table}{dot}{key}`** = `{default}`\n");
            paragraph(&mut said, &mut page);
        }
        if line.is_empty() || !example.is_empty() {
            paragraph(&mut said, &mut page);
            code(&mut example, &mut page);
        }
    }
    page
}

/// Whether a commented line is an example and no prose: a table's head, or a key with its value.
fn is_toml(text: &str) -> bool {
    let key = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    (text.starts_with('[') && text.ends_with(']')) || text.split_once(" = ").is_some_and(|(name, _)| key(name))
}

fn paragraph(said: &mut Vec<&str>, page: &mut String) {
    if said.is_empty() {
        return;
    }
    page.push('\n');
    for line in said.drain(..) {
        for character in line.chars() {
            if "*_<[]|".contains(character) {
                page.push('\\');
            }
            page.push(character);
        }
        page.push('\n');
    }
}

fn code(example: &mut Vec<&str>, page: &mut String) {
    if !example.is_empty() {
        *page += &format!("\n```toml\n{}\n```\n", example.join("\n"));
        example.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_with_its_table_default_and_meaning() {
        let page = render("# Top.\n\n# Of a.\n[a]\n# What b\n# is (*).\nb = 1\n# c = 2\n");
        let body = page.strip_prefix(HEAD).unwrap();
        assert_eq!(body, "\nTop.\n\n## a\n\nOf a.\n\n**`a.b`** = `1`\n\nWhat b\nis (\\*).\n\n```toml\nc = 2\n```\n");
    }

    #[test]
    fn prose_between_the_lines_of_an_example_stays_a_comment() {
        let page = render("# For one registry.\n# [hosts.\"x:5000\"]\n# By http.\n# plain_http = true\n");
        assert!(
            page.ends_with("\nFor one registry.\n\n```toml\n[hosts.\"x:5000\"]\n# By http.\nplain_http = true\n```\n")
        );
    }
}
