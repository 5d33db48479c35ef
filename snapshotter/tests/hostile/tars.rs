//! Tars, header by header, with any lie in them.

use std::io::Write as _;

use flate2::write::GzEncoder;

pub(crate) type Header = [u8; 512];

/// A ustar header with a right checksum.
pub(crate) fn header(name: &[u8], flag: u8, size: u64, link: &[u8]) -> Header {
    let mut header = [0; 512];
    header[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0001750");
    header[116..123].copy_from_slice(b"0000144");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[136..147].copy_from_slice(b"13132027400");
    header[156] = flag;
    header[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[329..336].copy_from_slice(b"0000001");
    header[337..344].copy_from_slice(b"0000003");
    seal(&mut header);
    header
}

/// Makes the checksum right.
pub(crate) fn seal(header: &mut [u8]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// Makes the checksum of every block right that looks like a header.
pub(crate) fn seal_all(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        seal(block);
    }
}

/// A header with `change` made to it, its checksum right again.
pub(crate) fn changed(mut header: Header, change: impl FnOnce(&mut Header)) -> Header {
    change(&mut header);
    seal(&mut header);
    header
}

/// A member: header, contents, padding.
pub(crate) fn member(header: &Header, content: &[u8]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub(crate) fn file(name: &[u8], content: &[u8]) -> Vec<u8> {
    member(&header(name, b'0', content.len() as u64, b""), content)
}

pub(crate) fn special(name: impl AsRef<[u8]>, flag: u8, link: &[u8]) -> Vec<u8> {
    header(name.as_ref(), flag, 0, link).to_vec()
}

/// One record of an extended header; its length counts itself.
pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..).find(|length| length.to_string().len() + rest == *length).unwrap();
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// An extended header with these records.
pub(crate) fn pax(records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
    member(&header(b"PaxHeaders/x", b'x', body.len() as u64, b""), &body)
}

/// The members and the end.
pub(crate) fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

/// One of everything that is allowed, to be changed.
pub(crate) fn rich() -> Vec<u8> {
    let long = [&b"d/"[..], &[b'n'; 200]].concat();
    let long_link = [b't'; 300];
    let mut in_data = b"1\n1024\n512\n".to_vec();
    in_data.resize(512, 0);
    in_data.extend([b'h'; 512]);
    let old_sparse = changed(header(b"d/old-sparse", b'S', 512, b""), |header| {
        header[257..265].copy_from_slice(b"ustar  \0");
        header[386..397].copy_from_slice(b"00000001000");
        header[398..409].copy_from_slice(b"00000001000");
        header[483..494].copy_from_slice(b"00000004000");
    });
    tar(&[
        special(b"./", b'5', b""),
        special(b"d/", b'5', b""),
        file(b"d/file", b"content of a file"),
        file(b"d/two", &[b'x'; 1300]),
        special(b"d/hard", b'1', b"d/file"),
        special(b"soft", b'2', b"d/file"),
        special(b"null", b'3', b""),
        special(b"disk", b'4', b""),
        special(b"pipe", b'6', b""),
        file(b"d/.wh.gone", b""),
        file(b"o/.wh..wh..opq", b""),
        pax(&[
            (b"path", &long),
            (b"mtime", b"1700000000.123456789"),
            (b"SCHILY.xattr.user.a", b"value"),
            (b"uid", b"3000000"),
        ]),
        file(b"short", b"long name"),
        member(&header(b"././@LongLink", b'K', 301, b""), &[&long_link[..], b"\0"].concat()),
        special(b"d/long-link", b'2', b"t"),
        pax(&[
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"d/sparse"),
            (b"GNU.sparse.realsize", b"9000"),
        ]),
        file(b"GNUSparseFile.0/sparse", &in_data),
        pax(&[(b"GNU.sparse.size", b"516"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.map", b"512,4")]),
        file(b"d/sparse01", b"data"),
        member(&old_sparse, &[b's'; 512]),
        file(b"last", b"the end"),
    ])
}

/// One gzip member.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A zstd frame for each `part` bytes.
pub(crate) fn frames(bytes: &[u8], part: usize) -> Vec<u8> {
    bytes.chunks(part).flat_map(|part| zstd::bulk::compress(part, 3).unwrap()).collect()
}
