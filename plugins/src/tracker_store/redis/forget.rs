//! Forgetting nodes, in steps that may be cut off at any point and taken up again: the record goes first, so that the
//! holdings do not count; the entry by which silent nodes are found goes last.

use std::time::Duration;

use lapwing_discovery::store::{StoreError, milliseconds};
use lapwing_p2p::identity::PeerId;
use redis::Pipeline;

use super::connection::{RedisStore, Session};
use super::{SEEN, key, member};
use crate::limits::TRACKER_SWEEP;

impl RedisStore {
    pub(super) async fn forget(&self, group: &str, nodes: &[(PeerId, u64)]) -> Result<(), StoreError> {
        let mut session = self.session().await?;
        for (peer, instance) in nodes {
            self.drop_node(&mut session, group, *peer, &instance.to_be_bytes(), &[]).await?;
        }
        Ok(())
    }

    /// Forgets a node that was last seen before `alive_since`.
    pub(super) async fn drop_silent(
        &self,
        session: &mut Session<'_>,
        group: &str,
        peer: PeerId,
        alive_since: Duration,
    ) -> Result<(), StoreError> {
        self.drop_node(session, group, peer, &[], &milliseconds(alive_since).to_be_bytes()).await
    }

    async fn drop_node(
        &self,
        session: &mut Session<'_>,
        group: &str,
        peer: PeerId,
        instance: &[u8],
        before: &[u8],
    ) -> Result<(), StoreError> {
        let mut pipeline = Pipeline::new();
        let member = member(group, peer.as_bytes());
        pipeline.cmd("EVALSHA").arg(&session.scripts().drop).arg(2).arg(key("n", &member));
        pipeline.arg(key("s", group.as_bytes())).arg(peer.as_bytes()).arg(instance).arg(before);
        let (dropped,): (bool,) = session.run(&pipeline).await?;
        if dropped { self.sweep(session, group, peer).await } else { Ok(()) }
    }

    /// Deletes what other instances of a node held than the present one, if there is one.
    pub(super) async fn sweep(&self, session: &mut Session<'_>, group: &str, peer: PeerId) -> Result<(), StoreError> {
        let node = member(group, peer.as_bytes());
        let (record, held) = (key("n", &node), key("h", &node));
        let digests = session.members(&held).await?;
        for some in digests.chunks(TRACKER_SWEEP) {
            let mut pipeline = Pipeline::new();
            pipeline.cmd("EVALSHA").arg(&session.scripts().sweep).arg(2 + some.len()).arg(&record).arg(&held);
            for digest in some {
                pipeline.arg(key("b", &member(group, digest.as_bytes())));
            }
            pipeline.arg(peer.as_bytes());
            for digest in some {
                pipeline.arg(digest.as_bytes());
            }
            session.run::<()>(&pipeline).await?;
        }
        let mut pipeline = Pipeline::new();
        pipeline.cmd("EVALSHA").arg(&session.scripts().finish).arg(3).arg(record).arg(held).arg(SEEN).arg(node);
        session.run(&pipeline).await
    }
}
