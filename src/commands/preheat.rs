//! `lapwing preheat`: begins a job, shows it until it ends, lists and stops jobs.
//!
//! The job is the daemon's: it goes on when this process is killed. An interrupt (SIGINT) stops it.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use reqwest::Method;

use super::daemon::{Daemon, Kind};
use super::table::plain;
use crate::cli::Preheat;
use crate::config::ByteSize;
use crate::preheat::api::{JobList, JobView, NewJob};
use crate::preheat::jobs::JobState;

const TIMEOUT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(300);
const BAR: usize = 24;
/// Where jobs are.
const JOBS: &str = "/api/v1/preheat/jobs";

const FAILED: u8 = 1;
const NOT_ASKED: u8 = 3;
const CANCELED: u8 = 4;

pub(crate) async fn run(arguments: &Preheat) -> anyhow::Result<ExitCode> {
    carry_out(arguments).await.or_else(|error| {
        writeln!(std::io::stderr(), "lapwing preheat: {error:#}")?;
        Ok(NOT_ASKED.into())
    })
}

async fn carry_out(arguments: &Preheat) -> anyhow::Result<ExitCode> {
    let daemon = Daemon::at(Kind::NodeOrSeed, arguments.admin, Some(TIMEOUT))?;
    if arguments.list {
        return list(&daemon.ask(daemon.get(JOBS)).await?, arguments.json);
    }
    if let Some(job) = &arguments.cancel {
        let job: JobView = daemon.ask(daemon.request(Method::DELETE, &path_of(job)?)).await?;
        if arguments.json {
            print_json(&job)?;
        } else {
            writeln!(std::io::stdout(), "job {} is {}", job.id, word(job.state))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let new = NewJob {
        images: arguments.images.clone(),
        platforms: arguments.platform.clone(),
        to: arguments.to,
        lazy_index: arguments.lazy_index,
    };
    let job: JobView = daemon.ask(daemon.request(Method::POST, JOBS).json(&new)).await?;
    if arguments.detach {
        if arguments.json {
            print_json(&job)?;
        } else {
            writeln!(std::io::stdout(), "{}", job.id)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let has_ended = |job: &JobView| Ok(job.state != JobState::Running);
    let job = daemon.follow(&path_of(&job.id)?, LOOK, job, has_ended, draw).await?;
    if arguments.json {
        print_json(&job)?;
    } else {
        report(&job)?;
    }
    Ok(match job.state {
        JobState::Done => ExitCode::SUCCESS,
        JobState::Canceled => CANCELED.into(),
        JobState::Failed | JobState::Running => FAILED.into(),
    })
}

fn path_of(job: &str) -> anyhow::Result<String> {
    anyhow::ensure!(
        job.len() == 16 && job.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{job:?} is not a job; `lapwing preheat --list` shows them"
    );
    Ok(format!("{JOBS}/{job}"))
}

fn draw(job: &JobView) -> String {
    let resolving = job.images.iter().filter(|image| image.state == "resolving").count();
    if resolving > 0 {
        return format!("asking the registry for {resolving} of {} images", job.images.len());
    }
    let percent =
        if job.bytes_total == 0 { 0 } else { (job.bytes_done as u128 * 100 / u128::from(job.bytes_total)) as usize };
    let filled = percent.min(100) * BAR / 100;
    let bar = format!("{}{}", "=".repeat(filled), " ".repeat(BAR - filled));
    let blobs = format!("{}/{} blobs", job.blobs_done, job.blobs_total);
    format!("{percent:3}% [{bar}] {} of {}  {blobs}", ByteSize(job.bytes_done), ByteSize(job.bytes_total))
}

fn report(job: &JobView) -> anyhow::Result<()> {
    let mut table = plain(["IMAGE", "STATE", "BLOBS"]);
    for image in &job.images {
        let state = if image.error.is_empty() { &image.state } else { &image.error };
        table.add_row([&image.name, state, &image.blobs.to_string()]);
    }
    let mut out = std::io::stdout();
    writeln!(out, "{table}")?;
    for blob in job.blobs.iter().filter(|blob| !blob.error.is_empty()) {
        writeln!(out, "{}: {}", blob.digest, blob.error)?;
    }
    let (done, total, bytes) = (job.blobs_done, job.blobs_total, ByteSize(job.bytes_done));
    writeln!(out, "{}: {done} of {total} blobs ({bytes}), to {}", word(job.state), job.to)?;
    Ok(())
}

fn list(list: &JobList, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        print_json(list)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = plain(["JOB", "STATE", "CAUSE", "TO", "BLOBS", "BYTES", "IMAGES"]);
    for job in &list.jobs {
        let names: Vec<&str> = job.images.iter().map(|image| image.name.as_str()).collect();
        table.add_row([
            &job.id,
            word(job.state),
            &job.cause,
            &job.to.to_string(),
            &format!("{}/{}", job.blobs_done, job.blobs_total),
            &ByteSize(job.bytes_done).to_string(),
            &names.join(" "),
        ]);
    }
    writeln!(std::io::stdout(), "{table}")?;
    Ok(ExitCode::SUCCESS)
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(value)?)?;
    Ok(())
}

const fn word(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Canceled => "canceled",
    }
}
