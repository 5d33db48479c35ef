//! Builds the laboratory's images into the cache and tells where they are and how large.

use anyhow::Result;
use lapwing_lab::image;
use std::io::Write;

fn main() -> Result<()> {
    let mut out = std::io::stdout();
    for (name, build) in [("pause", image::pause as fn() -> _), ("small", image::small), ("real", image::real)] {
        let built = build()?;
        writeln!(
            out,
            "{name}: {} bytes in {} layers, {}",
            built.compressed_bytes(),
            built.layers.len(),
            built.dir.display()
        )?;
    }
    Ok(())
}
