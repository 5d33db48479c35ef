//! A request's span: from its beginning to the end of the body, in the client's own trace if it sent a context.

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use lapwing_p2p::node::{Blob, Followed};
use lapwing_p2p::trace::{self, Span, TRACEPARENT, TraceContext};
use lapwing_plugins::http::Target;

use super::answer::Refusal;
use super::request::{Asked, Thing};

/// See the module's documentation; empty where nothing is recorded. What follows the blob ends first.
#[derive(Default)]
pub(super) struct Traced {
    followed: Option<Arc<Followed>>,
    pub(super) span: Span,
}

impl Traced {
    pub(super) fn request(asked: &Asked) -> Self {
        let name = match asked.thing {
            Thing::Manifest(_) => "mirror.manifest",
            Thing::Blob(_) => "mirror.blob",
            Thing::Referrers(_) => "mirror.referrers",
            Thing::Tags => "mirror.tags",
        };
        let mut traced = Self::named(name, &asked.headers);
        traced.span.set("http.request.method", if asked.head { "HEAD" } else { "GET" });
        traced.span.say("lapwing.registry", &asked.registry);
        traced.span.say("lapwing.repository", &asked.repository);
        traced.span.say("lapwing.asked", asked);
        traced
    }

    /// Of a URL only the host is told: the rest may be a secret.
    pub(super) fn url(target: &Target, headers: &HeaderMap) -> Self {
        let mut traced = Self::named("mirror.url", headers);
        traced.span.say("server.address", &target.host());
        traced
    }

    fn named(name: &'static str, headers: &HeaderMap) -> Self {
        if !trace::is_on() {
            return Self::default();
        }
        let header = headers.get(TRACEPARENT).and_then(|header| header.to_str().ok());
        Self { followed: None, span: Span::request(name, header.and_then(TraceContext::from_traceparent)) }
    }

    /// What is done for the blob belongs to it, or to another request for the same blob, which it then names.
    pub(super) fn follow(&mut self, blob: &Arc<Blob>) {
        let own = self.span.context();
        self.followed = blob.follow(own);
        if let Some(followed) = &self.followed
            && Some(followed.parent()) != own
        {
            self.span.link(followed.context());
        }
    }

    pub(super) fn status(&mut self, status: StatusCode) {
        self.span.count("http.response.status_code", status.as_u16().into());
    }

    /// What is said before a body flows; nothing where one does.
    pub(super) fn answered(&mut self, answer: &Result<Response, Refusal>) {
        match answer {
            Ok(response) => self.status(response.status()),
            Err(_) => self.span.fail("refused, or sent on"),
        }
    }

    /// The body ended.
    pub(super) fn ended(&mut self, given: u64, missing: u64) {
        self.span.count("lapwing.bytes", given);
        if missing > 0 {
            self.span.fail("cut");
        }
    }
}
