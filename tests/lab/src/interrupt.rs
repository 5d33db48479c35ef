//! Ctrl-C, SIGTERM and a closed terminal, for programs that use the laboratory: what is under way ends with an error at its next look, and
//! everything is cleaned up on the way out.

use anyhow::{Context, Result, bail};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Takes these signals from now on; `program` is who says so on standard error.
pub fn watch(program: &'static str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let guard = runtime.enter();
    let failed = "cannot handle signals";
    let mut interrupt = signal(SignalKind::interrupt()).context(failed)?;
    let mut terminate = signal(SignalKind::terminate()).context(failed)?;
    let mut hangup = signal(SignalKind::hangup()).context(failed)?;
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                if !INTERRUPTED.swap(true, Ordering::AcqRel) {
                    eprintln!("\n{program}: cleaning up");
                }
            }
        });
    });
    Ok(())
}

/// An error once somebody wants it to end.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Acquire) {
        bail!("interrupted; everything is cleaned up");
    }
    Ok(())
}
