//! A wall clock for one process, which a test moves while it runs.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::lapwing::{Lapwing, lapwing_binary};
use crate::process::check;

/// The wall clock of one process; needs a C compiler.
pub struct Clock {
    shift: File,
    library: PathBuf,
}

impl Clock {
    /// Starts `lapwing` anew with a clock of its own, which is right yet.
    pub fn give(lapwing: &mut Lapwing) -> Result<Self> {
        let (source, library) = (lapwing.host().dir().join("shift.c"), lapwing.host().dir().join("shift.so"));
        std::fs::write(&source, include_str!("clock/shift.c"))?;
        let mut command = Command::new("cc");
        check(command.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).arg("-ldl"))?;
        let clock = Self { shift: File::create(file(lapwing))?, library };
        clock.set(0)?;
        clock.restart(lapwing)?;
        Ok(clock)
    }

    /// Kills `lapwing` and starts it again with this clock.
    pub fn restart(&self, lapwing: &mut Lapwing) -> Result<()> {
        let mut command = lapwing.command(&lapwing_binary()?);
        command.env("LD_PRELOAD", &self.library).env("LAPWING_TEST_CLOCK", file(lapwing));
        lapwing.restart_by(command)
    }

    /// Puts it that many seconds ahead of the machine's.
    pub fn set(&self, seconds: i64) -> Result<()> {
        Ok(self.shift.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }
}

fn file(lapwing: &Lapwing) -> PathBuf {
    lapwing.host().dir().join("clock")
}
