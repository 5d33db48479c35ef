//! The places a blob can be fetched from, and which of them is asked.
//!
//! Every open of a blob may bring an origin: the same registry with another client's rights, or with this node's own.
//! One that works stays in use: what comes later stands by until it is refused. Who was refused is asked again only
//! after somebody brought it anew.

use std::sync::Arc;

use crate::digest::Digest;
use crate::limits::MAX_ORIGINS;
use crate::origin::{Origin, OriginError};

struct Entry {
    key: Digest,
    origin: Arc<dyn Origin>,
    refused: bool,
}

/// The origins of one blob; the first that was not refused is asked.
#[derive(Default)]
pub(super) struct Origins(Vec<Entry>);

impl Origins {
    /// Takes an origin. True if it may give what those known before did not: it is new, or was refused.
    pub(super) fn offer(&mut self, origin: Arc<dyn Origin>) -> bool {
        let key = origin.key();
        if let Some(known) = self.0.iter_mut().find(|entry| entry.key == key) {
            let refused = std::mem::replace(&mut known.refused, false);
            if refused {
                known.origin = origin;
            }
            return refused;
        }
        if self.0.len() >= MAX_ORIGINS {
            // Never the one in use: that is the first that was not refused.
            let refused = self.0.iter().position(|entry| entry.refused);
            self.0.remove(refused.unwrap_or(self.0.len() - 1));
        }
        // Right behind the one in use: of those that stand by, the newest has the freshest rights.
        let at = self.in_use().map_or(0, |at| at + 1);
        self.0.insert(at, Entry { key, origin, refused: false });
        true
    }

    /// The one to ask.
    pub(super) fn current(&self) -> Option<Arc<dyn Origin>> {
        self.in_use().map(|at| Arc::clone(&self.0[at].origin))
    }

    /// Whether there is any, refused or not.
    pub(super) fn is_known(&self) -> bool {
        !self.0.is_empty()
    }

    /// Takes note that `origin` gave nothing; true if there is another to ask in its stead.
    pub(super) fn failed(&mut self, origin: &dyn Origin, error: &OriginError) -> bool {
        let key = origin.key();
        let Some(at) = self.0.iter().position(|entry| entry.key == key) else { return self.current().is_some() };
        match error {
            OriginError::Unauthorized { .. } | OriginError::NotFound { .. } | OriginError::Changed { .. } => {
                self.0[at].refused = true;
            }
            OriginError::Busy { .. } | OriginError::Unavailable { .. } => {
                let entry = self.0.remove(at);
                self.0.push(entry);
            }
            // The next would have to be asked for the whole, too.
            OriginError::NoRanges { .. } => return false,
        }
        self.current().is_some_and(|next| next.key() != key)
    }

    fn in_use(&self) -> Option<usize> {
        self.0.iter().position(|entry| !entry.refused)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::time::Duration;

    use futures_core::future::BoxFuture;

    use super::*;
    use crate::origin::ByteStream;

    struct Named(&'static str);

    impl Origin for Named {
        fn fetch(&self, _: Range<u64>) -> BoxFuture<'_, Result<ByteStream, OriginError>> {
            unreachable!("only its name is looked at")
        }

        fn describe(&self) -> String {
            self.0.to_owned()
        }
    }

    fn unauthorized() -> OriginError {
        OriginError::Unauthorized { origin: String::new(), status: 401 }
    }

    fn current(origins: &Origins) -> Option<String> {
        origins.current().map(|origin| origin.describe())
    }

    #[test]
    fn one_that_works_is_not_displaced() {
        let mut origins = Origins::default();
        assert!(!origins.is_known());
        assert!(origins.offer(Arc::new(Named("good"))));
        assert!(origins.offer(Arc::new(Named("worse"))), "new");
        assert!(!origins.offer(Arc::new(Named("worse"))), "known");
        assert_eq!(current(&origins).as_deref(), Some("good"));
    }

    #[test]
    fn a_refused_one_makes_way_until_it_is_brought_anew() {
        let mut origins = Origins::default();
        origins.offer(Arc::new(Named("a")));
        origins.offer(Arc::new(Named("b")));
        assert!(origins.failed(&Named("a"), &unauthorized()));
        assert_eq!(current(&origins).as_deref(), Some("b"));
        assert!(!origins.failed(&Named("b"), &unauthorized()));
        assert_eq!(current(&origins), None);
        assert!(origins.is_known());
        assert!(origins.offer(Arc::new(Named("a"))), "brought anew");
        assert_eq!(current(&origins).as_deref(), Some("a"));
    }

    #[test]
    fn one_that_rests_goes_behind_the_others() {
        let mut origins = Origins::default();
        let busy = OriginError::Busy { origin: String::new(), retry_after: Duration::from_secs(9) };
        origins.offer(Arc::new(Named("a")));
        assert!(!origins.failed(&Named("a"), &busy), "there is no other");
        assert_eq!(current(&origins).as_deref(), Some("a"));
        origins.offer(Arc::new(Named("b")));
        assert!(origins.failed(&Named("a"), &busy));
        assert_eq!(current(&origins).as_deref(), Some("b"));
        assert!(!origins.failed(&Named("b"), &OriginError::NoRanges { origin: String::new() }));
        assert_eq!(current(&origins).as_deref(), Some("b"));
    }

    #[test]
    fn their_number_is_bounded_and_the_one_in_use_stays() {
        let mut origins = Origins::default();
        let names: Vec<&'static str> = (0..3 * MAX_ORIGINS).map(|n| &*format!("origin {n}").leak()).collect();
        for &name in &names {
            origins.offer(Arc::new(Named(name)));
            assert!(origins.0.len() <= MAX_ORIGINS);
            assert_eq!(current(&origins).as_deref(), Some(names[0]));
        }
        origins.failed(&Named(names[0]), &unauthorized());
        assert_eq!(current(&origins).as_deref(), names.last().copied(), "the newest is next");
    }
}
