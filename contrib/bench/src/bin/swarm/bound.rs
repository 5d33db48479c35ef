//! What no distribution can beat: the fluid bounds of Kumar and Ross ("Peer-Assisted File Distribution: The Minimum Distribution Time", 2006).

use crate::scenario::{Scenario, Start};

/// Rates in bytes per second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) registry: f64,
    pub(crate) up: f64,
    pub(crate) down: f64,
}

impl Rates {
    /// What `tc` was told, headers of all protocols included.
    pub(crate) fn nominal(scenario: &Scenario) -> Self {
        let bytes = |mbit: u32| f64::from(mbit) * 125_000.0;
        Self {
            registry: bytes(scenario.registry_mbit),
            up: bytes(scenario.node_up_mbit),
            down: bytes(scenario.node_down_mbit),
        }
    }
}

/// Seconds from the first node's start until the last one can have everything, whatever the number of copies.
///
/// A crawling peer's link does not count, and neither does the peer itself: it is the others that are measured. A killed peer counts until
/// the end: the bound of the healthy case is what its cost is measured against.
pub(crate) fn seconds(scenario: &Scenario, rates: Rates) -> f64 {
    let bytes = scenario.bytes() as f64;
    let receivers = (scenario.nodes - scenario.warm()) as f64;
    let all_up = rates.registry + scenario.nodes as f64 * rates.up;
    let one_down = bytes / rates.down;
    let shared = receivers * bytes / all_up;
    match scenario.start {
        Start::Together => (bytes / rates.registry).max(one_down).max(shared).max(over_border(scenario, bytes)),
        Start::Every(pause) => {
            let last_starts = pause.as_secs_f64() * (receivers - 1.0);
            (bytes / rates.registry).max(last_starts + one_down).max(shared)
        }
        // Everything is among the nodes already.
        Start::HalfWarm => one_down.max(shared),
    }
}

/// The same when the registry sends one copy and no more.
pub(crate) fn one_copy_seconds(scenario: &Scenario, rates: Rates) -> f64 {
    let bytes = scenario.bytes() as f64;
    let shared = (scenario.nodes as f64 - 1.0) * bytes / (scenario.nodes as f64 * rates.up);
    let cold = scenario.warm() == 0;
    if cold { seconds(scenario, rates).max(shared) } else { seconds(scenario, rates) }
}

fn over_border(scenario: &Scenario, bytes: f64) -> f64 {
    scenario.border_mbit.map_or(0.0, |mbit| bytes / (f64::from(mbit) * 125_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::ALL;

    #[track_caller]
    fn expect(name: &str, bound_s: f64, one_copy_s: f64) {
        let scenario = ALL.iter().find(|scenario| scenario.name == name).expect("a scenario of that name");
        let rates = Rates::nominal(scenario);
        let found = (seconds(scenario, rates), one_copy_seconds(scenario, rates));
        assert!((found.0 - bound_s).abs() < 0.01 && (found.1 - one_copy_s).abs() < 0.01, "{name}: {found:?}");
    }

    #[test]
    fn the_bounds_are_those_of_the_fluid_model() {
        expect("cold8", 21.47, 21.47);
        expect("cold32", 49.80, 52.01);
        expect("fast16", 13.22, 20.13);
        expect("arrivals", 21.47, 21.47);
        expect("warm", 5.37, 5.37);
        expect("zones", 53.69, 53.69);
    }
}
