//! A program that runs while something else is watched.

use crate::text_of;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

/// A running program and what it has printed. Dropping it kills it.
pub(crate) struct Running {
    name: String,
    child: Child,
    lines: Receiver<(Instant, String)>,
    errors: PathBuf,
    started: Instant,
    first_line: Option<Instant>,
    output: String,
    took: Option<Duration>,
}

impl Running {
    /// Starts `command`; `errors` takes its standard error.
    pub(crate) fn start(name: &str, command: &mut Command, errors: PathBuf) -> Result<Self> {
        let stderr = File::create(&errors).with_context(|| format!("cannot write {}", errors.display()))?;
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stdout = child.stdout.take().context("the output is a pipe")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            name: name.to_owned(),
            child,
            lines,
            errors,
            started,
            first_line: None,
            output: String::new(),
            took: None,
        })
    }

    /// True once it has ended well and all its output is here; an error when it failed.
    pub(crate) fn ended(&mut self) -> Result<bool> {
        let closed = self.drain();
        if self.took.is_none()
            && let Some(status) = self.child.try_wait()?
        {
            if !status.success() {
                bail!("{} failed, {status}:\n{}{}", self.name, self.output, text_of(&self.errors));
            }
            self.took = Some(self.started.elapsed());
        }
        Ok(closed && self.took.is_some())
    }

    /// True once it has printed a line; an error when it failed before.
    pub(crate) fn has_printed(&mut self) -> Result<bool> {
        if self.ended()? && self.first_line.is_none() {
            bail!("{} ended without output:\n{}", self.name, text_of(&self.errors));
        }
        Ok(self.first_line.is_some())
    }

    /// How long it took, once it has ended.
    pub(crate) fn took(&self) -> Option<Duration> {
        self.took
    }

    /// When its first line came.
    pub(crate) fn first_line(&self) -> Option<Instant> {
        self.first_line
    }

    /// What it has printed.
    pub(crate) fn output(&self) -> &str {
        self.output.trim()
    }

    /// Takes what was printed; true when no more will come.
    fn drain(&mut self) -> bool {
        loop {
            match self.lines.try_recv() {
                Ok((at, line)) => {
                    self.first_line.get_or_insert(at);
                    self.output.push_str(&line);
                    self.output.push('\n');
                }
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
