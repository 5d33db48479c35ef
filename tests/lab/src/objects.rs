//! A real S3-compatible object store: the Versity gateway on a directory.

use crate::host::Host;
use crate::http;
use crate::process::Process;
use crate::tools;
use crate::wait::{self, Poll};
use anyhow::Result;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const START: Duration = Duration::from_secs(60);
const PORT: u16 = 9000;

/// A running object store with one bucket, by plain HTTP.
pub struct ObjectStore {
    process: Process,
    address: SocketAddr,
    dir: PathBuf,
}

impl ObjectStore {
    /// The bucket.
    pub const BUCKET: &str = "blobs";
    /// Who may use it.
    pub const ACCESS_KEY: &str = "lapwing";
    /// With which secret.
    pub const SECRET_KEY: &str = "lapwing-test-secret";
    /// Where it says it is.
    pub const REGION: &str = "us-east-1";

    /// Starts one on `host`, for its whole network.
    pub fn start_on(host: &Host) -> Result<Self> {
        let address = SocketAddr::from((host.address(), PORT));
        let dir = host.dir().join("objects");
        let mut command = host.command(program()?);
        let process = host.spawn("objects", arguments(&mut command, address, &dir)?)?;
        let mut store = Self { process, address, dir };
        store.wait_ready(|address| host.http_get(address, "/"))?;
        Ok(store)
    }

    /// Starts one on a free port of the loopback address, with its files in `dir`.
    pub fn start_local(dir: &Path) -> Result<Self> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let (log, dir) = (dir.join("objects.log"), dir.join("objects"));
        let mut command = Command::new(program()?);
        let process = Process::start("objects", arguments(&mut command, address, &dir)?, &log)?;
        let mut store = Self { process, address, dir };
        store.wait_ready(|address| http::http_get(address, "/", &[]))?;
        Ok(store)
    }

    fn wait_ready(&mut self, get: impl Fn(SocketAddr) -> Result<http::Response>) -> Result<()> {
        let (process, address) = (&mut self.process, self.address);
        wait::until("the object store to answer", START, || {
            process.expect_running()?;
            // Any status: an unsigned request is refused.
            Ok(Poll::retry(get(address).map(drop)))
        })
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the bucket's objects are, as files.
    pub fn directory(&self) -> PathBuf {
        self.dir.join(Self::BUCKET)
    }

    /// The process, to stop or kill it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The objects in the bucket, by their keys, in no order.
    pub fn keys(&self) -> Vec<String> {
        let bucket = self.directory();
        let mut keys = Vec::new();
        let mut directories = vec![bucket.clone()];
        while let Some(directory) = directories.pop() {
            for path in std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    directories.push(path);
                } else if let Ok(key) = path.strip_prefix(&bucket) {
                    keys.push(key.display().to_string());
                }
            }
        }
        // The gateway keeps uploads that are not finished in a directory of its own.
        keys.retain(|key| !key.starts_with('.'));
        keys
    }
}

fn program() -> Result<PathBuf> {
    Ok(tools::s3_dir()?.join("versitygw"))
}

fn arguments<'a>(command: &'a mut Command, address: SocketAddr, dir: &Path) -> Result<&'a mut Command> {
    std::fs::create_dir_all(dir.join(ObjectStore::BUCKET))?;
    let keys = ["--access", ObjectStore::ACCESS_KEY, "--secret", ObjectStore::SECRET_KEY];
    let place = ["--region", ObjectStore::REGION, "--port", &address.to_string()];
    Ok(command.args(keys).args(place).arg("posix").arg(dir))
}
