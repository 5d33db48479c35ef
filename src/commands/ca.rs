//! `lapwing ca`: a cluster's authority, and joining one.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapwing_discovery::authority::Authority;
use lapwing_discovery::authority::tokens::{self, Token};
use lapwing_p2p::identity::Identity;
use lapwing_p2p::membership::{Issuer, Member, is_group, write_certificates};

use super::table::plain;
use crate::cli::{Ca, CaInit, CaIssue, CaJoin, CaMembers, CaRevoke, CaToken};
use crate::config::Config;
use crate::membership::{join, read_token};
use crate::node::prepare_root;
use crate::on_runtime;

pub(crate) fn run(command: &Ca) -> anyhow::Result<ExitCode> {
    match command {
        Ca::Init(arguments) => init(arguments),
        Ca::Token(arguments) => token(arguments),
        Ca::Join(arguments) => on_runtime(join_cluster(arguments)),
        Ca::Issue(arguments) => issue(arguments),
        Ca::Members(arguments) => members(arguments),
        Ca::Revoke(arguments) => revoke(arguments),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn init(arguments: &CaInit) -> anyhow::Result<()> {
    let issuer = Issuer::create(&arguments.directory, &arguments.cluster)?;
    let directory = std::fs::canonicalize(&arguments.directory)?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "The authority of {} is in {}. Who reads that directory can let anybody in.",
        issuer.cluster(),
        directory.display()
    )?;
    writeln!(out, "On the tracker:   [identity] issuer = {directory:?}")?;
    writeln!(out, "For each machine: lapwing ca token {}", directory.display())?;
    Ok(())
}

fn token(arguments: &CaToken) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let directory = &arguments.directory;
    if let Some(id) = &arguments.revoke {
        anyhow::ensure!(tokens::revoke(directory, id)?, "there is no token {id} (lapwing ca token --list)");
        return Ok(writeln!(out, "{id} lets nobody in any more")?);
    }
    let issuer = Issuer::open(directory)?;
    if arguments.list {
        let mut table = plain(["ID", "GROUP", "ROLES", "LETS IN FOR"]);
        for kept in tokens::list(directory)?.into_iter().filter(|kept| kept.expires > now()) {
            let left = format!("{} min", kept.expires.saturating_sub(now()).as_secs().div_ceil(60));
            table.add_row([kept.id, kept.token.group, kept.token.roles.to_string(), left]);
        }
        return Ok(writeln!(out, "{table}")?);
    }
    let group = checked_group(&arguments.group)?;
    let token = Token { group, roles: arguments.roles };
    Ok(writeln!(out, "{}", tokens::create(directory, &issuer, &token, now() + arguments.valid.0)?)?)
}

fn checked_group(group: &str) -> anyhow::Result<String> {
    anyhow::ensure!(is_group(group), "--group {group:?}: expected 1 to 64 letters, digits, '.', '_' or '-'");
    Ok(group.to_owned())
}

async fn join_cluster(arguments: &CaJoin) -> anyhow::Result<()> {
    let config = Config::load(arguments.config.as_deref())?;
    anyhow::ensure!(
        !config.identity.directory.as_os_str().is_empty(),
        "configuration key identity.directory: where shall the certificate go? For example \"/etc/lapwing/identity\""
    );
    let token = if arguments.token_file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().take(4096).read_to_string(&mut text)?;
        text.trim().to_owned()
    } else {
        read_token(&arguments.token_file)?
    };
    let root = prepare_root(&config.root)?;
    let identity = Arc::new(Identity::load_or_create(&root.join("node.key"))?);
    join(&config, &identity, &token).await?;
    let directory = config.identity.directory.display();
    Ok(writeln!(std::io::stdout(), "{} has joined; its certificate is in {directory}", identity.id())?)
}

fn issue(arguments: &CaIssue) -> anyhow::Result<()> {
    let authority = Authority::open(&arguments.directory, arguments.valid.0)?;
    let group = checked_group(&arguments.group)?;
    let member = Member { cluster: String::new(), group, roles: arguments.roles, peer: None };
    let given = authority.admit(&member, arguments.peer)?;
    write_certificates(&arguments.out.join("certificate.pem"), &given.certificates)?;
    write_certificates(&arguments.out.join("authority.pem"), &given.authorities)?;
    Ok(writeln!(std::io::stdout(), "certificate.pem and authority.pem are in {}", arguments.out.display())?)
}

fn members(arguments: &CaMembers) -> anyhow::Result<()> {
    let authority = Authority::open(&arguments.directory, Duration::ZERO)?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let listed: Vec<_> = authority
            .members()
            .into_iter()
            .map(|(peer, entry)| {
                serde_json::json!({
                    "peer": peer.to_string(),
                    "group": entry.group,
                    "roles": entry.roles.to_string(),
                    "certified_at_unix_seconds": entry.at.as_secs(),
                    "revoked": entry.revoked,
                })
            })
            .collect();
        serde_json::to_writer_pretty(&mut out, &listed)?;
        return Ok(writeln!(out)?);
    }
    let mut table = plain(["PEER", "GROUP", "ROLES", "LAST CERTIFICATE", "STATE"]);
    for (peer, entry) in authority.members() {
        let ago = format!("{} h ago", now().saturating_sub(entry.at).as_secs() / 3600);
        let state = if entry.revoked { "revoked" } else { "member" };
        table.add_row([peer.to_string(), entry.group, entry.roles.to_string(), ago, state.to_owned()]);
    }
    Ok(writeln!(out, "{table}")?)
}

fn revoke(arguments: &CaRevoke) -> anyhow::Result<()> {
    let authority = Authority::open(&arguments.directory, Duration::ZERO)?;
    let known = authority.revoke(arguments.peer)?;
    anyhow::ensure!(known, "{} was never let in here (lapwing ca members)", arguments.peer);
    Ok(writeln!(
        std::io::stdout(),
        "{} gets no certificate any more; it is out when its last one runs out",
        arguments.peer
    )?)
}
