//! Asking trackers: the first that should know, and the next one when that fails or is slow to answer.
//!
//! Each attempt is a task of its own and runs to its end whether or not somebody still waits for it, so that a tracker that
//! owes an answer is found out (`client/link.rs`). A reply that comes when another has been taken is not lost: it goes to the
//! question's `spare`, which gives back what it grants.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lapwing_p2p::discovery::DiscoveryError;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tonic::{Response, Status};

use super::link::Link;
use super::{Shared, lock};
use crate::registry::Registration;

/// What becomes of replies that nobody waits for any more.
pub(super) type Spare<T> = Arc<dyn Fn(Arc<Link>, T) + Send + Sync>;

type Answer<T> = (Arc<Link>, Result<T, DiscoveryError>);

/// Attempts under way.
struct Attempts<T> {
    sender: mpsc::UnboundedSender<Answer<T>>,
    answers: mpsc::UnboundedReceiver<Answer<T>>,
    spare: Spare<T>,
    under_way: usize,
}

impl<T: Send + 'static> Attempts<T> {
    fn new(spare: Spare<T>) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        Self { sender, answers, spare, under_way: 0 }
    }

    fn start<R>(&mut self, link: Arc<Link>, deadline: Duration, call: R)
    where
        R: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        self.under_way += 1;
        let (sender, spare) = (self.sender.clone(), Arc::clone(&self.spare));
        tokio::spawn(async move {
            let outcome = link.call(deadline, call).await;
            if let Err(mpsc::error::SendError((link, Ok(reply)))) = sender.send((link, outcome)) {
                spare(link, reply);
            }
        });
    }

    async fn next(&mut self) -> Answer<T> {
        let answer = self.answers.recv().await;
        self.under_way = self.under_way.saturating_sub(1);
        answer.expect("one sender is held here")
    }
}

impl<T> Drop for Attempts<T> {
    fn drop(&mut self) {
        self.answers.close();
        while let Ok((link, outcome)) = self.answers.try_recv() {
            if let Ok(reply) = outcome {
                (self.spare)(link, reply);
            }
        }
    }
}

impl Shared {
    /// Asks `links` in their order, but first those that owe no answer; the next one at once when one fails, and also, as
    /// the budget allows, when there is no answer within `hedge`. The first answer is taken.
    pub(super) async fn ask<T, R>(
        &self,
        links: Vec<Arc<Link>>,
        hedge: Duration,
        call: impl Fn(Arc<Link>) -> R,
        spare: Spare<T>,
    ) -> Result<(Arc<Link>, T), DiscoveryError>
    where
        T: Send + 'static,
        R: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        let deadline = self.config.deadline;
        let give_up_at = Instant::now() + 2 * deadline;
        let (candidates, mut failed) = by_promise(links);
        let mut candidates = candidates.into_iter().peekable();
        let mut attempts = Attempts::new(spare);
        let (mut start, mut hedge) = (true, Some(hedge));
        loop {
            if start {
                let left = give_up_at.saturating_duration_since(Instant::now()).min(deadline);
                match candidates.next_if(|_| !left.is_zero()) {
                    Some(link) => attempts.start(Arc::clone(&link), left, call(link)),
                    None if attempts.under_way == 0 => return Err(all_failed(failed)),
                    None => {}
                }
            }
            let patience = hedge.filter(|_| candidates.peek().is_some()).unwrap_or(Duration::MAX);
            start = match timeout(patience, attempts.next()).await {
                Ok((link, Ok(reply))) => return Ok((link, reply)),
                Ok((_, Err(refused @ DiscoveryError::Refused { .. }))) => return Err(refused),
                Ok((_, Err(unreachable))) => {
                    failed.push(unreachable);
                    true
                }
                Err(_) => {
                    let allowed = lock(&self.budget).take(Instant::now());
                    hedge = hedge.filter(|_| allowed);
                    allowed
                }
            };
        }
    }

    /// Tells every tracker that answers; one that heard is enough, and the others are told without anybody waiting.
    pub(super) async fn tell<R>(&self, call: impl Fn(Arc<Link>) -> R) -> Result<(), DiscoveryError>
    where
        R: Future<Output = Result<Response<(Registration, u32)>, Status>> + Send + 'static,
    {
        let observe: Spare<(Registration, u32)> =
            Arc::new(|link, (registration, pause)| link.observe(registration, pause));
        let (links, mut failed) = by_promise(self.links().all().to_vec());
        let mut attempts = Attempts::new(Arc::clone(&observe));
        for link in links {
            attempts.start(Arc::clone(&link), self.config.deadline, call(link));
        }
        while attempts.under_way > 0 {
            match attempts.next().await {
                (link, Ok(heard)) => {
                    observe(link, heard);
                    return Ok(());
                }
                (_, Err(error)) => failed.push(error),
            }
        }
        Err(all_failed(failed))
    }
}

/// Those that may answer, without an answer due first; and the errors of those whose circuit is open.
fn by_promise(links: Vec<Arc<Link>>) -> (Vec<Arc<Link>>, Vec<DiscoveryError>) {
    let (mut ready, mut overdue, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for link in links {
        match link.check_open() {
            Err(error) => failed.push(error),
            Ok(()) if link.is_overdue() => overdue.push(link),
            Ok(()) => ready.push(link),
        }
    }
    ready.append(&mut overdue);
    (ready, failed)
}

/// One error that names every tracker; a refusal tells more than silence.
pub(super) fn all_failed(mut failed: Vec<DiscoveryError>) -> DiscoveryError {
    if let Some(refused) = failed.iter().position(|error| matches!(error, DiscoveryError::Refused { .. })) {
        return failed.swap_remove(refused);
    }
    let (mut trackers, mut reasons) = (Vec::new(), Vec::new());
    for error in failed {
        if let DiscoveryError::Unreachable { tracker, reason } = error {
            trackers.push(tracker);
            reasons.push(reason);
        }
    }
    if trackers.is_empty() {
        let reason = "none is known: check tracker.addresses".to_owned();
        return DiscoveryError::Unreachable { tracker: "(none)".to_owned(), reason };
    }
    DiscoveryError::Unreachable { tracker: trackers.join(", "), reason: reasons.join("; ") }
}
