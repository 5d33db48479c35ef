//! The laboratory of the whole-system tests and of the demo: a network of hosts on one machine, with real registries, real containerds,
//! real images and the real `lapwing` binary.
//!
//! - [`Lab`]: one test's names and files; sweeps what earlier, killed runs left behind.
//! - [`Network`] and [`Host`]: a bridge and hosts with their own network and mount namespaces, rate limits and byte counters.
//! - [`CorruptingPeer`]: a peer that sends wrong bytes.
//! - [`TokenGate`]: a registry that wants tokens, of any life.
//! - [`Registry`], [`ObjectStore`], [`Containerd`], [`Docker`], [`Lapwing`]: processes on a host. [`Machine`]: a worker, that is a host with containerd and Lapwing.
//! - [`Database`]: Redis or MariaDB, for trackers that share what they know.
//! - [`Site`]: a network with registry and tracker, as most tests want it.
//! - [`image`]: images, built once into a cache outside the tree.
//! - [`interrupt`]: signals, for programs that are no tests.
//! - [`tree`]: two root filesystems compared file by file. [`wait`]: conditions with a deadline.
//! - [`require`]: what a test needs of the machine, and skipping by name where it is missing.
//!
//! Every resource is a guard: dropping it, also while a test panics, ends its processes by pid and removes its namespaces, mounts and
//! files. Guards hold what they depend on, so the order of dropping does not matter. A test killed by SIGKILL leaves its
//! resources behind; their names carry its pid and start time, and the next [`Lab`] on the machine removes them.
//!
//! Environment: `LAPWING_CACHE` (default `~/.cache/lapwing`: tools and images), `LAPWING_LAB_DIR` (default `/var/tmp/lapwing-lab`: files of
//! running tests), `LAPWING_LAB_KEEP=1` (keep those files), `LAPWING_BIN` (the binary under test), `LAPWING_NO_SKIP=1` (a missing need is a
//! failure), `LAPWING_SKIP_LOG` (a file to which the name of each skipped test is appended).

mod cache;
mod clock;
mod containerd;
mod corrupting;
mod databases;
mod docker;
mod host;
mod http;
pub mod image;
pub mod interrupt;
mod lab;
mod lapwing;
mod machine;
mod needs;
mod network;
mod objects;
mod process;
mod registry;
mod site;
mod sweep;
mod tokens;
mod tools;
pub mod tree;
pub mod wait;
mod web;

pub use cache::cache_dir;
pub use clock::Clock;
pub use containerd::{Containerd, ContainerdOptions, Flavour, RegistryHosts, SnapshotterPlugin};
pub use corrupting::CorruptingPeer;
pub use databases::Database;
pub use docker::Docker;
pub use host::Host;
pub use http::{Response, http_get};
pub use lab::Lab;
pub use lapwing::{Lapwing, LapwingSettings, lapwing_binary};
pub use machine::{Machine, MachineOptions};
pub use needs::{Need, missing, require};
pub use network::{Mbit, Network, Rates, Traffic};
pub use objects::ObjectStore;
pub use process::{Process, check, output};
pub use registry::{BASIC_PASSWORD, BASIC_USER, Notify, Registry, RegistryOptions};
pub use site::Site;
pub use tokens::{BASIC_AUTH, TokenGate};
pub use tools::{module_tool, soci_ztoc, tools_dir};
pub use web::WebServer;
