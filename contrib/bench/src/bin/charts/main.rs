//! `make bench-charts`: puts what `make bench-peers` and `make bench-lazy` wrote into `docs/benchmarks.md`, as tables between the marks that stand there for
//! each, and as charts in `docs/pictures/`.

mod svg;
mod tables;

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

const DOCUMENT: &str = "docs/benchmarks.md";
const CHARTS: &str = "docs/pictures";

fn main() -> Result<()> {
    let mut document = std::fs::read_to_string(DOCUMENT).with_context(|| format!("no {DOCUMENT}"))?;
    if let Some(peers) = read("target/bench/peers.json")? {
        for (mark, text) in [
            ("machine", tables::machine(&peers)),
            ("pulls", tables::pulls(&peers)),
            ("costs", tables::costs(&peers)),
            ("files", tables::files(&peers)),
            ("private", tables::private(&peers)),
            ("failures", tables::failures(&peers)),
        ] {
            document = put(&document, mark, &text)?;
        }
        write_chart(
            "peers-pulls.svg",
            &svg::bars("Seconds until the last worker has the image", &tables::last(&peers)),
        )?;
    }
    if let Some(lazy) = read("target/bench/lazy.json")? {
        document = put(&document, "lazy", &tables::lazy(&lazy))?;
        write_chart(
            "peers-lazy.svg",
            &svg::bars("Seconds from the pull until the container is ready", &tables::ready(&lazy)),
        )?;
    }
    std::fs::write(DOCUMENT, document).with_context(|| format!("cannot write {DOCUMENT}"))
}

fn read(file: &str) -> Result<Option<Value>> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{file} is no JSON"))?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("{file} is not there: what it is for stays as it is");
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {file}")),
    }
}

/// The document with `text` between the marks of that name.
fn put(document: &str, mark: &str, text: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- end of {mark} -->"));
    let missing = || format!("{DOCUMENT} has no marks for {mark}");
    let (before, rest) = document.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    Ok(format!("{before}{begin}\n{}\n\n{end}{after}", text.trim()))
}

fn write_chart(name: &str, chart: &str) -> Result<()> {
    std::fs::write(Path::new(CHARTS).join(name), chart).with_context(|| format!("cannot write {CHARTS}/{name}"))
}
