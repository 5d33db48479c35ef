//! The points at which a process that writes may be killed, as the sources name them and as a process reaches them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A directory in memory where there is room for it: for what is about kills and counts, and not about a disk.
pub(crate) fn fast_directory() -> tempfile::TempDir {
    const SHARED: &str = "/dev/shm";
    let roomy = rustix::fs::statvfs(SHARED).is_ok_and(|stat| stat.f_bavail * stat.f_frsize >= 512 << 20);
    if roomy { tempfile::tempdir_in(SHARED).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A point, and how often it was reached.
pub(crate) type Reached = Vec<(String, u32)>;

/// What a process wrote to its `LAPWING_FAILPOINT_LOG`, in the order of the first arrivals.
pub(crate) fn reached(log: &Path) -> Reached {
    let mut reached = Reached::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        match reached.iter_mut().find(|(point, _)| point == line) {
            Some((_, count)) => *count += 1,
            None => reached.push((line.to_owned(), 1)),
        }
    }
    reached
}

/// Where to die, and at which arrival: the first at each point, and one in the middle where there are more.
pub(crate) fn deaths(reached: &Reached) -> Vec<(String, u32)> {
    let both = |(point, count): &(String, u32)| {
        let middle = count.div_ceil(2);
        [Some(1), Some(middle).filter(|&middle| middle > 1)]
            .into_iter()
            .flatten()
            .map(|at| (point.clone(), at))
            .collect()
    };
    reached.iter().flat_map(|reached: &(String, u32)| -> Vec<_> { both(reached) }).collect()
}

/// A point named in the sources. What comes before or after the dot may be a variable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Named {
    Whole(String),
    AnyFile(String),
    AnyStep(String),
}

impl Named {
    pub(crate) fn is(&self, point: &str) -> bool {
        match self {
            Self::Whole(whole) => whole == point,
            Self::AnyFile(step) => point.strip_suffix(step.as_str()).is_some_and(|rest| rest.ends_with('.')),
            Self::AnyStep(file) => point.strip_prefix(file.as_str()).is_some_and(|rest| rest.starts_with('.')),
        }
    }
}

/// Every point that the sources below `src/<part>` name.
pub(crate) fn named(part: &str) -> BTreeSet<Named> {
    let mut named = BTreeSet::new();
    for source in sources(part) {
        for call in production(&source).split("failpoint::reach").skip(1) {
            let literal = |text: &str| text.trim().strip_prefix('"')?.split('"').next().map(str::to_owned);
            let arguments = call.split_once('(').unwrap().1;
            let (first, second) = (literal(arguments), arguments.split_once(',').and_then(|(_, rest)| literal(rest)));
            let half = || Some("half".to_owned());
            let (file, step) = if call.starts_with("_step") { (first, second) } else { (first, half()) };
            named.insert(match (call.starts_with('('), file, step) {
                (true, Some(whole), _) => Named::Whole(whole),
                (false, Some(file), Some(step)) => Named::Whole(format!("{file}.{step}")),
                (false, None, Some(step)) => Named::AnyFile(step),
                (false, Some(file), None) => Named::AnyStep(file),
                _ => panic!("a point without a name in {}", source.display()),
            });
        }
    }
    assert!(!named.is_empty(), "nothing is found below {part}: has it moved?");
    named
}

/// Tests that stand beside the code, and change files as they like.
const SIMULATED: &str = "simulated.rs";

fn sources(part: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = vec![root.join(part).with_extension("rs")];
    if let Ok(entries) = std::fs::read_dir(root.join(part)) {
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let modules = names
            .filter(|name| name != SIMULATED)
            .filter_map(|name| name.strip_suffix(".rs").map(|name| format!("{part}/{name}")));
        sources.extend(modules.flat_map(|module| self::sources(&module)));
    }
    sources
}

/// A source without its tests.
fn production(source: &Path) -> String {
    let text = std::fs::read_to_string(source).unwrap();
    text.split("#[cfg(test)]").next().unwrap().to_owned()
}

/// What changes files: the layer that everything passes.
const LAYER: &str = "changes::";

/// What would change them past it.
const PAST_LAYER: [&str; 11] = [
    ".write_all_at(",
    ".set_len(",
    ".sync_all(",
    ".sync_data(",
    "DirBuilder::new",
    "fs::rename(",
    "fs::remove",
    "fs::write(",
    "File::create",
    "fs::create_dir",
    "fallocate(",
];

/// Functions that go past it: what they make is there before anything else is done, or in memory.
const PAST: [&str; 3] = ["open", "lock", "memory_file"];

/// Functions that change files and may do without a point: whoever calls them names one, or nothing depends on it.
const WITHOUT: [&str; 3] = [
    // The store's own directories, before anything else is done.
    "make_directory",
    // A step of those who call it: each names a point after it.
    "sync_directory",
    "remove",
];

/// The functions below `src/<part>` that change files and name no point, or change them past the layer at which tests look.
pub(crate) fn pointless(part: &str) -> Vec<String> {
    let mut pointless = Vec::new();
    for source in sources(part) {
        let text = production(&source);
        let code: String =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect();
        for function in code.split("fn ").skip(1) {
            let name = function.split(['(', '<']).next().unwrap();
            let quiet = function.contains(LAYER) && !function.contains("failpoint::") && !WITHOUT.contains(&name);
            let past = PAST_LAYER.iter().any(|change| function.contains(change)) && !PAST.contains(&name);
            if quiet || past {
                pointless.push(format!("{name} in {}", source.display()));
            }
        }
    }
    pointless
}
