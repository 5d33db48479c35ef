//! The memory of a daemon that moves gigabytes now and then and idles in between.
#![allow(unsafe_code, reason = "mallopt, malloc_trim and madvise have no safe wrappers")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lapwing_p2p::node::Node;
use tokio_util::sync::CancellationToken;

/// How often it is looked whether a burst is over.
const LOOK: Duration = Duration::from_secs(5);

/// Keeps glibc from growing an arena per thread, so that memory returns to the system after a burst: measured 11 MB
/// instead of 27 MB resident for a daemon of this kind. To be called before any thread is started.
#[cfg(target_env = "gnu")]
pub(crate) fn limit_arenas() {
    // SAFETY: called before any other thread exists; mallopt only sets allocator parameters.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Other allocators have nothing to be told.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn limit_arenas() {}

/// Gives the system back what a burst of pulls left behind, once nothing has been wanted for a while: heap, which stays between what is
/// still used otherwise, and code that only the start or the burst needed.
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
            let _ = tokio::task::spawn_blocking(|| {
                trim();
                unmap_code();
            })
            .await;
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

/// Lets go of this program's code, which is two thirds of what an idle node has resident: what is used comes back from the page
/// cache, 64 KiB around each fault, a third of it at once and another within half a minute. A debugger's breakpoints, and
/// probes of a tracer, which are written into these pages, do not.
pub(crate) fn unmap_code() {
    let (Ok(program), Ok(maps)) = (std::fs::read_link("/proc/self/exe"), std::fs::read_to_string("/proc/self/maps"))
    else {
        return;
    };
    for (start, length) in code_of(&program, &maps) {
        // SAFETY: pages of a private mapping of the program's file that the program cannot write to: they are read from the file again.
        // Fails where the kernel does not want to.
        unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED);
        }
    }
}

/// Where `program` is mapped as code that cannot be written to, and how long that is; `maps` as in proc(5).
fn code_of(program: &Path, maps: &str) -> Vec<(usize, usize)> {
    let code = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (range, permissions) = (fields.next()?, fields.next()?);
        // Offset, device and inode, and then the path, which may have blanks in it.
        let path = line.find('/').map(|at| &line[at..])?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (permissions == "r-xp" && Path::new(path) == program).then_some((start, end.checked_sub(start)?))
    };
    maps.lines().filter_map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_code_is_let_go() {
        let maps = "\
55f000000000-55f000100000 r--p 00000000 fe:00 131 /opt/a b/lapwing
55f000100000-55f000300000 r-xp 00100000 fe:00 131 /opt/a b/lapwing
55f000300000-55f000301000 rw-p 00300000 fe:00 131 /opt/a b/lapwing
7f0000000000-7f0000100000 r-xp 00000000 fe:00 7 /usr/lib/libc.so.6
7f0000100000-7f0000101000 r-xp 00000000 00:00 0 [vdso]
";
        assert_eq!(code_of(Path::new("/opt/a b/lapwing"), maps), [(0x55f0_0010_0000, 0x20_0000)]);
    }

    /// Runs on with its code unmapped, and has less resident.
    #[test]
    fn code_comes_back_when_it_is_used() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
        };
        // Touched, so that there is something to let go.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let code = code_of(&std::fs::read_link("/proc/self/exe").unwrap(), &maps);
        assert!(!code.is_empty(), "{maps}");
        let read = |at: usize| {
            // SAFETY: within a readable mapping.
            unsafe { std::ptr::with_exposed_provenance::<u8>(at).read_volatile() }
        };
        let sum: u64 = code
            .iter()
            .flat_map(|&(start, length)| (start..start + length).step_by(4096))
            .map(|at| u64::from(read(at)))
            .sum();
        let before = resident();
        unmap_code();
        let after = resident();
        assert!(after + 500 < before, "{before} pages before, {after} after, {sum}");
    }
}
