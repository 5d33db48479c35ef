//! `lapwing`: peer-to-peer image distribution and lazy start for containerd.
//!
//! * [`cli`], [`config`]: what the operator says
//! * [`node`], [`tracker`], [`seed`]: the daemons, put together from the crates
//! * [`mirror`], [`catalog`]: the registry mirror, and what it learns of images as they pass
//! * [`outage`]: what registries said, for when they are away
//! * [`rights`]: what registries granted to clients of other nodes
//! * [`proxy`]: the forward proxy
//! * [`layers`]: which layer can be mounted lazily: indexes fetched ahead, built, and believed
//! * [`explain`]: where the time of a pull went
//! * [`traces`]: the same as spans for a collector, over all nodes of a pull
//! * [`platform`]: what images are for
//! * [`preheat`]: images brought to where they will be wanted
//! * [`bench`]: how close a swarm comes to the bound
//! * [`held`], [`hydrate`]: what containerd holds already, and what it is given
//! * [`membership`]: this machine's certificate, and how it stays good
//! * [`memory`]: what the allocator is told
//! * [`confinement`]: what daemons may still do once they run
//! * [`admin`]: metrics, health, state
//! * [`listening`], [`idle`], [`limits`]: what clients of the HTTP listeners are held to
//! * [`dashboard`]: a page that shows what goes on
//! * [`commands`]: everything that runs and ends
//!
//! A pull goes: containerd asks [`mirror`] for a manifest -> [`catalog`] learns its layers and [`layers`] fetches their
//! indexes through the swarm -> containerd asks the snapshotter to prepare each layer -> [`layers`] says it can be
//! mounted, or containerd asks [`mirror`] for the blob and gets it from the swarm.

use std::process::ExitCode;

use clap::Parser as _;

mod admin;
mod bench;
mod catalog;
mod cli;
mod commands;
mod config;
mod confinement;
mod dashboard;
mod explain;
mod held;
mod hydrate;
mod idle;
mod layers;
mod limits;
mod listening;
mod membership;
mod memory;
mod mirror;
mod node;
mod outage;
mod platform;
mod preheat;
mod profiles;
mod proxy;
mod rights;
mod seed;
mod telemetry;
mod traces;
mod tracker;

use cli::{Cli, Command, Daemon, HOLD_COMMAND};
use config::Config;
use confinement::{Part, mounter};
use node::Embedded;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    memory::limit_arenas();
    // The holder's memory is locked, and half of it would be what parsing leaves behind.
    let outcome = if is_holder() {
        commands::detach::hold()
    } else if mounter::is_meant() {
        mounter::run()
    } else {
        run(Cli::parse().command)
    };
    outcome.unwrap_or_else(|error: anyhow::Error| {
        if is_closed_pipe(&error) {
            return ExitCode::from(CLOSED_PIPE);
        }
        eprintln!("lapwing: {error:#}");
        ExitCode::FAILURE
    })
}

/// What a shell says of a program that SIGPIPE ended: 128 and the signal's number.
const CLOSED_PIPE: u8 = 141;

/// Whether the reader of our output went away, as `head` does: nothing is left to say.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let kind = match (error.downcast_ref::<std::io::Error>(), error.downcast_ref::<serde_json::Error>()) {
        (Some(error), _) => Some(error.kind()),
        (_, Some(error)) => error.io_error_kind(),
        _ => None,
    };
    kind == Some(std::io::ErrorKind::BrokenPipe)
}

fn is_holder() -> bool {
    let mut arguments = std::env::args_os().skip(1);
    arguments.next().is_some_and(|command| command == HOLD_COMMAND) && arguments.next().is_none()
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Ca(command) => commands::ca::run(&command),
        Command::Config(arguments) => commands::config::run(&arguments),
        Command::Setup(arguments) => Ok(commands::setup::run(&arguments)),
        Command::Detach(arguments) => commands::detach::run(&arguments),
        Command::Generate(arguments) => commands::generate::run(&arguments),
        Command::HoldDescriptors => commands::detach::hold(),
        Command::Index(command) => commands::index::run(&command),
        Command::Bench(arguments) => on_runtime(commands::bench::run(&arguments)),
        Command::Doctor(arguments) => commands::doctor::run(&arguments),
        Command::Limits(arguments) => on_runtime(commands::limits::run(&arguments)),
        Command::Explain(arguments) => on_runtime(commands::explain::run(&arguments)),
        Command::Find(arguments) => on_runtime(commands::find::run(&arguments)),
        Command::Nodes(arguments) => on_runtime(commands::nodes::run(&arguments)),
        Command::Gc(arguments) => on_runtime(commands::gc::run(&arguments)),
        Command::Get(arguments) => on_runtime(commands::get::run(&arguments)),
        Command::Hydrate(arguments) => on_runtime(commands::hydrate::run(&arguments)),
        Command::Ls(query) => on_runtime(commands::ls::run(&query)),
        Command::Pin(arguments) => on_runtime(commands::pin::run(&arguments, true)),
        Command::Preheat(arguments) => on_runtime(commands::preheat::run(&arguments)),
        Command::Profile(command) => on_runtime(commands::profile::run(&command)),
        Command::Rm(arguments) => on_runtime(commands::rm::run(&arguments)),
        Command::Unpin(arguments) => on_runtime(commands::pin::run(&arguments, false)),
        Command::Tracker(daemon) => {
            run_daemon(&daemon, Part::Tracker, async |config, shutdown| tracker::run(&config, shutdown).await)
        }
        Command::Seed(daemon) => {
            run_daemon(&daemon, Part::Seed, async |config, shutdown| seed::run(config, shutdown).await)
        }
        Command::Node(daemon) => run_daemon(&daemon, Part::Node, async |config, shutdown| {
            node::run(config, Embedded::Nothing, shutdown).await
        }),
        Command::Up(daemon) => run_daemon(&daemon, Part::Node, async |config, shutdown| {
            node::run(config, Embedded::Tracker, shutdown).await
        }),
    }
}

fn on_runtime<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    // One provider for all of TLS, chosen before anything uses it; a second call would only say that it is there.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}

/// Runs a daemon until it fails or is told to stop by SIGTERM or SIGINT.
fn run_daemon(
    daemon: &Daemon,
    part: Part,
    run: impl AsyncFnOnce(Config, CancellationToken) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    // What passes through memory has no place in a file that the kernel or a crash reporter leaves behind.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let mut config = Config::load(daemon.config.as_deref())?;
    telemetry::start(&config.log)?;
    confinement::enter(part, &mut config)?;
    on_runtime(async move {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
            stop.cancel();
        });
        run(config, shutdown).await?;
        Ok(ExitCode::SUCCESS)
    })
}
