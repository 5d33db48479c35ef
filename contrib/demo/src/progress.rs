//! What the watcher of a demonstration sees: a line for each step, and on a terminal one that changes.

use anyhow::Result;
use lapwing_lab::Host;
use lapwing_lab::interrupt;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

const REFRESH: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(5);

/// Steps on standard error, with the seconds since the start.
pub(crate) struct Progress {
    started: Instant,
    terminal: bool,
}

impl Progress {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), terminal: std::io::stderr().is_terminal() }
    }

    /// Seconds since the start.
    pub(crate) fn elapsed_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Tells what is done next, or what was found.
    pub(crate) fn step(&self, text: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear}[{:6.1} s] {text}", self.elapsed_s());
    }

    /// Polls `done` until it is true; on a terminal shows the rates of the links meanwhile, and what `state` says.
    pub(crate) fn until(
        &self,
        links: &Links<'_>,
        mut state: impl FnMut() -> String,
        mut done: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let mut shown = Instant::now();
        let mut before = if self.terminal { links.counters()? } else { Vec::new() };
        while !done()? {
            interrupt::check()?;
            std::thread::sleep(POLL);
            let since = shown.elapsed();
            if self.terminal && since >= REFRESH {
                shown = Instant::now();
                let now = links.counters()?;
                let rates = links.rates(&before, &now, since);
                before = now;
                eprint!("\r\x1b[K[{:6.1} s]   {rates}  {}", self.elapsed_s(), state());
                std::io::stderr().flush()?;
            }
        }
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        Ok(())
    }
}

/// The links that an act uses.
pub(crate) struct Links<'a> {
    pub(crate) registry: &'a Host,
    pub(crate) workers: Vec<&'a Host>,
}

impl Links<'_> {
    /// Sent by the registry, then received by each worker.
    fn counters(&self) -> Result<Vec<u64>> {
        let received = self.workers.iter().map(|worker| worker.received_bytes());
        std::iter::once(self.registry.sent_bytes()).chain(received).collect()
    }

    fn rates(&self, before: &[u64], now: &[u64], since: Duration) -> String {
        let mbit = |index: usize| (now[index] - before[index]) as f64 * 8e-6 / since.as_secs_f64();
        let mut text = format!("registry sends {:3.0} Mbit/s", mbit(0));
        for (index, worker) in self.workers.iter().enumerate() {
            text.push_str(&format!(", {} gets {:3.0}", worker.name(), mbit(index + 1)));
        }
        text
    }
}
