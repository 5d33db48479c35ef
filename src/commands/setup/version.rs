//! Which containerd it is.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;

use super::error::SetupError;

/// Major and minor version of a containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ContainerdVersion {
    pub major: u32,
    pub minor: u32,
}

impl ContainerdVersion {
    /// The version that a file without one gets.
    pub(super) fn config_version(self) -> i64 {
        if self.major < 2 { 2 } else { 3 }
    }
}

impl fmt::Display for ContainerdVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ContainerdVersion {
    type Err = String;

    /// "1.7", "v2.3.4", "1.6.20~ds1".
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is no version of containerd, such as \"1.7\" or \"2.1.4\"");
        let mut numbers = text.trim().trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next().and_then(|number| number.parse().ok());
        let (Some(major), Some(minor)) = (next(), next()) else { return Err(refused()) };
        if major == 0 { Err(refused()) } else { Ok(Self { major, minor }) }
    }
}

/// Asks `containerd --version`, which prints "containerd <package> <version> [<revision>]".
pub(crate) fn installed() -> Result<ContainerdVersion, SetupError> {
    let remedy = "say which with --containerd-version";
    let failed = |why: String| SetupError::Usage(format!("containerd --version: {why}; {remedy}"));
    let output = Command::new(program()).arg("--version").output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    printed(&String::from_utf8_lossy(&output.stdout)).map_err(failed)
}

fn printed(text: &str) -> Result<ContainerdVersion, String> {
    let word = text.split_whitespace().nth(2).ok_or_else(|| format!("it printed {text:?}"))?;
    word.parse()
}

/// Also where only root's PATH leads.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(usual).map(|dir| dir.join("containerd")).find(|file| file.is_file());
    found.unwrap_or_else(|| "containerd".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_prints_is_understood() {
        let cases = [
            ("containerd github.com/containerd/containerd/v2 v2.3.4 \n", (2, 3)),
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n", (1, 6)),
            ("containerd containerd.io 1.7.24 88bf19b2105c8b17560993bee28a01ddc2f97182\n", (1, 7)),
            ("containerd github.com/containerd/containerd/v2 v2.4.0-beta.0 301026e58\n", (2, 4)),
        ];
        for (text, (major, minor)) in cases {
            assert_eq!(printed(text), Ok(ContainerdVersion { major, minor }), "{text}");
        }
        for text in ["", "containerd containerd.io", "containerd a b", "containerd a 0.2"] {
            assert!(printed(text).is_err(), "{text}");
        }
    }
}
