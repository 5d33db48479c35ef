//! Whether discovery answers.

use std::ops::Range;
use std::time::Duration;

/// Discovery that gave no answer for so long is taken for dead: what a pull loses when its tracker dies, about. A tracker that
/// hangs is known to be silent when its first call has failed, at the client's deadline.
pub(super) const SILENCE: Duration = Duration::from_millis(500);
/// So long nothing new is leased when it is back: it knows nothing of what is under way without leases.
const AFTERMATH: Duration = Duration::from_millis(300);
/// What was found out so long ago says nothing any more: nobody has asked since.
const STALE: Duration = Duration::from_secs(10);

/// When discovery answered, and since when it has not.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Silence {
    answered: Duration,
    /// From the first question that was not answered until it was last known that one is not.
    unanswered: Option<Range<Duration>>,
    /// When it was taken for dead, and when it was no longer.
    known: Duration,
    over: Option<Duration>,
}

impl Silence {
    /// Discovery answered a question, or it is known that it will not. When it was asked is not known of a blob that has been
    /// closed since.
    pub(super) fn note(&mut self, answered: bool, asked: Option<Duration>, now: Duration) {
        if answered {
            if self.is_known(now) {
                self.over = Some(now);
            }
            (self.answered, self.unanswered) = (now, None);
            return;
        }
        let Some(asked) = asked else { return };
        let was_known = self.is_known(now);
        let since = match &self.unanswered {
            Some(silence) if now < silence.end + STALE => silence.start,
            // A question after which others were answered was unlucky.
            _ if asked < self.answered => now,
            _ => asked,
        };
        self.unanswered = Some(since..now);
        if !was_known {
            self.known = now;
        }
    }

    /// Whether it has been silent for so long that it is not waited for. What it would say to a question that is yet to be
    /// asked is not known: one that was away for less is not taken for dead when it is back.
    pub(super) fn is_known(&self, now: Duration) -> bool {
        let is_long = |silence: &&Range<Duration>| silence.end >= silence.start + SILENCE && now < silence.end + STALE;
        self.unanswered.as_ref().filter(is_long).is_some()
    }

    /// Whether it has just come back.
    pub(super) fn is_just_over(&self, now: Duration) -> bool {
        self.over.is_some_and(|over| now < over + AFTERMATH)
    }

    /// When it was taken for dead, if it is.
    pub(super) fn known_since(&self, now: Duration) -> Option<Duration> {
        self.is_known(now).then_some(self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn questions_that_fail_half_a_second_apart_are_silence() {
        let mut silence = Silence::default();
        silence.note(false, Some(100 * MS), 100 * MS);
        assert!(!silence.is_known(5000 * MS), "nobody asked again");
        silence.note(false, Some(350 * MS), 350 * MS);
        assert!(!silence.is_known(350 * MS));
        silence.note(false, Some(600 * MS), 600 * MS);
        assert_eq!(silence.known_since(600 * MS), Some(600 * MS));
        silence.note(false, Some(900 * MS), 900 * MS);
        assert_eq!(silence.known_since(900 * MS), Some(600 * MS));
        silence.note(true, None, 1000 * MS);
        assert!(!silence.is_known(1000 * MS));
        assert!(silence.is_just_over(1000 * MS) && !silence.is_just_over(1400 * MS));
    }

    #[test]
    fn one_question_that_hung_is_enough_unless_a_later_one_was_answered() {
        let mut silence = Silence::default();
        silence.note(false, Some(100 * MS), 2100 * MS);
        assert!(silence.is_known(2100 * MS));
        silence.note(true, Some(2200 * MS), 2200 * MS);
        silence.note(false, Some(300 * MS), 2300 * MS);
        assert!(!silence.is_known(2300 * MS));
    }

    /// Who pulled last while the tracker was dead took it for dead at his next pull, hours later.
    #[test]
    fn an_old_silence_says_nothing_of_today() {
        let mut silence = Silence::default();
        silence.note(false, Some(MS), MS);
        silence.note(false, Some(600 * MS), 600 * MS);
        assert!(silence.is_known(700 * MS) && !silence.is_known(20_000 * MS));
        silence.note(false, Some(30_000 * MS), 30_000 * MS);
        assert!(!silence.is_known(30_000 * MS), "the first of today");
    }
}
