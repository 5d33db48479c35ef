//! Images, built once into the cache: a realistic one, a small one with everything odd that a layer may hold,
//! random ones of any size, and a pause image for CRI.

mod layout;
mod many;
mod noise;
mod pause;
mod real;
mod service;
mod small;
mod tar;

pub(crate) use layout::hex;
pub use layout::{Blob, ImageConfig, LAYER, LAYER_ZSTD, Layout, LayoutWriter};
pub use many::many_layers;
pub use noise::{Noise, noise};
pub use pause::pause;
pub use real::{FULL_OUTPUT, FULL_SCRIPT, LEARNING_OUTPUTS, MAIN_OUTPUT, learning, real};
pub use service::{SERVICE_OUTPUTS, service};
pub use small::{SMALL_OUTPUT, small, small_in_utf8};
pub use tar::{Entry, EntryKind, TarWriter};

/// A short name for what an image is built from: another recipe is another image.
fn recipe_key(name: &str, parts: &[&[u8]]) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{name}-{short}")
}
