//! The production scheduler and the production tracker, thousands of them, in simulated time.
//!
//! Every node runs [`lapwing_p2p::swarm::Swarm`], the tracker is [`lapwing_discovery::registry::Registry`]: what is
//! simulated is what lies between them. No clock, all that is random from one seed: equal seeds give equal traces, of which
//! the report carries a hash. Half of the nodes, the other half, and the tracker with the origin are simulated side by side,
//! by two threads where there are many nodes: nothing that happens in one of these parts is felt in another before the
//! latency is over, so that the outcome does not depend on the threads.
//!
//! * [`scenario`]: what is simulated, by name
//! * [`world`]: the nodes, and what happens when
//! * [`queue`], [`pipe`]: the calendar; links of a fixed rate
//! * [`report`]: the figures
//!
//! # The model
//!
//! Each uplink serves its connections in turn, a quantum each; each downlink serves quanta in the order in which they
//! come; a connection has at most 256 KiB, or two quanta, under way, and a sender hears that bytes were late when they are. A
//! quantum is 64 KiB, with a thousand nodes 256 KiB, with ten thousand 512 KiB. Control messages take the latency and no capacity. The origin is one
//! uplink, and a transfer waits for its first byte. Not modelled: TCP's slow start and losses, CPU and disks, and who
//! vouches for pieces (a wrong piece is recognised when it has come). A dead node is noticed after `detection`.

pub mod pipe;
pub mod queue;
pub mod report;
pub mod scenario;
pub mod world;
