//! Orders: blobs that nodes of a group are asked to fetch before anybody pulls them.
//!
//! Any node of the group may give one, and repeats it for as long as it stands: soft state, as everything here. It is for all nodes that are no
//! seeds, or for so many of them, chosen by their keys: the same ones for all blobs of one job. Nodes hear with the replies to their signs of
//! life that there is something new ([`Orders::latest`]), and ask for it. What an order names is dialled by nobody: nodes look the registry up in their
//! own configuration, and use their own credentials.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{Holding, Order, OrderRequest, OrderStand};
use lapwing_p2p::identity::PeerId;

use super::group::Group;
use super::trials::StandingTrial;
use super::{Caller, Refusal, Registration, Registry};
use crate::limits::{MAX_JOBS_PER_ORDER, MAX_NODES, MAX_ORDERS, MAX_ORDERS_PER_ANSWER, ORDER_TTL};

/// Orders, and how far they reach: the number of the last one among them.
pub type Listed = (Registration, Vec<Order>, u64);

/// For whom.
#[derive(Debug)]
enum Targets {
    All,
    Chosen(HashSet<PeerId>),
}

#[derive(Debug)]
pub(super) struct Standing {
    /// Grows with each change, so that who asked before hears of it.
    number: u64,
    order: Order,
    targets: Targets,
    until: Duration,
    /// Those that it belongs to.
    jobs: HashSet<u64>,
    /// Those of its targets that cannot carry it out, and what the first of them said.
    failed: HashSet<PeerId>,
    reason: String,
    pub(super) trial: Option<StandingTrial>,
}

impl Standing {
    /// As it is told now.
    fn told(&self, now: Duration) -> Order {
        let trial = self.trial.as_ref().map(|trial| trial.told(now));
        Order { trial, ..self.order.clone() }
    }

    pub(super) fn is_for(&self, peer: &PeerId) -> bool {
        match &self.targets {
            Targets::All => true,
            Targets::Chosen(chosen) => chosen.contains(peer),
        }
    }
}

/// The orders of one group.
#[derive(Debug, Default)]
pub(super) struct Orders {
    pub(super) standing: HashMap<Digest, Standing>,
    latest: u64,
}

impl Orders {
    /// The number of the order that was given or changed last.
    pub(super) const fn latest(&self) -> u64 {
        self.latest
    }

    pub(super) fn tick(&mut self, now: Duration) {
        self.standing.retain(|_, order| order.until > now);
    }
}

impl Group {
    fn order(&mut self, now: Duration, request: OrderRequest) -> Result<OrderStand, Refusal> {
        let OrderRequest { order, job, nodes, over } = request;
        let digest = order.digest;
        let trial = self.trial(now, &order, over)?;
        let number = self.orders.latest + 1;
        let chosen = nodes.map(|nodes| self.choose(now, &digest, job, nodes));
        let full = self.orders.standing.len() >= MAX_ORDERS && !self.orders.standing.contains_key(&digest);
        if full {
            return Err(Refusal::Full { what: "orders", limit: MAX_ORDERS });
        }
        let mut is_new = false;
        let standing = self.orders.standing.entry(digest).or_insert_with(|| {
            is_new = true;
            let targets = Targets::Chosen(HashSet::new());
            let (jobs, failed) = (HashSet::new(), HashSet::new());
            Standing {
                number,
                order: order.clone(),
                targets,
                until: now,
                jobs,
                failed,
                reason: String::new(),
                trial: None,
            }
        });
        standing.until = now + ORDER_TTL;
        if standing.jobs.len() >= MAX_JOBS_PER_ORDER {
            standing.jobs.clear();
        }
        // Whoever could not have it may now, there where the latest one has it from.
        let is_another = standing.jobs.insert(job);
        if is_another {
            standing.failed.clear();
            standing.reason.clear();
            standing.order.locator = order.locator;
            standing.order.length = order.length;
        }
        let mut changed = is_new || is_another || (order.index && !standing.order.index);
        if trial.is_some() || (order.trial.is_none() && standing.trial.as_ref().is_some_and(StandingTrial::is_over)) {
            standing.trial = trial;
        }
        standing.order.index |= order.index;
        match (&mut standing.targets, chosen) {
            (Targets::All, _) => {}
            (targets, None) => (*targets, changed) = (Targets::All, true),
            (Targets::Chosen(known), Some(chosen)) => {
                let before = known.len();
                known.extend(chosen);
                changed |= known.len() != before;
            }
        }
        if changed {
            (standing.number, self.orders.latest) = (number, number);
        }
        Ok(self.stand(&digest))
    }

    /// The same nodes each time, as long as they live, for the same job; those first that the order is for already.
    fn choose(&self, now: Duration, digest: &Digest, job: u64, nodes: u32) -> Vec<PeerId> {
        let known = match self.orders.standing.get(digest).map(|standing| &standing.targets) {
            Some(Targets::Chosen(known)) => Some(known),
            _ => None,
        };
        let lives = |peer: &&PeerId| self.by_peer.contains_key(*peer);
        let mut chosen: Vec<PeerId> = known.into_iter().flatten().filter(lives).copied().collect();
        let wanted = nodes as usize;
        if chosen.len() < wanted {
            let workers =
                self.nodes.iter().filter(|(_, node)| !node.seed && node.seed_port == 0 && !node.is_suspect(now));
            let rank = |peer: &PeerId| Digest::of(&[&job.to_le_bytes()[..], peer.as_bytes()].concat());
            let mut ranked: Vec<_> = workers.map(|(_, node)| (rank(&node.peer), node.peer)).collect();
            ranked.sort_unstable_by_key(|(rank, _)| *rank.as_bytes());
            let more =
                ranked.into_iter().map(|(_, peer)| peer).filter(|peer| known.is_none_or(|known| !known.contains(peer)));
            chosen.extend(more.take(wanted - chosen.len()));
        }
        chosen
    }

    /// How far an order is. Nodes that are gone do not count any more.
    fn stand(&self, digest: &Digest) -> OrderStand {
        let Some(standing) = self.orders.standing.get(digest) else { return OrderStand::default() };
        let holders = self.get(*digest).map(|blob| &blob.holders);
        let has = |index: u32| holders.is_some_and(|holders| holders.get(index) == Some(Holding::Complete));
        let mut stand = OrderStand::default();
        let targets =
            self.nodes.iter().filter(|(_, node)| !node.seed && node.seed_port == 0 && standing.is_for(&node.peer));
        for (index, node) in targets {
            stand.nodes += 1;
            if has(index) {
                stand.complete += 1;
            } else if standing.failed.contains(&node.peer) {
                stand.failed += 1;
            }
        }
        if stand.failed > 0 {
            stand.reason.clone_from(&standing.reason);
        }
        stand
    }

    fn orders_for(&self, now: Duration, caller: &Caller, after: u64) -> (Vec<Order>, u64) {
        if caller.seed || caller.seed_port != 0 {
            return (Vec::new(), self.orders.latest);
        }
        let is_new = |standing: &&Standing| standing.number > after;
        let mut new: Vec<&Standing> = self.orders.standing.values().filter(is_new).collect();
        new.sort_unstable_by_key(|standing| standing.number);
        let reaches =
            if new.len() > MAX_ORDERS_PER_ANSWER { new[MAX_ORDERS_PER_ANSWER - 1].number } else { self.orders.latest };
        let is_over = |standing: &Standing| standing.trial.as_ref().is_some_and(StandingTrial::is_over);
        let is_its = |standing: &&Standing| standing.is_for(&caller.node) && !is_over(standing);
        let listed = new.into_iter().take(MAX_ORDERS_PER_ANSWER).filter(is_its);
        (listed.map(|standing| standing.told(now)).collect(), reaches)
    }
}

impl Registry {
    /// `caller` orders a blob for its group, or repeats that it does.
    pub fn order(
        &mut self,
        now: Duration,
        caller: &Caller,
        request: OrderRequest,
    ) -> Result<(Registration, OrderStand), Refusal> {
        let call = self.enter(now, caller)?;
        Ok((call.registration, call.group.order(now, request)?))
    }

    /// The orders for `caller` after the one of number `after`, at most [`MAX_ORDERS_PER_ANSWER`].
    pub fn orders(&mut self, now: Duration, caller: &Caller, after: u64) -> Result<Listed, Refusal> {
        let call = self.enter(now, caller)?;
        let (orders, reaches) = call.group.orders_for(now, caller, after);
        Ok((call.registration, orders, reaches))
    }

    /// `caller` cannot carry out an order. Of one that is not for it no notice is taken.
    pub fn fail_order(
        &mut self,
        now: Duration,
        caller: &Caller,
        (digest, reason): (Digest, String),
    ) -> Result<Registration, Refusal> {
        let call = self.enter(now, caller)?;
        if !caller.seed
            && caller.seed_port == 0
            && let Some(standing) = call.group.orders.standing.get_mut(&digest)
            && standing.is_for(&caller.node)
        {
            if standing.failed.len() >= MAX_NODES {
                // Of those that are gone.
                standing.failed.retain(|peer| call.group.by_peer.contains_key(peer));
            }
            if standing.failed.is_empty() {
                standing.reason = reason;
            }
            standing.failed.insert(caller.node);
        }
        Ok(call.registration)
    }

    /// The number of the order of that group that was given last.
    pub(crate) fn latest_order(&self, group: &str) -> u64 {
        self.groups.get(group).map_or(0, |group| group.orders.latest())
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lapwing_p2p::origin::Locator;

    use super::*;
    use crate::registry::Place;

    const NOW: Duration = Duration::from_secs(1000);

    fn caller(number: u8) -> Caller {
        Caller {
            node: PeerId::from_bytes([number; 32]),
            instance: 1,
            group: "default".to_owned(),
            place: Place { zone: "".into(), rack: "".into(), address: IpAddr::from([10, 0, 0, number]) },
            port: 7081,
            seed: number > 200,
            seed_port: if number > 200 { 7083 } else { 0 },
            reached_at: IpAddr::from([10, 255, 255, 1]),
        }
    }

    fn order(content: &[u8], nodes: Option<u32>) -> OrderRequest {
        let locator = Locator { namespace: "reg.example".to_owned(), repository: "app".to_owned() };
        let order = Order { digest: Digest::of(content), length: 7, locator, index: false, trial: None };
        OrderRequest { order, job: 5, nodes, over: false }
    }

    fn registry(workers: u8) -> Registry {
        let mut registry = Registry::new(1);
        for number in (1..=workers).chain([201]) {
            registry.heartbeat(NOW, &caller(number)).unwrap();
        }
        registry
    }

    fn stands(registry: &mut Registry, request: &OrderRequest) -> (u32, u32, u32) {
        let stand = registry.order(NOW, &caller(1), request.clone()).unwrap().1;
        (stand.nodes, stand.complete, stand.failed)
    }

    fn hears(registry: &mut Registry, number: u8, after: u64) -> usize {
        registry.orders(NOW, &caller(number), after).unwrap().1.len()
    }

    #[test]
    fn an_order_for_all_reaches_every_worker_and_no_seed() {
        let (mut registry, wanted) = (registry(3), order(b"a", None));
        assert_eq!(stands(&mut registry, &wanted), (3, 0, 0));
        assert_eq!([1, 2, 3, 201].map(|number| hears(&mut registry, number, 0)), [1, 1, 1, 0]);
        let latest = registry.latest_order("default");
        assert_eq!(hears(&mut registry, 1, latest), 0, "it is no news any more");
        stands(&mut registry, &wanted);
        assert_eq!(registry.latest_order("default"), latest, "nor when it is repeated");

        let digest = Digest::of(b"a");
        registry.announce(NOW, &caller(2), &[(digest, Some(Holding::Complete))]).unwrap();
        registry.announce(NOW, &caller(201), &[(digest, Some(Holding::Complete))]).unwrap();
        registry.announce(NOW, &caller(3), &[(digest, Some(Holding::Partial))]).unwrap();
        registry.fail_order(NOW, &caller(1), (digest, "no credentials".to_owned())).unwrap();
        assert_eq!(stands(&mut registry, &wanted), (3, 1, 1));
        let again = OrderRequest { job: 6, ..wanted.clone() };
        assert_eq!(stands(&mut registry, &again), (3, 1, 0), "another job tries again");
        assert_eq!(hears(&mut registry, 1, latest), 1);
        registry.fail_order(NOW, &caller(1), (digest, "no credentials".to_owned())).unwrap();
        registry.leave(&caller(3));
        registry.heartbeat(NOW, &caller(4)).unwrap();
        assert_eq!((stands(&mut registry, &wanted), hears(&mut registry, 4, 0)), ((3, 1, 1), 1), "one goes, one comes");
        let mut other = caller(9);
        other.group = "other".to_owned();
        assert_eq!(registry.orders(NOW, &other, 0).unwrap().1, [], "groups share nothing");
    }

    #[test]
    fn an_order_for_some_is_for_the_same_ones_until_they_go() {
        let mut registry = registry(10);
        let who = |registry: &mut Registry| -> Vec<u8> {
            (1..=10).filter(|&number| hears(registry, number, 0) > 0).collect()
        };
        assert_eq!(stands(&mut registry, &order(b"a", Some(3))), (3, 0, 0));
        let chosen = who(&mut registry);
        assert_eq!(chosen.len(), 3);
        stands(&mut registry, &order(b"b", Some(3)));
        assert_eq!(who(&mut registry), chosen, "another blob of the same job");
        let latest = registry.latest_order("default");
        assert_eq!(stands(&mut registry, &order(b"a", Some(3))), (3, 0, 0));
        assert_eq!(registry.latest_order("default"), latest);
        registry.leave(&caller(chosen[0]));
        assert_eq!(
            stands(&mut registry, &order(b"a", Some(3))),
            (3, 0, 0),
            "another takes the place of one that is gone"
        );
        assert_eq!(stands(&mut registry, &order(b"a", Some(50))).0, 9, "all that there are");
        assert_eq!(stands(&mut registry, &order(b"a", None)).0, 9);
    }

    #[test]
    fn another_job_has_a_blob_fetched_where_it_says() {
        let mut registry = registry(1);
        let first = order(b"a", None);
        stands(&mut registry, &first);
        let locator = Locator { namespace: "reg.example".to_owned(), repository: "other".to_owned() };
        let second = OrderRequest {
            order: Order { locator: locator.clone(), length: 8, ..first.order.clone() },
            job: 6,
            nodes: None,
            over: false,
        };
        let told = |registry: &mut Registry| registry.orders(NOW, &caller(1), 0).unwrap().1;
        stands(&mut registry, &second);
        assert_eq!(told(&mut registry), std::slice::from_ref(&second.order));
        let latest = registry.latest_order("default");
        stands(&mut registry, &first);
        assert_eq!(told(&mut registry), [second.order], "what is repeated changes nothing");
        assert_eq!(registry.latest_order("default"), latest);
    }

    #[test]
    fn failures_of_all_its_targets_count_and_of_nobody_else() {
        let mut registry = Registry::new(1);
        let callers: Vec<Caller> = (0..2000_u16)
            .map(|number| {
                let mut node = [0; 32];
                node[..2].copy_from_slice(&number.to_le_bytes());
                Caller { node: PeerId::from_bytes(node), ..caller(1) }
            })
            .collect();
        for node in callers.iter().chain([&caller(201)]) {
            registry.heartbeat(NOW, node).unwrap();
        }
        let digest = Digest::of(b"a");
        let wanted = order(b"a", None);
        registry.order(NOW, &callers[0], wanted.clone()).unwrap();
        for node in callers.iter().chain([&caller(201)]) {
            registry.fail_order(NOW, node, (digest, "no credentials".to_owned())).unwrap();
        }
        let stand = registry.order(NOW, &callers[0], wanted).unwrap().1;
        assert_eq!((stand.nodes, stand.failed, &*stand.reason), (2000, 2000, "no credentials"));

        let some = order(b"b", Some(1));
        assert_eq!(registry.order(NOW, &callers[0], some.clone()).unwrap().1.nodes, 1);
        let (chosen, others): (Vec<&Caller>, Vec<&Caller>) =
            callers.iter().partition(|node| !registry.orders(NOW, node, 1).unwrap().1.is_empty());
        assert_eq!(chosen.len(), 1);
        for (node, reason) in [(others[0], "not asked"), (chosen[0], "asked")] {
            registry.fail_order(NOW, node, (some.order.digest, reason.to_owned())).unwrap();
        }
        let stand = registry.order(NOW, &callers[0], some).unwrap().1;
        assert_eq!((stand.nodes, stand.failed, &*stand.reason), (1, 1, "asked"));
    }

    #[test]
    fn orders_are_bounded_listed_in_parts_and_forgotten() {
        let mut registry = registry(1);
        let give = |registry: &mut Registry, number: usize| {
            registry.order(NOW, &caller(1), order(&number.to_le_bytes(), None)).map(drop)
        };
        (0..MAX_ORDERS).for_each(|number| give(&mut registry, number).unwrap());
        assert!(matches!(give(&mut registry, MAX_ORDERS), Err(Refusal::Full { .. })));
        assert!(give(&mut registry, 0).is_ok(), "one that stands is repeated");
        let (mut heard, mut after) = (HashSet::new(), 0);
        while after < registry.latest_order("default") {
            let (_, orders, reaches) = registry.orders(NOW, &caller(1), after).unwrap();
            assert!(orders.len() <= MAX_ORDERS_PER_ANSWER && reaches > after);
            heard.extend(orders.iter().map(|order| order.digest));
            after = reaches;
        }
        assert_eq!(heard.len(), MAX_ORDERS);
        let later = NOW + ORDER_TTL;
        registry.heartbeat(later, &caller(1)).unwrap();
        registry.tick(later);
        assert_eq!(registry.orders(later, &caller(1), 0).unwrap().1, []);
    }
}
