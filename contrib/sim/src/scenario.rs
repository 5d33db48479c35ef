//! What is simulated: links, blobs, faults.

use std::ops::Range;
use std::time::Duration;

use lapwing_p2p::swarm::Policy;

const MIB: u64 = 1 << 20;
/// Fewer nodes are not worth a second thread.
const MANY: usize = 500;

/// Rates of the links, in Mbit/s.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// What the origin sends in all.
    pub origin: f64,
    /// What a node sends.
    pub up: f64,
    /// What a node takes.
    pub down: f64,
}

/// One run. Whatever is random in it follows from the seed.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Its name in the report.
    pub name: &'static str,
    /// How many nodes.
    pub nodes: usize,
    /// The blobs that every node pulls, all at once, by their lengths in bytes.
    pub blobs: Vec<u64>,
    /// Rates of the links.
    pub rates: Rates,
    /// From one node to another, and to the tracker.
    pub latency: Duration,
    /// From a request to the origin's first byte.
    pub first_byte: Duration,
    /// Between the starts of one node and the next.
    pub arrival_gap: Duration,
    /// So many nodes hold everything from the beginning.
    pub holders: usize,
    /// So many nodes die, spread over the middle tenth of the bound.
    pub deaths: usize,
    /// How long until others notice that a node has died.
    pub detection: Duration,
    /// So many nodes send at a hundredth of the rate.
    pub slow: usize,
    /// So many nodes send wrong bytes only.
    pub corrupt: usize,
    /// While the tracker is dead. It comes back empty.
    pub outage: Option<Range<Duration>>,
    /// How long its calls hang meanwhile before they fail: not at all where a process has died and its machine lives.
    pub hangs: Duration,
    /// The nodes are in two zones, with a link of so many Mbit/s each way; the origin is in the first one.
    pub zone_link: Option<f64>,
    /// How many copies of a blob may be fetched from the origin.
    pub copies: u32,
    /// The numbers of the scheduler's policy.
    pub policy: Policy,
    /// Bytes of one turn of a link that serves several connections.
    pub quantum: u64,
    /// Whether a second thread helps. It changes nothing in the outcome.
    pub two_threads: bool,
    /// Whether to say once a simulated second how far the nodes are.
    pub progress: bool,
    /// Gives up after that time.
    pub limit: Duration,
    /// Decides all that is random.
    pub seed: u64,
}

impl Scenario {
    /// `nodes` that pull one blob together, nothing fails.
    pub fn cold(name: &'static str, nodes: usize, rates: Rates, blob_bytes: u64) -> Self {
        Self {
            name,
            nodes,
            blobs: vec![blob_bytes],
            rates,
            latency: Duration::from_micros(250),
            first_byte: Duration::from_millis(5),
            arrival_gap: Duration::ZERO,
            holders: 0,
            deaths: 0,
            detection: Duration::from_secs(1),
            slow: 0,
            corrupt: 0,
            outage: None,
            hangs: Duration::ZERO,
            zone_link: None,
            copies: 1,
            policy: Policy::default(),
            quantum: match nodes {
                0..1000 => 64 << 10,
                1000..10_000 => 256 << 10,
                _ => 512 << 10,
            },
            two_threads: nodes >= MANY,
            progress: false,
            limit: Duration::from_secs(3600),
            seed: 1,
        }
    }

    /// Bytes that every node pulls.
    pub fn bytes(&self) -> u64 {
        self.blobs.iter().sum()
    }

    /// The least time in which the last node can be done, in seconds: max(F/us, F/dmin, N F/(us + sum ui)), Kumar and Ross
    /// 2006, and with arrivals also what the last one needs for itself. Holders bring their own uplinks.
    pub fn bound_s(&self) -> f64 {
        let (bits, nodes, rates) = (self.bytes() as f64 * 8e-6, self.nodes as f64, self.rates);
        let pulling = nodes - self.holders as f64;
        let sources = if self.holders > 0 { self.holders as f64 * rates.up } else { rates.origin };
        let bound = (bits / sources).max(bits / rates.down).max(pulling * bits / (rates.origin + nodes * rates.up));
        let last = self.arrival_gap.as_secs_f64() * (nodes - 1.0) + bits / rates.down;
        let border = self.zone_link.map_or(0.0, |link| bits / link);
        bound.max(last).max(border)
    }

    /// When node number `index` of those that die does so.
    pub fn death(&self, index: usize) -> Duration {
        let spread = index as f64 / self.deaths.max(1) as f64;
        Duration::from_secs_f64(self.bound_s() * (0.45 + 0.1 * spread))
    }
}

const A: Rates = Rates { origin: 100.0, up: 200.0, down: 400.0 };
const B: Rates = Rates { origin: 100.0, up: 40.0, down: 80.0 };
const C: Rates = Rates { origin: 1000.0, up: 100.0, down: 1000.0 };
const G: Rates = Rates { origin: 1000.0, up: 200.0, down: 400.0 };

/// Every scenario that has a name; `ARCHITECTURE.md` says what came out.
pub fn all() -> Vec<Scenario> {
    let cold = Scenario::cold;
    let (blob, large) = (256 * MIB, 1024 * MIB);
    let a32 = |name| cold(name, 32, A, blob);
    vec![
        cold("a", 8, A, blob),
        cold("b", 32, B, blob),
        Scenario { copies: 3, ..cold("b-three-copies", 32, B, blob) },
        cold("c", 16, C, blob),
        Scenario { blobs: vec![32 * MIB; 8], ..cold("eight-blobs-8", 8, A, blob) },
        Scenario { blobs: vec![32 * MIB; 8], ..cold("eight-blobs", 32, B, blob) },
        Scenario { first_byte: Duration::from_millis(500), ..cold("slow-answer", 8, A, blob) },
        Scenario { latency: Duration::from_millis(25), ..cold("far-apart", 32, B, blob) },
        Scenario { arrival_gap: Duration::from_secs(1), ..a32("arrivals") },
        Scenario { holders: 16, ..cold("half-warm", 32, B, blob) },
        Scenario { slow: 1, ..a32("one-slow") },
        Scenario { slow: 4, ..a32("four-slow") },
        Scenario { corrupt: 1, ..a32("one-corrupt") },
        Scenario { deaths: 3, ..a32("three-die") },
        Scenario { outage: Some(Duration::from_secs(11)..Duration::from_secs(16)), ..a32("tracker-dies") },
        Scenario { zone_link: Some(20.0), ..a32("two-zones") },
        Scenario { zone_link: Some(20.0), deaths: 6, ..a32("two-zones-dying") },
        cold("g-1000", 1000, G, large),
        Scenario { deaths: 10, ..cold("g-1000-dying", 1000, G, large) },
        cold("g-10000", 10_000, G, large),
        Scenario { deaths: 100, ..cold("g-10000-dying", 10_000, G, large) },
    ]
}
