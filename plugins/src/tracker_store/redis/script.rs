//! What Redis must do in one step.

use std::time::Duration;

use lapwing_discovery::store::{NodeRecord, milliseconds};
use redis::Pipeline;

use super::{SEEN, key, member};

/// Writes a node's record unless there is a later one. Keys: record, seen, seeds. Arguments: node, group/node, ms, record,
/// how long it lives in ms, whether it is a seed. Records: version, flags, instance (8), ms (8), ...
pub(super) const NOTE: &str = r"
local old = redis.call('GET', KEYS[1])
local same = old and string.sub(old, 3, 10) == string.sub(ARGV[4], 3, 10)
if old and string.sub(old, 11, 18) > string.sub(ARGV[4], 11, 18) then
  if same then return 1 else return 0 end
end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
if ARGV[6] == '1' then redis.call('SADD', KEYS[3], ARGV[1]) else redis.call('SREM', KEYS[3], ARGV[1]) end
if not old then return 4 elseif same then return 2 else return 3 end
";

/// Deletes a node's record if it has that instance (any, if empty) and was seen before that time (any, if empty; 8 bytes).
/// Keys: record, seeds. Arguments: node, instance, time.
pub(super) const DROP: &str = r"
local old = redis.call('GET', KEYS[1])
if old then
  if ARGV[2] ~= '' and string.sub(old, 3, 10) ~= ARGV[2] then return 0 end
  if ARGV[3] ~= '' and string.sub(old, 11, 18) >= ARGV[3] then return 0 end
  redis.call('DEL', KEYS[1])
end
redis.call('SREM', KEYS[2], ARGV[1])
return 1
";

/// Deletes holdings of a node that are not of its present instance. Keys: record, digests, and a blob for each digest.
/// Arguments: node, the digests.
pub(super) const SWEEP: &str = r"
local record = redis.call('GET', KEYS[1])
local live = record and string.sub(record, 3, 10)
for i = 2, #ARGV do
  local value = redis.call('HGET', KEYS[i + 1], ARGV[1])
  if not value or string.sub(value, 2, 9) ~= live then
    redis.call('HDEL', KEYS[i + 1], ARGV[1])
    redis.call('SREM', KEYS[2], ARGV[i])
  end
end
return redis.status_reply('OK')
";

/// Takes a node without a record and digests from the list of those seen. Keys: record, digests, seen. Argument: group/node.
pub(super) const FINISH: &str = r"
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then redis.call('ZREM', KEYS[3], ARGV[1]) end
return redis.status_reply('OK')
";

/// The scripts' names on the server.
#[derive(Debug, Clone)]
pub(super) struct Scripts {
    pub(super) note: String,
    pub(super) drop: String,
    pub(super) sweep: String,
    pub(super) finish: String,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    /// There is a later one of another instance.
    Void,
    /// There is a later one of the same.
    Older,
    /// It is the latest.
    Latest,
    /// The same, and the one before was of another instance.
    Restarted,
    /// The same, and there was none before.
    New,
}

impl From<i64> for Noted {
    fn from(code: i64) -> Self {
        match code {
            1 => Self::Older,
            2 => Self::Latest,
            3 => Self::Restarted,
            4 => Self::New,
            _ => Self::Void,
        }
    }
}

impl Noted {
    pub(super) const fn is_latest(self) -> bool {
        matches!(self, Self::Latest | Self::Restarted | Self::New)
    }

    /// Whether the holdings of the update count.
    pub(super) const fn takes(self, whole: bool) -> bool {
        self.is_latest() || matches!(self, Self::Older) && !whole
    }
}

pub(super) fn note_record(pipeline: &mut Pipeline, scripts: &Scripts, group: &str, node: &NodeRecord, age: Duration) {
    let member = member(group, node.peer.as_bytes());
    pipeline.cmd("EVALSHA").arg(&scripts.note).arg(3);
    pipeline.arg(key("n", &member)).arg(SEEN).arg(key("s", group.as_bytes()));
    pipeline.arg(node.peer.as_bytes()).arg(&member).arg(milliseconds(node.seen)).arg(node.to_bytes());
    pipeline.arg(milliseconds(age)).arg(u8::from(node.seed_port != 0));
}
