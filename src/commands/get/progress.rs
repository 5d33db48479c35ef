//! What the user sees: a line that changes on a terminal, and one at the end of each file.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::outcome::{Split, size};

const REFRESH: Duration = Duration::from_millis(250);
const BAR: usize = 16;
const NAME: usize = 20;

/// Counters of one file, written by its transfer.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Zero while it is not known.
    pub length: AtomicU64,
    pub have: AtomicU64,
    pub peers: AtomicU64,
    pub origin: AtomicU64,
    pub disk: AtomicU64,
}

impl Meter {
    pub(super) fn set(&self, have: u64, split: Split) {
        self.have.store(have, Ordering::Relaxed);
        self.peers.store(split.bytes_from_peers, Ordering::Relaxed);
        self.origin.store(split.bytes_from_origin, Ordering::Relaxed);
        self.disk.store(split.bytes_from_disk, Ordering::Relaxed);
    }

    fn split(&self) -> Split {
        Split {
            bytes_from_peers: self.peers.load(Ordering::Relaxed),
            bytes_from_origin: self.origin.load(Ordering::Relaxed),
            bytes_from_disk: self.disk.load(Ordering::Relaxed),
        }
    }
}

/// Tells the user, on standard error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Teller {
    quiet: bool,
    terminal: bool,
}

impl Teller {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet, terminal: !quiet && std::io::stderr().is_terminal() }
    }

    fn line(self, text: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(std::io::stderr(), "{clear}{text}");
    }

    /// Something that is good to know.
    pub(super) fn note(self, text: &str) {
        if !self.quiet {
            self.line(&format!("lapwing get: {text}"));
        }
    }

    /// Something that is said even to who wants to hear nothing.
    pub(super) fn error(self, text: &str) {
        self.line(&format!("lapwing get: {text}"));
    }

    /// Shows the meter while `work` goes on.
    pub(super) async fn during<T>(self, name: &str, meter: &Arc<Meter>, work: impl Future<Output = T>) -> T {
        if !self.terminal {
            return work.await;
        }
        let (name, meter) = (shorten(name), Arc::clone(meter));
        let drawing = tokio::spawn(async move {
            let mut rate = Rate::default();
            loop {
                tokio::time::sleep(REFRESH).await;
                let _ = write!(std::io::stderr(), "\r\x1b[K{}", draw(&name, &meter, &mut rate));
            }
        });
        let done = work.await;
        drawing.abort();
        let _ = drawing.await;
        let _ = write!(std::io::stderr(), "\r\x1b[K");
        done
    }

    /// A file is there.
    pub(super) fn done(self, name: &str, bytes: u64, resumed: u64, split: Split, took: Duration) {
        let rate = size(((bytes - resumed) as f64 / took.as_secs_f64().max(0.001)) as u64);
        let resumed = if resumed > 0 { format!(" ({} were here)", size(resumed)) } else { String::new() };
        self.note(&format!(
            "{name}: {}{resumed} in {:.1} s, {rate}/s: {}",
            size(bytes),
            took.as_secs_f64(),
            sources(split)
        ));
    }
}

fn sources(split: Split) -> String {
    let Split { bytes_from_peers, bytes_from_origin, bytes_from_disk } = split;
    format!("peers {}, origin {}, disk {}", size(bytes_from_peers), size(bytes_from_origin), size(bytes_from_disk))
}

/// Bytes per second, smoothed over some seconds.
#[derive(Debug, Default)]
struct Rate {
    before: Option<(Instant, u64)>,
    smooth: f64,
}

impl Rate {
    fn update(&mut self, now: Instant, have: u64) -> f64 {
        let Some((at, had)) = self.before.replace((now, have)) else { return 0.0 };
        let rate = have.saturating_sub(had) as f64 / now.duration_since(at).as_secs_f64().max(0.001);
        self.smooth = if self.smooth == 0.0 { rate } else { self.smooth.mul_add(0.8, rate * 0.2) };
        self.smooth
    }
}

fn draw(name: &str, meter: &Meter, rate: &mut Rate) -> String {
    let (have, length) = (meter.have.load(Ordering::Relaxed), meter.length.load(Ordering::Relaxed));
    let rate = rate.update(Instant::now(), have);
    let split = meter.split();
    let taken = (split.bytes_from_peers + split.bytes_from_origin + split.bytes_from_disk).max(1);
    let share = |bytes: u64| bytes * 100 / taken;
    let shares = format!(
        "peers {}% origin {}% disk {}%",
        share(split.bytes_from_peers),
        share(split.bytes_from_origin),
        share(split.bytes_from_disk)
    );
    let speed = format!("{}/s", size(rate as u64));
    if length == 0 {
        return format!("{name} {} {speed} {shares}", size(have));
    }
    let filled = (have.min(length) as u128 * BAR as u128 / u128::from(length)) as usize;
    let bar = format!("{}{}", "=".repeat(filled), " ".repeat(BAR - filled));
    let left = if rate > 0.0 { eta((length.saturating_sub(have) as f64 / rate) as u64) } else { "-".to_owned() };
    format!("{name} {:3}% [{bar}] {speed} {left} {shares}", have * 100 / length)
}

fn eta(seconds: u64) -> String {
    match seconds {
        0..3600 => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}", seconds / 3600, seconds / 60 % 60),
    }
}

fn shorten(name: &str) -> String {
    let count = name.chars().count();
    if count <= NAME {
        return name.to_owned();
    }
    let end: String = name.chars().skip(count - NAME + 2).collect();
    format!("..{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_how_much_and_from_where() {
        let meter = Meter::default();
        meter.length.store(1000, Ordering::Relaxed);
        let split = Split { bytes_from_peers: 300, bytes_from_origin: 100, bytes_from_disk: 100 };
        meter.set(500, split);
        let line = draw("name", &meter, &mut Rate::default());
        assert!(line.starts_with("name  50% [========        ] "), "{line}");
        assert!(line.ends_with("peers 60% origin 20% disk 20%") && line.len() < 80, "{line}");
        let short = shorten("a-name-that-is-far-too-long.bin");
        assert!(short.len() == NAME && short.ends_with("-too-long.bin"), "{short}");
    }
}
