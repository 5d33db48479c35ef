//! A web server: nginx, on a host, which serves a directory.

use crate::host::Host;
use crate::process::Process;
use crate::wait;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

const PORT: u16 = 8080;
const READY: Duration = Duration::from_secs(20);

/// A running nginx: `LAPWING_NGINX`, or what the PATH has.
pub struct WebServer {
    host: Host,
    process: Process,
}

impl WebServer {
    /// Serves the files of `root`, which must be readable on the host, and waits until it answers.
    pub fn start(host: &Host, root: &Path) -> Result<Self> {
        let home = host.dir().join("nginx");
        std::fs::create_dir_all(home.join("logs"))?;
        let (home, root) = (home.display().to_string(), root.display());
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {home}/{name};\n"))
            .collect();
        let config = format!(
            "user root;\ndaemon off;\nmaster_process off;\nerror_log {home}/logs/error.log;\npid {home}/pid;\nevents {{}}\nhttp {{\n\
             {paths}access_log off;\nsendfile on;\ntcp_nopush on;\nserver {{\nroot {root};\nlisten {PORT};\n}}\n}}\n"
        );
        std::fs::write(host.dir().join("nginx/nginx.conf"), config)?;
        let program = std::env::var("LAPWING_NGINX").unwrap_or_else(|_| "nginx".to_owned());
        let mut command = host.command(&program);
        let mut process = host
            .spawn("web", command.args(["-p", &home, "-c", "nginx.conf", "-e", "logs/error.log"]))
            .with_context(|| format!("cannot start {program}; contrib/setup/nginx.sh fetches it"))?;
        let url = format!("http://127.0.0.1:{PORT}/");
        wait::until_true("nginx to answer", READY, || {
            process.expect_running().is_ok() && host.check("curl", &["-sI", &url]).is_ok()
        })?;
        Ok(Self { host: host.clone(), process })
    }

    /// The name and port, as in URLs, of one that runs on the host called `host`.
    pub fn name_of(host: &str) -> String {
        format!("{host}.lab:{PORT}")
    }

    /// The URL of a file for hosts of the network.
    pub fn url(&self, file: &str) -> String {
        format!("http://{}/{file}", Self::name_of(self.host.name()))
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// An error, with the end of its log, when it has ended.
    pub fn expect_running(&mut self) -> Result<()> {
        self.process.expect_running()
    }
}
