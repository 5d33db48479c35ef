//! Builds the laboratory's images into the cache and tells where they are and how large: those that tests and demo pull, or those that are named.

use anyhow::Result;
use lapwing_lab::image;
use std::io::Write;

fn main() -> Result<()> {
    let mut out = std::io::stdout();
    let names: Vec<String> = std::env::args().skip(1).collect();
    let of_tests = [("pause", image::pause as fn() -> _), ("small", image::small), ("real", image::real)];
    let all = of_tests.into_iter().chain([("service", image::service as fn() -> _), ("learning", image::learning)]);
    let wanted = |name: &str| match names.is_empty() {
        true => of_tests.iter().any(|(of_tests, _)| *of_tests == name),
        false => names.iter().any(|wanted| wanted == name),
    };
    for (name, build) in all.filter(|(name, _)| wanted(name)) {
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
