//! A connection that ends when nothing moves on it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Fails with `TimedOut` when neither a byte came nor one went for a time.
pub(crate) struct Idle<S> {
    stream: S,
    limit: Duration,
    silence: Pin<Box<Sleep>>,
    /// Whether it ends, too, while there is nothing to be written.
    judges_reads: bool,
    /// Whether a write waits.
    writes: bool,
}

impl<S> Idle<S> {
    pub(crate) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, silence: Box::pin(tokio::time::sleep(limit)), judges_reads: true, writes: false }
    }

    /// The same, but what is to be said may take as long as it takes: only a peer that does not take it ends the connection.
    pub(crate) fn of_writes(stream: S, limit: Duration) -> Self {
        Self { judges_reads: false, ..Self::new(stream, limit) }
    }

    /// What moved, or that nothing did for too long.
    fn judge<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            let next = Instant::now() + self.limit;
            self.silence.as_mut().reset(next);
            return polled;
        }
        ready!(self.silence.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing moved on the connection")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Idle<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if this.judges_reads { this.judge(cx, polled) } else { polled }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Idle<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        // The time before there was anything to write does not count.
        if !this.judges_reads && !std::mem::replace(&mut this.writes, polled.is_pending()) {
            let next = Instant::now() + this.limit;
            this.silence.as_mut().reset(next);
        }
        this.judge(cx, polled)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn what_moves_puts_the_end_off() {
        let (mut near, far) = duplex(64);
        let mut idle = Idle::new(far, Duration::from_secs(600));
        let mut end = idle.silence.deadline();
        for _ in 0..3 {
            near.write_all(b"x").await.unwrap();
            assert_eq!(idle.read_u8().await.unwrap(), b'x');
            assert!(idle.silence.deadline() > end, "what comes");
            end = idle.silence.deadline();
            idle.write_all(b"y").await.unwrap();
            assert!(idle.silence.deadline() > end, "what goes");
            end = idle.silence.deadline();
        }
    }

    #[tokio::test]
    async fn an_answer_may_take_long_and_must_be_taken() {
        let (mut near, far) = duplex(64);
        let mut idle = Idle::of_writes(far, Duration::from_millis(50));
        let waited = tokio::time::timeout(Duration::from_millis(200), idle.read_u8()).await;
        assert!(waited.is_err(), "nothing ends while the answer is made");
        idle.write_all(&[0; 64]).await.unwrap();
        assert_eq!(idle.write_all(&[0; 100]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(near.read_u8().await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_does_not_move_ends() {
        let (_near, far) = duplex(64);
        let mut idle = Idle::new(far, Duration::from_millis(20));
        assert_eq!(idle.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (_near, far) = duplex(64);
        let mut idle = Idle::new(far, Duration::from_millis(20));
        assert_eq!(idle.write_all(&[0; 100]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
