//! The connection: one for all calls, made again after a failure.

use lapwing_discovery::store::{NodeRecord, StoreError};
use lapwing_p2p::digest::Digest;
use lapwing_p2p::identity::PeerId;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, FromRedisValue, IntoConnectionInfo as _, Pipeline, RedisError, RedisResult, Value,
};
use tokio::sync::Mutex;

use super::script::{DROP, FINISH, NOTE, SWEEP, Scripts};
use super::{LIFE, key, member};
use crate::limits::{TRACKER_PIPELINE, TRACKER_STORE_CONNECT, TRACKER_STORE_REPLY};

/// Holders in Redis or Valkey.
pub struct RedisStore {
    client: Client,
    /// Without secrets.
    name: String,
    link: Mutex<Link>,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Link {
    open: Option<(MultiplexedConnection, Scripts)>,
    /// What was read last.
    life: Option<Vec<u8>>,
}

/// The URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; expected redis://host:port/database, or rediss:// for TLS")]
pub struct InvalidRedis(String);

impl RedisStore {
    /// A store that connects when it is first used. `password` takes the place of one in the URL.
    pub fn new(url: &str, password: Option<&str>) -> Result<Self, InvalidRedis> {
        let invalid = |error: RedisError| InvalidRedis(plain(&error));
        let mut connection = url.into_connection_info().map_err(invalid)?;
        if let Some(password) = password {
            let settings = connection.redis_settings().clone().set_password(password);
            connection = connection.set_redis_settings(settings);
        }
        let name = format!("redis {}/{}", connection.addr(), connection.redis_settings().db());
        let client = Client::open(connection).map_err(invalid)?;
        Ok(Self { client, name, link: Mutex::default() })
    }

    fn failed(&self, error: &RedisError) -> StoreError {
        StoreError::Failed { store: self.name.clone(), reason: plain(error) }
    }

    /// A session on the connection, which is made if need be.
    pub(super) async fn session(&self) -> Result<Session<'_>, StoreError> {
        let mut link = self.link.lock().await;
        if link.open.is_none() {
            let (connection, scripts, life) = self.connect().await.map_err(|error| self.failed(&error))?;
            let before = link.life.replace(life.clone());
            link.open = Some((connection, scripts));
            if before.is_some_and(|before| before != life) {
                return Err(StoreError::Lost { store: self.name.clone() });
            }
        }
        let (connection, scripts) = link.open.clone().expect("it was there or has just been made");
        Ok(Session { store: self, connection, scripts, life: link.life.clone().unwrap_or_default() })
    }

    async fn connect(&self) -> RedisResult<(MultiplexedConnection, Scripts, Vec<u8>)> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(TRACKER_STORE_CONNECT))
            .set_response_timeout(Some(TRACKER_STORE_REPLY));
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut pipeline = redis::pipe();
        for script in [NOTE, DROP, SWEEP, FINISH] {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script);
        }
        let life = fastrand::u64(..).to_be_bytes();
        pipeline.cmd("SET").arg(LIFE).arg(life.as_slice()).arg("NX").ignore();
        pipeline.cmd("GET").arg(LIFE);
        let (note, drop, sweep, finish, life) = pipeline.query_async(&mut connection).await?;
        Ok((connection, Scripts { note, drop, sweep, finish }, life))
    }

    async fn disconnect(&self) {
        self.link.lock().await.open = None;
    }
}

/// What happened, without what was sent: that may hold secrets.
fn plain(error: &RedisError) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.category()),
        None => error.category().to_owned(),
    }
}

/// A connection that works, or did a moment ago.
pub(super) struct Session<'a> {
    store: &'a RedisStore,
    connection: MultiplexedConnection,
    scripts: Scripts,
    life: Vec<u8>,
}

impl Session<'_> {
    pub(super) const fn scripts(&self) -> &Scripts {
        &self.scripts
    }

    /// Runs `pipeline` and makes sure that the server still is the one that was written to.
    pub(super) async fn run<T: FromRedisValue>(&mut self, pipeline: &Pipeline) -> Result<T, StoreError> {
        let mut checked = Pipeline::with_capacity(pipeline.len() + 1);
        checked.cmd("GET").arg(LIFE);
        for command in pipeline.cmd_iter() {
            checked.add_command(command.clone());
        }
        let answer: RedisResult<Vec<Value>> = checked.query_async(&mut self.connection).await;
        let read = answer.and_then(|mut values| {
            let answers = values.split_off(1.min(values.len()));
            let life: Option<Vec<u8>> = values.pop().map(redis::from_redis_value).transpose()?.flatten();
            Ok((life, redis::from_redis_value(Value::Array(answers))?))
        });
        match read {
            Ok((life, answer)) if life.as_ref() == Some(&self.life) => Ok(answer),
            Ok(_) => {
                let mut link = self.store.link.lock().await;
                *link = Link::default();
                Err(StoreError::Lost { store: self.store.name.clone() })
            }
            Err(error) => {
                self.store.disconnect().await;
                Err(self.store.failed(&error))
            }
        }
    }

    /// The digests in a set.
    pub(super) async fn members(&mut self, set: &[u8]) -> Result<Vec<Digest>, StoreError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("SMEMBERS").arg(set);
        let (members,): (Vec<Vec<u8>>,) = self.run(&pipeline).await?;
        let digest = |member: &Vec<u8>| Some(Digest::from_bytes(member.as_slice().try_into().ok()?));
        Ok(members.iter().filter_map(digest).collect())
    }

    /// The records of those of `peers` that have one.
    pub(super) async fn records(&mut self, group: &str, peers: &[PeerId]) -> Result<Vec<NodeRecord>, StoreError> {
        let mut pipeline = Pipeline::new();
        for some in peers.chunks(TRACKER_PIPELINE) {
            pipeline.cmd("MGET");
            for peer in some {
                pipeline.arg(key("n", &member(group, peer.as_bytes())));
            }
        }
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let records: Vec<Vec<Option<Vec<u8>>>> = self.run(&pipeline).await?;
        let records = peers.iter().zip(records.iter().flatten());
        Ok(records.filter_map(|(peer, bytes)| NodeRecord::from_bytes(*peer, bytes.as_deref()?)).collect())
    }
}
