//! Measuring a swarm of real nodes, for `lapwing bench`: all of them fetch an image at one moment, and tell how it went.
//!
//! * [`run`], [`api`]: at the node that is asked: the order is given, and what nodes tell is gathered; `/api/v1/bench` of the admin listener
//! * [`part`]: at every node: the order is carried out, measured and told of; [`report`]: what is told
//! * [`figures`]: how close that is to the bound; pure, and worked out by the command
//! * [`rates`]: rates as people write them, and the highest rate that was seen
//!
//! Orders and reports go by way of the trackers (`discovery`, trials), as those of [`preheat`](crate::preheat) do, under the same rules: a registry
//! must be listed at each node, which uses its own credentials, and may take no orders at all.

pub(crate) mod api;
pub(crate) mod figures;
pub(crate) mod part;
pub(crate) mod rates;
pub(crate) mod report;
mod run;
