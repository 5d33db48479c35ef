//! The chunk store as its callers and an operator see it.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up shall stop")]

/// Tests that every medium has to pass.
#[macro_export]
macro_rules! on_disk_and_in_memory {
    ($($name:ident),+ $(,)?) => {
        mod on_disk {
            $(#[test] fn $name() { super::$name(lapwing_p2p::store::Medium::Disk) })+
        }
        mod in_memory {
            $(#[test] fn $name() { super::$name(lapwing_p2p::store::Medium::Memory) })+
        }
    };
}

mod concurrency;
mod crash;
mod disk_full;
mod eviction;
mod foreign;
mod memory;
mod mounts;
#[path = "../node/points.rs"]
#[allow(dead_code, reason = "the tests of whole nodes use the rest of it")]
mod points;
mod recovery;
mod reference;
