//! The pulls of images, put together from what passes the mirror.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapwing_p2p::digest::Digest;
use lapwing_p2p::timeline::{Timeline, Timelines, Track};
use lapwing_plugins::registry::{Reference, RegistryName, RepositoryName};

use crate::catalog::Image;

/// Pulls of images that are remembered.
const MAX_PULLS: usize = 64;
/// Blobs of all of them together: each has a timeline.
const MAX_PARTS: usize = 512;
/// Answers to questions for manifests that are remembered until an image claims them.
const MAX_RESOLVED: usize = 256;
/// A manifest that was asked for before belongs to the pull if it was so shortly before.
const RESOLVED_BEFORE: Duration = Duration::from_secs(10);

/// One pull of one image.
pub(super) struct Pull {
    pub(super) registry: RegistryName,
    pub(super) repo: RepositoryName,
    /// The tag that was asked for a moment before, if any was.
    pub(super) tag: Option<String>,
    pub(super) manifest: Digest,
    /// Of what concerns the image and no blob.
    pub(super) timeline: Arc<Timeline>,
    /// The config first, then the layers, the lowest first.
    pub(super) parts: Vec<Part>,
}

/// One blob of an image.
pub(super) struct Part {
    pub(super) digest: Digest,
    pub(super) length: u64,
    pub(super) is_config: bool,
    pub(super) timeline: Arc<Timeline>,
}

struct Resolved {
    registry: RegistryName,
    repo: RepositoryName,
    tag: Option<String>,
    began: Instant,
    ended: Instant,
}

impl Pull {
    /// The image's name with the tag or digest that it was asked for by.
    pub(super) fn name(&self) -> String {
        let (registry, repo) = (&self.registry, &self.repo);
        match &self.tag {
            Some(tag) => format!("{registry}/{repo}:{tag}"),
            None => format!("{registry}/{repo}@{}", self.manifest),
        }
    }

    fn is_over(&self) -> bool {
        self.timeline.is_over() && self.parts.iter().all(|part| part.timeline.is_over())
    }

    fn is(&self, registry: &RegistryName, repo: &RepositoryName, manifest: &Digest) -> bool {
        self.manifest == *manifest && self.registry == *registry && self.repo == *repo
    }

    /// Whether an operator means this one: by its whole name or the end of it, without a tag any.
    fn is_meant_by(&self, text: &str) -> bool {
        let path = format!("{}/{}", self.registry, self.repo);
        let names = |name: &str| name == text || name.strip_suffix(text).is_some_and(|front| front.ends_with('/'));
        names(&path) || names(&self.name()) || names(&format!("{path}@{}", self.manifest))
    }
}

/// The newest pulls of this node.
pub(crate) struct Pulls {
    timelines: Arc<Timelines>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    resolved: VecDeque<Resolved>,
    /// The newest first.
    pulls: VecDeque<Arc<Pull>>,
}

impl Pulls {
    pub(crate) fn new(timelines: Arc<Timelines>) -> Self {
        Self { timelines, state: Mutex::default() }
    }

    /// The registry was asked for a manifest from `began` until now.
    pub(crate) fn resolved(
        &self,
        registry: &RegistryName,
        repo: &RepositoryName,
        reference: &Reference,
        began: Instant,
    ) {
        let ended = Instant::now();
        let tag = match reference {
            Reference::Tag(tag) => Some(tag.clone()),
            Reference::Digest(_) => None,
        };
        let mut state = self.lock();
        if state.resolved.len() >= MAX_RESOLVED {
            state.resolved.pop_front();
        }
        state.resolved.push_back(Resolved { registry: registry.clone(), repo: repo.clone(), tag, began, ended });
    }

    /// A client was given the manifest of an image.
    pub(crate) fn begin(&self, image: &Image) {
        let mut state = self.lock();
        let before = Self::claimed(&mut state.resolved, image);
        if let Some(running) =
            state.pulls.iter().find(|pull| pull.is(&image.registry, &image.repo, &image.manifest) && !pull.is_over())
        {
            for resolved in before {
                running.timeline.add(Track::Resolve, resolved.began, resolved.ended);
            }
            return;
        }
        let began = before.iter().map(|resolved| resolved.began).min().unwrap_or_else(Instant::now);
        let timeline = Timeline::begin_at(began);
        for resolved in &before {
            timeline.add(Track::Resolve, resolved.began, resolved.ended);
        }
        let part = |digest: Digest, length, is_config| Part {
            digest,
            length,
            is_config,
            timeline: self.timelines.begin(&digest),
        };
        let config = std::iter::once(part(image.config, image.config_length, true));
        let layers = image.layer_sizes().map(|(digest, length)| part(digest, length, false));
        let pull = Pull {
            registry: image.registry.clone(),
            repo: image.repo.clone(),
            tag: before.iter().rev().find_map(|resolved| resolved.tag.clone()),
            manifest: image.manifest,
            timeline,
            parts: config.chain(layers).collect(),
        };
        state.pulls.retain(|other| !other.is(&pull.registry, &pull.repo, &pull.manifest));
        state.pulls.push_front(Arc::new(pull));
        while state.pulls.len() > MAX_PULLS
            || (state.pulls.len() > 1 && state.pulls.iter().map(|pull| pull.parts.len()).sum::<usize>() > MAX_PARTS)
        {
            state.pulls.pop_back();
        }
    }

    /// What was asked for of the image's repository shortly before; forgets what is older.
    fn claimed(resolved: &mut VecDeque<Resolved>, image: &Image) -> Vec<Resolved> {
        resolved.retain(|resolved| resolved.ended.elapsed() < RESOLVED_BEFORE);
        let (claimed, left): (Vec<_>, _) =
            resolved.drain(..).partition(|resolved| resolved.registry == image.registry && resolved.repo == image.repo);
        *resolved = left.into();
        claimed
    }

    /// All of them, the newest first.
    pub(super) fn all(&self) -> Vec<Arc<Pull>> {
        self.lock().pulls.iter().cloned().collect()
    }

    /// The newest pull of what an operator calls an image.
    pub(super) fn of_image(&self, text: &str) -> Option<Arc<Pull>> {
        let state = self.lock();
        let digest = text.parse::<Digest>().ok();
        let meant = |pull: &&Arc<Pull>| digest.map_or_else(|| pull.is_meant_by(text), |digest| pull.manifest == digest);
        state.pulls.iter().find(meant).cloned()
    }

    pub(super) fn timelines(&self) -> &Timelines {
        &self.timelines
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(repo: &str, layers: usize) -> Image {
        let descriptor = |kind: &str, number: usize| {
            let digest = Digest::of(format!("{repo}{kind}{number}").as_bytes());
            format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":7}}"#)
        };
        let layers: Vec<_> = (0..layers).map(|layer| descriptor("layer.v1.tar+gzip", layer)).collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
            descriptor("config.v1+json", 0),
            layers.join(",")
        );
        Image::parse("reg.example:5000".parse().unwrap(), repo.parse().unwrap(), manifest.as_bytes()).unwrap()
    }

    #[test]
    fn an_image_is_found_by_the_names_that_people_use() {
        let pulls = Pulls::new(Arc::default());
        let image = image("team/app", 2);
        pulls.resolved(&image.registry, &image.repo, &Reference::Tag("1.0".into()), Instant::now());
        pulls.resolved(&image.registry, &image.repo, &Reference::Digest(image.manifest), Instant::now());
        pulls.begin(&image);
        let manifest = image.manifest.to_string();
        let by_digest = format!("reg.example:5000/team/app@{manifest}");
        for name in [
            "reg.example:5000/team/app:1.0",
            "team/app:1.0",
            "app:1.0",
            "app",
            "reg.example:5000/team/app",
            &manifest,
            &by_digest,
        ] {
            let found = pulls.of_image(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(found.name(), "reg.example:5000/team/app:1.0");
            assert_eq!(found.timeline.recorded().lane(Track::Resolve).count, 2);
        }
        for name in ["pp:1.0", "app:1.1", "other", "", "1.0"] {
            assert!(pulls.of_image(name).is_none(), "{name}");
        }
    }

    #[test]
    fn a_pull_under_way_is_one_pull() {
        let pulls = Pulls::new(Arc::default());
        pulls.begin(&image("a", 1));
        let running = pulls.all()[0].parts[1].timeline.span(Track::Transfer);
        pulls.begin(&image("a", 1));
        pulls.begin(&image("b", 1));
        let all = pulls.all();
        assert_eq!(all.iter().map(|pull| pull.repo.to_string()).collect::<Vec<_>>(), ["b", "a"]);
        drop(running);
    }

    #[test]
    fn only_the_newest_are_kept() {
        let pulls = Pulls::new(Arc::default());
        for number in 0..MAX_PULLS + 5 {
            pulls.begin(&image(&format!("r{number}"), 1));
        }
        assert_eq!(pulls.all().len(), MAX_PULLS);
        for number in 0..5 {
            pulls.begin(&image(&format!("large{number}"), 200));
        }
        assert!(pulls.all().iter().map(|pull| pull.parts.len()).sum::<usize>() <= MAX_PARTS);
        for number in 0..2 * MAX_RESOLVED {
            let (registry, repo) = ("r.example".parse().unwrap(), format!("x{number}").parse().unwrap());
            pulls.resolved(&registry, &repo, &Reference::Tag("t".into()), Instant::now());
        }
        assert!(pulls.lock().resolved.len() <= MAX_RESOLVED);
    }
}
