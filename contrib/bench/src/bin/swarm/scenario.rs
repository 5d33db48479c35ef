//! The cases that are measured.

use crate::fault::Fault;
use anyhow::{Result, bail};
use std::time::Duration;

/// When the nodes begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// All at the same moment, none of them has anything.
    Together,
    /// One after the other, with that pause.
    Every(Duration),
    /// The first half has everything; the others begin at the same moment.
    HalfWarm,
}

/// One case. Rates are in Mbit/s, lengths in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) nodes: usize,
    pub(crate) blobs_mib: &'static [u64],
    pub(crate) registry_mbit: u32,
    pub(crate) node_up_mbit: u32,
    pub(crate) node_down_mbit: u32,
    /// Most copies that the tracker leases; 1 is its default.
    pub(crate) copies: u32,
    pub(crate) start: Start,
    pub(crate) fault: Fault,
    /// The first node's client reads no faster than twice the mean rate.
    pub(crate) streaming_reader: bool,
    /// The second half of the nodes is beyond a border of this rate, in a zone of its own.
    pub(crate) border_mbit: Option<u32>,
}

impl Scenario {
    /// Bytes that every node pulls.
    pub(crate) fn bytes(&self) -> u64 {
        self.blobs_mib.iter().sum::<u64>() << 20
    }

    /// How many nodes have everything before the others begin.
    pub(crate) const fn warm(&self) -> usize {
        match self.start {
            Start::HalfWarm => self.nodes / 2,
            _ => 0,
        }
    }
}

/// The cold start of eight nodes, of which most others are variants.
const COLD8: Scenario = Scenario {
    name: "cold8",
    about: "cold start of 8 nodes together",
    nodes: 8,
    blobs_mib: &[256],
    registry_mbit: 100,
    node_up_mbit: 200,
    node_down_mbit: 400,
    copies: 1,
    start: Start::Together,
    fault: Fault::None,
    streaming_reader: false,
    border_mbit: None,
};

const COLD32: Scenario = Scenario {
    name: "cold32",
    about: "cold start of 32 nodes with slow uplinks, one copy allowed",
    nodes: 32,
    node_up_mbit: 40,
    node_down_mbit: 80,
    ..COLD8
};

/// The bound is the same as at full rates, and the efficiency would be if the nodes did not share a machine's CPUs.
const COLD32_HALF: Scenario = Scenario {
    name: "cold32-half",
    about: "the same at half of all rates, half as much",
    blobs_mib: &[128],
    registry_mbit: 50,
    node_up_mbit: 20,
    node_down_mbit: 40,
    ..COLD32
};

/// All cases, in the order in which they run.
pub(crate) const ALL: &[Scenario] = &[
    COLD8,
    COLD32,
    Scenario { name: "cold32x3", about: "the same, three copies allowed", copies: 3, ..COLD32 },
    COLD32_HALF,
    Scenario { name: "cold32x3-half", about: "the same, three copies allowed", copies: 3, ..COLD32_HALF },
    Scenario {
        name: "fast16",
        about: "cold start of 16 nodes with a fast registry",
        nodes: 16,
        registry_mbit: 1000,
        node_up_mbit: 100,
        node_down_mbit: 1000,
        ..COLD8
    },
    Scenario { name: "large", about: "one large blob, 8 nodes", blobs_mib: &[1024], ..COLD8 },
    Scenario { name: "layers", about: "eight layers at once, 8 nodes", blobs_mib: &[32; 8], ..COLD8 },
    Scenario {
        name: "reader",
        about: "8 nodes; one reads in order at twice the mean rate",
        streaming_reader: true,
        ..COLD8
    },
    Scenario {
        name: "arrivals",
        about: "16 nodes, one more every second",
        nodes: 16,
        start: Start::Every(Duration::from_secs(1)),
        ..COLD8
    },
    Scenario { name: "warm", about: "8 nodes, half of them have it", start: Start::HalfWarm, ..COLD8 },
    Scenario {
        name: "zones",
        about: "two zones of 4 nodes, a narrow link between them",
        border_mbit: Some(20),
        blobs_mib: &[128],
        ..COLD8
    },
    Scenario { name: "peer-killed", about: "8 nodes, one killed at half", fault: Fault::PeerKilled, ..COLD8 },
    Scenario {
        name: "tracker-killed",
        about: "8 nodes, the tracker killed at half",
        fault: Fault::TrackerKilled,
        ..COLD8
    },
    Scenario {
        name: "corrupting",
        about: "8 nodes and a peer that corrupts every piece",
        fault: Fault::Corrupting,
        ..COLD8
    },
    Scenario { name: "crawling", about: "8 nodes, one at 1 % of its speed", fault: Fault::Crawling, ..COLD8 },
];

/// The cases of these names; all of them for no name.
pub(crate) fn select(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(ALL.iter().collect());
    }
    let mut selected = Vec::new();
    for name in names {
        let Some(scenario) = ALL.iter().find(|scenario| scenario.name == name) else {
            let known: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
            bail!("no scenario {name:?}; there are {}", known.join(", "));
        };
        selected.push(scenario);
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_a_wrong_one_is_refused() {
        let mut names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(select(&["cold9".to_owned()]).unwrap_err().to_string().contains("cold32x3"));
        assert_eq!(select(&[]).unwrap().len(), ALL.len());
    }
}
