//! Collapses concurrent askers of the same question into one that asks.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_core::future::BoxFuture;
use tokio::sync::watch;

type Running<K, V> = HashMap<K, watch::Receiver<Option<V>>>;

/// Questions in flight. An answer goes to everybody who asked while it was under way, and is not kept.
///
/// A question runs in its own task: askers that give up do not end it for the others. The table holds one entry for
/// each running question, so it is bounded by the requests that the caller admits.
pub(crate) struct Flights<K: Hash + Eq, V> {
    running: Arc<Mutex<Running<K, V>>>,
}

/// Takes a question off the table when its task ends, by whatever way.
struct Landing<K: Hash + Eq, V> {
    running: Arc<Mutex<Running<K, V>>>,
    key: K,
}

impl<K: Hash + Eq, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self { running: Arc::default() }
    }

    /// The answer of the question `key` that is under way, or else of the one that `ask` makes; `None` when the
    /// question's task panicked.
    ///
    /// `ask` gives `Err` when a cache has the answer already. It runs with the table locked, and a question must write
    /// the cache before it ends: then no moment exists in which an asker finds neither.
    pub(crate) async fn join<F>(&self, key: K, ask: F) -> Option<V>
    where
        F: FnOnce() -> Result<BoxFuture<'static, V>, V>,
    {
        let mut answer = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.get(&key) {
                Some(answer) => answer.clone(),
                None => match ask() {
                    Err(known) => return Some(known),
                    Ok(question) => {
                        let (sender, receiver) = watch::channel(None);
                        running.insert(key.clone(), receiver.clone());
                        let landing = Landing { running: self.running.clone(), key };
                        tokio::spawn(async move {
                            let answer = question.await;
                            drop(landing);
                            sender.send_replace(Some(answer));
                        });
                        receiver
                    }
                },
            }
        };
        answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn one_asks_and_all_hear() {
        let flights = Arc::new(Flights::<u8, usize>::new());
        let (asked, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let askers: Vec<_> = (0..50)
            .map(|_| {
                let (flights, asked, go) = (flights.clone(), asked.clone(), go.clone());
                tokio::spawn(async move {
                    let question = || {
                        asked.fetch_add(1, Ordering::SeqCst);
                        let question: BoxFuture<'static, usize> = Box::pin(async move {
                            go.notified().await;
                            7
                        });
                        Ok(question)
                    };
                    flights.join(1, question).await
                })
            })
            .collect();
        // Single-threaded runtime: all askers run up to their wait before this task runs again.
        tokio::task::yield_now().await;
        askers[0].abort();
        go.notify_one();
        let heard = join_all(askers.into_iter().skip(1)).await;
        assert!(heard.into_iter().all(|answer| answer.unwrap() == Some(7)));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(flights.running.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_panic_does_not_block_the_next() {
        let flights = Flights::<u8, u8>::new();
        assert_eq!(flights.join(1, || Ok(Box::pin(async { panic!("meant") }))).await, None);
        assert_eq!(flights.join(1, || Ok(Box::pin(async { 3 }))).await, Some(3));
        assert_eq!(flights.join(1, || Err(4)).await, Some(4));
    }
}
