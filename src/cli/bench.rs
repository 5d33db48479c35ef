//! `lapwing bench`: what can be said to it.

use std::net::SocketAddr;

use clap::Args;

use crate::bench::rates::LinkRate;
use crate::config::Span;

const CODES: &str = "\
Exit codes:
  0  every node that was asked has been measured, or had the image before and served as a source
  1  some nodes could not have it, heard of it too late, said nothing, or were not done in time; the figures are those of the others
  2  the command line makes no sense
  3  the daemon or the trackers cannot be asked, or refuse, or the image cannot be had
  4  somebody stopped it
  5  there was nothing to measure: every node had the image before";

#[derive(Debug, Args)]
#[command(after_help = CODES)]
pub(crate) struct Bench {
    /// An image that the nodes do not have yet; its registry is listed under registries.hosts of every node
    pub image: String,
    /// Of an image for several platforms, this one ("linux/arm64"), or "all"; may be repeated. Default: that of the machine that is asked
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Vec<String>,
    /// How many nodes of the group fetch it, or "all"; seeds are none of them
    #[arg(long, value_name = "N|all", default_value = "all", value_parser = nodes)]
    pub nodes: NodeCount,
    /// What a node's link carries upwards ("200Mbit"); without it, the highest rate that each node was seen at
    #[arg(long, value_name = "RATE")]
    pub up: Option<LinkRate>,
    /// What a node's link carries downwards; without it, the highest rate that each node was seen at
    #[arg(long, value_name = "RATE")]
    pub down: Option<LinkRate>,
    /// What the registry's link carries, that of seeds included; without it, what came from there while anything came
    #[arg(long, value_name = "RATE")]
    pub registry: Option<LinkRate>,
    /// Remove in the end, on every node, the blobs of which it had nothing before
    #[arg(long)]
    pub remove: bool,
    /// How long nodes have to hear of it before all begin at once; in large clusters, whose trackers slow their nodes down, a minute
    #[arg(long, value_name = "TIME", default_value = "25s")]
    pub start_in: Span,
    /// How long after the beginning nodes are waited for
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub timeout: Span,
    /// How many of the slowest nodes are shown; 0: all nodes
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub slowest: usize,
    /// Print all figures, those of every node included, as JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// The admin address (admin.listen) of a node or seed
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
}

/// None: all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeCount(pub Option<u32>);

fn nodes(text: &str) -> Result<NodeCount, String> {
    match text.parse() {
        _ if text == "all" => Ok(NodeCount(None)),
        Ok(nodes @ 1..=crate::preheat::limits::MAX_NODES) => Ok(NodeCount(Some(nodes))),
        _ => Err(format!("expected \"all\" or a number of nodes up to {}", crate::preheat::limits::MAX_NODES)),
    }
}
