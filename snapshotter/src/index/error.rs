//! What goes wrong with a layer index.

use lapwing_p2p::digest::Digest;

use crate::tar::TarError;

/// Why a layer gets no index, or why bytes are not one. None of these touches the layer itself: it is pulled whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Neither gzip nor zstd nor a tar.
    #[error("layer {layer} is neither gzip nor zstd nor a plain tar; it is pulled whole")]
    UnknownFormat {
        /// The layer.
        layer: Digest,
    },
    /// The layer, or the stream in it, ends too early.
    #[error("layer {layer} ends at byte {offset}, inside {inside}; it is pulled whole")]
    Truncated {
        /// The layer.
        layer: Digest,
        /// Where it ends: in the layer, or in the tar if `inside` is a tar entry.
        offset: u64,
        /// What was not finished.
        inside: &'static str,
    },
    /// Not valid gzip.
    #[error("bad gzip in layer {layer} at byte {offset}: {problem}; it is pulled whole")]
    BadGzip {
        /// The layer.
        layer: Digest,
        /// Offset in the layer, in bytes.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// Not valid zstd.
    #[error("bad zstd in layer {layer} at byte {offset}: {problem}; it is pulled whole")]
    BadZstd {
        /// The layer.
        layer: Digest,
        /// Offset in the layer, in bytes.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// The layer's tar is damaged or hostile.
    #[error("bad tar in layer {layer} at byte {offset} of the tar: {problem}; it is pulled whole")]
    BadTar {
        /// The layer.
        layer: Digest,
        /// Offset in the tar, in bytes.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// More or fewer bytes came than the layer's descriptor says.
    #[error("layer {layer} should have {expected} bytes, but {actual} came; fetch it again")]
    LengthMismatch {
        /// The layer.
        layer: Digest,
        /// Length in the descriptor, in bytes.
        expected: u64,
        /// Bytes that came.
        actual: u64,
    },
    /// The bytes are not those of the layer.
    #[error("bytes given for layer {layer} have the digest {actual}; fetch it again")]
    DigestMismatch {
        /// The layer.
        layer: Digest,
        /// What its bytes hash to.
        actual: Digest,
    },
    /// The layer inflates beyond all measure.
    #[error("layer {layer} inflates to more than {ratio} times its size or to more than fits; it is pulled whole")]
    Bomb {
        /// The layer.
        layer: Digest,
        /// The limit on the ratio.
        ratio: u64,
    },
    /// Valid perhaps, but without random access here.
    #[error("layer {layer} has {what}, for which there is no index; it is pulled whole")]
    Unsupported {
        /// The layer.
        layer: Digest,
        /// What stands in the way.
        what: String,
    },
    /// Bytes that are not an encoded index of this format version.
    #[error("layer index is malformed: {0}; get it from another peer or pull the layer whole")]
    Malformed(String),
}

impl IndexError {
    pub(super) fn from_tar(layer: Digest, error: TarError) -> Self {
        match error {
            TarError::Bad { offset, problem } => Self::BadTar { layer, offset, problem },
            TarError::Truncated { offset } => Self::Truncated { layer, offset, inside: "an entry of its tar" },
            TarError::Unsupported { what, .. } => Self::Unsupported { layer, what },
        }
    }
}

/// Why a span of a layer could not be inflated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// The index has no such span.
    #[error("layer {layer} has {spans} spans, no span {span}")]
    NoSuchSpan {
        /// The layer.
        layer: Digest,
        /// What was asked for.
        span: usize,
        /// How many there are.
        spans: usize,
    },
    /// The compressed bytes given are not those that the index describes: fetch them again, from elsewhere.
    #[error(
        "compressed bytes of span {span} of layer {layer} are not those of the index; fetch them from another source"
    )]
    WrongInput {
        /// The layer.
        layer: Digest,
        /// The span.
        span: usize,
    },
    /// The bytes are not those that the layer's table of contents names. Which of the two is wrong is known once the whole
    /// layer has been held against its digest.
    #[error(
        "span {span} of layer {layer} is not what the table of contents says: {problem}; read it again, and if that does \
         not help, remove the image and pull it with lazy.formats = []"
    )]
    WrongChunk {
        /// The layer.
        layer: Digest,
        /// The span.
        span: usize,
        /// What is wrong.
        problem: String,
    },
    /// The right compressed bytes do not give what the index says: the index is wrong and must be dropped.
    #[error("index of layer {layer} is wrong at span {span}: {problem}; drop it and pull the layer whole")]
    WrongIndex {
        /// The layer.
        layer: Digest,
        /// The span.
        span: usize,
        /// What is wrong.
        problem: String,
    },
}
