//! A sending end: a link of fixed rate that serves its connections in turn, a quantum each.
//!
//! A connection has at most a window of bytes on the way, so that a receiver whose link is full slows down its senders
//! rather than filling an endless buffer.

use std::collections::VecDeque;

/// Pieces that wait to be sent over one connection, first in first out.
#[derive(Debug)]
struct Flow<K, J> {
    key: K,
    jobs: VecDeque<(J, u64)>,
    /// When the quanta under way are with the receiver, oldest first.
    under_way: UnderWay,
}

/// Most quanta under way on one connection.
const MAX_UNDER_WAY: usize = 4;

/// When quanta are with the receiver, oldest first.
#[derive(Debug, Default)]
struct UnderWay {
    at_ns: [u64; MAX_UNDER_WAY],
    count: usize,
}

impl UnderWay {
    fn known(&mut self) -> &mut [u64] {
        &mut self.at_ns[..self.count]
    }

    /// Adds one, and forgets the oldest beyond the window.
    fn push(&mut self, at_ns: u64, window: usize) {
        if self.count == window {
            self.at_ns.rotate_left(1);
            self.count -= 1;
        }
        self.at_ns[self.count] = at_ns;
        self.count += 1;
    }
}

/// What one quantum brought to its end.
#[derive(Debug, Clone, Copy)]
pub struct Quantum<K, J> {
    /// The connection.
    pub key: K,
    /// What the bytes belong to.
    pub job: J,
    /// How many.
    pub bytes: u64,
    /// Whether they were the last of it.
    pub last: bool,
}

/// One sending end.
#[derive(Debug)]
pub struct Pipe<K, J> {
    ps_per_byte: u64,
    quantum: u64,
    window: usize,
    flows: VecDeque<Flow<K, J>>,
    spare: Vec<Flow<K, J>>,
    /// The quantum that is being sent.
    sending: Option<Quantum<K, J>>,
    /// When the timer is due that counts; others are stale.
    timer_ns: Option<u64>,
}

/// Picoseconds that a byte takes at so many Mbit/s.
pub fn ps_per_byte(mbit: f64) -> u64 {
    (8e6 / mbit) as u64
}

impl<K: Copy + PartialEq, J: Copy> Pipe<K, J> {
    /// A pipe of that rate; at most `window_bytes`, or two quanta, are on the way to one receiver.
    pub fn new(ps_per_byte: u64, quantum: u64, window_bytes: u64) -> Self {
        let window = (window_bytes / quantum).clamp(2, MAX_UNDER_WAY as u64) as usize;
        Self { ps_per_byte, quantum, window, flows: VecDeque::new(), spare: Vec::new(), sending: None, timer_ns: None }
    }

    /// Queues bytes for a connection. The result is when [`Self::timer`] is to be called, if that has changed.
    pub fn send(&mut self, now_ns: u64, key: K, job: J, bytes: u64) -> Option<u64> {
        match self.flows.iter_mut().find(|flow| flow.key == key) {
            Some(flow) => flow.jobs.push_back((job, bytes)),
            None => {
                let mut flow = self.spare.pop().unwrap_or_else(|| Flow {
                    key,
                    jobs: VecDeque::with_capacity(4),
                    under_way: UnderWay::default(),
                });
                flow.key = key;
                flow.jobs.push_back((job, bytes));
                self.flows.push_back(flow);
            }
        }
        if self.sending.is_some() { None } else { self.start(now_ns) }
    }

    /// Whether nothing waits to be sent.
    pub fn is_idle(&self) -> bool {
        self.flows.is_empty()
    }

    /// A connection has ended: what waits for it is dropped.
    pub fn drop_flow(&mut self, key: K) {
        self.flows.retain(|flow| flow.key != key);
        // The timer stays: it begins the next quantum.
        self.sending.take_if(|quantum| quantum.key == key);
    }

    /// A timer is due. Gives the quantum that has left, whose delivery is to be told by [`Self::delivered`], and is to be
    /// followed by [`Self::start`]. None for a stale timer.
    pub fn timer(&mut self, now_ns: u64) -> Option<Option<Quantum<K, J>>> {
        if self.timer_ns != Some(now_ns) {
            return None;
        }
        self.timer_ns = None;
        let Some(mut quantum) = self.sending.take() else { return Some(None) };
        let at = self.flows.iter().position(|flow| flow.key == quantum.key);
        let Some(mut flow) = at.and_then(|at| self.flows.remove(at)) else { return Some(None) };
        let Some((_, left)) = flow.jobs.front_mut() else { return Some(None) };
        *left -= quantum.bytes;
        if *left == 0 {
            flow.jobs.pop_front();
            quantum.last = true;
        }
        match flow.jobs.is_empty() {
            true => {
                flow.under_way.count = 0;
                self.spare.push(flow);
            }
            false => self.flows.push_back(flow),
        }
        Some(Some(quantum))
    }

    /// Says when the quantum that has just left is with its receiver, as far as the sender knows.
    pub fn delivered(&mut self, key: K, at_ns: u64) {
        let window = self.window;
        if let Some(flow) = self.flows.back_mut().filter(|flow| flow.key == key) {
            flow.under_way.push(at_ns, window);
        }
    }

    /// The receiver says that a quantum was with it later than expected.
    pub fn late(&mut self, key: K, expected_ns: u64, at_ns: u64) {
        let flow = self.flows.iter_mut().find(|flow| flow.key == key);
        let quanta = flow.map_or(&mut [][..], |flow| flow.under_way.known());
        // An earlier one may have been late until that very moment.
        if let Some(known) = quanta.iter_mut().rfind(|known| **known == expected_ns) {
            *known = at_ns;
        }
    }

    /// Begins the next quantum; the result is when the timer is due, if that has changed.
    pub fn start(&mut self, now_ns: u64) -> Option<u64> {
        let mut earliest = u64::MAX;
        for _ in 0..self.flows.len() {
            let flow = self.flows.front()?;
            let ready = if flow.under_way.count >= self.window { flow.under_way.at_ns[0] } else { 0 };
            if ready <= now_ns {
                let &(job, left) = flow.jobs.front()?;
                let bytes = left.min(self.quantum);
                self.sending = Some(Quantum { key: flow.key, job, bytes, last: false });
                return self.set_timer(now_ns + bytes * self.ps_per_byte / 1000);
            }
            earliest = earliest.min(ready);
            self.flows.rotate_left(1);
        }
        (earliest < u64::MAX).then(|| self.set_timer(earliest)).flatten()
    }

    fn set_timer(&mut self, at_ns: u64) -> Option<u64> {
        let changed = self.timer_ns != Some(at_ns);
        self.timer_ns = Some(at_ns);
        changed.then_some(at_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends and gives (connection, time in us) of every job's end; receivers take `delay_us` for a quantum.
    fn ends(pipe: &mut Pipe<u8, ()>, mut timer: Option<u64>, delay_us: u64) -> Vec<(u8, u64)> {
        let mut ends = Vec::new();
        while let Some(now) = timer {
            if let Some(quantum) = pipe.timer(now).expect("no timer is stale here") {
                pipe.delivered(quantum.key, now + delay_us * 1000);
                ends.extend(quantum.last.then_some((quantum.key, now / 1000)));
            }
            timer = pipe.start(now);
        }
        ends
    }

    #[test]
    fn connections_share_the_rate_in_turn() {
        let mut pipe = Pipe::new(ps_per_byte(8.0), 1000, 1 << 20);
        let timer = pipe.send(0, 1, (), 2000);
        assert_eq!(timer, Some(1_000_000), "a megabyte a second");
        assert_eq!(pipe.send(0, 2, (), 3000), None);
        assert_eq!(ends(&mut pipe, timer, 0), [(1, 3000), (2, 5000)]);
    }

    #[test]
    fn a_receiver_that_turns_out_slow_slows_its_connection() {
        let mut pipe = Pipe::new(ps_per_byte(8.0), 1000, 1);
        let mut timer = pipe.send(0, 1, (), 4000);
        let mut left = Vec::new();
        while let Some(now) = timer {
            if let Some(quantum) = pipe.timer(now).expect("no timer is stale here") {
                left.push(now / 1000);
                pipe.delivered(quantum.key, now);
                pipe.late(quantum.key, now, now + 10_000_000);
            }
            timer = pipe.start(now);
        }
        assert_eq!(left, [1000, 2000, 12_000, 13_000]);
    }

    #[test]
    fn a_slow_receiver_slows_its_own_connection_only() {
        let mut pipe = Pipe::new(ps_per_byte(8.0), 1000, 1);
        let timer = pipe.send(0, 1, (), 4000);
        pipe.send(0, 2, (), 1000);
        // Two quanta are on the way to 1 after 3 ms; the third may leave when the first is there, at 101 ms.
        assert_eq!(ends(&mut pipe, timer, 100_000), [(2, 2000), (1, 104_000)]);
    }
}
