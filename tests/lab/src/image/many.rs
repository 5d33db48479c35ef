//! An image of many layers.

use super::layout::{ImageConfig, Layout, LayoutWriter};
use super::tar::{Entry, EntryKind, TarWriter};
use anyhow::Result;
use std::path::Path;

/// An image in `dir` of that many layers with so many small files each, named as a language's libraries are.
pub fn many_layers(dir: &Path, layers: usize, files: usize) -> Result<Layout> {
    let mut image = LayoutWriter::new(dir)?;
    for layer in 0..layers {
        image.layer(|out| {
            let mut tar = TarWriter::new(out);
            for file in 0..files {
                let path = format!("usr/lib/python3/dist-packages/package-{layer:03}/module_{file:03}/__init__.py");
                let content = format!("{layer} {file}\n").repeat(30);
                tar.add(&Entry::new(path.as_bytes(), EntryKind::File(content.as_bytes())))?;
            }
            tar.finish().map(drop)
        })?;
    }
    image.finish(&ImageConfig { cmd: &["/bin/true"], working_dir: "/", ..ImageConfig::default() })
}
