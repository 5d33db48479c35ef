//! Programs that give credentials: docker's credential helpers, kubelet's credential providers.
//!
//! They are asked by their standard input and answer by their output. Neither is ever shown: both hold secrets.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::limits::{CREDENTIAL_PROGRAM_TIMEOUT, MAX_CREDENTIAL_ANSWER};

/// What a program said.
pub(super) struct Said {
    pub(super) succeeded: bool,
    pub(super) output: Vec<u8>,
}

/// Runs `program`; it is killed when it takes too long or says too much.
pub(super) async fn run(
    program: &Path,
    arguments: &[String],
    environment: &[(String, String)],
    input: &[u8],
) -> Result<Said, String> {
    let named = |what: String| format!("{}: {what}", program.display());
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().cloned());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| named(format!("cannot be run: {error}")))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let talking = async {
        if let Some(mut stdin) = stdin {
            // One that does not read what it is asked may still answer.
            let _ = stdin.write_all(input).await;
        }
        let mut output = Vec::new();
        if let Some(stdout) = stdout {
            let mut bounded = stdout.take(MAX_CREDENTIAL_ANSWER + 1);
            bounded.read_to_end(&mut output).await.map_err(|error| named(error.to_string()))?;
        }
        if output.len() as u64 > MAX_CREDENTIAL_ANSWER {
            return Err(named(format!("says more than {MAX_CREDENTIAL_ANSWER} bytes")));
        }
        let status = child.wait().await.map_err(|error| named(error.to_string()))?;
        Ok(Said { succeeded: status.success(), output })
    };
    let said = tokio::time::timeout(CREDENTIAL_PROGRAM_TIMEOUT, talking).await;
    said.unwrap_or_else(|_| Err(named(format!("gives no answer within {CREDENTIAL_PROGRAM_TIMEOUT:?}"))))
}
