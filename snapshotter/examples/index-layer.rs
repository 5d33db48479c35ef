//! Builds the index of a layer in a file and prints how large it is and how much processor time it took against plain inflating.
//!
//! `cargo run --release -p lapwing-snapshotter --example index-layer -- layer.tar.gz`
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::{Read as _, copy, sink};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::{Compression, Index, IndexBuilder};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: index-layer FILE")?;
    let mut layer = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut layer)?;
    let digest = Digest::of(&layer);

    let start = processor_time()?;
    let mut builder = IndexBuilder::new(digest, layer.len() as u64);
    for portion in layer.chunks(1 << 20) {
        builder.push(portion)?;
    }
    let index = builder.finish()?;
    let build_time = processor_time()? - start;
    let encoded = index.encode();
    println!("layer {digest}: {} bytes, {:?}, tar {} bytes", layer.len(), index.compression(), index.tar_length());
    println!("{} entries, {} spans", index.entries().len(), index.spans().len());
    println!("index {}: {} bytes", Digest::of(&encoded), encoded.len());
    println!("that is {:.3} % of the layer", encoded.len() as f64 * 100.0 / layer.len() as f64);
    let megabytes = index.tar_length() as f64 / 1e6;
    println!("build {build_time:.2?}: {:.0} MB/s of output", megabytes / build_time.as_secs_f64());
    if index.compression() == Compression::Gzip {
        let start = processor_time()?;
        copy(&mut MultiGzDecoder::new(&layer[..]), &mut sink())?;
        let inflate_time = processor_time()? - start;
        println!("plain inflate {inflate_time:.2?}: {:.0} MB/s", megabytes / inflate_time.as_secs_f64());
    }
    let start = processor_time()?;
    let decoded = Index::decode(&encoded)?;
    println!("decode {:.2?}", processor_time()? - start);
    let start = processor_time()?;
    for (number, span) in decoded.spans().iter().enumerate() {
        decoded.inflate_span(number, &layer[span.compressed.start as usize..span.compressed.end as usize])?;
    }
    let spans_time = processor_time()? - start;
    println!("all spans, one by one {spans_time:.2?}: {:.0} MB/s", megabytes / spans_time.as_secs_f64());
    Ok(())
}

/// Time that this thread has run, whatever else the machine does (Documentation/scheduler/sched-stats.rst).
fn processor_time() -> Result<Duration, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split(' ').next().ok_or("schedstat is empty")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}
