//! The image of CRI's sandbox container: one static program that waits for ever.

use super::layout::{ImageConfig, Layout, LayoutWriter};
use super::small::busybox;
use super::tar::{Entry, EntryKind, TarWriter};
use crate::cache::built_once;
use anyhow::Result;

/// The pause image.
pub fn pause() -> Result<Layout> {
    let busybox = busybox()?;
    let sources: [&[u8]; 3] = [include_bytes!("pause.rs"), include_bytes!("tar.rs"), include_bytes!("layout.rs")];
    let key = super::recipe_key("pause", &[&[&busybox[..]], &sources[..]].concat());
    let dir = built_once("images", &key, |dir| {
        let mut image = LayoutWriter::new(dir)?;
        image.layer(|out| {
            let mut tar = TarWriter::new(out);
            tar.add(&Entry::new(b"bin/", EntryKind::Directory))?;
            tar.add(&Entry::new(b"bin/sleep", EntryKind::File(&busybox)).mode(0o755))?;
            tar.finish().map(drop)
        })?;
        let config =
            ImageConfig { entrypoint: &["/bin/sleep"], cmd: &["2147483647"], env: &["PATH=/bin"], working_dir: "/" };
        image.finish(&config).map(drop)
    })?;
    Layout::open(&dir)
}
