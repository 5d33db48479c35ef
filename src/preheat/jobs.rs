//! The jobs, without any I/O: what comes in is a request or what became of an action, what goes out are actions.
//!
//! ```text
//! image  resolving -> resolved | failed
//! blob   waiting -> fetching [-> indexing] -> done | failed
//! job    running -> done | failed | canceled
//! ```
//!
//! A job ends when its images are resolved and its blobs have ended; one that a push made stays open for further blobs until the
//! manifest has come. Of one job [`MAX_AT_ONCE`] blobs are under way ([`MAX_ORDERED_AT_ONCE`] where others fetch them), in the order in which they were named. Nothing is kept over a restart:
//! what was fetched is in the chunk store, and asking again is free.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use lapwing_p2p::digest::Digest;
use lapwing_plugins::registry::{RegistryName, RepositoryName};
use serde::{Deserialize, Serialize};

use super::limits::{MAX_AT_ONCE, MAX_BLOBS, MAX_IMAGES, MAX_JOBS, MAX_ORDERED_AT_ONCE, MAX_RUNNING, PUSH_PATIENCE};
use super::name::ImageName;
use super::to::To;

/// Names a job: drawn at random, so that it means nothing to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JobId(pub(crate) u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for JobId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| ())
    }
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JobState {
    /// Something is still to be done.
    Running,
    /// Everything is where it was to be.
    Done,
    /// Something could not be fetched; the rest is there.
    Failed,
    /// Somebody stopped it.
    Canceled,
}

/// How a blob stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BlobState {
    /// Its turn has not come.
    Waiting,
    /// It is being fetched.
    Fetching,
    /// It is there, and its index is being built.
    Indexing,
    /// It is where it was to be, with its index if that was asked for.
    Done,
    /// It could not be fetched, or not be indexed.
    Failed,
}

/// A blob that a job is to bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlobWant {
    pub(crate) registry: RegistryName,
    pub(crate) repo: RepositoryName,
    pub(crate) digest: Digest,
    /// In bytes; none where only the registry knows.
    pub(crate) length: Option<u64>,
    /// Whether it is a layer; none where its bytes must tell.
    pub(crate) is_layer: Option<bool>,
}

/// What is asked for at once.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) images: Vec<ImageName>,
    pub(crate) platforms: Vec<String>,
    pub(crate) to: To,
    pub(crate) lazy_index: bool,
}

/// What a registry says was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// A blob of an image whose manifest will follow.
    Blob(BlobWant),
    /// A manifest or index: the image is whole.
    Image(ImageName),
}

/// What the shell is to do. It answers each with the event of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Find out the blobs of an image.
    Resolve { job: JobId, image: usize },
    /// Bring a blob to where it is to be, and have it indexed if the job says so.
    Fetch { job: JobId, want: BlobWant },
    /// Stop what is under way for this job.
    Abort { job: JobId },
}

/// What became of actions.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Resolved {
        job: JobId,
        image: usize,
        blobs: Result<Vec<BlobWant>, String>,
    },
    /// How much of a blob is there.
    Progress {
        job: JobId,
        digest: Digest,
        length: u64,
        have: u64,
    },
    Indexing {
        job: JobId,
        digest: Digest,
    },
    Fetched {
        job: JobId,
        digest: Digest,
        outcome: Result<(), String>,
    },
}

/// Why there is no new job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_RUNNING} jobs are running already; wait for one, or cancel one")]
pub(crate) struct Full;

/// One image of a job.
#[derive(Debug, Clone)]
pub(crate) struct JobImage {
    pub(crate) name: ImageName,
    /// How many blobs it has, once that is known.
    pub(crate) outcome: Option<Result<usize, String>>,
}

/// One blob of a job.
#[derive(Debug, Clone)]
pub(crate) struct JobBlob {
    pub(crate) want: BlobWant,
    pub(crate) state: BlobState,
    pub(crate) have: u64,
    pub(crate) error: String,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) state: JobState,
    pub(crate) platforms: Vec<String>,
    pub(crate) to: To,
    pub(crate) lazy_index: bool,
    /// The repository whose push made it.
    pub(crate) push: Option<(RegistryName, RepositoryName)>,
    pub(crate) created: SystemTime,
    pub(crate) ended: Option<SystemTime>,
    pub(crate) images: Vec<JobImage>,
    pub(crate) blobs: BTreeMap<Digest, JobBlob>,
    waiting: VecDeque<Digest>,
    under_way: usize,
    /// Until when more may be added.
    open_until: Option<SystemTime>,
}

impl Job {
    fn add_blobs(&mut self, wants: Vec<BlobWant>) -> Result<(), String> {
        for want in wants {
            if self.blobs.len() >= MAX_BLOBS && !self.blobs.contains_key(&want.digest) {
                return Err(format!("the job has more than {MAX_BLOBS} blobs; ask for fewer images at once"));
            }
            let waiting = &mut self.waiting;
            let known = self.blobs.entry(want.digest).or_insert_with(|| {
                waiting.push_back(want.digest);
                JobBlob { want: want.clone(), state: BlobState::Waiting, have: 0, error: String::new() }
            });
            // Told of before the registry had it, perhaps.
            if known.state == BlobState::Failed {
                (known.state, known.error) = (BlobState::Waiting, String::new());
                waiting.push_back(want.digest);
            }
            known.want.length = known.want.length.or(want.length);
            known.want.is_layer = known.want.is_layer.or(want.is_layer);
        }
        Ok(())
    }

    fn next(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let at_once = if matches!(self.to, To::All | To::Nodes(_)) { MAX_ORDERED_AT_ONCE } else { MAX_AT_ONCE };
        while self.under_way < at_once
            && let Some(digest) = self.waiting.pop_front()
        {
            if let Some(blob) = self.blobs.get_mut(&digest) {
                blob.state = BlobState::Fetching;
                self.under_way += 1;
                actions.push(Action::Fetch { job: self.id, want: blob.want.clone() });
            }
        }
        actions
    }

    fn settle(&mut self, now: SystemTime) {
        let unresolved = self.images.iter().any(|image| image.outcome.is_none());
        let busy = self.under_way > 0 || !self.waiting.is_empty() || self.open_until.is_some();
        if self.state != JobState::Running || unresolved || busy {
            return;
        }
        let failed = self.images.iter().any(|image| matches!(image.outcome, Some(Err(_))))
            || self.blobs.values().any(|blob| blob.state == BlobState::Failed);
        self.end(if failed { JobState::Failed } else { JobState::Done }, now);
    }

    fn end(&mut self, state: JobState, now: SystemTime) {
        self.state = state;
        self.ended = Some(now);
        self.open_until = None;
        self.waiting.clear();
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    jobs: HashMap<JobId, Job>,
    /// The oldest first.
    order: VecDeque<JobId>,
}

impl Jobs {
    /// Begins a job; `id` is one that no other has.
    pub(crate) fn create(&mut self, id: JobId, request: Request, now: SystemTime) -> Result<Vec<Action>, Full> {
        let images = request.images.into_iter().map(|name| JobImage { name, outcome: None }).collect::<Vec<_>>();
        let actions = (0..images.len()).map(|image| Action::Resolve { job: id, image }).collect();
        let Request { platforms, to, lazy_index, .. } = request;
        self.insert(id, images, platforms, (to, lazy_index), None, now)?;
        Ok(actions)
    }

    /// Something was pushed: the job of that repository's push goes on, or begins, under the name `id`.
    pub(crate) fn pushed(
        &mut self,
        id: JobId,
        pushed: Pushed,
        to: To,
        lazy_index: bool,
        now: SystemTime,
    ) -> Result<Vec<Action>, Full> {
        let place = match &pushed {
            Pushed::Blob(want) => (want.registry.clone(), want.repo.clone()),
            Pushed::Image(name) => (name.registry.clone(), name.repo.clone()),
        };
        let has_room = |job: &Job| job.images.len() < MAX_IMAGES && job.blobs.len() < MAX_BLOBS;
        let is_its = |job: &&Job| job.state == JobState::Running && job.push.as_ref() == Some(&place) && has_room(job);
        let id = match self.jobs.values().find(is_its).map(|job| job.id) {
            Some(running) => running,
            None => {
                self.insert(id, Vec::new(), vec!["all".to_owned()], (to, lazy_index), Some(place), now)?;
                id
            }
        };
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(Vec::new()) };
        let mut actions = Vec::new();
        match pushed {
            Pushed::Blob(want) => {
                if let Err(error) = job.add_blobs(vec![want]) {
                    tracing::warn!(job = %id, error, "a pushed blob is left out");
                }
                job.open_until = Some(now + PUSH_PATIENCE);
            }
            // The registry tells of it twice where a tag and a digest are pushed.
            Pushed::Image(name) if job.images.iter().any(|image| image.name == name) => job.open_until = None,
            Pushed::Image(name) => {
                actions.push(Action::Resolve { job: id, image: job.images.len() });
                job.images.push(JobImage { name, outcome: None });
                job.open_until = None;
            }
        }
        actions.extend(job.next());
        job.settle(now);
        Ok(actions)
    }

    fn insert(
        &mut self,
        id: JobId,
        images: Vec<JobImage>,
        platforms: Vec<String>,
        (to, lazy_index): (To, bool),
        push: Option<(RegistryName, RepositoryName)>,
        now: SystemTime,
    ) -> Result<(), Full> {
        self.expire(now);
        if self.running() >= MAX_RUNNING {
            return Err(Full);
        }
        while self.jobs.len() >= MAX_JOBS {
            let is_over = |id: &JobId| self.jobs.get(id).is_none_or(|job| job.state != JobState::Running);
            let Some(oldest) = self.order.iter().position(is_over) else { return Err(Full) };
            if let Some(oldest) = self.order.remove(oldest) {
                self.jobs.remove(&oldest);
            }
        }
        let job = Job {
            id,
            state: JobState::Running,
            platforms,
            to,
            lazy_index,
            push,
            created: now,
            ended: None,
            images,
            blobs: BTreeMap::new(),
            waiting: VecDeque::new(),
            under_way: 0,
            open_until: None,
        };
        self.jobs.insert(id, job);
        self.order.push_back(id);
        Ok(())
    }

    /// Takes in what became of an action. What concerns a job that has ended changes nothing.
    pub(crate) fn on(&mut self, event: Event, now: SystemTime) -> Vec<Action> {
        let id = match &event {
            Event::Resolved { job, .. } | Event::Progress { job, .. } => *job,
            Event::Indexing { job, .. } | Event::Fetched { job, .. } => *job,
        };
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.state == JobState::Running) else {
            return Vec::new();
        };
        match event {
            Event::Resolved { image, blobs, .. } => {
                let outcome = blobs.and_then(|blobs| {
                    let count = blobs.len();
                    job.add_blobs(blobs).map(|()| count)
                });
                if let Some(image) = job.images.get_mut(image) {
                    image.outcome = Some(outcome);
                }
            }
            Event::Progress { digest, length, have, .. } => {
                if let Some(blob) = job.blobs.get_mut(&digest) {
                    blob.want.length = Some(length);
                    blob.have = blob.have.max(have.min(length));
                }
            }
            Event::Indexing { digest, .. } => {
                if let Some(blob) = job.blobs.get_mut(&digest).filter(|blob| blob.state == BlobState::Fetching) {
                    blob.state = BlobState::Indexing;
                }
            }
            Event::Fetched { digest, outcome, .. } => {
                if let Some(blob) = job.blobs.get_mut(&digest) {
                    let is_under_way = matches!(blob.state, BlobState::Fetching | BlobState::Indexing);
                    job.under_way -= usize::from(is_under_way);
                    match outcome {
                        Ok(()) => {
                            blob.state = BlobState::Done;
                            blob.have = blob.want.length.unwrap_or(blob.have);
                        }
                        Err(error) => (blob.state, blob.error) = (BlobState::Failed, error),
                    }
                }
            }
        }
        let actions = job.next();
        job.settle(now);
        actions
    }

    /// Stops a job; none if there is no such job. One that has ended stays as it is.
    pub(crate) fn cancel(&mut self, id: JobId, now: SystemTime) -> Option<Vec<Action>> {
        let job = self.jobs.get_mut(&id)?;
        if job.state != JobState::Running {
            return Some(Vec::new());
        }
        job.end(JobState::Canceled, now);
        Some(vec![Action::Abort { job: id }])
    }

    /// Ends pushes of which nothing was heard for long.
    pub(crate) fn expire(&mut self, now: SystemTime) {
        for job in self.jobs.values_mut() {
            if job.open_until.is_some_and(|until| until <= now) {
                job.open_until = None;
                job.settle(now);
            }
        }
    }

    pub(crate) fn get(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// All that are remembered, the latest first.
    pub(crate) fn list(&self) -> impl Iterator<Item = &Job> {
        self.order.iter().rev().filter_map(|id| self.jobs.get(id))
    }

    pub(crate) fn running(&self) -> usize {
        self.jobs.values().filter(|job| job.state == JobState::Running).count()
    }
}

#[cfg(test)]
mod tests;
