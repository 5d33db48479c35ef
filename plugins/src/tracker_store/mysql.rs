//! MySQL 8 and MariaDB 10.6, or newer. Groups are divided among one or several databases.
//!
//! ```text
//! lapwing_schema     version of these tables, and a random number: another one means that everything else is gone
//! lapwing_groups     number of a group by its name
//! lapwing_nodes      a number for each instance of each node, its record, and when it was seen
//! lapwing_holdings   (node's number, digest) -> complete or not; the index by_digest answers searches by itself
//! lapwing_gone       numbers whose node has gone and whose holdings are to be deleted
//! ```
//!
//! A holding counts while its node's number is in `lapwing_nodes`, and is only written in a transaction that has that row
//! locked. So a node goes with one row, and its holdings in pieces afterwards, by whichever tracker comes first.

mod clean;
mod database;
mod rows;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::future::BoxFuture;
use lapwing_discovery::store::{HolderStore, NodeRecord, StoreError, StoredHolders, Update};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::identity::PeerId;

use self::database::Database;
pub use self::database::InvalidMysql;

/// Holders in MySQL or MariaDB.
#[derive(Debug)]
pub struct MysqlStore {
    databases: Vec<Database>,
    groups: BTreeMap<String, usize>,
}

impl MysqlStore {
    /// The statement of a search for holders, for who wants to see it explained: group, digest, limit.
    pub const SEARCH: &str = rows::HOLDERS;

    /// A store that connects when it is first used; to be called within a runtime. `groups` says in which of `urls` some
    /// groups are. `password` takes the place of those in the URLs.
    pub fn new(
        urls: &[String],
        groups: &BTreeMap<String, usize>,
        password: Option<&str>,
    ) -> Result<Self, InvalidMysql> {
        let databases: Result<Vec<_>, _> = urls.iter().map(|url| Database::new(url, password)).collect();
        Ok(Self { databases: databases?, groups: groups.clone() })
    }

    /// Where a group is: where it was put, or wherever its name's digest puts it.
    fn place(&self, group: &str) -> usize {
        self.groups.get(group).copied().unwrap_or_else(|| {
            let digest = Digest::of(group.as_bytes());
            let first = digest.as_bytes().iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
            (first % self.databases.len() as u64) as usize
        })
    }

    fn database(&self, group: &str) -> &Database {
        &self.databases[self.place(group)]
    }

    async fn write(&self, updates: &[Update]) -> Result<Vec<usize>, StoreError> {
        let mut unknown = Vec::new();
        let mut by_group: HashMap<&str, Vec<(usize, &Update)>> = HashMap::new();
        for (place, update) in updates.iter().enumerate() {
            by_group.entry(&update.group).or_default().push((place, update));
        }
        for (group, updates) in by_group {
            unknown.extend(self.database(group).write(group, updates).await?);
        }
        Ok(unknown)
    }

    async fn expire(&self, alive_since: Duration) -> Result<usize, StoreError> {
        let mut expired = 0;
        for database in &self.databases {
            expired += database.expire(alive_since).await?;
        }
        Ok(expired)
    }
}

impl HolderStore for MysqlStore {
    fn write<'a>(&'a self, updates: &'a [Update]) -> BoxFuture<'a, Result<Vec<usize>, StoreError>> {
        Box::pin(self.write(updates))
    }

    fn forget<'a>(&'a self, group: &'a str, nodes: &'a [(PeerId, u64)]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.database(group).forget(group, nodes))
    }

    fn find<'a>(
        &'a self,
        group: &'a str,
        digests: &'a [Digest],
        limit: usize,
        alive_since: Duration,
    ) -> BoxFuture<'a, Result<Vec<StoredHolders>, StoreError>> {
        Box::pin(self.database(group).find(group, digests, limit, alive_since))
    }

    fn seeds<'a>(
        &'a self,
        group: &'a str,
        limit: usize,
        alive_since: Duration,
    ) -> BoxFuture<'a, Result<Vec<NodeRecord>, StoreError>> {
        Box::pin(self.database(group).seeds(group, limit, alive_since))
    }

    fn expire(&self, alive_since: Duration) -> BoxFuture<'_, Result<usize, StoreError>> {
        Box::pin(self.expire(alive_since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn groups_are_where_they_were_put_or_spread() {
        let urls = ["a", "b", "c"].map(|name| format!("mysql://u@127.0.0.1:1/{name}"));
        let groups = BTreeMap::from([("blue".to_owned(), 2)]);
        let store = MysqlStore::new(&urls, &groups, None).unwrap();
        assert_eq!(store.place("blue"), 2);
        let places: std::collections::BTreeSet<_> = (0..50).map(|n| store.place(&format!("g{n}"))).collect();
        assert_eq!(places.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    }
}
