//! Forgetting: a node's row goes at once, its holdings in bounded batches.

use std::time::Duration;

use lapwing_discovery::store::{StoreError, milliseconds};
use lapwing_p2p::identity::PeerId;
use sqlx::mysql::MySqlConnection;
use sqlx::{Connection as _, MySql, QueryBuilder};

use super::database::Database;
use super::rows::{among, parts};
use crate::limits::{MAX_EXPIRED_TRACKER_NODES, TRACKER_DELETE};

/// Takes nodes out of the table and leaves their holdings to be deleted.
pub(super) async fn retire(connection: &mut MySqlConnection, nodes: &[u32]) -> Result<(), sqlx::Error> {
    for part in parts(nodes) {
        let mut query: QueryBuilder<MySql> = QueryBuilder::new("INSERT IGNORE INTO lapwing_gone (node) ");
        query.push_values(part, |mut row, node| {
            row.push_bind(*node);
        });
        query.build().execute(&mut *connection).await?;
        among("DELETE FROM lapwing_nodes WHERE id IN", part).build().execute(&mut *connection).await?;
    }
    Ok(())
}

impl Database {
    pub(super) async fn forget(&self, group: &str, nodes: &[(PeerId, u64)]) -> Result<(), StoreError> {
        let group = self.group(group).await?;
        self.forget_in(group, nodes).await.map_err(|error| self.failed(&error))
    }

    async fn forget_in(&self, group: u16, nodes: &[(PeerId, u64)]) -> Result<(), sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        for (peer, instance) in nodes {
            let mut transaction = connection.begin().await?;
            let select = "SELECT id FROM lapwing_nodes WHERE grp = ? AND node = ? AND instance = ? FOR UPDATE";
            let query = sqlx::query_scalar(select).bind(group).bind(&peer.as_bytes()[..]).bind(instance);
            let known: Vec<u32> = query.fetch_all(&mut *transaction).await?;
            retire(&mut transaction, &known).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    pub(super) async fn expire(&self, alive_since: Duration) -> Result<usize, StoreError> {
        self.prepare().await?;
        self.expire_some(alive_since).await.map_err(|error| self.failed(&error))
    }

    async fn expire_some(&self, alive_since: Duration) -> Result<usize, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        // Rows that another tracker works on are its business.
        let select = "SELECT id FROM lapwing_nodes WHERE seen < ? ORDER BY seen LIMIT ? FOR UPDATE SKIP LOCKED";
        let query = sqlx::query_scalar(select).bind(milliseconds(alive_since)).bind(MAX_EXPIRED_TRACKER_NODES as u64);
        let silent: Vec<u32> = query.fetch_all(&mut *transaction).await?;
        retire(&mut transaction, &silent).await?;
        transaction.commit().await?;
        delete_holdings(&mut connection).await?;
        Ok(silent.len())
    }
}

/// Deletes holdings of some nodes that have gone.
async fn delete_holdings(connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    let select = "SELECT node FROM lapwing_gone LIMIT ?";
    let gone: Vec<u32> =
        sqlx::query_scalar(select).bind(MAX_EXPIRED_TRACKER_NODES as u64).fetch_all(&mut *connection).await?;
    let mut left = TRACKER_DELETE;
    for node in gone {
        let delete = "DELETE FROM lapwing_holdings WHERE node = ? LIMIT ?";
        let deleted = sqlx::query(delete).bind(node).bind(left).execute(&mut *connection).await?.rows_affected();
        if deleted >= left {
            return Ok(());
        }
        left -= deleted;
        sqlx::query("DELETE FROM lapwing_gone WHERE node = ?").bind(node).execute(&mut *connection).await?;
    }
    Ok(())
}
