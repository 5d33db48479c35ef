//! Pushing one blob without an image around it: "POST then PUT" of the distribution specification.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Longest head of an answer that is read, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Pushes `length` bytes of `content` to the registry at `address`.
pub(super) fn push(
    address: SocketAddr,
    repository: &str,
    digest: &str,
    length: u64,
    mut content: impl Read,
) -> Result<()> {
    let mut stream = TcpStream::connect(address).context("connecting to the registry")?;
    write!(stream, "POST /v2/{repository}/blobs/uploads/ HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n")?;
    let head = head(&mut stream)?;
    let location = header(&head, "location").with_context(|| format!("the registry opened no upload: {head}"))?;
    let path = location.split_once("://").map_or(location, |(_, rest)| &rest[rest.find('/').unwrap_or(rest.len())..]);
    let join = if path.contains('?') { '&' } else { '?' };
    write!(
        stream,
        "PUT {path}{join}digest={digest} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )?;
    let sent = std::io::copy(&mut content, &mut stream).context("sending the blob")?;
    if sent != length {
        bail!("the blob has {sent} bytes and not {length}");
    }
    let head = self::head(&mut stream)?;
    if !head.starts_with("HTTP/1.1 201") {
        bail!("the registry did not take {digest}: {head}");
    }
    Ok(())
}

/// Pushes a manifest.
pub(super) fn push_manifest(
    address: SocketAddr,
    repository: &str,
    reference: &str,
    media_type: &str,
    manifest: &[u8],
) -> Result<()> {
    let mut stream = TcpStream::connect(address).context("connecting to the registry")?;
    write!(
        stream,
        "PUT /v2/{repository}/manifests/{reference} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Length: {}\r\nContent-Type: {media_type}\r\n\r\n",
        manifest.len()
    )?;
    stream.write_all(manifest)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 201") {
        bail!("the registry did not take the manifest {reference}: {answer}");
    }
    Ok(())
}

/// The head of an answer without body.
fn head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD || stream.read(&mut byte)? == 0 {
            bail!("no complete head in {} bytes", head.len());
        }
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
