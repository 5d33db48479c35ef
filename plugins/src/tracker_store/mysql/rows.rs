//! Reading and writing nodes and holdings.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use lapwing_discovery::store::{NodeRecord, StoreError, StoredHolder, StoredHolders, Update, milliseconds};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::Holding;
use lapwing_p2p::identity::PeerId;
use sqlx::mysql::MySqlConnection;
use sqlx::{Connection as _, MySql, QueryBuilder};

use super::clean::retire;
use super::database::Database;
use crate::limits::{TRACKER_NODES_AT_ONCE, TRACKER_WRITE_TRIES};

/// Rows in one statement: few different numbers, so that prepared statements are used again.
const SIZES: [usize; 4] = [512, 64, 8, 1];

/// The searches that an index answers by itself.
pub(super) const HOLDERS: &str =
    "SELECT node, complete FROM lapwing_holdings FORCE INDEX (by_digest) WHERE grp = ? AND digest = ? LIMIT ?";

/// A node's row.
type Row = (u32, Vec<u8>, u64, u64);

/// `all` in parts of those sizes.
pub(super) fn parts<T>(mut all: &[T]) -> Vec<&[T]> {
    let mut parts = Vec::new();
    while !all.is_empty() {
        let size = SIZES.into_iter().find(|size| *size <= all.len()).unwrap_or(1);
        let (part, rest) = all.split_at(size);
        parts.push(part);
        all = rest;
    }
    parts
}

/// `text (?, ?, ...)`.
pub(super) fn among<'a, T>(text: &str, values: &'a [T]) -> QueryBuilder<MySql>
where
    T: sqlx::Encode<'a, MySql> + sqlx::Type<MySql> + Clone + Send + 'a,
{
    let mut query = QueryBuilder::new(text);
    query.push(" (");
    let mut list = query.separated(", ");
    for value in values {
        list.push_bind(value.clone());
    }
    query.push(")");
    query
}

impl Database {
    /// Returns the places of those whose nodes were not known.
    pub(super) async fn write(
        &self,
        group: &str,
        mut updates: Vec<(usize, &Update)>,
    ) -> Result<Vec<usize>, StoreError> {
        let mut unknown = Vec::new();
        let group = self.group(group).await?;
        // Everybody locks rows in the same order.
        updates.sort_by_key(|(_, update)| (*update.node.peer.as_bytes(), update.node.seen));
        for some in updates.chunks(TRACKER_NODES_AT_ONCE) {
            let mut tries = 0;
            loop {
                match self.write_some(group, some).await {
                    Ok(new) => break unknown.extend(new),
                    Err(error) if tries + 1 < TRACKER_WRITE_TRIES && is_conflict(&error) => tries += 1,
                    Err(error) => return Err(self.failed(&error)),
                }
            }
        }
        Ok(unknown)
    }

    async fn write_some(&self, group: u16, updates: &[(usize, &Update)]) -> Result<Vec<usize>, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        let mut unknown = Vec::new();
        for (place, update) in updates {
            let Some((id, noted)) = note(&mut transaction, group, &update.node).await? else { continue };
            if update.whole && noted == Noted::Older {
                continue;
            }
            if noted == Noted::New {
                unknown.push(*place);
            }
            let unlisted = if update.whole { unlisted(&mut transaction, id, update).await? } else { Vec::new() };
            let withdrawn = update.holdings.iter().filter(|(_, holding)| holding.is_none());
            let gone: Vec<Digest> = withdrawn.map(|(digest, _)| *digest).chain(unlisted).collect();
            withdraw(&mut transaction, id, &gone).await?;
            let held: Vec<(Digest, Holding)> =
                update.holdings.iter().filter_map(|(digest, holding)| Some((*digest, (*holding)?))).collect();
            hold(&mut transaction, group, id, &held).await?;
        }
        transaction.commit().await?;
        Ok(unknown)
    }

    pub(super) async fn find(
        &self,
        group: &str,
        digests: &[Digest],
        limit: usize,
        alive_since: Duration,
    ) -> Result<Vec<StoredHolders>, StoreError> {
        let group = self.group(group).await?;
        self.find_in(group, digests, limit, alive_since).await.map_err(|error| self.failed(&error))
    }

    async fn find_in(
        &self,
        group: u16,
        digests: &[Digest],
        limit: usize,
        alive_since: Duration,
    ) -> Result<Vec<StoredHolders>, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let mut held: Vec<Vec<(u32, bool)>> = Vec::with_capacity(digests.len());
        for digest in digests {
            let query = sqlx::query_as(HOLDERS).bind(group).bind(&digest.as_bytes()[..]).bind(limit as u64);
            held.push(query.fetch_all(&mut *connection).await?);
        }
        let named: HashSet<u32> = held.iter().flatten().map(|(node, _)| *node).collect();
        let named: Vec<u32> = named.into_iter().collect();
        let mut nodes: HashMap<u32, NodeRecord> = HashMap::with_capacity(named.len());
        for part in parts(&named) {
            let mut query = among("SELECT id, node, record FROM lapwing_nodes WHERE id IN", part);
            let rows: Vec<(u32, Vec<u8>, Vec<u8>)> = query.build_query_as().fetch_all(&mut *connection).await?;
            nodes.extend(rows.into_iter().filter_map(|(id, node, record)| Some((id, read_record(&node, &record)?))));
        }
        let answer = |held: Vec<(u32, bool)>| {
            let truncated = held.len() >= limit;
            let alive = held.into_iter().filter_map(|(id, complete)| {
                let node = nodes.get(&id).filter(|node| node.seen >= alive_since)?;
                let holding = if complete { Holding::Complete } else { Holding::Partial };
                Some(StoredHolder { node: node.clone(), holding })
            });
            StoredHolders { holders: alive.collect(), truncated }
        };
        Ok(held.into_iter().map(answer).collect())
    }

    pub(super) async fn seeds(
        &self,
        group: &str,
        limit: usize,
        alive_since: Duration,
    ) -> Result<Vec<NodeRecord>, StoreError> {
        let group = self.group(group).await?;
        let text = "SELECT node, record FROM lapwing_nodes WHERE grp = ? AND seed = TRUE AND seen >= ? LIMIT ?";
        let query = sqlx::query_as(text).bind(group).bind(milliseconds(alive_since)).bind(limit as u64);
        let rows: Vec<(Vec<u8>, Vec<u8>)> = query.fetch_all(&self.pool).await.map_err(|error| self.failed(&error))?;
        Ok(rows.iter().filter_map(|(node, record)| read_record(node, record)).collect())
    }
}

fn read_record(node: &[u8], record: &[u8]) -> Option<NodeRecord> {
    NodeRecord::from_bytes(PeerId::from_bytes(node.try_into().ok()?), record)
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noted {
    /// There is a later one.
    Older,
    /// It is the latest.
    Latest,
    /// The same, and there was none before.
    New,
}

/// Writes a node's record unless there is a later one. Returns its number, whose row is locked now, and what became of the
/// record; nothing if there is a later one of another instance.
async fn note(
    connection: &mut MySqlConnection,
    group: u16,
    node: &NodeRecord,
) -> Result<Option<(u32, Noted)>, sqlx::Error> {
    let peer = &node.peer.as_bytes()[..];
    let seen = milliseconds(node.seen);
    let mut noted = Noted::New;
    let select = "SELECT id, node, instance, seen FROM lapwing_nodes WHERE grp = ? AND node = ? FOR UPDATE";
    let known: Option<Row> = sqlx::query_as(select).bind(group).bind(peer).fetch_optional(&mut *connection).await?;
    if let Some((id, _, instance, before)) = known {
        let same = instance == node.instance;
        if before > seen {
            return Ok(same.then_some((id, Noted::Older)));
        }
        if same {
            let update = "UPDATE lapwing_nodes SET seen = ?, seed = ?, record = ? WHERE id = ?";
            let query = sqlx::query(update).bind(seen).bind(node.seed_port != 0).bind(node.to_bytes()).bind(id);
            query.execute(&mut *connection).await?;
            return Ok(Some((id, Noted::Latest)));
        }
        retire(connection, &[id]).await?;
        noted = Noted::Latest;
    }
    let insert = "INSERT INTO lapwing_nodes (grp, node, instance, seen, seed, record) VALUES (?, ?, ?, ?, ?, ?)";
    let query = sqlx::query(insert).bind(group).bind(peer).bind(node.instance).bind(seen);
    let inserted = query.bind(node.seed_port != 0).bind(node.to_bytes()).execute(connection).await?;
    // Numbers are given out from 1 on and fit: the column is no wider.
    Ok(u32::try_from(inserted.last_insert_id()).ok().map(|id| (id, noted)))
}

/// What a node holds that a whole listing does not name.
async fn unlisted(connection: &mut MySqlConnection, id: u32, update: &Update) -> Result<Vec<Digest>, sqlx::Error> {
    let select = "SELECT digest FROM lapwing_holdings WHERE node = ?";
    let held: Vec<(Vec<u8>,)> = sqlx::query_as(select).bind(id).fetch_all(connection).await?;
    let listed: HashSet<Digest> = update.holdings.iter().map(|(digest, _)| *digest).collect();
    let held = held.iter().filter_map(|(digest,)| Some(Digest::from_bytes(digest.as_slice().try_into().ok()?)));
    Ok(held.filter(|digest| !listed.contains(digest)).collect())
}

async fn withdraw(connection: &mut MySqlConnection, id: u32, digests: &[Digest]) -> Result<(), sqlx::Error> {
    let digests: Vec<&[u8]> = digests.iter().map(|digest| &digest.as_bytes()[..]).collect();
    for part in parts(&digests) {
        let mut query = among("DELETE FROM lapwing_holdings WHERE digest IN", part);
        query.push(" AND node = ").push_bind(id).build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn hold(
    connection: &mut MySqlConnection,
    group: u16,
    id: u32,
    held: &[(Digest, Holding)],
) -> Result<(), sqlx::Error> {
    for part in parts(held) {
        let mut query: QueryBuilder<MySql> =
            QueryBuilder::new("INSERT INTO lapwing_holdings (node, digest, grp, complete) ");
        query.push_values(part, |mut row, (digest, holding)| {
            row.push_bind(id).push_bind(digest.as_bytes().to_vec()).push_bind(group);
            row.push_bind(*holding == Holding::Complete);
        });
        query.push(" ON DUPLICATE KEY UPDATE complete = VALUES(complete)");
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Whether another tracker wrote the same rows at the same time, and trying again helps: a deadlock (1213), a wait for a lock
/// that took too long (1205), or a node that both wrote for the first time (1062).
fn is_conflict(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>());
    error.is_some_and(|error| matches!(error.number(), 1213 | 1205 | 1062))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_few_sizes_and_leave_nothing_out() {
        for length in [0, 1, 7, 8, 600, 1025] {
            let all: Vec<usize> = (0..length).collect();
            let parts = parts(&all);
            assert_eq!(parts.concat(), all);
            assert!(parts.iter().all(|part| SIZES.contains(&part.len())) && parts.len() < 24);
        }
    }
}
