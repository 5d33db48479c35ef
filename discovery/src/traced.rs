//! The context of a trace in the metadata of calls (W3C Trace Context). Who does not know it ignores it.

use lapwing_p2p::trace::{self, Span, TRACEPARENT, TraceContext};
use tonic::{Code, Request, Status};

/// A call that belongs to what this task does.
pub(crate) fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(Ok(header)) = trace::current().map(|context| context.to_traceparent().parse()) {
        request.metadata_mut().insert(TRACEPARENT, header);
    }
    request
}

/// Answering a call that belongs to a trace of the caller's; empty if it names none.
pub(crate) fn answer<T>(name: &'static str, request: &Request<T>) -> Span {
    if !trace::is_on() {
        return Span::NONE;
    }
    let header = request.metadata().get(TRACEPARENT).and_then(|header| header.to_str().ok());
    Span::serve(name, header.and_then(TraceContext::from_traceparent))
}

/// How it went.
pub(crate) fn outcome<T>(span: &mut Span, outcome: &Result<T, Status>) {
    match outcome.as_ref().err().map(Status::code) {
        None => {}
        Some(Code::InvalidArgument | Code::ResourceExhausted) => span.fail("refused"),
        Some(Code::Unauthenticated | Code::PermissionDenied) => span.fail("denied"),
        Some(_) => span.fail("failed"),
    }
}
