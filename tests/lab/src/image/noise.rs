//! Images of as many bytes as a test likes, none of which can be compressed or guessed.

use super::hex;
use super::layout::{ImageConfig, Layout, LayoutWriter};
use super::small::busybox;
use super::tar::{Entry, EntryKind, TarWriter};
use crate::cache::built_once;
use anyhow::Result;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

const FILE_BYTES: usize = 1 << 20;

/// An image of layers of random files of one MiB, with busybox in the lowest; its command prints [`Noise::sums`].
#[derive(Debug, Clone)]
pub struct Noise {
    /// The image.
    pub layout: Layout,
    /// What `sha256sum /data/*` prints in a container of it.
    pub sums: String,
}

/// The image whose layer `n` holds `layers[n]` random files of one MiB, called `/data/<layer>-<file>`, with two and three digits.
/// Another seed gives other files.
pub fn noise(seed: u64, layers: &[usize]) -> Result<Noise> {
    let busybox = busybox()?;
    let sources: [&[u8]; 3] = [include_bytes!("noise.rs"), include_bytes!("tar.rs"), include_bytes!("layout.rs")];
    let shape = format!("{seed}-{layers:?}");
    let key = super::recipe_key("noise", &[&[&busybox[..], shape.as_bytes()], &sources[..]].concat());
    let dir = built_once("images", &key, |dir| {
        let mut image = LayoutWriter::new(dir)?;
        let mut sums = String::new();
        for (layer, &files) in layers.iter().enumerate() {
            image.layer(|out| {
                let mut tar = TarWriter::new(out);
                if layer == 0 {
                    add_programs(&mut tar, &busybox)?;
                }
                tar.add(&Entry::new(b"data/", EntryKind::Directory))?;
                for file in 0..files {
                    let path = format!("data/{layer:02}-{file:03}");
                    let content = random(seed, layer, file);
                    writeln!(sums, "{}  /{path}", hex(&Sha256::digest(&content)))?;
                    tar.add(&Entry::new(path.as_bytes(), EntryKind::File(&content)))?;
                }
                tar.finish().map(drop)
            })?;
        }
        std::fs::write(dir.join("sums"), sums)?;
        let config = ImageConfig {
            entrypoint: &["/bin/sh", "-c"],
            cmd: &["sha256sum /data/*"],
            env: &["PATH=/bin"],
            working_dir: "/",
        };
        image.finish(&config).map(drop)
    })?;
    Ok(Noise { layout: Layout::open(&dir)?, sums: std::fs::read_to_string(dir.join("sums"))? })
}

fn add_programs<W: std::io::Write>(tar: &mut TarWriter<W>, busybox: &[u8]) -> Result<()> {
    for dir in ["bin/", "dev/", "proc/", "sys/", "tmp/"] {
        tar.add(&Entry::new(dir.as_bytes(), EntryKind::Directory))?;
    }
    tar.add(&Entry::new(b"bin/busybox", EntryKind::File(busybox)).mode(0o755))?;
    for applet in ["sh", "sha256sum", "sleep", "cat", "echo"] {
        let path = format!("bin/{applet}");
        tar.add(&Entry::new(path.as_bytes(), EntryKind::Hardlink(b"bin/busybox")).mode(0o755))?;
    }
    Ok(())
}

/// splitmix64, begun elsewhere for every file.
fn random(seed: u64, layer: usize, file: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ ((layer as u64) << 48) ^ ((file as u64) << 32);
    let mut bytes = Vec::with_capacity(FILE_BYTES);
    while bytes.len() < FILE_BYTES {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::random;

    #[test]
    fn every_file_is_another() {
        assert_ne!(random(1, 0, 0), random(1, 0, 1));
        assert_ne!(random(1, 0, 0), random(1, 1, 0));
        assert_ne!(random(1, 0, 0), random(2, 0, 0));
        assert_eq!(random(1, 2, 3), random(1, 2, 3));
    }
}
