//! Databases that trackers share: the distribution's `redis-server` and `mariadbd`, on private ports of the loopback address, with their
//! files in a directory of the test's.

use crate::process::{Process, check};
use crate::tools::on_path;
use crate::wait::{self, Poll};
use anyhow::{Context, Result, bail};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const START: Duration = Duration::from_secs(120);

/// Below those that the kernel gives to outgoing connections, so that a server can come back to its own.
fn free_port() -> Result<u16> {
    let seed = std::process::id().wrapping_mul(2_654_435_761) ^ std::time::UNIX_EPOCH.elapsed()?.subsec_nanos();
    let mut ports = (0..200u32).map(|attempt| 20_000 + (seed.wrapping_add(attempt * 7919) % 12_000) as u16);
    ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).context("no free port")
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Redis,
    MariaDb,
}

/// A running database server. Dropping it kills it.
pub struct Database {
    kind: Kind,
    process: Process,
    port: u16,
    dir: PathBuf,
}

impl Database {
    /// Who may use it.
    pub const USER: &str = "lapwing";
    /// With which password.
    pub const PASSWORD: &str = "lapwing-test-secret";
    /// The databases of a MariaDB server.
    pub const NAMES: [&str; 2] = ["lapwing_a", "lapwing_b"];

    /// Redis, which keeps nothing when it ends.
    pub fn redis(dir: &Path) -> Result<Self> {
        Self::start(Kind::Redis, dir)
    }

    /// MariaDB, with its files in `dir`.
    pub fn mariadb(dir: &Path) -> Result<Self> {
        let mut install = Command::new(program("mariadb-install-db")?);
        install.args(["--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal"]);
        install.arg(format!("--datadir={}", dir.join("mariadb").display())).args(user());
        // A server that starts deletes what others have in a directory for temporary files that they share.
        std::fs::create_dir_all(dir.join("tmp"))?;
        check(install.env("TMPDIR", dir.join("tmp")))?;
        let names =
            Self::NAMES.map(|name| format!("CREATE DATABASE IF NOT EXISTS {name};\nGRANT ALL ON {name}.* TO u;\n"));
        let names = names.concat().replace("TO u", &format!("TO '{}'@'127.0.0.1'", Self::USER));
        let create =
            format!("CREATE USER IF NOT EXISTS '{}'@'127.0.0.1' IDENTIFIED BY '{}';", Self::USER, Self::PASSWORD);
        std::fs::write(dir.join("init.sql"), format!("{create}\n{names}"))?;
        Self::start(Kind::MariaDb, dir)
    }

    fn start(kind: Kind, dir: &Path) -> Result<Self> {
        let port = free_port()?;
        let process = launch(kind, dir, port)?;
        let mut database = Self { kind, process, port, dir: dir.to_owned() };
        database.wait_ready()?;
        Ok(database)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let (process, address) = (&mut self.process, SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
        wait::until("the database to answer", START, || {
            process.expect_running()?;
            Ok(Poll::retry(TcpStream::connect(address).map(drop).context("it does not listen")))
        })
    }

    /// Where it is, with user and password; for MariaDB, of one of its databases.
    pub fn url(&self, name: &str) -> String {
        let (user, password, port) = (Self::USER, Self::PASSWORD, self.port);
        match self.kind {
            Kind::Redis => format!("redis://:{password}@127.0.0.1:{port}/{name}"),
            Kind::MariaDb => format!("mysql://{user}:{password}@127.0.0.1:{port}/{name}"),
        }
    }

    /// The process, to stop or kill it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts it again, on the same port, after its end.
    pub fn restart(&mut self) -> Result<()> {
        self.process = launch(self.kind, &self.dir, self.port)?;
        self.wait_ready()
    }
}

fn launch(kind: Kind, dir: &Path, port: u16) -> Result<Process> {
    match kind {
        Kind::Redis => {
            let mut command = Command::new(program("redis-server")?);
            command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
            command.args(["--requirepass", Database::PASSWORD]).arg("--dir").arg(dir);
            Process::start("redis-server", &mut command, &dir.join("redis.log"))
        }
        Kind::MariaDb => {
            let mut command = Command::new(program("mariadbd")?);
            // No defaults first: the distribution's files name its own directories.
            command.args(["--no-defaults", "--bind-address=127.0.0.1", &format!("--port={port}")]);
            command.arg(format!("--datadir={}", dir.join("mariadb").display())).args(user());
            command.arg(format!("--socket={}", dir.join("mariadb.sock").display()));
            command.arg(format!("--tmpdir={}", dir.join("tmp").display())).env("TMPDIR", dir.join("tmp"));
            command.arg(format!("--pid-file={}", dir.join("mariadb.pid").display()));
            command.arg(format!("--init-file={}", dir.join("init.sql").display()));
            command.args(["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=2", "--skip-log-bin"]);
            Process::start("mariadbd", &mut command, &dir.join("mariadb.log"))
        }
    }
}

/// It refuses to run as root unless it is told to.
fn user() -> Option<&'static str> {
    rustix::process::geteuid().is_root().then_some("--user=root")
}

fn program(name: &str) -> Result<PathBuf> {
    match on_path(name) {
        Some(path) => Ok(path),
        None => bail!("there is no program '{name}' (contrib/setup/packages.sh installs it)"),
    }
}
