//! How layers are mounted lazily.

use lapwing_snapshotter::toc::Announced;
use serde::{Deserialize, Serialize};

use super::Span;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Lazy {
    pub enabled: bool,
    pub backend: LazyBackend,
    pub build_indexes: bool,
    pub formats: Vec<LazyFormat>,
    pub soci_referrers: bool,
    pub read_deadline: Span,
    pub complete_after: Span,
    pub record_for: Span,
    pub prefetch: bool,
    pub holder: bool,
}

/// What shows the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LazyBackend {
    Auto,
    Erofs,
    Fuse,
}

/// Tables of contents that others wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LazyFormat {
    #[serde(rename = "estargz")]
    EStargz,
    ZstdChunked,
    Soci,
}

/// Which of them are used.
#[derive(Debug, Clone)]
pub(crate) struct Formats {
    pub used: Vec<LazyFormat>,
    /// Whether a SOCI index is also looked for among what refers to an image.
    pub soci_referrers: bool,
}

impl Lazy {
    pub(crate) fn formats(&self) -> Formats {
        Formats { used: self.formats.clone(), soci_referrers: self.soci_referrers }
    }
}

impl LazyFormat {
    /// The format of such a table.
    pub(crate) fn of(announced: &Announced) -> Self {
        match announced {
            Announced::EStargz { .. } => Self::EStargz,
            Announced::ZstdChunked { .. } => Self::ZstdChunked,
        }
    }
}

impl Default for Lazy {
    fn default() -> Self {
        Self {
            enabled: true,
            backend: LazyBackend::Auto,
            build_indexes: true,
            formats: Vec::new(),
            soci_referrers: false,
            read_deadline: Span::seconds(60),
            complete_after: Span::seconds(30),
            record_for: Span::seconds(30),
            prefetch: true,
            holder: true,
        }
    }
}
