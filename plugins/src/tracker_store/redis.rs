//! Redis and Valkey, 6.2 or newer.
//!
//! ```text
//! lapwing:1:life                 random, written by the first tracker: another one means that everything else is gone
//! lapwing:1:seen                 sorted set: group/node by when it was seen, in ms
//! lapwing:1:n:<group>/<node>     the node's record; expires by itself when all trackers are gone
//! lapwing:1:h:<group>/<node>     set: the digests it holds
//! lapwing:1:b:<group>/<digest>   hash: node -> 1 (partial) or 2 (complete), instance (8 bytes)
//! lapwing:1:s:<group>            set: the nodes that are seeds
//! ```
//!
//! Nodes and digests are their 32 bytes. A holding counts while its node has a record with the same instance. A node's
//! record and a holding are written by different commands; a tracker that dies in between leaves a holding without effect,
//! or one that goes when the node does. Nothing is ever looked for by scanning.

mod connection;
mod forget;
mod script;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::future::BoxFuture;
use lapwing_discovery::store::{
    HolderStore, NodeRecord, StoreError, StoredHolder, StoredHolders, Update, milliseconds,
};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;
use redis::Pipeline;

use self::connection::Session;
pub use self::connection::{InvalidRedis, RedisStore};
use self::script::{Noted, note_record};
use crate::limits::{MAX_EXPIRED_TRACKER_NODES, TRACKER_PIPELINE, TRACKER_RECORD_AGE};

const SEEN: &str = "lapwing:1:seen";
const LIFE: &str = "lapwing:1:life";

fn key(kind: &str, member: &[u8]) -> Vec<u8> {
    [b"lapwing:1:", kind.as_bytes(), b":", member].concat()
}

/// A node or digest within its group.
fn member(group: &str, bytes: &[u8; 32]) -> Vec<u8> {
    [group.as_bytes(), b"/", bytes].concat()
}

fn node_of(member: &[u8]) -> Option<(&str, PeerId)> {
    let (rest, node) = member.split_last_chunk::<32>()?;
    Some((std::str::from_utf8(rest.strip_suffix(b"/")?).ok()?, PeerId::from_bytes(*node)))
}

fn value(holding: Holding, instance: u64) -> [u8; 9] {
    let mut value = [0; 9];
    value[0] = if holding == Holding::Complete { 2 } else { 1 };
    value[1..].copy_from_slice(&instance.to_be_bytes());
    value
}

fn read_value(value: &[u8]) -> Option<(Holding, u64)> {
    let (holding, instance) = value.split_first()?;
    let holding = match holding {
        1 => Holding::Partial,
        2 => Holding::Complete,
        _ => return None,
    };
    Some((holding, u64::from_be_bytes(instance.try_into().ok()?)))
}

/// Sends commands in pipelines that are not too long.
struct Batch<'a, 's> {
    session: &'a mut Session<'s>,
    pipeline: Pipeline,
}

impl<'a, 's> Batch<'a, 's> {
    fn new(session: &'a mut Session<'s>) -> Self {
        Self { session, pipeline: Pipeline::new() }
    }

    async fn sent_if_long(&mut self) -> Result<(), StoreError> {
        if self.pipeline.len() >= TRACKER_PIPELINE { self.send().await } else { Ok(()) }
    }

    async fn send(&mut self) -> Result<(), StoreError> {
        if self.pipeline.is_empty() {
            return Ok(());
        }
        let pipeline = std::mem::take(&mut self.pipeline);
        self.session.run(&pipeline).await
    }
}

impl RedisStore {
    async fn write(&self, updates: &[Update]) -> Result<Vec<usize>, StoreError> {
        let mut session = self.session().await?;
        let mut noted: Vec<Noted> = Vec::with_capacity(updates.len());
        for some in updates.chunks(TRACKER_PIPELINE) {
            let mut pipeline = Pipeline::new();
            for update in some {
                note_record(&mut pipeline, session.scripts(), &update.group, &update.node, TRACKER_RECORD_AGE);
            }
            noted.extend(session.run::<Vec<i64>>(&pipeline).await?.into_iter().map(Noted::from));
        }
        for (update, noted) in updates.iter().zip(&noted) {
            if *noted == Noted::Restarted {
                self.sweep(&mut session, &update.group, update.node.peer).await?;
            }
        }
        let mut unlisted = Vec::new();
        for (update, _) in updates.iter().zip(&noted).filter(|(update, noted)| update.whole && noted.is_latest()) {
            let held = session.members(&key("h", &member(&update.group, update.node.peer.as_bytes()))).await?;
            let listed: HashSet<Digest> = update.holdings.iter().map(|(digest, _)| *digest).collect();
            unlisted.extend(held.into_iter().filter(|held| !listed.contains(held)).map(|held| (update, held)));
        }
        let mut batch = Batch::new(&mut session);
        for (update, digest) in unlisted {
            hold(&mut batch, update, digest, None).await?;
        }
        for (update, _) in updates.iter().zip(&noted).filter(|(update, noted)| noted.takes(update.whole)) {
            for (digest, holding) in &update.holdings {
                hold(&mut batch, update, *digest, *holding).await?;
            }
        }
        batch.send().await?;
        Ok((0..noted.len()).filter(|place| noted[*place] == Noted::New).collect())
    }

    async fn find(
        &self,
        group: &str,
        digests: &[Digest],
        limit: usize,
        alive_since: Duration,
    ) -> Result<Vec<StoredHolders>, StoreError> {
        let mut session = self.session().await?;
        let mut answers = Vec::with_capacity(digests.len());
        for some in digests.chunks(TRACKER_PIPELINE) {
            let mut pipeline = Pipeline::new();
            for digest in some {
                let blob = key("b", &member(group, digest.as_bytes()));
                pipeline.cmd("HRANDFIELD").arg(blob).arg(limit).arg("WITHVALUES");
            }
            let held: Vec<Vec<Vec<u8>>> = session.run(&pipeline).await?;
            let held: Vec<Vec<(PeerId, Holding, u64)>> = held.iter().map(|flat| read_holders(flat)).collect();
            let named: HashSet<PeerId> = held.iter().flatten().map(|(peer, ..)| *peer).collect();
            let records = session.records(group, &named.into_iter().collect::<Vec<_>>()).await?;
            let nodes: HashMap<PeerId, NodeRecord> = records.into_iter().map(|node| (node.peer, node)).collect();
            for held in held {
                let truncated = held.len() >= limit;
                let alive = held.into_iter().filter_map(|(peer, holding, instance)| {
                    let node = nodes.get(&peer).filter(|node| node.instance == instance && node.seen >= alive_since)?;
                    Some(StoredHolder { node: node.clone(), holding })
                });
                answers.push(StoredHolders { holders: alive.collect(), truncated });
            }
        }
        Ok(answers)
    }

    async fn seeds(&self, group: &str, limit: usize, alive_since: Duration) -> Result<Vec<NodeRecord>, StoreError> {
        let mut session = self.session().await?;
        let mut pipeline = Pipeline::new();
        // More than are asked for, since some may be gone.
        pipeline.cmd("SRANDMEMBER").arg(key("s", group.as_bytes())).arg(4 * limit);
        let (peers,): (Vec<Vec<u8>>,) = session.run(&pipeline).await?;
        let peers = peers.iter().filter_map(|peer| Some(PeerId::from_bytes(peer.as_slice().try_into().ok()?)));
        let mut seeds = session.records(group, &peers.collect::<Vec<_>>()).await?;
        seeds.retain(|seed| seed.seed_port != 0 && seed.seen >= alive_since);
        seeds.truncate(limit);
        Ok(seeds)
    }

    async fn expire(&self, alive_since: Duration) -> Result<usize, StoreError> {
        let mut session = self.session().await?;
        let mut pipeline = Pipeline::new();
        let before = format!("({}", milliseconds(alive_since));
        let limit = MAX_EXPIRED_TRACKER_NODES;
        pipeline.cmd("ZRANGEBYSCORE").arg(SEEN).arg("-inf").arg(before).arg("LIMIT").arg(0).arg(limit);
        let (silent,): (Vec<Vec<u8>>,) = session.run(&pipeline).await?;
        let nodes: Vec<_> = silent.iter().filter_map(|member| node_of(member)).collect();
        for (group, peer) in &nodes {
            self.drop_silent(&mut session, group, *peer, alive_since).await?;
        }
        Ok(nodes.len())
    }
}

async fn hold(
    batch: &mut Batch<'_, '_>,
    update: &Update,
    digest: Digest,
    holding: Option<Holding>,
) -> Result<(), StoreError> {
    let peer = update.node.peer.as_bytes();
    let blob = key("b", &member(&update.group, digest.as_bytes()));
    let held = key("h", &member(&update.group, peer));
    let digest = digest.as_bytes();
    match holding {
        // What is named in `held` can be found and forgotten later: first there, last from there.
        Some(holding) => {
            batch.pipeline.cmd("SADD").arg(held).arg(digest);
            batch.pipeline.cmd("HSET").arg(blob).arg(peer).arg(value(holding, update.node.instance).as_slice());
        }
        None => {
            batch.pipeline.cmd("HDEL").arg(blob).arg(peer);
            batch.pipeline.cmd("SREM").arg(held).arg(digest);
        }
    }
    batch.sent_if_long().await
}

fn read_holders(flat: &[Vec<u8>]) -> Vec<(PeerId, Holding, u64)> {
    let (pairs, _) = flat.as_chunks::<2>();
    let read = |[peer, value]: &[Vec<u8>; 2]| {
        let (holding, instance) = read_value(value)?;
        Some((PeerId::from_bytes(peer.as_slice().try_into().ok()?), holding, instance))
    };
    pairs.iter().filter_map(read).collect()
}

impl HolderStore for RedisStore {
    fn write<'a>(&'a self, updates: &'a [Update]) -> BoxFuture<'a, Result<Vec<usize>, StoreError>> {
        Box::pin(self.write(updates))
    }

    fn forget<'a>(&'a self, group: &'a str, nodes: &'a [(PeerId, u64)]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.forget(group, nodes))
    }

    fn find<'a>(
        &'a self,
        group: &'a str,
        digests: &'a [Digest],
        limit: usize,
        alive_since: Duration,
    ) -> BoxFuture<'a, Result<Vec<StoredHolders>, StoreError>> {
        Box::pin(self.find(group, digests, limit, alive_since))
    }

    fn seeds<'a>(
        &'a self,
        group: &'a str,
        limit: usize,
        alive_since: Duration,
    ) -> BoxFuture<'a, Result<Vec<NodeRecord>, StoreError>> {
        Box::pin(self.seeds(group, limit, alive_since))
    }

    fn expire(&self, alive_since: Duration) -> BoxFuture<'_, Result<usize, StoreError>> {
        Box::pin(self.expire(alive_since))
    }
}
