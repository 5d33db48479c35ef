//! `lapwing bench`: has a node begin a run, waits for its end, and says how close that came to the bound.
//!
//! The run is the daemon's, and ends by itself when this process is killed. An interrupt (SIGINT) stops it.

mod text;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use reqwest::Method;

use super::daemon::{Daemon, Kind};
use crate::bench::api::{NewRun, RunState, RunView};
use crate::bench::figures::{Figures, Links};
use crate::cli::Bench;

const TIMEOUT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(500);
const PATH: &str = "/api/v1/bench";

const INCOMPLETE: u8 = 1;
const REFUSED: u8 = 3;
const STOPPED: u8 = 4;
const NOTHING: u8 = 5;

pub(crate) async fn run(arguments: &Bench) -> anyhow::Result<ExitCode> {
    carry_out(arguments).await.or_else(|error| {
        writeln!(std::io::stderr(), "lapwing bench: {error:#}")?;
        Ok(REFUSED.into())
    })
}

async fn carry_out(arguments: &Bench) -> anyhow::Result<ExitCode> {
    let daemon = Daemon::at(Kind::NodeOrSeed, arguments.admin, Some(TIMEOUT))?;
    let new = NewRun {
        image: arguments.image.clone(),
        platform: arguments.platform.clone(),
        nodes: arguments.nodes.0,
        remove: arguments.remove,
        start_in_seconds: arguments.start_in.0.as_secs(),
        timeout_seconds: arguments.timeout.0.as_secs(),
    };
    let begun: RunView = daemon.ask(daemon.request(Method::POST, PATH).json(&new)).await?;
    let id = begun.id.clone();
    let has_ended = |run: &RunView| {
        anyhow::ensure!(
            run.id == id,
            "the daemon at {} does not know the run any more; was it started anew?",
            arguments.admin
        );
        Ok(run.state.has_ended())
    };
    let ended = daemon.follow(PATH, LOOK, begun, has_ended, text::progress).await?;
    match ended.state {
        RunState::Canceled => {
            writeln!(
                std::io::stderr(),
                "lapwing bench: it was stopped; what nodes fetched until then they keep{}",
                except(&ended)
            )?;
            return Ok(STOPPED.into());
        }
        RunState::Failed => anyhow::bail!("{}", ended.error),
        _ => {}
    }
    let rate = |rate: Option<crate::bench::rates::LinkRate>| rate.map(|rate| rate.0);
    let links = Links { up: rate(arguments.up), down: rate(arguments.down), registry: rate(arguments.registry) };
    let figures = Figures::of(&ended, links);
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &figures)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", text::report(&figures, &ended, arguments.slowest))?;
    }
    Ok(match () {
        () if figures.measured == 0 && figures.held > 0 && figures.is_whole() => NOTHING.into(),
        () if figures.measured == 0 || !figures.is_whole() => INCOMPLETE.into(),
        () => ExitCode::SUCCESS,
    })
}

const fn except(run: &RunView) -> &'static str {
    if run.remove { ", except for what they were told to remove" } else { "" }
}
