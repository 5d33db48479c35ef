//! Archives that no honest program writes, and ends that some do.

use proptest::prelude::*;

use super::*;

/// A header with a right checksum.
fn header(name: &str, flag: u8, size: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn pax(flag: u8, records: &[(&str, &str)]) -> Vec<u8> {
    let mut body = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (rest..).find(|length| rest + length.to_string().len() == *length).unwrap();
        body += &format!("{length} {key}={value}\n");
    }
    [header("pax", flag, body.len() as u64), padded(body.as_bytes())].concat()
}

fn file(name: &str, contents: &[u8]) -> Vec<u8> {
    [header(name, b'0', contents.len() as u64), padded(contents)].concat()
}

fn scan(parts: &[&[u8]]) -> Result<Vec<Entry>, TarError> {
    let mut scanner = Scanner::default();
    for part in parts {
        scanner.push(part)?;
    }
    scanner.finish()
}

fn paths(parts: &[&[u8]]) -> Vec<String> {
    scan(parts).unwrap().iter().map(|entry| String::from_utf8(entry.path.clone()).unwrap()).collect()
}

const ZERO: &[u8] = &[0; BLOCK];

#[test]
fn ends_where_go_ends() {
    let one = file("one", b"1");
    let two = file("two", b"2");
    assert_eq!(paths(&[]), [""; 0]);
    assert_eq!(paths(&[&one]), ["one"], "no zero blocks");
    assert_eq!(paths(&[&one[..513]]), ["one"], "no padding");
    assert_eq!(paths(&[&one, ZERO]), ["one"], "one zero block");
    assert_eq!(paths(&[&one, ZERO, ZERO, &two]), ["one"], "a second archive behind the end");
    assert_eq!(paths(&[&one, ZERO, ZERO, b"garbage"]), ["one"]);
    assert!(matches!(scan(&[&one, ZERO, &two]), Err(TarError::Bad { offset: 1536, .. })));
    for end in [1, 511, 512] {
        assert!(matches!(scan(&[&one[..end]]), Err(TarError::Truncated { .. })), "{end}");
    }
    assert!(matches!(scan(&[&one, &ZERO[..100]]), Err(TarError::Truncated { .. })));
}

#[test]
fn a_pax_size_rules_over_the_header() {
    // CVE-2025-62518: a reader that takes the header's 0 sees the contents as further headers.
    let hidden = file("hidden", b"");
    let tar = [pax(b'x', &[("size", "512")]), header("outer", b'0', 0), hidden].concat();
    let entries = scan(&[&tar]).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].path, b"outer");
    assert!(matches!(entries[0].kind, Kind::File { size: 512, .. }));
}

#[test]
fn links_and_directories_have_no_contents_whatever_their_size() {
    for flag in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let mut block = header("odd", flag, 512);
        block[157..160].copy_from_slice(b"abc");
        seal(&mut block);
        assert_eq!(paths(&[&block, &file("next", b"")]), ["odd", "next"], "{}", char::from(flag));
    }
}

#[test]
fn extended_headers_name_the_next_entry_only() {
    let long = [header("long", b'L', 5), padded(b"gnu\0x")].concat();
    let path = pax(b'x', &[("path", "pax")]);
    assert_eq!(paths(&[&path, &file("a", b""), &file("b", b"")]), ["pax", "b"]);
    assert_eq!(paths(&[&long, &file("a", b""), &file("b", b"")]), ["gnu", "b"]);
    assert_eq!(paths(&[&long, &path, &file("a", b"")]), ["gnu"], "as in Go, whatever the order");
    let other = pax(b'x', &[("uid", "5")]);
    assert_eq!(paths(&[&path, &other, &file("a", b"")]), ["a"], "a second header replaces the first");
    let comment = pax(b'g', &[("comment", "0123abcd")]);
    assert_eq!(paths(&[&comment, &file("a", b"")]), ["a"]);
}

#[test]
fn prefixes_stand_where_go_looks_for_them() {
    let with_prefix = |magic: &[u8], prefix: &[u8]| {
        let mut block = header("name", b'0', 0);
        block[257..265].copy_from_slice(magic);
        block[345..345 + prefix.len()].copy_from_slice(prefix);
        seal(&mut block);
        paths(&[&block])
    };
    assert_eq!(with_prefix(b"ustar\x0000", b"dir"), ["dir/name"]);
    assert_eq!(with_prefix(b"ustar\x00xx", b"dir"), ["dir/name"], "the version does not matter");
    assert_eq!(with_prefix(b"\0\0\0\0\0\0\0\0", b"dir"), ["name"], "v7 has none");
    assert_eq!(with_prefix(b"ustar  \0", b"00000000001"), ["name"], "GNU has the access time there");
    assert_eq!(with_prefix(b"ustar  \0", b"dir"), ["dir/name"], "but for Go before 1.8");
}

#[test]
fn sparse_names_count_only_for_sparse_files() {
    let unknown = [("GNU.sparse.major", "2"), ("GNU.sparse.name", "real")];
    assert_eq!(paths(&[&pax(b'x', &unknown), &file("a", b"")]), ["a"]);
    let known =
        [("GNU.sparse.map", "0,1"), ("GNU.sparse.numblocks", "1"), ("GNU.sparse.name", "real"), ("path", "made-up")];
    assert_eq!(paths(&[&pax(b'x', &known), &file("a", b"1")]), ["real"]);
}

#[test]
fn what_readers_disagree_about_is_refused() {
    for record in [("path", "x"), ("size", "1"), ("SCHILY.xattr.user.a", "b"), ("mtime", "1")] {
        let tar = [pax(b'g', &[record]), file("a", b"")].concat();
        assert!(matches!(scan(&[&tar]), Err(TarError::Unsupported { .. })), "{record:?}");
    }
    for flag in [b'V', b'M', b'D', b'X', b'A', 0xff] {
        assert!(matches!(scan(&[&header("a", flag, 0)]), Err(TarError::Unsupported { .. })), "{flag}");
    }
}

#[test]
fn nothing_leaves_the_root() {
    for name in ["../a", "/../a", "a/../../b", ".."] {
        assert!(matches!(scan(&[&file(name, b"")]), Err(TarError::Bad { offset: 0, .. })), "{name}");
        let mut link = header("link", b'1', 0);
        link[157..157 + name.len()].copy_from_slice(name.as_bytes());
        seal(&mut link);
        assert!(matches!(scan(&[&link]), Err(TarError::Bad { .. })), "link to {name}");
        let tar = [pax(b'x', &[("path", name)]), file("a", b"")].concat();
        assert!(scan(&[&tar]).is_err(), "{name} by PAX");
    }
    assert_eq!(paths(&[&file("/abs/./file", b""), &file("/", b""), &header("./", b'5', 0)]), ["abs/file", ""]);
}

#[test]
fn checksums_may_be_signed_but_not_wrong() {
    let mut block = header("a", b'0', 0);
    block[0] = 0xe9;
    seal(&mut block);
    let signed: i32 =
        block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { i32::from(*b as i8) }).sum();
    block[148..155].copy_from_slice(format!("{signed:06o}\0").as_bytes());
    assert_eq!(scan(&[&block]).unwrap().len(), 1);
    block[1] ^= 1;
    assert!(matches!(scan(&[&block]), Err(TarError::Bad { .. })));
}

#[test]
fn numbers_out_of_range_are_refused() {
    for record in [
        ("uid", "4294967296"),
        ("gid", "-1"),
        ("size", "-1"),
        ("size", "9223372036854775807"),
        ("uid", "x"),
        ("atime", "x"),
    ] {
        let tar = [pax(b'x', &[record]), file("a", b"")].concat();
        assert!(matches!(scan(&[&tar]), Err(TarError::Bad { .. })), "{record:?}");
    }
    let long = header("x", b'x', MAX_TAR_META_BYTES + 1);
    assert!(matches!(scan(&[&long]), Err(TarError::Unsupported { .. })));
}

#[test]
fn times_are_bounded_as_containerd_bounds_them() {
    for (time, expected) in [
        ("-1", (0, 0)),
        ("-0.5", (0, 0)),
        ("1.25", (1, 250_000_000)),
        ("9223372036.854775807", (9_223_372_036, 854_775_807)),
        ("9223372036.854775808", (0, 0)),
    ] {
        let tar = [pax(b'x', &[("mtime", time)]), file("a", b"")].concat();
        let entry = scan(&[&tar]).unwrap().remove(0);
        assert_eq!((entry.mtime, entry.mtime_nanos), expected, "{time}");
    }
}

#[test]
fn sparse_maps_must_fit_file_and_contents() {
    let sparse = |map: &str, count: &str, real: &str, contents: &[u8]| {
        let records = [("GNU.sparse.map", map), ("GNU.sparse.numblocks", count), ("GNU.sparse.size", real)];
        scan(&[&pax(b'x', &records), &file("s", contents)])
    };
    let entries = sparse("0,2,10,3", "2", "20", b"abcde").unwrap();
    let Kind::File { size: 20, extents } = &entries[0].kind else { panic!("{entries:?}") };
    assert_eq!(extents[1], Extent { file_offset: 10, tar_offset: extents[0].tar_offset + 2, length: 3 });
    for (map, count, real, contents) in [
        ("0,2,1,3", "2", "20", &b"abcde"[..]),
        ("0,2,10,3", "2", "12", b"abcde"),
        ("0,2,10,3", "2", "20", b"abcd"),
        ("0,2,10,3", "2", "20", b"abcdef"),
        ("0,2,10,3", "3", "20", b"abcde"),
        ("0,2,10", "1", "20", b"ab"),
        ("9223372036854775807,5", "1", "20", b"abcde"),
        ("-1,5", "1", "20", b"abcde"),
        ("0,5", "x", "20", b"abcde"),
    ] {
        assert!(matches!(sparse(map, count, real, contents), Err(TarError::Bad { .. })), "{map} {count} {real}");
    }
    let one = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9")];
    for body in [&b"1\n0\n"[..], b"99999999999\n", b"x\n", b"1\n0\n5\n", b"111111111111111111111111"] {
        let result = scan(&[&pax(b'x', &one), &file("s", body), ZERO]);
        assert!(result.is_err(), "{:?}", String::from_utf8_lossy(body));
    }
}

fn some_tar() -> Vec<u8> {
    let sparse = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9"), ("path", "s")];
    let map = [padded(b"1\n4\n5\n"), b"abcde".to_vec()].concat();
    [
        file("a", b"contents"),
        pax(b'x', &[("path", "long/name"), ("SCHILY.xattr.user.a", "b"), ("mtime", "1.5")]),
        file("b", &[7; 700]),
        pax(b'x', &sparse),
        file("c", &map),
        [header("long", b'K', 3), padded(b"a/b")].concat(),
        header("h", b'1', 0),
        vec![0; 1024],
    ]
    .concat()
}

proptest! {
    #[test]
    fn portions_do_not_matter(portion in 1usize..2000) {
        let tar = some_tar();
        let portions: Vec<&[u8]> = tar.chunks(portion).collect();
        prop_assert_eq!(scan(&portions).unwrap(), scan(&[&tar]).unwrap());
    }

    #[test]
    fn changed_bytes_never_panic(changes in proptest::collection::vec((0usize..8000, any::<u8>()), 1..8)) {
        let mut tar = some_tar();
        let length = tar.len();
        for (at, byte) in changes {
            tar[at % length] = byte;
        }
        // With checksums made right again, so that the change gets further than them.
        for block in tar.chunks_exact_mut(BLOCK).filter(|block| &block[257..262] == b"ustar") {
            seal(block);
        }
        if let Ok(entries) = scan(&[&tar]) {
            for entry in entries {
                prop_assert!(path::is_clean(&entry.path));
                if let Kind::File { size, extents } = entry.kind {
                    for extent in extents {
                        prop_assert!(extent.file_offset + extent.length <= size);
                        prop_assert!(extent.tar_offset + extent.length <= length as u64);
                    }
                }
            }
        }
    }

    #[test]
    fn arbitrary_blocks_never_panic(mut blocks in proptest::collection::vec(any::<u8>(), 0..4096)) {
        for block in blocks.chunks_exact_mut(BLOCK) {
            seal(block);
        }
        let _ = scan(&[&blocks]);
    }
}
