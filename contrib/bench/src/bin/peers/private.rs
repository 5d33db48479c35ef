//! A layer that one worker has pulled with a password is asked for by a client that has none: what does the system's port on that worker answer, and on
//! another?

use crate::stage::{Props, Stage};
use crate::system::{Daemon, System};
use crate::work::LINKS;
use anyhow::{Context, Result, ensure};
use lapwing_lab::{BASIC_AUTH, Host, http_get};
use serde::Serialize;

const PROPS: Props = Props { workers: 2, layers_mib: &[8], has_before: false, is_private: true, links: LINKS };

/// What a client without credentials was told.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Told {
    status: u16,
    bytes: usize,
}

/// On the two workers; the second has not pulled anything.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Answers {
    where_it_is: Told,
    elsewhere: Told,
    is_given_away: bool,
}

impl Answers {
    pub(crate) fn summary(self) -> String {
        let word = if self.is_given_away { "given away" } else { "kept" };
        let text = |told: Told| format!("{} with {} bytes", told.status, told.bytes);
        format!("{word}: {} where it is, {} elsewhere", text(self.where_it_is), text(self.elsewhere))
    }
}

pub(crate) fn ask(system: System) -> Result<Answers> {
    let stage = Stage::set(system, &PROPS)?;
    stage.settle();
    let [first, second] = &stage.workers[..] else { anyhow::bail!("not two workers") };
    first.fetch(&stage, &stage.image)?;
    let layer = stage.image.layout.layers.first().context("no layer")?;
    let path = format!("/v2/bench/blobs/{}?ns={}", layer.digest, stage.registry.name());
    let ask = |host: &Host, headers: &[&str]| {
        let mirror = system.mirror(host);
        let address = match &mirror {
            Some(url) => url.trim_start_matches("http://").parse().with_context(|| format!("no address in {url}"))?,
            None => stage.registry.address(),
        };
        let own = system.header(&stage).map(|(name, value)| format!("{name}: {value}"));
        let headers: Vec<&str> = headers.iter().copied().chain(own.as_deref()).collect();
        let answer = host.within(|| http_get(address, &path, &headers))?;
        anyhow::Ok(Told { status: answer.status, bytes: answer.body.len() })
    };
    // Else containerd went to the registry itself, and what strangers are told says nothing.
    let entitled = ask(&first.host, &[&format!("Authorization: Basic {BASIC_AUTH}")])?;
    ensure!(
        entitled.status == 200 && entitled.bytes as u64 >= layer.size,
        "whoever has the password is told {}; {}",
        entitled.status,
        stage.shared.as_ref().map_or_else(String::new, Daemon::last_words)
    );
    let (where_it_is, elsewhere) = (ask(&first.host, &[])?, ask(&second.host, &[])?);
    let is_whole = |told: Told| told.status == 200 && told.bytes as u64 >= layer.size;
    Ok(Answers { where_it_is, elsewhere, is_given_away: is_whole(where_it_is) || is_whole(elsewhere) })
}
