//! Programs that run to their end, and long-running processes with a log.

use crate::host::HostInner;
use crate::wait::{self, Poll};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// How many lines of a process's log are shown when the test that owns it fails.
const TAIL_LINES: usize = 60;

/// Runs `command` to its end; its status is the caller's to judge.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))
}

/// Runs `command` to its end and gives its standard output; an exit status other than 0 is an error that holds all it printed.
pub fn check(command: &mut Command) -> Result<String> {
    let result = output(command)?;
    let text = String::from_utf8_lossy(&result.stdout).into_owned();
    if !result.status.success() {
        bail!("{command:?} failed, {}:\n{text}{}", result.status, String::from_utf8_lossy(&result.stderr));
    }
    Ok(text)
}

/// A long-running process. Dropping it kills it; while a test panics the end of its log is shown as well.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Keeps the namespaces in being for as long as the process may run in them.
    _host: Option<Arc<HostInner>>,
}

impl Process {
    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Starts `command` with both outputs appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        Self::start_on(None, name, command, log)
    }

    pub(crate) fn start_on(
        host: Option<Arc<HostInner>>,
        name: &str,
        command: &mut Command,
        log: &Path,
    ) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write the log {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), _host: host })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file that holds what it printed.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// An error, with the end of the log, when the process has ended.
    pub fn expect_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended, {status}:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Sends `signal`; a process that has ended already is left alone.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for the end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait::until(&format!("the end of {}", self.name), deadline, || {
            Ok(child.try_wait()?.map_or_else(|| Poll::NotYet("it runs".into()), Poll::Ready))
        })
    }

    /// SIGKILL, and the end of the process.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and a clean end before `deadline`.
    pub fn stop(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the end of the log of {} ({}):\n{}\n----", self.name, self.log.display(), self.log_tail());
        }
        // Both fail only when the process has ended and was waited for, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
