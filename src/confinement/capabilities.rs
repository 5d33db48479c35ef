//! Capabilities (capabilities(7)) of this process, which has one thread.

use std::io;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// What is left.
pub(crate) struct Kept {
    pub(crate) permitted: CapabilitySet,
    /// Whether the bounding set could not be made smaller.
    pub(crate) bounding_is_whole: bool,
}

impl Kept {
    /// For the log.
    pub(crate) fn names(&self) -> String {
        let names: Vec<_> = self.permitted.iter_names().map(|(name, _)| name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(" ") }
    }
}

/// Gives up all capabilities but `wanted`, in every set, for good.
///
/// # Errors
///
/// When the system refuses, which it has no reason for.
pub(crate) fn keep(wanted: CapabilitySet) -> io::Result<Kept> {
    let permitted = rustix::thread::capabilities(None)?.permitted & wanted;
    let mut bounding_is_whole = false;
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::capability_is_in_bounding_set(one) {
            Ok(true) if !wanted.contains(one) => match rustix::thread::remove_capability_from_bounding_set(one) {
                Err(Errno::PERM) => bounding_is_whole = true,
                removed => removed?,
            },
            // The kernel knows no more.
            Err(Errno::INVAL) => break,
            _ => {}
        }
    }
    // Kernels before 4.3 have no such set.
    let _ = rustix::thread::clear_ambient_capability_set();
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
    // A user without any may not be allowed to ask for none.
    if rustix::thread::capabilities(None)? != sets {
        rustix::thread::set_capabilities(None, sets)?;
    }
    Ok(Kept { permitted, bounding_is_whole })
}

/// Gives up all of them, and the way back. A process that cannot goes on as it is.
pub(crate) fn give_up_all() {
    let _ = keep(CapabilitySet::empty());
    let _ = rustix::thread::set_no_new_privs(true);
}
