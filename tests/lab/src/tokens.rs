//! A registry that wants tokens: a gate before the real one, which gives tokens of any life to whoever has the password, counts them, and can
//! take all of them back in the middle of a pull.
//!
//! Challenge and answer are those of distribution's "Token Authentication Specification"; a token is good for every repository.

use crate::host::Host;
use crate::registry::Registry;
use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PORT: u16 = 5001;
const REGISTRY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5000);
const IO: Duration = Duration::from_secs(60);
/// Longest request that is read, in bytes.
const MAX_REQUEST: u64 = 16 << 10;
/// `BASIC_USER:BASIC_PASSWORD` in base64, as an `Authorization` of the scheme Basic and a docker `config.json` hold it.
pub const BASIC_AUTH: &str = "bGFwd2luZzpsYXB3aW5nLXRlc3Q=";

/// A running gate; dropping it ends it.
pub struct TokenGate {
    host: Host,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

struct Shared {
    name: String,
    lifetime: Duration,
    /// Whether tokens tell when they expire.
    telling: bool,
    ended: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// When the good ones expire.
    tokens: HashMap<String, Instant>,
    issued: u64,
    refused: u64,
    /// Blobs, or ranges of blobs, that are still given before all tokens are taken back.
    before_revoking: Option<u64>,
    /// Requests refused when all were taken back.
    revoked: Option<u64>,
    /// Whether a request has come with a token that was given since.
    renewed: bool,
}

impl TokenGate {
    /// Starts a gate on the host of `registry`, by plain HTTP; its tokens live for `lifetime`, and only the gate knows how long.
    pub fn start(registry: &Registry, lifetime: Duration) -> Result<Self> {
        Self::serve(registry, lifetime, false)
    }

    /// The same with tokens that tell when they expire.
    pub fn start_telling(registry: &Registry, lifetime: Duration) -> Result<Self> {
        Self::serve(registry, lifetime, true)
    }

    fn serve(registry: &Registry, lifetime: Duration, telling: bool) -> Result<Self> {
        let host = registry.host().clone();
        let name = format!("{}.lab:{PORT}", host.name());
        let listener = host.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("binding the gate"))?;
        let shared = Arc::new(Shared {
            name,
            lifetime,
            telling,
            ended: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let (thread_host, thread_shared) = (host.clone(), shared.clone());
        let thread = std::thread::spawn(move || thread_host.within(|| thread_shared.serve(&listener)));
        Ok(Self { host, shared, thread: Some(thread) })
    }

    /// The registry's name in image references, by way of the gate.
    pub fn name(&self) -> String {
        self.shared.name.clone()
    }

    /// How many tokens it has given.
    pub fn issued(&self) -> u64 {
        self.shared.state().issued
    }

    /// How many requests came with a token that was not good any more.
    pub fn refused(&self) -> u64 {
        self.shared.state().refused
    }

    /// Whether no token is good any more.
    pub fn all_expired(&self) -> bool {
        let now = Instant::now();
        self.shared.state().tokens.values().all(|&expires| expires <= now)
    }

    /// Takes all tokens back once that many more blobs, or ranges of blobs, were asked for. Of the first two requests that come with one
    /// of them then, the one hears of it when the other has come, and the other when a request has come with a new one.
    pub fn revoke_after(&self, requests: u64) {
        self.shared.state().before_revoking = Some(requests);
    }
}

impl Drop for TokenGate {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = self.host.within(|| TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).map_err(Into::into));
        if let Some(Ok(Err(error))) = self.thread.take().map(std::thread::JoinHandle::join) {
            eprintln!("the gate before the registry: {error:#}");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each connection has its own thread, and ends after one answer.
    fn serve(self: &Arc<Self>, listener: &TcpListener) -> Result<()> {
        loop {
            let (client, _) = listener.accept().context("accepting")?;
            if self.ended.load(Ordering::SeqCst) {
                return Ok(());
            }
            let shared = self.clone();
            // A client that goes away in the middle is no error of the gate's.
            std::thread::spawn(move || drop(shared.answer(client)));
        }
    }

    fn answer(&self, mut client: TcpStream) -> Result<()> {
        client.set_read_timeout(Some(IO))?;
        client.set_write_timeout(Some(IO))?;
        let mut reader = BufReader::new(client.try_clone()?.take(MAX_REQUEST));
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let (mut headers, mut authorization, mut body) = (String::new(), None, 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => authorization = Some(value.trim().to_owned()),
                "connection" => {}
                "content-length" => body = value.trim().parse()?,
                _ => headers.push_str(&line),
            }
        }
        // To the end: closing over what nobody has read would reset the connection, and the answer with it.
        std::io::copy(&mut reader.take(body), &mut std::io::sink())?;
        let path = request.split(' ').nth(1).context("no request line")?;
        if path.starts_with("/token") {
            return self.issue(&mut client, authorization.as_deref());
        }
        if !self.admits(path, authorization.as_deref()) {
            return self.challenge(&mut client);
        }
        let mut registry = TcpStream::connect(REGISTRY)?;
        registry.write_all(format!("{request}{headers}Connection: close\r\n\r\n").as_bytes())?;
        std::io::copy(&mut registry, &mut client)?;
        Ok(())
    }

    fn issue(&self, client: &mut TcpStream, authorization: Option<&str>) -> Result<()> {
        if authorization.and_then(|value| value.strip_prefix("Basic ")) != Some(BASIC_AUTH) {
            return reply(client, "401 Unauthorized", "", "{}");
        }
        let token = {
            let mut state = self.state();
            state.issued += 1;
            let token = match self.telling {
                true => jwt(state.issued, self.lifetime),
                false => format!("token-{}", state.issued),
            };
            state.tokens.insert(token.clone(), Instant::now() + self.lifetime);
            token
        };
        let seconds = self.lifetime.as_secs();
        reply(client, "200 OK", "", &format!(r#"{{"token":"{token}","expires_in":{seconds}}}"#))
    }

    fn admits(&self, path: &str, authorization: Option<&str>) -> bool {
        let mut state = self.state();
        if path.contains("/blobs/") {
            match &mut state.before_revoking {
                Some(0) => {
                    state.before_revoking = None;
                    state.revoked = Some(state.refused);
                    state.tokens.clear();
                }
                Some(left) => *left -= 1,
                None => {}
            }
        }
        let Some(token) = authorization.and_then(|value| value.strip_prefix("Bearer ")) else { return false };
        let good = state.tokens.get(token).is_some_and(|&expires| expires > Instant::now());
        state.refused += u64::from(!good);
        let nth = state.revoked.map_or(0, |refused| state.refused - refused);
        state.renewed |= good && state.revoked.is_some();
        self.changed.notify_all();
        if let (false, Some(refused)) = (good, state.revoked) {
            let waits = |state: &mut State| match nth {
                1 => state.refused - refused < 2,
                2 => !state.renewed,
                _ => false,
            };
            drop(self.changed.wait_timeout_while(state, IO, waits));
        }
        good
    }

    fn challenge(&self, client: &mut TcpStream) -> Result<()> {
        let realm = format!("http://{}/token", self.name);
        let header = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"lab\"\r\n");
        reply(client, "401 Unauthorized", &header, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
    }
}

/// A token that tells when it expires, as those of most registries do (RFC 7519), to the second.
fn jwt(number: u64, lifetime: Duration) -> String {
    let expires = (SystemTime::now() + lifetime).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"iss":"lab","jti":"{number}","exp":{expires}}}"#));
    format!("e30.{claims}.{}", URL_SAFE_NO_PAD.encode(format!("signature of token {number}")))
}

fn reply(client: &mut TcpStream, status: &str, header: &str, body: &str) -> Result<()> {
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n{header}\r\n{body}"
    );
    client.write_all(answer.as_bytes()).map_err(Into::into)
}
