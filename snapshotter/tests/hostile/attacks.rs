//! Attacks by the tar in a layer, and what is to become of each.

use crate::Expect::{self, Exact, Harmless, Refused};
use crate::tars::{changed, file, header, member, pax, record, special, tar};

type Attack = (&'static str, Expect, Vec<u8>);

/// All of them; the tars are complete.
pub(crate) fn all() -> Vec<Attack> {
    [paths(), links(), whiteouts(), numbers(), extended(), sparse(), ends(), duplicates()].concat()
}

fn of(name: &'static str, expect: Expect, members: &[Vec<u8>]) -> Attack {
    (name, expect, tar(members))
}

fn long_name(flag: u8, name: &[u8]) -> Vec<u8> {
    member(&header(b"././@LongLink", flag, name.len() as u64 + 1, b""), &[name, b"\0"].concat())
}

fn paths() -> Vec<Attack> {
    let deep = b"d/".repeat(2049);
    let wide = [b'n'; 256];
    vec![
        of("up", Refused, &[file(b"../x", b"x")]),
        of("up from within", Refused, &[file(b"a/../../x", b"x")]),
        of("absolute and up", Refused, &[file(b"/../x", b"x")]),
        of("only up", Refused, &[special(b"..", b'5', b"")]),
        of("far up", Refused, &[file(&b"../".repeat(30), b"x")]),
        of(
            "up in a prefix",
            Refused,
            &[{
                let header = changed(header(b"x", b'0', 1, b""), |header| header[345..350].copy_from_slice(b"../.."));
                member(&header, b"x")
            }],
        ),
        of("up in PAX", Refused, &[pax(&[(b"path", b"../../etc/passwd")]), file(b"x", b"x")]),
        of("up in a long name", Refused, &[long_name(b'L', b"../../etc/passwd"), file(b"x", b"x")]),
        of("absolute", Exact, &[file(b"/etc/passwd", b"x")]),
        of("absolute in PAX", Exact, &[pax(&[(b"path", b"///etc/./passwd")]), file(b"x", b"x")]),
        of("up and down", Exact, &[file(b"a/../b", b"x")]),
        of("the root as a file", Exact, &[file(b"./", b"x"), file(b"a", b"x")]),
        of("the root as a link", Exact, &[special(b"/", b'2', b"/etc"), file(b"a", b"x")]),
        of("a name of 256 bytes", Refused, &[long_name(b'L', &wide), file(b"x", b"x")]),
        of("a name of 255 bytes", Exact, &[long_name(b'L', &wide[1..]), file(b"x", b"x")]),
        of("a path of 4098 bytes", Refused, &[long_name(b'L', &deep), file(b"x", b"x")]),
        of("a path of 4094 bytes", Exact, &[long_name(b'L', &deep[..4095]), special(b"x", b'5', b"")]),
        of("a NUL in PAX", Refused, &[pax(&[(b"path", b"a\0b")]), file(b"x", b"x")]),
        of("a file as a parent", Refused, &[file(b"a", b"x"), file(b"a/b", b"x")]),
        of("a device as a parent", Refused, &[special(b"a", b'3', b""), file(b"a/b", b"x")]),
        of("a pipe as a parent", Refused, &[special(b"a", b'6', b""), special(b"a/b", b'5', b"")]),
        of("control characters", Exact, &[file(b"\x1b[2J\n\r", b"x")]),
        of("not UTF-8", Exact, &[file(b"\xff\xfe\x80", b"x")]),
    ]
}

fn links() -> Vec<Attack> {
    vec![
        of("a link out, written through", Exact, &[special(b"l", b'2', b"/etc"), file(b"l/passwd", b"x")]),
        of("a link up, written through", Exact, &[special(b"l", b'2', b"../../../etc"), file(b"l/passwd", b"x")]),
        of("a link over a directory", Exact, &[file(b"d/a", b"x"), special(b"d", b'2', b"/etc"), file(b"d/b", b"y")]),
        of("a chain of links", Exact, &[special(b"a", b'2', b"b"), special(b"b", b'2', b"/c"), file(b"a/x", b"x")]),
        of("links in a circle", Refused, &[special(b"a", b'2', b"b"), special(b"b", b'2', b"a"), file(b"a/x", b"x")]),
        of("a link to itself", Refused, &[special(b"a", b'2', b"a"), file(b"a/x", b"x")]),
        of("a link that grows", Refused, &[special(b"a", b'2', b"a/a"), file(b"a/x", b"x")]),
        of("a link without a target", Refused, &[special(b"a", b'2', b"")]),
        of("a target with a NUL", Refused, &[pax(&[(b"linkpath", b"a\0b")]), special(b"a", b'2', b"t")]),
        of("a target of 4096 bytes", Refused, &[long_name(b'K', &[b't'; 4096]), special(b"a", b'2', b"t")]),
        of("a target of 4095 bytes", Exact, &[long_name(b'K', &[b't'; 4095]), special(b"a", b'2', b"t")]),
        of("a hard link up", Refused, &[special(b"h", b'1', b"../etc/passwd")]),
        of("a hard link to the host", Refused, &[special(b"h", b'1', b"/etc/shadow")]),
        of("a hard link to itself", Refused, &[special(b"h", b'1', b"h")]),
        of("a hard link to the root", Refused, &[special(b"h", b'1', b"/")]),
        of("a hard link to nothing", Refused, &[special(b"h", b'1', b"")]),
        of("a hard link to what comes later", Refused, &[special(b"h", b'1', b"f"), file(b"f", b"x")]),
        of("a hard link to a directory", Refused, &[special(b"d", b'5', b""), special(b"h", b'1', b"d")]),
        of(
            "a hard link through a link out",
            Refused,
            &[special(b"l", b'2', b"/etc"), special(b"h", b'1', b"l/shadow")],
        ),
        of("a hard link to a link", Exact, &[special(b"l", b'2', b"/etc"), special(b"h", b'1', b"l")]),
        of("a hard link to a device", Exact, &[special(b"d", b'3', b""), special(b"h", b'1', b"d")]),
        of(
            "a hard link with contents",
            Harmless,
            &[file(b"f", b"x"), header(b"h", b'1', 512, b"f").to_vec(), vec![0xff; 512]],
        ),
    ]
}

fn whiteouts() -> Vec<Attack> {
    vec![
        of("whiteout of nothing", Harmless, &[file(b".wh.", b"")]),
        of("whiteout of a dot", Harmless, &[file(b"d/.wh..", b"")]),
        of("whiteout of the parent", Harmless, &[file(b"d/.wh...", b"")]),
        of("whiteout that leads up", Harmless, &[file(b".wh.../x", b"")]),
        of("whiteout of what is here", Harmless, &[file(b"a", b"x"), file(b".wh.a", b"")]),
        of("whiteout, then the file", Harmless, &[file(b".wh.a", b""), file(b"a", b"x")]),
        of("opaque root", Exact, &[file(b".wh..wh..opq", b""), file(b"a", b"x")]),
        of("opaque and with contents", Harmless, &[file(b"d/.wh..wh..opq", b"12345"), file(b"d/x", b"x")]),
        of("a directory called whiteout", Harmless, &[special(b".wh.d", b'5', b""), file(b".wh.d/x", b"x")]),
        of("a link called whiteout", Harmless, &[special(b".wh.l", b'2', b"/etc")]),
        of("a device called whiteout", Harmless, &[special(b".wh.l", b'3', b"")]),
        of("AUFS directories", Harmless, &[special(b".wh..wh.plnk", b'5', b""), file(b".wh..wh.plnk/x", b"x")]),
        of("whiteout below a file", Refused, &[file(b"a", b"x"), file(b"a/.wh.b", b"")]),
        of(
            "overlayfs's own attributes",
            Exact,
            &[
                pax(&[
                    (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
                    (b"SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ]),
                special(b"d", b'5', b""),
            ],
        ),
        of(
            "a device that is a whiteout to overlayfs",
            Exact,
            &[changed(header(b"w", b'3', 0, b""), |header| {
                header[329..337].copy_from_slice(b"0000000\0");
                header[337..345].copy_from_slice(b"0000000\0");
            })
            .to_vec()],
        ),
    ]
}

/// A header whose field at `at` is changed.
fn field(at: usize, value: &[u8], flag: u8) -> Vec<u8> {
    changed(header(b"a", flag, 0, b"t"), |header| header[at..at + value.len()].copy_from_slice(value)).to_vec()
}

fn numbers() -> Vec<Attack> {
    let huge = |length: usize| [&[0x80][..], &vec![0x7f; length - 1]].concat();
    let negative = |length: usize| vec![0xff; length];
    vec![
        of("a negative size", Refused, &[field(124, &negative(12), b'0')]),
        of("a size beyond all", Refused, &[field(124, &huge(12), b'0')]),
        of("a size of 2^63-513", Refused, &[field(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xfd\xff", b'0')]),
        of("a size of 2^63-1", Refused, &[field(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", b'0')]),
        of("a size of 8 GiB", Refused, &[field(124, b"77777777777\0", b'0')]),
        of("a size that is none", Refused, &[field(124, b"9999999999x\0", b'0')]),
        of("an owner beyond 32 bits", Refused, &[field(108, b"\x80\0\0\x01\0\0\0\0", b'0')]),
        of("a negative owner", Refused, &[field(108, &negative(8), b'0')]),
        of("a negative group", Refused, &[field(116, &negative(8), b'0')]),
        of("a negative time", Exact, &[field(136, &negative(12), b'0')]),
        of("a time beyond 2262", Exact, &[field(136, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", b'0')]),
        of("a time beyond 64 bits", Refused, &[field(136, &huge(12), b'0')]),
        of("a negative device", Refused, &[field(329, &negative(8), b'3')]),
        of("a device beyond 32 bits", Refused, &[field(337, &huge(8), b'4')]),
        of("a mode with all bits", Exact, &[field(100, b"7777777\0", b'0')]),
        of("a negative mode", Harmless, &[field(100, &negative(8), b'0')]),
        of("an unknown type", Refused, &[field(156, b"Q", b'0')]),
        of("a type of 255", Refused, &[field(156, b"\xff", b'0')]),
        of("Solaris's extended header", Refused, &[field(156, b"X", b'0')]),
        of(
            "a wrong checksum",
            Refused,
            &[{
                let mut header = header(b"a", b'0', 0, b"");
                header[0] = b'b';
                header.to_vec()
            }],
        ),
        of(
            "a checksum that is none",
            Refused,
            &[{
                let mut header = header(b"a", b'0', 0, b"");
                header[148..156].fill(b'z');
                header.to_vec()
            }],
        ),
        of("a directory with a size", Harmless, &[header(b"d", b'5', 512, b"").to_vec(), file(b"a", b"x")]),
        of(
            "a directory with the size of all",
            Harmless,
            &[header(b"d", b'5', (8 << 30) - 1, b"").to_vec(), file(b"a", b"x")],
        ),
    ]
}

fn raw_pax(body: &[u8]) -> Vec<u8> {
    member(&header(b"PaxHeaders/x", b'x', body.len() as u64, b""), body)
}

fn extended() -> Vec<Attack> {
    let x = || file(b"x", b"content");
    let global = |records: &[u8]| member(&header(b"g", b'g', records.len() as u64, b""), records);
    let value = vec![b'v'; 65_537];
    let name = [&b"SCHILY.xattr.user."[..], &[b'n'; 251]].concat();
    vec![
        of("a size in PAX beyond the tar", Refused, &[pax(&[(b"size", b"99999999")]), x()]),
        of("a size in PAX that hides an entry", Harmless, &[pax(&[(b"size", b"1024")]), x(), file(b"hidden", b"y")]),
        of("a negative size in PAX", Refused, &[pax(&[(b"size", b"-1")]), x()]),
        of("a size in PAX beyond 64 bits", Refused, &[pax(&[(b"size", b"18446744073709551616")]), x()]),
        of("a size in PAX of 0 for a file", Harmless, &[pax(&[(b"size", b"0")]), x()]),
        of("two PAX headers", Exact, &[pax(&[(b"path", b"first")]), pax(&[(b"path", b"second")]), x()]),
        of("PAX and a long name", Exact, &[pax(&[(b"path", b"pax")]), long_name(b'L', b"gnu"), x()]),
        of("a record that is too long", Refused, &[raw_pax(b"99 path=a\n"), x()]),
        of("a record that is too short", Refused, &[raw_pax(b"5 path=a\n"), x()]),
        of("a record of no length", Refused, &[raw_pax(b"0 path=a\n"), x()]),
        of("a record of negative length", Refused, &[raw_pax(b"-9 path=a\n"), x()]),
        of("a record of endless length", Refused, &[raw_pax(b"99999999999999999999999 path=a\n"), x()]),
        of("a record without an end", Refused, &[raw_pax(b"10 path=a "), x()]),
        of("a record without a value", Refused, &[raw_pax(b"9 pathab\n"), x()]),
        of("a record without a key", Refused, &[raw_pax(b"6 =ab\n"), x()]),
        of("a key with a NUL", Refused, &[raw_pax(&record(b"pa\0th", b"a")), x()]),
        of("half a record", Refused, &[raw_pax(&[&record(b"path", b"a")[..], b"12 "].concat()), x()]),
        of("a time that is none", Refused, &[pax(&[(b"mtime", b"yesterday")]), x()]),
        of("a negative fraction", Harmless, &[pax(&[(b"mtime", b"-0.5")]), x()]),
        of("an attribute without a name", Refused, &[pax(&[(b"SCHILY.xattr.", b"v")]), x()]),
        of("an attribute too large", Refused, &[pax(&[(b"SCHILY.xattr.user.a", &value)]), x()]),
        of("an attribute of the most", Refused, &[pax(&[(b"SCHILY.xattr.user.a", &value[1..])]), x()]),
        of("an attribute of nearly the most", Exact, &[pax(&[(b"SCHILY.xattr.user.a", &value[2..])]), x()]),
        of("an attribute's name too long", Refused, &[pax(&[(&name, b"v")]), x()]),
        of("an attribute twice", Exact, &[pax(&[(b"SCHILY.xattr.user.a", b"1"), (b"SCHILY.xattr.user.a", b"2")]), x()]),
        of("an attribute of an unknown kind", Exact, &[pax(&[(b"SCHILY.xattr.nobody.a", b"1")]), x()]),
        of("a malformed ACL", Refused, &[pax(&[(b"SCHILY.xattr.system.posix_acl_access", b"1")]), x()]),
        of("a header for all that changes entries", Refused, &[global(&record(b"path", b"a")), x()]),
        of("a header for all that says nothing", Exact, &[global(&record(b"comment", b"a")), x()]),
        of("a header for all that is broken", Refused, &[global(b"junk"), x()]),
        of("an extended header without an entry", Exact, &[x(), pax(&[(b"path", b"a")])]),
        of("an extended header of 8 GiB", Refused, &[header(b"p", b'x', (8 << 30) - 1, b"").to_vec(), x()]),
        of("a long name of 2 MiB", Refused, &[header(b"p", b'L', 2 << 20, b"").to_vec(), x()]),
        of("an empty long name", Exact, &[header(b"p", b'L', 0, b"").to_vec(), x()]),
        of("a negative extended header", Refused, &[field(124, &[0xff; 12], b'x'), x()]),
    ]
}

fn sparse() -> Vec<Attack> {
    let map = |records: &[(&[u8], &[u8])], content: &[u8]| vec![pax(records), file(b"s", content)];
    let old = |size: &[u8], pairs: &[(&[u8], &[u8])], physical: u64, more: bool| {
        changed(header(b"s", b'S', physical, b""), |header| {
            header[257..265].copy_from_slice(b"ustar  \0");
            for (slot, (offset, length)) in pairs.iter().enumerate() {
                header[386 + 24 * slot..][..offset.len()].copy_from_slice(offset);
                header[398 + 24 * slot..][..length.len()].copy_from_slice(length);
            }
            header[482] = u8::from(more);
            header[483..483 + size.len()].copy_from_slice(size);
        })
    };
    let in_data = |text: &[u8], content: &[u8]| {
        let mut data = text.to_vec();
        data.resize(data.len().next_multiple_of(512), 0);
        data.extend_from_slice(content);
        map(&[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9000")], &data)
    };
    let list = |count: &[u8], pairs: &[u8], content: &[u8]| {
        map(&[(b"GNU.sparse.size", b"4096"), (b"GNU.sparse.numblocks", count), (b"GNU.sparse.map", pairs)], content)
    };
    vec![
        of("a map that overlaps itself", Refused, &list(b"2", b"0,4,2,4", b"12345678")),
        of("a map that goes backwards", Refused, &list(b"2", b"1024,4,0,4", b"12345678")),
        of("a map beyond the file", Refused, &list(b"1", b"4095,4", b"1234")),
        of("a map that overflows", Refused, &list(b"1", b"9223372036854775807,4", b"1234")),
        of("a map with more than the data", Refused, &list(b"1", b"0,9", b"1234")),
        of("a map with less than the data", Refused, &list(b"1", b"0,2", b"1234")),
        of("a map with an odd end", Refused, &list(b"1", b"0,4,5", b"1234")),
        of("a map with another count", Refused, &list(b"2", b"0,4", b"1234")),
        of("a negative map", Refused, &list(b"1", b"-4,4", b"1234")),
        of("a map that is none", Refused, &list(b"1", b"a,b", b"1234")),
        of("a map of nothing", Harmless, &list(b"0", b"", b"")),
        of("a map not of whole blocks", Refused, &list(b"1", b"7,4", b"1234")),
        of(
            "pairs out of order",
            Refused,
            &map(&[(b"GNU.sparse.numbytes", b"4"), (b"GNU.sparse.offset", b"0")], b"1234"),
        ),
        of("a size without a map", Harmless, &map(&[(b"GNU.sparse.size", b"99999")], b"1234")),
        of(
            "a negative real size",
            Refused,
            &map(
                &[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"-1")],
                &[b'0'; 512],
            ),
        ),
        of("a map in the data that is none", Refused, &in_data(b"x\n", b"")),
        of("a map in the data without end", Refused, &in_data(&[b'1'; 600], b"")),
        of("a map in the data of 2^60 parts", Refused, &in_data(b"1152921504606846976\n", b"")),
        of("a map in the data longer than it", Refused, &in_data(b"500000\n", b"")),
        of("a map in the data with an overlap", Refused, &in_data(b"2\n0\n4\n1\n4\n", b"12345678")),
        of(
            "a file of 2^63-1 bytes",
            Harmless,
            &map(
                &[
                    (b"GNU.sparse.size", b"9223372036854775807"),
                    (b"GNU.sparse.numblocks", b"1"),
                    (b"GNU.sparse.map", b"0,512"),
                ],
                &[1; 512],
            ),
        ),
        of(
            "an old map",
            Exact,
            &[member(&old(b"00000004000", &[(b"00000001000", b"00000001000")], 512, false), &[1; 512])],
        ),
        of(
            "an old map with negative numbers",
            Refused,
            &[member(&old(b"00000004000", &[(&[0xff; 12], b"00000001000")], 512, false), &[1; 512])],
        ),
        of(
            "an old map beyond the file",
            Refused,
            &[member(&old(b"00000000010", &[(b"00000001000", b"00000001000")], 512, false), &[1; 512])],
        ),
        of(
            "an old map without its continuation",
            Refused,
            &[member(&old(b"00000004000", &[(b"00000001000", b"00000001000")], 512, true), &[1; 512])],
        ),
        of("an old map without end", Refused, &[old(b"00000004000", &[], 0, true).to_vec(), [b'1'; 512].repeat(8)]),
        of("an old map of a negative file", Refused, &[member(&old(&[0xff; 12], &[], 0, false), b"")]),
        of("an old map in another format", Refused, &[changed(header(b"s", b'S', 0, b""), |_| {}).to_vec()]),
    ]
}

fn ends() -> Vec<Attack> {
    let whole = tar(&[file(b"a", &[1; 700])]);
    let cut = |at: usize| whole[..at].to_vec();
    vec![
        ("cut in a header", Refused, cut(300)),
        ("cut in contents", Refused, cut(900)),
        ("cut in the last block of contents", Refused, cut(512 + 699)),
        ("cut in padding", Exact, cut(512 + 750)),
        ("cut before the end", Exact, cut(1536)),
        ("cut between the zero blocks", Exact, cut(2048)),
        ("one zero block, then more", Refused, [&cut(2048)[..], &file(b"b", b"x")].concat()),
        ("two zero blocks, then more", Exact, [&whole[..], &file(b"../b", b"x")].concat()),
        ("garbage after the end", Exact, [&whole[..], &[0xa5; 3000]].concat()),
        ("only zeros", Exact, vec![0; 10_240]),
        ("one zero block", Exact, vec![0; 512]),
        ("one byte", Refused, vec![b'a']),
        ("text", Refused, b"this is no tar ".repeat(100)),
    ]
}

fn duplicates() -> Vec<Attack> {
    let many: Vec<Vec<u8>> = (0..400u16).map(|i| file(b"same", &i.to_le_bytes())).collect();
    vec![
        of("a file twice", Exact, &[file(b"a", b"1"), file(b"a", b"2")]),
        of("a file 400 times", Exact, &many),
        of("a directory over a file", Exact, &[file(b"a", b"1"), special(b"a", b'5', b""), file(b"a/b", b"2")]),
        of("a file over a directory", Exact, &[file(b"a/b", b"1"), file(b"a", b"2")]),
        of(
            "a file over a directory, then below it",
            Refused,
            &[file(b"a/b", b"1"), file(b"a", b"2"), file(b"a/c", b"3")],
        ),
        of("a file over one of its links", Exact, &[file(b"a", b"1"), special(b"h", b'1', b"a"), file(b"a", b"2")]),
        of(
            "a hard link over its target",
            Harmless,
            &[file(b"a", b"1"), special(b"h", b'1', b"a"), special(b"a", b'1', b"h")],
        ),
        of("a directory twice", Exact, &[special(b"d", b'5', b""), file(b"d/x", b"1"), special(b"d/", b'5', b"")]),
        of("a device over a directory", Exact, &[file(b"d/x", b"1"), special(b"d", b'4', b"")]),
        of("a file over the root", Exact, &[file(b".", b"1"), file(b"a", b"2")]),
    ]
}
