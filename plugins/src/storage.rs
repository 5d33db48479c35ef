//! What a seed keeps completed blobs in, behind [`lapwing_p2p::storage::SeedStorage`].
//!
//! * [`DiskStorage`]: the chunk store on the local disk: the default, and the working copy in front of any other
//! * `ObjectStorage`: S3-compatible stores, GCS, Azure, OSS, a directory (on a network filesystem, say), or memory, through
//!   opendal; a feature of the build, on by default
//!
//! `Bucket` is for what other programs put into an S3 bucket: keys and links.
//!
//! Every implementation passes the module of tests in `tests/storage/conformance.rs`.
//!
//! ```text
//! sha256/ab/abcd...        one object for each blob, below the root that the options name
//! ```

#[cfg(feature = "object-storage")]
mod bucket;
mod config;
mod disk;
#[cfg(feature = "object-storage")]
mod objects;

#[cfg(feature = "object-storage")]
pub use self::bucket::{Bucket, BucketError};
pub use self::config::{InvalidStorage, StorageConfig, open};
pub use self::disk::DiskStorage;
#[cfg(feature = "object-storage")]
pub use self::objects::ObjectStorage;
