//! A real registry: Debian's `docker-registry` on a host.

mod blob;
mod soci;

use crate::host::Host;
use crate::image::Layout;
use crate::process::{Process, check};
use crate::tools;
use crate::wait::{self, Poll};
use anyhow::{Context, Result};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const START: Duration = Duration::from_secs(20);
const PORT: u16 = 5000;

/// User of a registry with basic authentication.
pub const BASIC_USER: &str = "lapwing";
/// That user's password.
pub const BASIC_PASSWORD: &str = "lapwing-test";
/// Both as htpasswd wants them.
const HTPASSWD: &str = "lapwing:$2b$05$zTc1RL1GnRVGA2eB9A2kReinxA4.boX.Vr/SIzq1D5UinO6RLF3rW\n";

/// How a registry is to run.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Ask for [`BASIC_USER`] and [`BASIC_PASSWORD`].
    pub basic_auth: bool,
    /// Tell of pushes.
    pub notify: Option<Notify>,
}

/// Whom a registry tells of pushes.
#[derive(Debug, Clone)]
pub struct Notify {
    /// Where events are POSTed to.
    pub url: String,
    /// Their `Authorization`.
    pub authorization: String,
}

/// A running registry, by plain HTTP, with storage of its own.
pub struct Registry {
    host: Host,
    process: Process,
    options: RegistryOptions,
}

impl Registry {
    /// Starts a registry on `host` and waits until it answers.
    pub fn start(host: &Host, options: RegistryOptions) -> Result<Self> {
        let dir = host.dir().join("registry");
        std::fs::create_dir_all(&dir)?;
        let mut config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 0.0.0.0:{PORT}\n",
            dir.join("storage").display()
        );
        if options.basic_auth {
            let file = dir.join("htpasswd");
            std::fs::write(&file, HTPASSWD)?;
            config.push_str(&format!("auth:\n  htpasswd:\n    realm: lab\n    path: {}\n", file.display()));
        }
        if let Some(Notify { url, authorization }) = &options.notify {
            config.push_str(&format!(
                "notifications:\n  endpoints:\n    - name: lapwing\n      url: {url}\n      headers:\n        Authorization: [{authorization:?}]\n      timeout: 5s\n      threshold: 3\n      backoff: 1s\n"
            ));
        }
        let file = dir.join("config.yml");
        std::fs::write(&file, config)?;
        let program =
            tools::on_path("docker-registry").context("no docker-registry (contrib/setup/packages.sh installs it)")?;
        let mut process = host.spawn("registry", host.command(program).arg("serve").arg(&file))?;
        wait::until("the registry to answer", START, || {
            process.expect_running()?;
            Ok(Poll::retry(host.http_get(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), "/v2/")))
        })?;
        Ok(Self { host: host.clone(), process, options })
    }

    /// Its name in image references: `<host>.lab:5000`.
    pub fn name(&self) -> String {
        format!("{}.lab:{PORT}", self.host.name())
    }

    /// Its URL for hosts of the network.
    pub fn url(&self) -> String {
        format!("http://{}", self.name())
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.host.address(), PORT))
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The process, to stop or kill it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Pushes an image as `<registry>/<repository>`, where `repository` may end in `:tag`, and gives the full reference.
    /// The bytes go over the host's loopback, so they are not on the network's counters.
    pub fn push(&self, image: &Layout, repository: &str) -> Result<String> {
        self.copy(image, repository, &["--preserve-digests"])
    }

    /// The same with a manifest as Docker's registry had it before OCI (schema 2); the layers are the same.
    pub fn push_as_docker(&self, image: &Layout, repository: &str) -> Result<String> {
        self.copy(image, repository, &["--format", "v2s2"])
    }

    fn copy(&self, image: &Layout, repository: &str, options: &[&str]) -> Result<String> {
        let program = tools::on_path("skopeo").context("no skopeo (contrib/setup/packages.sh installs it)")?;
        let mut command = self.host.command(program);
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]).args(options);
        if self.options.basic_auth {
            command.arg(format!("--dest-creds={BASIC_USER}:{BASIC_PASSWORD}"));
        }
        command.arg(image.oci_reference()).arg(format!("docker://127.0.0.1:{PORT}/{repository}"));
        check(&mut command)?;
        Ok(format!("{}/{repository}", self.name()))
    }

    /// Pushes `length` bytes of `content` as a blob of `repository`, as a layer is pushed, over the host's loopback.
    pub fn push_blob(&self, repository: &str, digest: &str, length: u64, content: impl Read + Send) -> Result<()> {
        self.host
            .within(|| blob::push(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), repository, digest, length, content))
    }

    /// Pushes a manifest of this media type as a tag or digest of `repository`, over the host's loopback.
    pub fn push_manifest(&self, repository: &str, reference: &str, media_type: &str, manifest: &[u8]) -> Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        self.host.within(|| blob::push_manifest(address, repository, reference, media_type, manifest))
    }

    /// Bytes sent to the network by the registry's host.
    pub fn sent_bytes(&self) -> Result<u64> {
        self.host.sent_bytes()
    }
}
