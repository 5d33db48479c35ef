//! `lapwing get`: what can be said to it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::config::{ByteSize, Span};

const CODES: &str = "\
Exit codes, as wget's where wget has one; of several the lowest:
  0  everything is there, whole, under its name
  1  anything not named below
  2  the command line makes no sense
  3  a file cannot be written
  4  the network: nobody answers, or the answer stops
  6  the source wants other credentials (HTTP 401, 403)
  7  the answer makes no sense
  8  the source answers with another error
  9  the content is not what --digest, --md5 or the manifest says; nothing is left under the name";

#[derive(Debug, Clone, Args)]
#[command(after_help = CODES)]
pub(crate) struct Get {
    /// What to fetch: http://..., https://..., s3://BUCKET/KEY or oci://REGISTRY/REPOSITORY:TAG
    #[arg(required = true, value_name = "URL")]
    pub urls: Vec<String>,
    /// Where it goes; "-": standard output. Default: the last part of the URL's path, in this directory
    #[arg(short = 'O', short_alias = 'o', long = "output", visible_alias = "output-document", value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Put files into this directory
    #[arg(short = 'P', long, value_name = "DIRECTORY", conflicts_with = "output")]
    pub directory_prefix: Option<PathBuf>,
    /// Fetch all files below a directory listing in HTML, or below an s3:// prefix; -O names the directory they go to
    #[arg(short, long)]
    pub recursive: bool,
    /// The platforms of an oci:// image, such as linux/arm64, or "all"; default: this machine's
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Speak http with the registry of an oci:// image, where it is fetched straight from there
    #[arg(long)]
    pub plain_http: bool,
    /// The content must have this digest
    #[arg(long, value_name = "sha256:HEX")]
    pub digest: Option<String>,
    /// The content must have this MD5 sum, given in hexadecimal
    #[arg(long, value_name = "HEX")]
    pub md5: Option<String>,
    /// Send this header ("Name: value") to the source, and to no other host that it redirects to; "@FILE" reads them from a file
    #[arg(short = 'H', long, value_name = "HEADER")]
    pub header: Vec<String>,
    /// Take no more bytes per second than this, such as 10MiB
    #[arg(long, value_name = "SIZE")]
    pub limit_rate: Option<ByteSize>,
    /// Longest silence of node or source
    #[arg(short = 'T', long, value_name = "DURATION", default_value = "60s")]
    pub timeout: Span,
    /// How often in a row a transfer may bring nothing before it is given up
    #[arg(short = 't', long, value_name = "NUMBER", default_value_t = 5)]
    pub tries: u32,
    /// Begin anew instead of going on with what an interrupted run left in FILE.part
    #[arg(long)]
    pub no_continue: bool,
    /// Go on with what an interrupted run left: the default; wget's option is understood
    #[arg(short = 'c', long = "continue", conflicts_with = "no_continue")]
    pub go_on: bool,
    /// Query parameters that do not choose the content, such as a signature: "name" or "prefix*", with commas between
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub filter_query: Vec<String>,
    /// Fetch straight from the source, without the node
    #[arg(long)]
    pub no_p2p: bool,
    /// The node's mirror.listen; default: 127.0.0.1:7080, if who listens there is root or you
    #[arg(long, value_name = "ADDRESS", env = "LAPWING_MIRROR")]
    pub node: Option<SocketAddr>,
    /// PEM file with certificates to trust besides the system's, where it is fetched straight from the source
    #[arg(long, value_name = "FILE")]
    pub ca_certificate: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Print a line of JSON for each file when it is done
    #[arg(long)]
    pub json: bool,
}
