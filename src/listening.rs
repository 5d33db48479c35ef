//! A listener for HTTP/1.1 whose clients are bounded: so many at once, each of whom says soon what it wants and takes what it gets.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::idle::Idle;
use crate::limits::{ACCEPT_PAUSE, MAX_HEAD_BYTES, MAX_HEADERS, MAX_SILENCE};

/// Said to who comes when there are as many as there may be; closing without a word would look like a network's fault.
pub(crate) const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// What the clients of one listener are held to, beside what all are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Most of them at once.
    pub(crate) connections: usize,
    /// How long the head of a request may take, counted from the end of the answer before it.
    pub(crate) head: Duration,
    /// How long answers may go on after the shutdown began.
    pub(crate) last: Duration,
    /// Whether an answer may take as long as it takes until it begins.
    pub(crate) is_patient: bool,
}

/// Answers by `router` until `shutdown` ends.
pub(crate) async fn serve(listener: TcpListener, router: Router, bounds: Bounds, shutdown: impl Future<Output = ()>) {
    let (places, clients, ending) =
        (Arc::new(Semaphore::new(bounds.connections)), TaskTracker::new(), CancellationToken::new());
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.as_mut() => break,
        };
        let (mut stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a listener cannot take a client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            // A fresh socket's buffer has room for this.
            let _ = stream.write_all(FULL).await;
            continue;
        };
        let (router, ending) = (router.clone().layer(Extension(ConnectInfo(remote))), ending.clone());
        clients.spawn(async move {
            answer(stream, router, bounds, ending).await;
            drop(place);
        });
    }
    drop(listener);
    ending.cancel();
    clients.close();
    let _ = tokio::time::timeout(bounds.last, clients.wait()).await;
}

/// Answers the requests of one connection.
async fn answer(stream: TcpStream, router: Router, bounds: Bounds, ending: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let stream = if bounds.is_patient { Idle::of_writes(stream, MAX_SILENCE) } else { Idle::new(stream, MAX_SILENCE) };
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(bounds.last, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client is gone");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn start(connections: usize) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let caller = |ConnectInfo(remote): ConnectInfo<SocketAddr>| async move { remote.to_string() };
        let router = Router::new().route("/", get(|| async { "right" }).put(caller));
        let bounds =
            Bounds { connections, head: Duration::from_millis(300), last: Duration::from_secs(2), is_patient: false };
        let serving = tokio::spawn(serve(listener, router, bounds, shutdown.clone().cancelled_owned()));
        (address, shutdown, serving)
    }

    async fn asked(stream: &mut TcpStream, head: &str) -> String {
        stream
            .write_all(format!("GET / HTTP/1.1\r\nhost: x\r\n{head}connection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn who_comes_beyond_the_limit_is_told_and_takes_a_place_when_there_is_one() {
        let (address, shutdown, serving) = start(2).await;
        let mut idle = Vec::new();
        for _ in 0..2 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut told = String::new();
        TcpStream::connect(address).await.unwrap().read_to_string(&mut told).await.unwrap();
        assert!(told.starts_with("HTTP/1.1 503"), "{told}");
        drop(idle.pop());
        loop {
            let answer = asked(&mut TcpStream::connect(address).await.unwrap(), "").await;
            if answer.ends_with("right") {
                break;
            }
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503"), "{answer}");
        }
        shutdown.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_request_carries_who_sent_it() {
        let (address, ..) = start(2).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let own = client.local_addr().unwrap().to_string();
        client.write_all(b"PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with(&own), "{answer}");
    }

    #[tokio::test]
    async fn who_says_nothing_is_let_go() {
        let (address, ..) = start(2).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(60), idle.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "it may say half a request for ever");
    }

    #[tokio::test]
    async fn floods_of_headers_are_refused() {
        let (address, ..) = start(2).await;
        let many: String = (0..=MAX_HEADERS).map(|number| format!("x-{number}: 1\r\n")).collect();
        let long = format!("x: {}\r\n", "1".repeat(2 * MAX_HEAD_BYTES));
        for head in [many, long] {
            let answer = asked(&mut TcpStream::connect(address).await.unwrap(), &head).await;
            assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        }
    }
}
