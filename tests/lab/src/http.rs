//! As much of an HTTP client as readiness checks and metrics need: one GET, one answer, connection closed.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(2);
const IO: Duration = Duration::from_secs(60);

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The head, status line included, as it came.
    pub head: String,
    /// The body; as it came when the server chose to send it in chunks.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// GET `path` from `address` in the calling thread's network namespace; `headers` are lines without their ending.
/// HTTP/1.0 is spoken, so that the body comes unchunked and ends with the connection.
pub fn http_get(address: SocketAddr, path: &str, headers: &[&str]) -> Result<Response> {
    let mut stream =
        TcpStream::connect_timeout(&address, CONNECT).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(IO))?;
    stream.set_write_timeout(Some(IO))?;
    let mut request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("reading http://{address}{path}"))?;
    parse(&answer).with_context(|| format!("the answer to http://{address}{path}"))
}

fn parse(answer: &[u8]) -> Result<Response> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        bail!("no complete head in {} bytes", answer.len());
    };
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status code")?;
    Ok(Response { status, head, body: answer[end + 4..].to_vec() })
}
