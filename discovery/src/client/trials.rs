//! Trials: told of, and asked about, where the blob's order is.

use std::sync::Arc;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{DiscoveryError, TrialReport};

use super::TrackerClient;
use super::link::Link;
use crate::limits::{FIND_HEDGE, MAX_NODES, MAX_REPORTS_PER_ANSWER};
use crate::{proto, wire};

/// Answers that are asked for in a row: as many as hold what all nodes can tell.
const MAX_ANSWERS: usize = MAX_NODES / MAX_REPORTS_PER_ANSWER;

impl TrackerClient {
    pub(super) async fn tell_of_trial(
        &self,
        digest: Digest,
        job: u64,
        report: Vec<u8>,
    ) -> Result<bool, DiscoveryError> {
        let caller = Some(self.shared.caller.clone());
        let message = proto::TellTrialRequest { caller, digest: digest.as_bytes().to_vec(), job, report };
        let ask = |link: Arc<Link>| {
            let message = message.clone();
            async move { link.client().tell_trial(message).await }
        };
        let spare = Arc::new(|link: Arc<Link>, reply: proto::TellTrialReply| {
            link.observe(reply.registration, reply.pause_ms);
        });
        let links = self.shared.links().order(&digest);
        let (link, reply) = self.shared.ask(links, FIND_HEDGE, ask, spare).await?;
        link.observe(reply.registration, reply.pause_ms);
        Ok(reply.over)
    }

    pub(super) async fn reports_of_trial(&self, digest: Digest, job: u64) -> Result<Vec<TrialReport>, DiscoveryError> {
        let mut reports: Vec<TrialReport> = Vec::new();
        for _ in 0..MAX_ANSWERS {
            let after = reports.last().map(|report| report.peer.as_bytes().to_vec()).unwrap_or_default();
            let caller = Some(self.shared.caller.clone());
            let message = proto::TrialReportsRequest { caller, digest: digest.as_bytes().to_vec(), job, after };
            let ask = |link: Arc<Link>| {
                let message = message.clone();
                async move { link.client().trial_reports(message).await }
            };
            let spare = Arc::new(|link: Arc<Link>, reply: proto::TrialReportsReply| {
                link.observe(reply.registration, reply.pause_ms);
            });
            let links = self.shared.links().order(&digest);
            let (link, reply) = self.shared.ask(links, FIND_HEDGE, ask, spare).await?;
            link.observe(reply.registration, reply.pause_ms);
            let before = reports.len();
            let read = reply.reports.into_iter().take(MAX_REPORTS_PER_ANSWER).filter_map(wire::trial_report);
            reports.extend(read);
            if !reply.more || reports.len() == before {
                break;
            }
        }
        Ok(reports)
    }
}
