//! `lapwing explain`: where the time and the bytes of a pull went, and what limited it.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use super::daemon::{Daemon, Kind, in_path};
use super::table::{plain, seconds, share, short, size};
use crate::cli::Explain;
use crate::explain::view::{BlobPull, Phase, PullState, PullSummary};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Columns of the picture of a phase.
const PICTURE: usize = 32;
/// Causes that had less of the time are left out.
const LEAST_SHARE: f64 = 0.01;

pub(crate) async fn run(arguments: &Explain) -> anyhow::Result<ExitCode> {
    let node = Daemon::at(Kind::Node, arguments.admin, Some(TIMEOUT))?;
    let mut out = std::io::stdout().lock();
    match &arguments.name {
        None => {
            let pulls: Vec<PullSummary> = node.ask(node.get("/api/v1/pulls")).await?;
            if arguments.json {
                serde_json::to_writer_pretty(&mut out, &pulls)?;
                writeln!(out)?;
            } else if pulls.is_empty() {
                writeln!(out, "nothing came through this node's mirror since it started")?;
            } else {
                writeln!(out, "{}", list(&pulls))?;
            }
        }
        Some(name) => {
            let pull: PullState = node.ask(node.get(&format!("/api/v1/pulls/{}", in_path(name)))).await?;
            if arguments.json {
                serde_json::to_writer_pretty(&mut out, &pull)?;
                writeln!(out)?;
            } else {
                out.write_all(text(&pull).as_bytes())?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(pulls: &[PullSummary]) -> comfy_table::Table {
    let mut table = plain(["PULL", "AGO", "TOOK", "SIZE", "FROM PEERS", "FROM ORIGIN", "LIMITED BY"]);
    for pull in pulls {
        let name = if pull.kind == "blob" { short(&pull.digest) } else { printable(&pull.name) };
        let bytes = &pull.bytes;
        table.add_row([
            name,
            seconds(pull.age_seconds),
            if pull.state == "running" { "running".to_owned() } else { seconds(pull.seconds) },
            size(pull.length_bytes),
            size(bytes.peers_near + bytes.peers_far + bytes.seeds),
            size(bytes.origin),
            pull.limited_by.first().map(|share| share.text.clone()).unwrap_or_default(),
        ]);
    }
    table
}

/// Names come from registries and clients: nothing in them moves the cursor.
fn printable(name: &str) -> String {
    name.chars()
        .flat_map(|letter| if letter.is_control() { letter.escape_default().collect() } else { vec![letter] })
        .collect()
}

fn text(pull: &PullState) -> String {
    let PullState { summary, phases, blobs, .. } = pull;
    let took = match summary.state.as_str() {
        "running" => format!("running for {}", seconds(summary.seconds)),
        _ => format!("took {}, begun {} ago", seconds(summary.seconds), seconds(summary.age_seconds)),
    };
    let mut text = format!("{}\n{} {}, {took}\n\n", printable(&summary.name), summary.kind, summary.digest);
    text += &limited_by(summary);
    text += &format!("\n{}\n\n{}\n\n{}\n", sources(summary, phases), timeline(phases), blob_table(blobs));
    if summary.faults > 0 {
        text += &format!(
            "\n{} reads of mounted layers waited for bytes, {} all together\n",
            summary.faults,
            seconds(summary.faults_seconds)
        );
    }
    text
}

fn limited_by(summary: &PullSummary) -> String {
    let shares: Vec<_> = summary.limited_by.iter().filter(|share| share.share >= LEAST_SHARE).collect();
    if shares.is_empty() {
        return "nothing was waited for\n".to_owned();
    }
    let mut text = "what limited it\n".to_owned();
    for share in shares {
        text += &format!("  {:>4.0} %  {:>7}  {}\n", share.share * 100.0, seconds(share.seconds), share.text);
    }
    text
}

fn sources(summary: &PullSummary, phases: &[Phase]) -> comfy_table::Table {
    let mut table = plain(["FROM", "BYTES", "SHARE", "WHILE IT CAME"]);
    let bytes = &summary.bytes;
    let rows = [
        ("origin", "origin", bytes.origin),
        ("peers of this zone", "peers_near", bytes.peers_near),
        ("peers of other zones", "peers_far", bytes.peers_far),
        ("seeds", "seeds", bytes.seeds),
    ];
    let all = bytes.came() + bytes.here_before;
    for (from, phase, came) in rows {
        let rate = phases.iter().find(|other| other.name == phase && came > 0).map(rate).unwrap_or_default();
        table.add_row([from.to_owned(), size(came), share(came, all.max(1)), rate]);
    }
    table.add_row([
        "here before".to_owned(),
        size(bytes.here_before),
        share(bytes.here_before, all.max(1)),
        String::new(),
    ]);
    table
}

/// Bytes by the time in which any came, as far as the cells tell.
fn rate(phase: &Phase) -> String {
    let cells = phase.bytes_in.len().max(1) as f64;
    let came_in = phase.bytes_in.iter().filter(|bytes| **bytes > 0).count() as f64;
    let span = (phase.last_seconds - phase.first_seconds).max(1e-3);
    let busy = if phase.seconds > 0.0 { phase.seconds } else { span * (came_in / cells).max(0.01) };
    format!("{}/s", size((phase.bytes as f64 / busy.min(span).max(1e-3)) as u64))
}

fn timeline(phases: &[Phase]) -> comfy_table::Table {
    let mut table = plain(["PHASE", "FROM", "TO", "TIMES", "TOOK", "WHEN"]);
    for phase in phases {
        table.add_row([
            phase.name.clone(),
            seconds(phase.first_seconds),
            seconds(phase.last_seconds),
            if phase.count > 0 { phase.count.to_string() } else { String::new() },
            if phase.count > 0 { seconds(phase.busy_seconds) } else { String::new() },
            picture(phase),
        ]);
    }
    table
}

/// A phase's cells in a few letters: nothing, a little, half, all of the time.
fn picture(phase: &Phase) -> String {
    let most = phase.bytes_in.iter().max().copied().unwrap_or_default().max(1) as f64;
    let of_bytes: Vec<f64> = phase.bytes_in.iter().map(|bytes| *bytes as f64 / most).collect();
    let cells = if phase.under_way.is_empty() { &of_bytes } else { &phase.under_way };
    let per = cells.len().div_ceil(PICTURE).max(1);
    let letter = |much: f64| match much {
        much if much <= 0.0 => '.',
        much if much < 0.25 => '-',
        much if much < 0.75 => '=',
        _ => '#',
    };
    cells.chunks(per).map(|some| letter(some.iter().copied().fold(0.0, f64::max))).collect()
}

fn blob_table(blobs: &[BlobPull]) -> comfy_table::Table {
    let mut table = plain(["BLOB", "WHAT", "SIZE", "HERE", "PEERS", "ORIGIN", "FROM", "TO", "NOW"]);
    for blob in blobs {
        let bytes = &blob.bytes;
        table.add_row([
            short(&blob.digest),
            blob.kind.clone(),
            size(blob.length_bytes),
            size(bytes.here_before),
            size(bytes.peers_near + bytes.peers_far + bytes.seeds),
            size(bytes.origin),
            blob.began_seconds.map(seconds).unwrap_or_default(),
            if blob.began_seconds.is_some() { seconds(blob.ended_seconds) } else { String::new() },
            blob.state.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_few_letters_and_hides_nothing() {
        let phase = |under_way: Vec<f64>| Phase {
            name: "verify".into(),
            count: 1,
            first_seconds: 0.0,
            last_seconds: 1.0,
            seconds: 1.0,
            busy_seconds: 1.0,
            bytes: 0,
            under_way,
            bytes_in: Vec::new(),
        };
        let mut cells = vec![0.0; 96];
        (cells[0], cells[40], cells[95]) = (3.0, 0.1, 0.5);
        let drawn = picture(&phase(cells));
        assert_eq!(drawn, "#............-.................=");
        assert_eq!(picture(&phase(Vec::new())), "");
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb/c:\u{e9}"), "a\\u{1b}[2Jb/c:\u{e9}");
    }
}
