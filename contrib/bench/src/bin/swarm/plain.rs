//! The same without Lapwing: every node pulls from the registry; and what one link really carries.

use crate::client::{self, Watch};
use crate::scenario::Scenario;
use crate::stage::Stage;
use anyhow::{Context, Result};
use lapwing_lab::interrupt;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Pulls that would take longer are extrapolated from the rate in this time, without its first part.
const LONGEST: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(5);
const PORT: u16 = 9000;

/// What plain transfers do on the same links.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain {
    /// When the last of all nodes would have everything from the registry.
    pub(crate) last_s: f64,
    /// Whether that was seen and not computed from the rate.
    pub(crate) measured: bool,
    /// Bytes of content per second out of the registry, to all nodes together.
    pub(crate) registry_rate: f64,
    /// The same from one node to another, over one connection.
    pub(crate) node_rate: f64,
}

pub(crate) fn measure(scenario: &Scenario, stage: &Stage) -> Result<Plain> {
    let node_rate = one_link(stage)?;
    let watches: Vec<Watch> = stage.nodes.iter().map(|_| Watch::default()).collect();
    let read = || -> u64 { watches.iter().map(|watch| watch.read.load(Ordering::Relaxed)).sum() };
    let wanted = scenario.bytes() * stage.nodes.len() as u64;
    let begun = Instant::now();
    let (marks, took) = std::thread::scope(|scope| {
        let pulls: Vec<_> = stage
            .nodes
            .iter()
            .zip(&watches)
            .map(|(node, watch)| {
                scope.spawn(move || {
                    node.host.within(|| {
                        for blob in &stage.blobs {
                            let (address, path) = stage.at_registry(blob);
                            client::pull(address, &path, blob, None, watch)?;
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        let mut settled = None;
        while begun.elapsed() < LONGEST && !pulls.iter().all(|pull| pull.is_finished()) && interrupt::check().is_ok() {
            if settled.is_none() && begun.elapsed() >= SETTLE {
                settled = Some((begun.elapsed(), read()));
            }
            std::thread::sleep(POLL);
        }
        let end = (begun.elapsed(), read());
        watches.iter().for_each(|watch| watch.stop.store(true, Ordering::Relaxed));
        for pull in pulls {
            pull.join().unwrap_or_else(|_| anyhow::bail!("a panic while pulling"))?;
        }
        anyhow::Ok(((settled.unwrap_or_default(), end), begun.elapsed()))
    })
    .context("plain pulls from the registry")?;
    interrupt::check()?;
    let (from, to) = marks;
    let registry_rate = (to.1 - from.1) as f64 / (to.0 - from.0).as_secs_f64();
    let measured = to.1 >= wanted;
    let last_s = if measured { took.as_secs_f64() } else { wanted as f64 / registry_rate };
    Ok(Plain { last_s, measured, registry_rate, node_rate })
}

/// Bytes per second of content from the first node to the second.
fn one_link(stage: &Stage) -> Result<f64> {
    let [from, to, ..] = stage.nodes.as_slice() else { anyhow::bail!("one node is no swarm") };
    let address = SocketAddr::from((from.host.address(), PORT));
    let listener = from.host.within(|| Ok(TcpListener::bind(address)?))?;
    let sender = std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let block = vec![7; 256 << 10];
        // Ends when the other side has seen enough.
        while stream.write_all(&block).is_ok() {}
    });
    let rate = to.host.within(|| {
        let mut stream = TcpStream::connect(address)?;
        let mut buffer = vec![0; 256 << 10];
        let mut until = |time: Duration| -> Result<f64> {
            let (begun, mut read) = (Instant::now(), 0);
            while begun.elapsed() < time {
                read += stream.read(&mut buffer)?;
            }
            Ok(read as f64 / begun.elapsed().as_secs_f64())
        };
        until(SETTLE)?;
        until(SETTLE)
    });
    // The stream is closed: the sender has ended or ends now.
    let _ = sender.join();
    rate
}
