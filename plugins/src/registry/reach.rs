//! Whether a registry can be reached at all: found out by a plain TCP connection before a client's request waits for it.
//!
//! A registry that is unplugged does not refuse connections, it swallows them, and a client of the mirror that waited for the
//! connection's own timeout would be sent on seconds late, at each of its requests. So whoever asks on behalf of such a client
//! knocks first, unless the registry was heard from just now. One lost packet must not count as an outage: each address
//! is tried twice, the second time before the kernel would send its first again (after 1 s, RFC 6298). Who was silent a moment ago is
//! asked again by everybody who comes, but not waited for as long, and hardly at all in the second after it swallowed connections,
//! in which the other requests of the same pull come: one that is back is found at once.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::Url;
use tokio::net::TcpStream;

use super::address::is_public;
use super::client::Route;
use crate::limits::MAX_KNOCKED_ADDRESSES;

/// How long a sign of life is believed.
const HEARD_FOR: Duration = Duration::from_secs(60);
/// How long its name may take to become addresses.
const LOOKUP: Duration = Duration::from_millis(900);
/// How long somebody may take to open.
const PATIENCE: Duration = Duration::from_millis(600);
/// How long one may take who did not in the last [`SILENT_FOR`].
const LITTLE_PATIENCE: Duration = Duration::from_millis(250);
const SILENT_FOR: Duration = Duration::from_secs(30);
/// How long one may take who opened to nobody in the last [`JUST_SILENT_FOR`]: enough for one that is near, and is back.
const LEAST_PATIENCE: Duration = Duration::from_millis(50);
const JUST_SILENT_FOR: Duration = Duration::from_secs(1);
/// When it is knocked again.
const AGAIN: Duration = Duration::from_millis(300);

/// What is known of one registry.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    state: Mutex<State>,
    /// Held by who knocks: the others wait for what comes of it.
    knocking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    heard: Option<Instant>,
    silent: Option<Silent>,
}

/// Nobody opened.
#[derive(Debug, Clone)]
struct Silent {
    at: Instant,
    why: String,
    /// When it was last waited for longer than [`LEAST_PATIENCE`], if nobody refused, either.
    swallowed: Option<Instant>,
}

impl Silent {
    fn patience(&self) -> Duration {
        match self.swallowed {
            Some(at) if at.elapsed() < JUST_SILENT_FOR => LEAST_PATIENCE,
            _ if self.at.elapsed() < SILENT_FOR => LITTLE_PATIENCE,
            _ => PATIENCE,
        }
    }
}

impl Reach {
    /// The registry answered, whatever it said.
    pub(crate) fn heard(&self) {
        *self.state() = State { heard: Some(Instant::now()), silent: None };
    }

    /// A connection failed: the next asker knocks.
    pub(crate) fn doubt(&self) {
        self.state().heard = None;
    }

    /// Returns at once when the registry was heard from lately; else knocks.
    pub(crate) async fn check(&self, base: &Url, route: Route) -> Result<(), String> {
        if self.was_heard() {
            return Ok(());
        }
        let began = Instant::now();
        let _knocking = self.knocking.lock().await;
        if self.was_heard() {
            return Ok(());
        }
        let silent = self.state().silent.clone();
        let patience = match silent {
            // Somebody else knocked in vain meanwhile.
            Some(Silent { at, why, .. }) if at >= began => return Err(why),
            Some(ref silent) => silent.patience(),
            None => PATIENCE,
        };
        let knocked = knock(base, route, patience).await;
        let now = Instant::now();
        match &knocked {
            Ok(()) => self.heard(),
            Err(Unopened { why, swallowed }) => {
                tracing::warn!(registry = base.host_str(), reason = why, "registry cannot be reached");
                let swallowed = match silent {
                    _ if !swallowed => None,
                    Some(silent) if patience == LEAST_PATIENCE => silent.swallowed,
                    _ => Some(now),
                };
                *self.state() = State { heard: None, silent: Some(Silent { at: now, why: why.clone(), swallowed }) };
            }
        }
        knocked.map_err(|unopened| unopened.why)
    }

    fn was_heard(&self) -> bool {
        self.state().heard.is_some_and(|at| at.elapsed() < HEARD_FOR)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no connection.
struct Unopened {
    why: String,
    /// Nobody said so.
    swallowed: bool,
}

/// Whether any of the host's addresses takes a connection.
async fn knock(base: &Url, route: Route, patience: Duration) -> Result<(), Unopened> {
    let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let silence = |why| Unopened { why, swallowed: true };
    let lookup = if patience == PATIENCE { LOOKUP } else { patience };
    let found = tokio::time::timeout(lookup, addresses(host, base.port_or_known_default().unwrap_or(443), route)).await;
    let addresses = found.map_err(|_| silence(format!("{host} has no address within {lookup:?}")))??;
    let opened = tokio::time::timeout(patience, open_any(addresses)).await;
    opened.map_err(|_| silence(format!("nothing opens a connection within {patience:?}")))?
}

/// Those that may be reached: at least one.
async fn addresses(host: &str, port: u16, route: Route) -> Result<Vec<SocketAddr>, Unopened> {
    let answer = |why| Unopened { why, swallowed: false };
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| answer(format!("{host}: {error}")))?;
    let may = |address: &SocketAddr| route == Route::Listed || is_public(address.ip());
    let addresses: Vec<SocketAddr> = found.filter(may).take(MAX_KNOCKED_ADDRESSES).collect();
    if addresses.is_empty() {
        return Err(answer(format!("{host} has no address that may be reached")));
    }
    Ok(addresses)
}

async fn open_any(addresses: Vec<SocketAddr>) -> Result<(), Unopened> {
    let try_after = |address: SocketAddr, delay: Duration| async move {
        tokio::time::sleep(delay).await;
        TcpStream::connect(address).await.map(drop).map_err(|error| format!("{address}: {error}"))
    };
    let mut tries: FuturesUnordered<_> = addresses
        .into_iter()
        .flat_map(|address| [try_after(address, Duration::ZERO), try_after(address, AGAIN)])
        .collect();
    let mut why = String::new();
    while let Some(tried) = tries.next().await {
        match tried {
            Ok(()) => return Ok(()),
            Err(error) => why = error,
        }
    }
    Err(Unopened { why, swallowed: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(address: SocketAddr) -> Url {
        Url::parse(&format!("http://{address}/")).unwrap()
    }

    #[tokio::test]
    async fn who_was_heard_from_is_not_asked_and_who_is_back_is_found_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = url(listener.local_addr().unwrap());
        let reach = Reach::default();
        reach.check(&base, Route::Listed).await.unwrap();
        listener.accept().await.unwrap();
        drop(listener);
        reach.check(&base, Route::Listed).await.unwrap();
        reach.doubt();
        let reason = reach.check(&base, Route::Listed).await.unwrap_err();
        assert!(reason.contains("refused"), "{reason}");

        let listener = tokio::net::TcpListener::bind(base.socket_addrs(|| None).unwrap()[0]).await.unwrap();
        reach.check(&base, Route::Listed).await.unwrap();
        drop(listener);
    }

    #[tokio::test]
    async fn those_who_come_together_wait_for_one_knock() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = url(listener.local_addr().unwrap());
        let reach = Reach::default();
        let all = (0..20).map(|_| reach.check(&base, Route::Listed));
        assert!(futures_util::future::join_all(all).await.iter().all(Result::is_ok));
        listener.accept().await.unwrap();
        let second = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(second.is_err(), "a second connection came");
    }

    #[tokio::test]
    async fn nobody_is_knocked_at_whom_the_route_does_not_lead_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = url(listener.local_addr().unwrap());
        let reason = Reach::default().check(&base, Route::Public).await.unwrap_err();
        assert!(reason.contains("no address that may be reached"), "{reason}");
        let accepted = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(accepted.is_err(), "a connection came");
    }

    /// A full backlog swallows connections as an unplugged host does.
    #[tokio::test]
    async fn a_host_that_swallows_connections_is_given_up_soon() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        for _ in 0..8 {
            let connecting = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address));
            let Ok(Ok(stream)) = connecting.await else { break };
            queued.push(stream);
        }
        assert!(queued.len() < 8, "the backlog never fills");
        let (reach, base) = (Reach::default(), url(address));
        let reason = reach.check(&base, Route::Listed).await.unwrap_err();
        assert!(reason.contains("nothing opens"), "{reason}");
        // The same pull's next requests hardly wait, and put off nothing.
        let waited = || reach.state().silent.clone().unwrap().patience();
        let swallowed = || reach.state().silent.clone().unwrap().swallowed.unwrap();
        let first = swallowed();
        assert_eq!(waited(), LEAST_PATIENCE);
        reach.check(&base, Route::Listed).await.unwrap_err();
        assert_eq!(swallowed(), first);
        tokio::time::sleep(JUST_SILENT_FOR).await;
        assert_eq!(waited(), LITTLE_PATIENCE);
        reach.check(&base, Route::Listed).await.unwrap_err();
        assert!(swallowed() > first);

        // It answers again.
        drop(queued);
        while tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_ok() {}
        reach.check(&base, Route::Listed).await.unwrap();
    }
}
