//! `lapwing bench`: has a node begin a run, waits for its end, and says how close that came to the bound.
//!
//! The run is the daemon's, and ends by itself when this process is killed. An interrupt (SIGINT) stops it.

mod text;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::{Client, RequestBuilder, StatusCode};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::bench::api::{NewRun, RunState, RunView};
use crate::bench::figures::{Figures, Links};
use crate::cli::Bench;

const TIMEOUT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(500);
/// How often in a row the daemon may not answer, before it is given up.
const TRIES: u32 = 10;

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
    let daemon = Daemon {
        client: Client::builder().no_proxy().timeout(TIMEOUT).build()?,
        url: format!("http://{}/api/v1/bench", arguments.admin),
    };
    let new = NewRun {
        image: arguments.image.clone(),
        platform: arguments.platform.clone(),
        nodes: arguments.nodes.0,
        remove: arguments.remove,
        start_in_seconds: arguments.start_in.0.as_secs(),
        timeout_seconds: arguments.timeout.0.as_secs(),
    };
    let begun = daemon.ask(daemon.client.post(&daemon.url).json(&new)).await?;
    let ended = daemon.follow(begun).await?;
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

struct Daemon {
    client: Client,
    url: String,
}

impl Daemon {
    async fn ask(&self, request: RequestBuilder) -> anyhow::Result<RunView> {
        let answer = request.send().await.with_context(|| {
            format!(
                "no node or seed answers at {}; is `lapwing node` or `lapwing seed` running, and is this its admin.listen?",
                self.url
            )
        })?;
        let status = answer.status();
        if !status.is_success() {
            let reason = answer.text().await.unwrap_or_default();
            let reason = reason.trim_end();
            anyhow::ensure!(
                status != StatusCode::NOT_FOUND || !reason.is_empty(),
                "what runs at {} measures nothing; name the admin.listen of a node or seed of this version with --admin",
                self.url
            );
            anyhow::bail!("{}", if reason.is_empty() { status.to_string() } else { reason.to_owned() });
        }
        answer.json().await.with_context(|| format!("{} answered something else than a run", self.url))
    }

    /// Shows the run until it has ended.
    async fn follow(&self, mut run: RunView) -> anyhow::Result<RunView> {
        let shown = std::io::stderr().is_terminal();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (id, mut failures) = (run.id.clone(), 0);
        while !run.state.has_ended() {
            let stop = tokio::select! {
                () = sleep(LOOK) => false,
                _ = interrupt.recv() => true,
            };
            let request = if stop { self.client.delete(&self.url) } else { self.client.get(&self.url) };
            match self.ask(request).await {
                Ok(now) => (run, failures) = (now, 0),
                Err(error) if failures == TRIES => return Err(error),
                Err(_) => failures += 1,
            }
            anyhow::ensure!(
                run.id == id,
                "the daemon at {} does not know the run any more; was it started anew?",
                self.url
            );
            if shown {
                write!(std::io::stderr(), "\r\x1b[K{}", text::progress(&run))?;
            }
        }
        if shown {
            write!(std::io::stderr(), "\r\x1b[K")?;
        }
        Ok(run)
    }
}
