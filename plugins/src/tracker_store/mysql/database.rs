//! One database: its connections, its tables, the numbers of its groups.

use std::collections::HashMap;
use std::str::FromStr as _;
use std::sync::{Mutex, PoisonError};

use lapwing_discovery::store::StoreError;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{Executor as _, MySqlPool};

use crate::limits::{TRACKER_STORE_CONNECT, TRACKER_STORE_CONNECTIONS};

/// Of the tables.
const VERSION: u32 = 1;

const TABLES: [&str; 5] = [
    "CREATE TABLE IF NOT EXISTS lapwing_schema (
        one TINYINT NOT NULL PRIMARY KEY, version INT UNSIGNED NOT NULL, life BIGINT UNSIGNED NOT NULL)",
    "CREATE TABLE IF NOT EXISTS lapwing_groups (
        id SMALLINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, name VARBINARY(128) NOT NULL UNIQUE)",
    "CREATE TABLE IF NOT EXISTS lapwing_nodes (
        id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, grp SMALLINT UNSIGNED NOT NULL, node BINARY(32) NOT NULL,
        instance BIGINT UNSIGNED NOT NULL, seen BIGINT UNSIGNED NOT NULL, seed BOOLEAN NOT NULL,
        record VARBINARY(255) NOT NULL,
        UNIQUE KEY by_node (grp, node), KEY by_seen (seen), KEY by_seed (grp, seed))",
    "CREATE TABLE IF NOT EXISTS lapwing_holdings (
        node INT UNSIGNED NOT NULL, digest BINARY(32) NOT NULL, grp SMALLINT UNSIGNED NOT NULL, complete BOOLEAN NOT NULL,
        PRIMARY KEY (node, digest), KEY by_digest (grp, digest, node, complete))",
    "CREATE TABLE IF NOT EXISTS lapwing_gone (node INT UNSIGNED NOT NULL PRIMARY KEY)",
];

/// One database.
pub(super) struct Database {
    pub(super) pool: MySqlPool,
    /// Without secrets.
    name: String,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// That the tables are there, and whose they are.
    life: Option<u64>,
    groups: HashMap<String, u16>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected mysql://user@host:port/database: {0}")]
pub struct InvalidMysql(String);

impl Database {
    pub(super) fn new(url: &str, password: Option<&str>) -> Result<Self, InvalidMysql> {
        let options = MySqlConnectOptions::from_str(url).map_err(|error| InvalidMysql(error.to_string()))?;
        let Some(database) = options.get_database() else {
            return Err(InvalidMysql("it names no database".to_owned()));
        };
        let name = format!("mysql {}:{}/{database}", options.get_host(), options.get_port());
        let options = match password {
            Some(password) => options.password(password),
            None => options,
        };
        let pool = MySqlPoolOptions::new()
            .max_connections(TRACKER_STORE_CONNECTIONS)
            .acquire_timeout(TRACKER_STORE_CONNECT)
            // Writers of the same nodes wait for each other by rows, and lock nothing between them.
            .after_connect(|connection, _| {
                Box::pin(async move {
                    connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await.map(drop)
                })
            })
            .connect_lazy_with(options);
        Ok(Self { pool, name, known: Mutex::default() })
    }

    pub(super) fn failed(&self, error: &sqlx::Error) -> StoreError {
        // The tables are looked at again before the next call.
        self.known.lock().unwrap_or_else(PoisonError::into_inner).groups.clear();
        StoreError::Failed { store: self.name.clone(), reason: error.to_string() }
    }

    /// The number of a group, and that the tables are as they were.
    pub(super) async fn group(&self, name: &str) -> Result<u16, StoreError> {
        if let Some(id) = self.known.lock().unwrap_or_else(PoisonError::into_inner).groups.get(name) {
            return Ok(*id);
        }
        self.prepare().await?;
        let id = self.number(name).await.map_err(|error| self.failed(&error))?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).groups.insert(name.to_owned(), id);
        Ok(id)
    }

    async fn number(&self, name: &str) -> Result<u16, sqlx::Error> {
        let select = "SELECT id FROM lapwing_groups WHERE name = ?";
        if let Some(id) = sqlx::query_scalar(select).bind(name.as_bytes()).fetch_optional(&self.pool).await? {
            return Ok(id);
        }
        sqlx::query("INSERT IGNORE INTO lapwing_groups (name) VALUES (?)")
            .bind(name.as_bytes())
            .execute(&self.pool)
            .await?;
        sqlx::query_scalar(select).bind(name.as_bytes()).fetch_one(&self.pool).await
    }

    /// Makes sure of the tables.
    pub(super) async fn prepare(&self) -> Result<(), StoreError> {
        let (version, life) = self.tables().await.map_err(|error| self.failed(&error))?;
        if version != VERSION {
            let reason = format!("its tables have version {version}, and this build knows version {VERSION} only");
            return Err(StoreError::Failed { store: self.name.clone(), reason });
        }
        let before = self.known.lock().unwrap_or_else(PoisonError::into_inner).life.replace(life);
        match before {
            Some(before) if before != life => Err(StoreError::Lost { store: self.name.clone() }),
            _ => Ok(()),
        }
    }

    async fn tables(&self) -> Result<(u32, u64), sqlx::Error> {
        let select = "SELECT version, life FROM lapwing_schema WHERE one = 1";
        if let Ok(Some(found)) = sqlx::query_as(select).fetch_optional(&self.pool).await {
            return Ok(found);
        }
        for table in TABLES {
            self.pool.execute(table).await?;
        }
        let insert = "INSERT IGNORE INTO lapwing_schema (one, version, life) VALUES (1, ?, ?)";
        sqlx::query(insert).bind(VERSION).bind(fastrand::u64(..)).execute(&self.pool).await?;
        sqlx::query_as(select).fetch_one(&self.pool).await
    }
}
