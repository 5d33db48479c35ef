//! `lapwing preheat`: what can be said to it.

use std::net::SocketAddr;

use clap::Args;

use crate::preheat::To;

const CODES: &str = "\
Exit codes:
  0  everything is where it was to be; with --detach: the job has begun; with --cancel: it is stopped
  1  something could not be fetched or indexed, and what; the rest is there
  2  the command line makes no sense
  3  the daemon cannot be asked, or refuses
  4  somebody canceled the job";

#[derive(Debug, Args)]
#[command(after_help = CODES)]
pub(crate) struct Preheat {
    /// Images, as pods name them ("registry.example/team/app:1.0"); their registries are listed under registries.hosts
    #[arg(required_unless_present_any = ["list", "cancel"], value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Of an image for several platforms, this one ("linux/arm64"), or "all"; may be repeated. Default: that of the machine that is asked
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Vec<String>,
    /// Who shall have the blobs: "seeds", "here" (the machine that is asked), "all" nodes of its group, or a number of them
    #[arg(long, value_name = "WHO", default_value = "seeds")]
    pub to: To,
    /// Have the layers indexed as well, so that the first node mounts them lazily
    #[arg(long)]
    pub lazy_index: bool,
    /// Print the job's name and do not wait for its end
    #[arg(long)]
    pub detach: bool,
    /// List the jobs that the daemon remembers, and those that pushes began
    #[arg(long, conflicts_with_all = ["images", "cancel"])]
    pub list: bool,
    /// Stop this job; what is under way at other machines comes to its end there
    #[arg(long, value_name = "JOB", conflicts_with = "images")]
    pub cancel: Option<String>,
    /// Print JSON, as /api/v1/preheat/jobs gives it, instead of text
    #[arg(long)]
    pub json: bool,
    /// The admin address (admin.listen) of a node or seed
    #[arg(long, env = "LAPWING_ADMIN", default_value = "127.0.0.1:7082")]
    pub admin: SocketAddr,
}
