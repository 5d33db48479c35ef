//! The table `[containerd]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lapwing_p2p::node::ForeignConfig;
use serde::{Deserialize, Serialize};

use super::{ByteSize, ConfigError, Span};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Containerd {
    pub enabled: bool,
    pub socket: PathBuf,
    pub content: String,
    pub verify_rate: ByteSize,
    pub relist: Span,
}

impl Default for Containerd {
    fn default() -> Self {
        Self {
            enabled: true,
            socket: "/run/containerd/containerd.sock".into(),
            content: String::new(),
            verify_rate: ByteSize(64 << 20),
            relist: Span::seconds(600),
        }
    }
}

impl Containerd {
    /// The directory of its content plug-in, if containerd is not to be asked.
    pub(crate) fn content(&self) -> Option<&Path> {
        (!self.content.is_empty()).then_some(Path::new(&self.content))
    }

    /// How it is followed.
    pub(crate) const fn following(&self) -> ForeignConfig {
        ForeignConfig { verify_bytes_per_second: self.verify_rate.0, relist: self.relist.0 }
    }
}

pub(super) fn check(containerd: &Containerd) -> Result<(), ConfigError> {
    let invalid = |key: &str, reason: String| Err(ConfigError::Invalid { key: format!("containerd.{key}"), reason });
    for (key, path) in [("socket", Some(&*containerd.socket)), ("content", containerd.content())] {
        if let Some(path) = path.filter(|path| !path.is_absolute()) {
            return invalid(key, format!("{} is not an absolute path", path.display()));
        }
    }
    if containerd.verify_rate.0 < 1 << 20 {
        return invalid(
            "verify_rate",
            format!("{} is less than 1MiB: nothing would ever be verified", containerd.verify_rate),
        );
    }
    if containerd.relist.0 < Duration::from_secs(10) {
        return invalid("relist", format!("{} is shorter than 10s", containerd.relist));
    }
    Ok(())
}
