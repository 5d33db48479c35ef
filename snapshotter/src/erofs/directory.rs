//! Directory blocks: fixed-size entries, then the names, per block of 512 bytes.

use super::BLOCK;

const ENTRY: usize = 12;

/// One name of a directory; `nid` is the inode's number in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// The size of a directory with these names (in the order of their bytes, `.` and `..` among them): whole blocks, and
/// what the last one uses.
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for name in names {
        let length = ENTRY + name.len();
        if used + length > BLOCK as usize {
            blocks += 1;
            used = 0;
        }
        used += length;
    }
    blocks * BLOCK + used as u64
}

/// The content of a directory, [`size`] bytes.
pub(super) fn content(names: &[Name<'_>]) -> Vec<u8> {
    let mut content = Vec::new();
    let mut rest = names;
    while !rest.is_empty() {
        content.resize(content.len().next_multiple_of(BLOCK as usize), 0);
        let mut used = 0;
        let fitting = rest
            .iter()
            .take_while(|name| {
                used += ENTRY + name.name.len();
                used <= BLOCK as usize
            })
            .count();
        let (block, later) = rest.split_at(fitting);
        push_block(&mut content, block);
        rest = later;
    }
    content
}

fn push_block(content: &mut Vec<u8>, names: &[Name<'_>]) {
    let mut name_offset = names.len() * ENTRY;
    for name in names {
        content.extend(name.nid.to_le_bytes());
        content.extend((name_offset as u16).to_le_bytes());
        content.extend([name.file_type, 0]);
        name_offset += name.name.len();
    }
    for name in names {
        content.extend(name.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_that_of_the_content() {
        for count in [1, 2, 20, 21, 500] {
            let names: Vec<String> = (0..count).map(|i| format!("{i:0width$}", width = 1 + i % 255)).collect();
            let names: Vec<Name<'_>> =
                names.iter().map(|name| Name { name: name.as_bytes(), nid: 7, file_type: 1 }).collect();
            assert_eq!(content(&names).len() as u64, size(names.iter().map(|name| name.name)), "{count}");
        }
    }
}
