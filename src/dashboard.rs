//! The dashboard: a page, its scripts and styles, and what they show, by server-sent events.
//!
//! Everything comes from this listener: the page's policy (Content-Security-Policy) lets it load and ask nothing else, and run nothing
//! that stands in the page. Scripts put what they are told into text nodes, never into HTML: names come from registries and peers.
//!
//! `GET /dashboard/events` sends a [`Frame`] at once and then every [`EVERY`], to at most [`MAX_DASHBOARD_LISTENERS`] at the same time. One who does
//! not take what is sent is dropped, and nothing is gathered while nobody listens.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use crate::limits::{MAX_DASHBOARD_LISTENERS, MAX_DASHBOARD_WAITING};

pub(crate) mod node;
pub(crate) mod tracker;

/// What the page may load and do.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
/// How often they are told.
const EVERY: Duration = Duration::from_secs(1);

/// Name, media type, content.
const ASSETS: [(&str, &str, &str); 9] = [
    ("", "text/html; charset=utf-8", include_str!("dashboard/assets/index.html")),
    ("style.css", "text/css; charset=utf-8", include_str!("dashboard/assets/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("dashboard/assets/icon.svg")),
    ("main.js", JAVASCRIPT, include_str!("dashboard/assets/main.js")),
    ("dom.js", JAVASCRIPT, include_str!("dashboard/assets/dom.js")),
    ("rates.js", JAVASCRIPT, include_str!("dashboard/assets/rates.js")),
    ("node.js", JAVASCRIPT, include_str!("dashboard/assets/node.js")),
    ("explain.js", JAVASCRIPT, include_str!("dashboard/assets/explain.js")),
    ("tracker.js", JAVASCRIPT, include_str!("dashboard/assets/tracker.js")),
];
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// A part of what is shown, gathered when somebody looks.
pub(crate) type Part = Box<dyn Fn() -> Value + Send + Sync>;

/// What is shown, and who is told of it.
pub(crate) struct Dashboard {
    parts: Vec<(&'static str, Part)>,
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    all: Vec<mpsc::Sender<Bytes>>,
    /// Whether a task gathers and tells.
    told: bool,
}

impl Dashboard {
    /// Of `role` ("node", "tracker", "seed"), with its parts by name.
    pub(crate) fn new(role: &'static str, mut parts: Vec<(&'static str, Part)>) -> Arc<Self> {
        parts.push(("role", Box::new(move || role.into())));
        parts.push(("version", Box::new(|| env!("CARGO_PKG_VERSION").into())));
        Arc::new(Self { parts, listeners: Mutex::default() })
    }

    fn frame(&self) -> Bytes {
        let all: Map<_, _> = self.parts.iter().map(|(name, part)| ((*name).to_owned(), part())).collect();
        // One line: JSON escapes those in strings.
        format!("data: {}\n\n", Value::Object(all)).into()
    }

    fn listen(self: &Arc<Self>) -> Option<mpsc::Receiver<Bytes>> {
        let (sender, receiver) = mpsc::channel(MAX_DASHBOARD_WAITING);
        let mut listeners = self.lock();
        listeners.all.retain(|listener| !listener.is_closed());
        if listeners.all.len() >= MAX_DASHBOARD_LISTENERS {
            return None;
        }
        listeners.all.push(sender);
        if !std::mem::replace(&mut listeners.told, true) {
            tokio::spawn(Arc::clone(self).tell());
        }
        Some(receiver)
    }

    /// Tells all listeners until there are none.
    async fn tell(self: Arc<Self>) {
        let mut clock = tokio::time::interval(EVERY);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let this = Arc::clone(&self);
            let frame = tokio::task::spawn_blocking(move || this.frame()).await;
            let mut listeners = self.lock();
            if let Ok(frame) = frame {
                listeners.all.retain(|listener| listener.try_send(frame.clone()).is_ok());
            }
            if listeners.all.is_empty() {
                listeners.told = false;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The page and its events.
pub(crate) fn routes(dashboard: Arc<Dashboard>) -> Router {
    let mut router = Router::new()
        .route("/", get(|| async { Redirect::temporary("/dashboard/") }))
        .route("/dashboard", get(|| async { Redirect::temporary("/dashboard/") }))
        .route("/dashboard/events", get(events).with_state(dashboard));
    for (name, kind, content) in ASSETS {
        router =
            router.route(&format!("/dashboard/{name}"), get(move || async move { answer(kind, Body::from(content)) }));
    }
    router
}

async fn events(State(dashboard): State<Arc<Dashboard>>) -> Response {
    let Some(receiver) = dashboard.listen() else {
        let reason = format!("{MAX_DASHBOARD_LISTENERS} pages are open already: close one\n");
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "10")], reason).into_response();
    };
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((Ok::<_, Infallible>(frame), receiver))
    });
    answer("text/event-stream", Body::from_stream(frames))
}

fn answer(kind: &'static str, body: Body) -> Response {
    let headers: [(HeaderName, HeaderValue); 5] = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // The program may be another after an upgrade.
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::StreamExt as _;

    use super::*;

    fn client() -> reqwest::Client {
        // Whoever comes second finds it there.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        reqwest::Client::builder().no_proxy().build().unwrap()
    }

    async fn served(dashboard: Arc<Dashboard>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, routes(dashboard)).into_future());
        format!("http://{address}/dashboard/")
    }

    #[tokio::test]
    async fn every_file_is_served_under_the_policy_and_nothing_stands_in_the_page() {
        let base = served(Dashboard::new("node", Vec::new())).await;
        let client = client();
        for (name, kind, content) in ASSETS {
            let answer = client.get(format!("{base}{name}")).send().await.unwrap();
            assert_eq!(answer.headers()[CONTENT_SECURITY_POLICY], POLICY, "{name}");
            assert_eq!(
                (&answer.headers()[CONTENT_TYPE], &answer.headers()[X_CONTENT_TYPE_OPTIONS]),
                (&HeaderValue::from_static(kind), &HeaderValue::from_static("nosniff"))
            );
            assert_eq!(answer.text().await.unwrap(), content);
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=\"",
                "onclick=\"",
                "http://",
                "https://",
            ] {
                let allowed = forbidden == "http://"
                    && content.matches("http://").count() == content.matches("http://www.w3.org/2000/svg").count();
                assert!(!content.contains(forbidden) || allowed, "{name} contains {forbidden}");
            }
        }
        let page = ASSETS[0].2;
        assert!(
            page.matches("<script").count() == 1 && page.contains("<script type=\"module\" src=\"main.js\"></script>")
        );
        assert!(!page.contains("<style"));
    }

    #[tokio::test]
    async fn listeners_are_told_at_once_and_only_so_many() {
        let gathered = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&gathered);
        let part: Part = Box::new(move || counter.fetch_add(1, Ordering::Relaxed).into());
        let dashboard = Dashboard::new("node", vec![("count", part)]);
        let base = served(Arc::clone(&dashboard)).await;
        assert_eq!(gathered.load(Ordering::Relaxed), 0, "nobody looks");
        let client = client();
        let mut open = Vec::new();
        for _ in 0..MAX_DASHBOARD_LISTENERS {
            let answer = client.get(format!("{base}events")).send().await.unwrap();
            assert_eq!(answer.headers()[CONTENT_TYPE], "text/event-stream");
            let mut frames = answer.bytes_stream();
            let first = String::from_utf8(frames.next().await.unwrap().unwrap().to_vec()).unwrap();
            assert!(first.starts_with("data: {\"count\":") && first.ends_with("}\n\n"), "{first}");
            open.push(frames);
        }
        let refused = client.get(format!("{base}events")).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(open);
        for _ in 0..600 {
            if dashboard.lock().all.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(!dashboard.lock().told, "nothing is gathered any more");
    }

    #[tokio::test]
    async fn one_who_takes_nothing_is_dropped() {
        let dashboard = Dashboard::new("node", Vec::new());
        let stuck = dashboard.listen().unwrap();
        for _ in 0..600 {
            if dashboard.lock().all.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(dashboard.lock().all.is_empty());
        assert_eq!(stuck.len(), MAX_DASHBOARD_WAITING);
    }
}
