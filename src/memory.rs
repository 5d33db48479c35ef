//! The allocator of a daemon that moves gigabytes now and then and idles in between.
#![allow(unsafe_code, reason = "glibc's mallopt and malloc_trim have no safe wrappers")]

use std::sync::Arc;
use std::time::Duration;

use lapwing_p2p::node::Node;
use tokio_util::sync::CancellationToken;

/// How often it is looked whether a burst is over.
const LOOK: Duration = Duration::from_secs(5);

/// Free bytes at the end of a heap that are kept for the next pieces.
const KEPT: i32 = 8 << 20;

/// Keeps glibc from growing an arena per thread, so that memory returns to the system after a burst: measured 11 MB
/// instead of 27 MB resident for a daemon of this kind. Memory for a piece comes from the heap and stays there until the
/// burst is over: a mapping of its own each time costs a page fault for every 4 KiB. To be called before any thread is
/// started.
#[cfg(target_env = "gnu")]
pub(crate) fn limit_arenas() {
    // SAFETY: called before any other thread exists; mallopt only sets allocator parameters.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 * lapwing_p2p::limits::MAX_PIECE_LENGTH as i32);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Other allocators have nothing to be told.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn limit_arenas() {}

/// Gives the system back what a burst of pulls left behind, once nothing has been wanted for a while. It stays in the middle of heaps
/// otherwise, between what is still used.
pub(crate) async fn return_after_bursts(node: Arc<Node>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut quiet_looks = 0_u32;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
        quiet_looks = if node.is_busy() { 0 } else { quiet_looks.saturating_add(1) };
        // At once, and after a minute, when the node has closed the blobs that nobody came back to.
        if matches!(quiet_looks, 1 | 2 | 15) {
            // Fails only when the process ends.
            let _ = tokio::task::spawn_blocking(trim).await;
        }
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: malloc_trim may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
