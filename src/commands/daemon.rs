//! How the commands ask a daemon, by its admin listener.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

/// What stays as it is in a name that is part of a path.
const KEPT: AsciiSet = NON_ALPHANUMERIC.remove(b'/').remove(b':').remove(b'@').remove(b'.').remove(b'-').remove(b'_');

/// How often in a row a daemon that is followed may not answer, before it is given up.
const TRIES: u32 = 10;

/// A name for the path of a URL.
pub(super) fn in_path(name: &str) -> String {
    utf8_percent_encode(name, &KEPT).to_string()
}

/// What is asked, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Node,
    NodeOrSeed,
    Tracker,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::NodeOrSeed => "node or seed",
            Self::Tracker => "tracker",
        }
    }

    const fn command(self) -> &'static str {
        match self {
            Self::Node => "`lapwing node`",
            Self::NodeOrSeed => "`lapwing node` or `lapwing seed`",
            Self::Tracker => "`lapwing tracker` (or `lapwing up`)",
        }
    }
}

/// What a daemon says in the place of an answer.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) reason: String,
}

/// A daemon's admin listener.
pub(super) struct Daemon {
    client: Client,
    kind: Kind,
    admin: SocketAddr,
}

impl Daemon {
    /// The daemon at that address. An answer is waited for as long as `timeout`, without one until this process ends.
    pub(super) fn at(kind: Kind, admin: SocketAddr, timeout: Option<Duration>) -> anyhow::Result<Self> {
        let builder = Client::builder().no_proxy();
        let client = timeout.into_iter().fold(builder, reqwest::ClientBuilder::timeout).build()?;
        Ok(Self { client, kind, admin })
    }

    /// A request for `path`, which begins with a slash.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.admin))
    }

    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub(super) fn put(&self, path: &str) -> RequestBuilder {
        self.request(Method::PUT, path)
    }

    /// Asks; a refusal is an error that says the daemon's reason.
    pub(super) async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        self.try_ask(request).await?.map_err(|refused| self.error(refused))
    }

    /// The same for those who go on when they are refused.
    pub(super) async fn try_ask<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> anyhow::Result<Result<T, Refused>> {
        match self.send(request).await? {
            Err(refused) => Ok(Err(refused)),
            Ok(answer) => {
                let url = answer.url().clone();
                let read = answer.json().await;
                read.map(Ok).with_context(|| {
                    format!(
                        "{url} answered something else than was expected; is it a {} of this version?",
                        self.kind.name()
                    )
                })
            }
        }
    }

    /// The answer as it comes.
    pub(super) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Result<Response, Refused>> {
        let answer = request.send().await.with_context(|| {
            format!(
                "no {} answers at {}; is {} running, and is this its admin.listen? Run this on its machine, or name its address with --admin",
                self.kind.name(),
                self.admin,
                self.kind.command()
            )
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(Ok(answer));
        }
        let reason = answer.text().await.unwrap_or_default().trim_end().to_owned();
        Ok(Err(Refused { status, reason }))
    }

    /// Shows what the daemon works on, at `path`, until `has_ended`; an interrupt (SIGINT) has it stopped there.
    pub(super) async fn follow<T: DeserializeOwned>(
        &self,
        path: &str,
        every: Duration,
        mut now: T,
        has_ended: impl Fn(&T) -> anyhow::Result<bool>,
        line: impl Fn(&T) -> String,
    ) -> anyhow::Result<T> {
        let shown = std::io::stderr().is_terminal();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut failures = 0;
        while !has_ended(&now)? {
            let method = tokio::select! {
                () = sleep(every) => Method::GET,
                _ = interrupt.recv() => Method::DELETE,
            };
            match self.ask(self.request(method, path)).await {
                Ok(answer) => (now, failures) = (answer, 0),
                Err(error) if failures == TRIES => return Err(error),
                Err(_) => failures += 1,
            }
            if shown {
                write!(std::io::stderr(), "\r\x1b[K{}", line(&now))?;
            }
        }
        if shown {
            write!(std::io::stderr(), "\r\x1b[K")?;
        }
        Ok(now)
    }

    /// A refusal in words.
    pub(super) fn error(&self, Refused { status, reason }: Refused) -> anyhow::Error {
        let (admin, name) = (self.admin, self.kind.name());
        if !reason.is_empty() {
            anyhow::anyhow!("{reason}")
        } else if status == StatusCode::NOT_FOUND {
            anyhow::anyhow!(
                "what runs at {admin} is no {name} of this version; name the admin.listen of one with --admin"
            )
        } else {
            anyhow::anyhow!("the {name} at {admin} answered {status}")
        }
    }
}
