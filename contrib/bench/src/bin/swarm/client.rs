//! Who pulls: a GET of a blob, read to its end and hashed.

use crate::content::{self, Blob};
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CONNECT: Duration = Duration::from_secs(5);
/// A server that sends nothing for so long has failed the pull.
const SILENCE: Duration = Duration::from_secs(90);
const CHUNK: usize = 256 << 10;
const MAX_HEAD: usize = 16 << 10;

/// What a client is told while it reads, and what it tells.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Bytes of bodies so far.
    pub(crate) read: AtomicU64,
    /// Ends the reading early, without an error.
    pub(crate) stop: AtomicBool,
}

/// GETs `path` in the calling thread's network namespace; an error unless exactly the blob came. `pace` limits the reading, in bytes per second.
pub(crate) fn pull(address: SocketAddr, path: &str, blob: &Blob, pace: Option<f64>, watch: &Watch) -> Result<()> {
    let mut stream =
        TcpStream::connect_timeout(&address, CONNECT).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(SILENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    head(&mut stream, blob.length)?;
    let begun = Instant::now();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut read = 0;
    while read < blob.length {
        if watch.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let length = stream.read(&mut buffer).with_context(|| format!("after {read} of {} bytes", blob.length))?;
        ensure!(length > 0, "the answer ended after {read} of {} bytes", blob.length);
        hasher.update(&buffer[..length]);
        read += length as u64;
        watch.read.fetch_add(length as u64, Ordering::Relaxed);
        if let Some(pace) = pace {
            let due = Duration::from_secs_f64(read as f64 / pace);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
    }
    let found = content::digest(hasher);
    ensure!(found == blob.digest, "the bytes have the digest {found} and not {}", blob.digest);
    Ok(())
}

/// Reads the head of an answer and checks that a body of `length` bytes follows.
fn head(stream: &mut TcpStream, length: u64) -> Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < MAX_HEAD && stream.read(&mut byte)? > 0, "no complete head in {} bytes", head.len());
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let stated = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<u64>().ok())?
    });
    if head.starts_with("HTTP/1.1 200") && stated == Some(length) {
        return Ok(());
    }
    let mut body = String::new();
    // Only to say more.
    let _ = stream.take(MAX_HEAD as u64).read_to_string(&mut body);
    bail!("no {length} bytes were answered: {} {body}", head.lines().next().unwrap_or_default())
}
