//! Bytes on every interface over time.

use crate::stage::Stage;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two looks.
pub(crate) const LOOK: Duration = Duration::from_millis(100);
/// Looks in one line of the written trace.
const LOOKS_PER_LINE: usize = 1;

/// Counters at one moment.
#[derive(Debug, Clone)]
struct Sample {
    at_s: f64,
    registry_sent: u64,
    /// Sent and received by each node.
    nodes: Vec<(u64, u64)>,
}

/// The counters from a moment on.
pub(crate) struct Trace {
    begun: Instant,
    samples: Vec<Sample>,
}

impl Trace {
    pub(crate) fn start(stage: &Stage) -> Result<Self> {
        let mut trace = Self { begun: Instant::now(), samples: Vec::new() };
        trace.look(stage)?;
        Ok(trace)
    }

    /// Reads all counters.
    pub(crate) fn look(&mut self, stage: &Stage) -> Result<()> {
        let at_s = self.begun.elapsed().as_secs_f64();
        let mut nodes = Vec::with_capacity(stage.nodes.len());
        for node in &stage.nodes {
            nodes.push((node.host.sent_bytes()?, node.host.received_bytes()?));
        }
        self.samples.push(Sample { at_s, registry_sent: stage.registry.sent_bytes()?, nodes });
        Ok(())
    }

    fn ends(&self) -> Option<(&Sample, &Sample)> {
        Some((self.samples.first()?, self.samples.last()?))
    }

    /// Bytes that the registry sent.
    pub(crate) fn registry_bytes(&self) -> u64 {
        self.ends().map_or(0, |(first, last)| last.registry_sent - first.registry_sent)
    }

    /// Bytes that the nodes received in all.
    pub(crate) fn received_bytes(&self) -> u64 {
        let sum = |sample: &Sample| sample.nodes.iter().map(|(_, received)| received).sum::<u64>();
        self.ends().map_or(0, |(first, last)| sum(last) - sum(first))
    }

    /// When the registry had sent so many bytes, in seconds from the start.
    pub(crate) fn registry_sent_s(&self, bytes: u64) -> Option<f64> {
        let first = self.samples.first()?.registry_sent;
        self.samples.iter().find(|sample| sample.registry_sent - first >= bytes).map(|sample| sample.at_s)
    }

    /// Writes Mbit/s of each interface, a line for each look: the registry's, then each node's up and down.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let mut text = String::from("second,registry");
        let nodes = self.samples.first().map_or(0, |sample| sample.nodes.len());
        for number in 0..nodes {
            write!(text, ",n{number}_up,n{number}_down")?;
        }
        let marks: Vec<&Sample> = self.samples.iter().step_by(LOOKS_PER_LINE).collect();
        for pair in marks.windows(2) {
            let [before, after] = pair else { continue };
            let mbit = |from: u64, to: u64| (to - from) as f64 * 8e-6 / (after.at_s - before.at_s);
            write!(text, "\n{:.1},{:.0}", after.at_s, mbit(before.registry_sent, after.registry_sent))?;
            for (was, is) in before.nodes.iter().zip(&after.nodes) {
                write!(text, ",{:.0},{:.0}", mbit(was.0, is.0), mbit(was.1, is.1))?;
            }
        }
        text.push('\n');
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}
