//! What was written, so that it can be taken back.
//!
//! Beside the configuration file lies a directory, `<file>.lapwing`, with a copy of each file as it was before Lapwing first touched it, and
//! `record.json`. Copies and record are on disk before the first file changes: whenever a run dies, [`undo`] knows each file either as it was
//! or as it was to be. A file that somebody else changed since is never overwritten by [`undo`]; then nothing at all is.

use std::path::{Path, PathBuf};

use lapwing_p2p::digest::Digest;
use serde::{Deserialize, Serialize};

use super::error::SetupError;
use super::files::{Access, missing_parents, replace, sync_parent};
use super::plan::{Change, Plan};

const RECORD: &str = "record.json";
const NEW_FILE_MODE: u32 = 0o644;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    files: Vec<Entry>,
    /// Directories that were made, outermost first.
    directories: Vec<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    /// `None`: it was not there.
    before: Option<String>,
    after: String,
    access: Access,
    /// Names of copies. A second one is of a file that somebody changed between two runs: what is then Lapwing's and what is not,
    /// nobody can tell.
    copies: Vec<String>,
}

/// Where the record of the configuration at `config` lies.
pub(super) fn directory(config: &Path) -> PathBuf {
    let mut name = config.as_os_str().to_owned();
    name.push(".lapwing");
    name.into()
}

/// Writes what is planned. The configuration is that at `config`.
pub(super) fn apply(config: &Path, plan: &Plan) -> Result<(), SetupError> {
    let dir = directory(config);
    let mut record = load(&dir)?.unwrap_or_default();
    for change in &plan.changes {
        for missing in missing_parents(&change.path).into_iter().chain(missing_parents(&dir)) {
            if !record.directories.contains(&missing) {
                record.directories.push(missing);
            }
        }
    }
    std::fs::create_dir_all(&dir).map_err(|error| SetupError::file(&dir, error))?;
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .map_err(|error| SetupError::file(&dir, error))?;
    for change in &plan.changes {
        record.note(&dir, change)?;
    }
    let text = serde_json::to_vec_pretty(&record).map_err(|error| SetupError::file(&dir, error))?;
    replace(&dir.join(RECORD), &text, Access::own(0o600))?;
    for change in &plan.changes {
        let parent = change.path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent).map_err(|error| SetupError::file(parent, error))?;
        let access = if change.before.is_some() { Access::of(&change.path)? } else { Access::own(NEW_FILE_MODE) };
        replace(&change.path, change.after.as_bytes(), access)?;
    }
    Ok(())
}

impl Record {
    /// Takes up a change that is about to be made.
    fn note(&mut self, dir: &Path, change: &Change) -> Result<(), SetupError> {
        let now = change.before.as_ref().map(|text| digest(text.as_bytes()));
        let after = digest(change.after.as_bytes());
        let number = self.files.iter().map(|entry| entry.copies.len()).sum::<usize>();
        let keep = |text: &Option<String>| {
            let Some(text) = text else { return Ok(None) };
            let name = format!("{number}-{}", change.path.file_name().unwrap_or_default().to_string_lossy());
            replace(&dir.join(&name), text.as_bytes(), Access::own(0o600))?;
            Ok::<_, SetupError>(Some(name))
        };
        if let Some(entry) = self.files.iter_mut().find(|entry| entry.path == change.path) {
            if now != entry.before && now.as_ref() != Some(&entry.after) {
                entry.copies.extend(keep(&change.before)?);
            }
            entry.after = after;
            return Ok(());
        }
        let copies = keep(&change.before)?.into_iter().collect();
        let access = if now.is_some() { Access::of(&change.path)? } else { Access::own(NEW_FILE_MODE) };
        self.files.push(Entry { path: change.path.clone(), before: now, after, access, copies });
        Ok(())
    }
}

/// Gives every file back as it was before the first run, and says which they are.
pub(super) fn undo(config: &Path) -> Result<Vec<PathBuf>, SetupError> {
    let dir = directory(config);
    let record = load(&dir)?.ok_or_else(|| SetupError::NoRecord(config.to_owned()))?;
    let mut restored = Vec::new();
    for entry in &record.files {
        if let Some(content) = entry.to_restore(&dir)? {
            restored.push((entry, content));
        }
    }
    for (entry, content) in &restored {
        match content {
            Some(content) => replace(&entry.path, content, entry.access)?,
            None => {
                std::fs::remove_file(&entry.path).map_err(|error| SetupError::file(&entry.path, error))?;
                sync_parent(&entry.path)?;
            }
        }
    }
    std::fs::remove_dir_all(&dir).map_err(|error| SetupError::file(&dir, error))?;
    for made in record.directories.iter().rev() {
        // One that somebody put something into stays.
        let _ = std::fs::remove_dir(made);
    }
    Ok(restored.into_iter().map(|(entry, _)| entry.path.clone()).collect())
}

impl Entry {
    /// What the file is to hold again, `Some(None)` if it was not there; `None` if it is as it was.
    fn to_restore(&self, dir: &Path) -> Result<Option<Option<Vec<u8>>>, SetupError> {
        let now = match std::fs::read(&self.path) {
            Ok(content) => Some(digest(&content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(SetupError::file(&self.path, error)),
        };
        let edited_between = self.copies.len() > usize::from(self.before.is_some());
        if now == self.before && !edited_between {
            return Ok(None);
        }
        let copy = self.before.as_ref().and(self.copies.first()).map(|name| dir.join(name));
        if now.as_ref() != Some(&self.after) || edited_between {
            let before = copy.unwrap_or_else(|| "nothing: it was not there".into());
            return Err(SetupError::ChangedSince { path: self.path.clone(), before });
        }
        let Some(copy) = copy else { return Ok(Some(None)) };
        let content = std::fs::read(&copy).map_err(|error| SetupError::file(&copy, error))?;
        if Some(digest(&content)) != self.before {
            return Err(SetupError::file(&copy, "this copy is not what it was: the file cannot be given back from it"));
        }
        Ok(Some(Some(content)))
    }
}

fn digest(content: &[u8]) -> String {
    Digest::of(content).to_string()
}

fn load(dir: &Path) -> Result<Option<Record>, SetupError> {
    let file = dir.join(RECORD);
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SetupError::file(&file, error)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| SetupError::file(&file, error))
}

#[cfg(test)]
mod tests;
