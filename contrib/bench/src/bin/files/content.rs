//! The files that are read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Length of the one large file, in bytes.
pub(crate) const LARGE_BYTES: usize = 256 << 20;
const SMALL: usize = 20_000;
const IN_DIRECTORY: usize = 100;
/// Longest small file, in bytes.
const SMALL_BYTES: usize = 8192;
/// Length of the program that is executed, in bytes: most of it is never touched, as of any large program.
const PROGRAM_BYTES: u64 = 64 << 20;

/// The files, by their paths below the root.
pub(crate) struct Content {
    pub(crate) directory: PathBuf,
    pub(crate) large: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) small: Vec<PathBuf>,
    pub(crate) directories: Vec<PathBuf>,
}

impl Content {
    /// Writes them: half noise, half zeros, as compressible as programs are.
    pub(crate) fn make(directory: &Path) -> anyhow::Result<Self> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut noise = vec![0; 1 << 20];
        fs::create_dir_all(directory)?;
        let mut large = Vec::with_capacity(LARGE_BYTES);
        while large.len() < LARGE_BYTES {
            random.fill(&mut noise[..4096]);
            noise[4096..8192].fill(0);
            large.extend_from_slice(&noise[..8192]);
        }
        fs::write(directory.join("large"), &large)?;
        let program = directory.join("program");
        fs::copy("/bin/true", &program).context("/bin/true")?;
        let file = fs::File::options().write(true).open(&program)?;
        std::os::unix::fs::FileExt::write_all_at(&file, &large[..1 << 20], PROGRAM_BYTES)?;
        let (mut small, mut directories) = (Vec::new(), Vec::new());
        for number in 0..SMALL {
            let parent = PathBuf::from(format!("d{:03}", number / IN_DIRECTORY));
            if number % IN_DIRECTORY == 0 {
                fs::create_dir(directory.join(&parent))?;
                directories.push(parent.clone());
            }
            let path = parent.join(format!("file-{number}.py"));
            let at = random.usize(..LARGE_BYTES - SMALL_BYTES);
            fs::write(directory.join(&path), &large[at..at + random.usize(200..SMALL_BYTES)])?;
            small.push(path);
        }
        // In no order, as programs open them.
        random.shuffle(&mut small);
        let [large, program] = ["large", "program"].map(PathBuf::from);
        Ok(Self { directory: directory.to_owned(), large, program, small, directories })
    }
}
