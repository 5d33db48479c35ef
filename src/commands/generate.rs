//! `lapwing generate`: what packages carry and `docs/reference/` shows, written from the definitions that the program itself uses.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::aot::{Bash, Fish, Zsh, generate_to};

use crate::cli::{Cli, Generate, GenerateWhat};

mod cli_page;
mod config_page;

const PROGRAM: &str = "lapwing";

pub(crate) fn run(arguments: &Generate) -> anyhow::Result<ExitCode> {
    let directory = &arguments.directory;
    fs::create_dir_all(directory)
        .and_then(|()| write(arguments.what, directory))
        .with_context(|| format!("{} cannot be written to; name another directory", directory.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn write(what: GenerateWhat, directory: &Path) -> std::io::Result<()> {
    match what {
        GenerateWhat::Man => clap_mangen::generate_to(Cli::command(), directory),
        GenerateWhat::Completions => completions(directory),
        GenerateWhat::Reference => reference().into_iter().try_for_each(|(name, text)| {
            let path = directory.join(name);
            fs::write(path, text)
        }),
    }
}

fn completions(directory: &Path) -> std::io::Result<()> {
    let mut command = Cli::command();
    generate_to(Bash, &mut command, PROGRAM, directory)?;
    generate_to(Zsh, &mut command, PROGRAM, directory)?;
    generate_to(Fish, &mut command, PROGRAM, directory)?;
    Ok(())
}

/// The pages of `docs/reference/` that come from the code, by name.
fn reference() -> [(&'static str, String); 4] {
    let mut command = Cli::command();
    command.build();
    [
        ("cli.md", cli_page::render(&command)),
        ("configuration.md", config_page::render(crate::config::REFERENCE)),
        ("admin-api.json", crate::admin::reference::page()),
        ("preheat-api.json", crate::preheat::openapi::page()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_in_docs_is_what_the_code_says() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference");
        for (name, current) in reference() {
            let committed = fs::read_to_string(docs.join(name)).unwrap_or_default();
            assert!(
                committed == current,
                "docs/reference/{name} is stale; renew it: cargo run --bin lapwing -- generate reference docs/reference"
            );
        }
    }

    #[test]
    fn every_command_has_a_man_page_and_is_completed() {
        let directory = tempfile::tempdir().unwrap();
        for what in [GenerateWhat::Man, GenerateWhat::Completions] {
            write(what, directory.path()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap_or_default();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            assert!(read(&format!("lapwing-{name}.1")).contains(".SH SYNOPSIS"), "no page of {name}");
            for shell in ["lapwing.bash", "_lapwing", "lapwing.fish"] {
                assert!(read(shell).contains(name), "{shell} does not know {name}");
            }
        }
        assert!(read("lapwing-ca-token.1").contains("How long it lets machines in"));
        assert!(!read("lapwing.1").contains(crate::cli::HOLD_COMMAND));
    }
}
