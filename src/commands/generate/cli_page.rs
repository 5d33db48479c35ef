//! The command line as a page of Markdown.

use clap::{Arg, ArgAction, Command};

const HEAD: &str = "# Command line\n\n\
    <!-- Written by `lapwing generate reference docs/reference`; a test holds it against the program. -->\n\n\
    `lapwing COMMAND --help` says the same of one command. Exit codes are 0 (done), 1 (failed, and the error says of what), and 2 (usage) \
    unless a command says otherwise.\n";

/// The page for `root`, which must have been built.
pub(super) fn render(root: &Command) -> String {
    let mut page = HEAD.to_owned();
    page += "\n| command | what it does |\n|---|---|\n";
    for command in shown(root) {
        let name = full_name(command);
        page += &format!("| [`{name}`](#{}) | {} |\n", name.replace(' ', "-"), about(command));
    }
    for command in shown(root) {
        section(command, &mut page);
    }
    page
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

fn full_name(command: &Command) -> String {
    command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn about(command: &Command) -> String {
    command.get_about().map(|about| cell(&about.to_string())).unwrap_or_default()
}

fn section(command: &Command, page: &mut String) {
    let name = full_name(command);
    let level = if name.matches(' ').count() > 1 { "###" } else { "##" };
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    *page += &format!("\n{level} {name}\n\n{}.\n\n```text\n{usage}\n```\n", about(command));
    let arguments: Vec<&Arg> =
        command.get_arguments().filter(|argument| !argument.is_hide_set() && argument.get_id() != "help").collect();
    if !arguments.is_empty() {
        *page += "\n| argument | meaning | default | environment |\n|---|---|---|---|\n";
        for argument in arguments {
            *page += &row(argument);
        }
    }
    if let Some(after) = command.get_after_help() {
        *page += &format!("\n{after}.\n");
    }
    for child in shown(command) {
        section(child, page);
    }
}

fn row(argument: &Arg) -> String {
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let value = argument
        .get_value_names()
        .filter(|_| takes_value)
        .map(|names| names.iter().map(|name| format!(" <{name}>")).collect::<String>())
        .unwrap_or_default();
    let short = argument.get_short().map(|short| format!("-{short}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    let name = match (short, long) {
        (Some(short), Some(long)) => format!("{short}, {long}{value}"),
        (Some(one), None) | (None, Some(one)) => format!("{one}{value}"),
        (None, None) => value.trim_start().to_owned(),
    };
    let mut meaning = argument.get_help().map(|help| cell(&help.to_string())).unwrap_or_default();
    let possible: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|_| takes_value)
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}`: {}", value.get_name(), cell(&help.to_string())),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if !possible.is_empty() {
        meaning += &format!(" ({})", possible.join("; "));
    }
    let default: Vec<String> = argument
        .get_default_values()
        .iter()
        .filter(|_| takes_value)
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let environment = argument.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
    format!("| `{name}` | {meaning} | {} | {environment} |\n", default.join(" "))
}

/// One cell of a table.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|").replace('<', "\\<")
}
