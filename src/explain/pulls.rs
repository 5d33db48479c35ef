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

    /// How what an operator calls an image fits this one, if it does: without a tag any of its repository does.
    fn fit(&self, text: &str) -> Option<Fit> {
        let path = format!("{}/{}", self.registry, self.repo);
        let (name, by_digest) = (self.name(), format!("{path}@{}", self.manifest));
        let ends = |name: &str| name.strip_suffix(text).is_some_and(|front| front.ends_with('/'));
        if name == text || by_digest == text {
            Some(Fit::Whole)
        } else if path == text {
            Some(Fit::Repository)
        } else {
            [path, name, by_digest].iter().any(|name| ends(name)).then_some(Fit::End)
        }
    }
}

/// How a name fits a pull, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// It is the whole name, or the manifest's digest.
    Whole,
    /// The whole name without tag or digest.
    Repository,
    /// The end of a name.
    End,
}

/// Why a name says too little for something that cannot be taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ambiguous {
    /// The names of the images that may be meant, the newest first.
    pub(super) names: Vec<String>,
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

    /// The newest pull of what an operator calls an image: one whose whole name that is before those whose name ends so.
    pub(super) fn of_image(&self, text: &str) -> Option<Arc<Pull>> {
        Some(self.meant_by(text)?.1.swap_remove(0))
    }

    /// The same, if the name can mean no other image. A name that says its registry is not the end of another's.
    pub(super) fn single(&self, text: &str) -> Result<Option<Arc<Pull>>, Ambiguous> {
        let Some((fit, mut meant)) = self.meant_by(text) else { return Ok(None) };
        if fit == Fit::End && has_registry(text) {
            return Ok(None);
        }
        let mut names: Vec<String> = Vec::new();
        for name in meant.iter().map(|pull| pull.name()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        if fit != Fit::Whole && names.len() > 1 {
            return Err(Ambiguous { names });
        }
        Ok(Some(meant.swap_remove(0)))
    }

    /// Those that fit best, the newest first; never none.
    fn meant_by(&self, text: &str) -> Option<(Fit, Vec<Arc<Pull>>)> {
        let digest = text.parse::<Digest>().ok();
        let fit = |pull: &Pull| match digest {
            Some(digest) => (pull.manifest == digest).then_some(Fit::Whole),
            None => pull.fit(text),
        };
        let fitting: Vec<_> = self.all().into_iter().filter_map(|pull| Some((fit(&pull)?, pull))).collect();
        let best = fitting.iter().map(|(fit, _)| *fit).min()?;
        Some((best, fitting.into_iter().filter(|(fit, _)| *fit == best).map(|(_, pull)| pull).collect()))
    }

    pub(super) fn timelines(&self) -> &Timelines {
        &self.timelines
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a name begins with what looks like a registry, as containerd's whole names do.
fn has_registry(text: &str) -> bool {
    text.split_once('/').is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(repo: &str, layers: usize) -> Image {
        image_of("reg.example:5000", repo, layers)
    }

    fn image_of(registry: &str, repo: &str, layers: usize) -> Image {
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
        Image::parse(registry.parse().unwrap(), repo.parse().unwrap(), manifest.as_bytes()).unwrap()
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
    fn a_whole_name_comes_before_the_ends_of_others() {
        let pulls = Pulls::new(Arc::default());
        let pull = |registry: &str, repo: &str, tag: &str, layers| {
            let image = image_of(registry, repo, layers);
            pulls.resolved(&image.registry, &image.repo, &Reference::Tag(tag.into()), Instant::now());
            pulls.begin(&image);
        };
        let names = |text: &str| pulls.single(text).map(|pull| pull.map(|pull| pull.name()));
        let ambiguous =
            |names: &[&str]| Err(Ambiguous { names: names.iter().map(|name| (*name).to_owned()).collect() });
        let (own, proxied) = ("docker.io/library/alpine:3", "harbor.example/docker.io/library/alpine:3");
        pull("harbor.example", "docker.io/library/alpine", "3", 1);
        assert_eq!(names(own), Ok(None), "it says another registry");
        assert_eq!(names("library/alpine:3"), Ok(Some(proxied.to_owned())));

        pull("docker.io", "library/alpine", "3", 1);
        pull("harbor.example", "docker.io/library/alpine", "3", 2);
        assert_eq!(pulls.of_image(own).unwrap().name(), own);
        assert_eq!((names(own), names(proxied)), (Ok(Some(own.to_owned())), Ok(Some(proxied.to_owned()))));
        assert_eq!(names("docker.io/library/alpine"), Ok(Some(own.to_owned())));
        for ending in ["alpine:3", "alpine", "library/alpine"] {
            assert_eq!(pulls.of_image(ending).unwrap().name(), proxied, "the newest");
            assert_eq!(names(ending), ambiguous(&[proxied, own]), "{ending}");
        }
        pull("docker.io", "library/alpine", "4", 2);
        assert_eq!(names("docker.io/library/alpine"), ambiguous(&["docker.io/library/alpine:4", own]));
        assert_eq!(names("busybox"), Ok(None));
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
