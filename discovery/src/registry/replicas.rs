//! The answer to "how many others have all of this blob": what a node asks before it evicts one.

use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Replicas;

use super::group::Group;
use super::{Caller, Refusal, Registration, Registry};
use crate::limits::MAX_REPLICAS_SCANNED;

/// So many copies in a zone are as good as more.
const ENOUGH: u32 = 2;

impl Group {
    /// Complete holders besides the node of number `asker`, which peers can reach. Counting stops when it does not matter
    /// any more, so of popular blobs there are more than are counted.
    fn replicas(&self, now: Duration, asker: u32, digest: Digest, random: &mut fastrand::Rng) -> Replicas {
        let (Some(blob), Some(asking)) = (self.get(digest), self.nodes.get(asker)) else { return Replicas::default() };
        let (mut counted, stand) = (Replicas::default(), &self.standings[asker as usize].stand);
        let complete = self.complete_around(blob, &asking.place, MAX_REPLICAS_SCANNED, random);
        for holder in complete.filter(|&holder| holder != asker) {
            let standing = &self.standings[holder as usize];
            if !standing.serves(now, || self.nodes.get(holder)) {
                continue;
            }
            counted.all += 1;
            counted.zone += u32::from(!stand.is_far(&standing.stand));
            if counted.zone >= ENOUGH {
                break;
            }
        }
        counted
    }
}

impl Registry {
    /// How many nodes besides `caller` hold all of each of `digests`, in their order. A node whose zone is not known
    /// counts for every zone.
    pub fn replicas(
        &mut self,
        now: Duration,
        caller: &Caller,
        digests: &[Digest],
    ) -> Result<(Registration, Vec<Replicas>), Refusal> {
        let call = self.enter(now, caller)?;
        let counts = digests.iter().map(|&digest| call.group.replicas(now, call.node, digest, call.random)).collect();
        Ok((call.registration, counts))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lapwing_p2p::discovery::Holding;
    use lapwing_p2p::identity::PeerId;

    use super::*;
    use crate::registry::Place;

    const NOW: Duration = Duration::from_secs(1000);

    fn caller(number: u8, zone: &str) -> Caller {
        Caller {
            node: PeerId::from_bytes([number; 32]),
            instance: 1,
            group: "default".to_owned(),
            place: Place { zone: zone.into(), rack: "".into(), address: IpAddr::from([10, 0, 0, number]) },
            port: 7081,
            seed: false,
            seed_port: 0,
            reached_at: IpAddr::from([10, 255, 255, 1]),
        }
    }

    fn count(registry: &mut Registry, asker: &Caller, blob: &[u8]) -> Replicas {
        registry.replicas(NOW, asker, &[Digest::of(blob)]).unwrap().1[0]
    }

    #[test]
    fn complete_copies_of_others_are_counted_by_zone() {
        let mut registry = Registry::new(7);
        let hold = |registry: &mut Registry, caller: &Caller, holding| {
            registry.announce(NOW, caller, &[(Digest::of(b"blob"), holding)]).unwrap();
        };
        let (me, near, far) = (caller(1, "a"), caller(2, "a"), caller(3, "b"));
        assert_eq!(count(&mut registry, &me, b"blob"), Replicas { zone: 0, all: 0 });
        hold(&mut registry, &me, Some(Holding::Complete));
        assert_eq!(count(&mut registry, &me, b"blob"), Replicas { zone: 0, all: 0 }, "its own does not count");
        hold(&mut registry, &far, Some(Holding::Complete));
        hold(&mut registry, &near, Some(Holding::Partial));
        assert_eq!(count(&mut registry, &me, b"blob"), Replicas { zone: 0, all: 1 });
        hold(&mut registry, &near, Some(Holding::Complete));
        assert_eq!(count(&mut registry, &me, b"blob"), Replicas { zone: 1, all: 2 });
        assert_eq!(count(&mut registry, &far, b"blob"), Replicas { zone: 0, all: 2 });
        assert_eq!(count(&mut registry, &me, b"other"), Replicas { zone: 0, all: 0 });
        hold(&mut registry, &near, None);
        assert_eq!(count(&mut registry, &me, b"blob"), Replicas { zone: 0, all: 1 });
        let elsewhere = Caller { group: "other".to_owned(), ..caller(4, "a") };
        assert_eq!(count(&mut registry, &elsewhere, b"blob"), Replicas { zone: 0, all: 0 });
    }

    #[test]
    fn who_serves_nobody_is_no_replica() {
        let mut registry = Registry::new(7);
        let silent = Caller { port: 0, ..caller(2, "a") };
        registry.announce(NOW, &silent, &[(Digest::of(b"blob"), Some(Holding::Complete))]).unwrap();
        assert_eq!(count(&mut registry, &caller(1, "a"), b"blob"), Replicas::default());
    }
}
