//! Layers with tables of contents of their own: honest ones are the tar, lying ones are found out, hostile ones harm nobody.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "toc/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::{Form, Index, LayerProof, SpanError};
use lapwing_snapshotter::lazy::{Common, LazyError, LazyLayer, Options, Proof};
use lapwing_snapshotter::toc::{Announced, Toc, TocError};
use lapwing_snapshotter::tree::Kind;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{FORMATS, Format, Item, Made, Whole, directory, file, gzip, link, make, noise, range, with_json};

fn index_of(made: &Made) -> Result<Index, TocError> {
    let toc = made.toc()?;
    toc.index(made.stored(&toc))
}

/// All contents by the index, from spans that are decoded alone.
fn contents(index: &Index, layer: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, SpanError> {
    let mut device = vec![0xaa; index.tar_length() as usize];
    let mut end = 0;
    for (number, span) in index.spans().iter().enumerate() {
        assert_eq!(span.output.start, end, "spans follow each other");
        end = span.output.end;
        let output = index.inflate_span(number, &layer[range(span.compressed.clone())])?;
        device[range(span.output.clone())].copy_from_slice(&output);
    }
    let files = index.entries().iter().filter_map(|entry| match &entry.kind {
        Kind::File { extents, .. } => {
            let bytes = extents.iter().flat_map(|extent| {
                assert_eq!(extent.tar_offset % 512, 0, "EROFS refers to whole blocks");
                device[extent.tar_offset as usize..][..extent.length as usize].iter().copied()
            });
            Some((String::from_utf8(entry.path.clone()).unwrap(), bytes.collect()))
        }
        _ => None,
    });
    Ok(files.collect())
}

/// What a proof says after the whole layer.
fn prove(index: &Index, layer: &[u8]) -> Option<String> {
    let mut proof = LayerProof::new(index);
    for bytes in layer.chunks(10_007) {
        if let Err(error) = proof.push(bytes) {
            return Some(error.to_string());
        }
    }
    proof.finish(index).map_or_else(|error| Some(error.to_string()), Result::err)
}

fn items() -> Vec<Item> {
    vec![
        directory("etc/"),
        file("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
        file("large", &noise(300_000, 1)),
        file("empty", b""),
        link(b'2', "symbolic", "../etc/passwd"),
        file(".prefetch.landmark", b"\x0f"),
        link(b'1', "hard", "large"),
        file("same1", b"one"),
        file("same2", b"two"),
        file("zeros", &vec![0; 200_000]),
        file("etc/.wh.gone", b""),
    ]
}

#[test]
fn an_honest_table_is_the_tar() {
    for format in FORMATS {
        for chunk in [1 << 22, 70_000, 512] {
            let made = make(format, &items(), chunk, |_| {});
            let index = index_of(&made).unwrap();
            assert_eq!(index.form(), if format == Format::EStargz { Form::EStargz } else { Form::ZstdChunked });
            let found = contents(&index, &made.layer).unwrap();
            for item in items().iter().filter(|item| item.name != ".prefetch.landmark") {
                let is_file = found.get(&item.name).is_some_and(|content| *content == item.content);
                let other = ["etc/", "symbolic", "hard"].contains(&item.name.as_str());
                assert!(is_file || other, "{format:?}, {}", item.name);
            }
            assert!(!found.contains_key(".prefetch.landmark") && !found.contains_key("stargz.index.json"));
            assert_eq!(prove(&index, &made.layer), None, "{format:?}, chunks of {chunk}");
            let entry = index.entries().iter().find(|entry| entry.path == b"etc/passwd").unwrap();
            assert_eq!((entry.uid, entry.gid, entry.mode, entry.mtime), (1000, 100, 0o644, 1_500_000_000));
        }
    }
}

#[test]
fn what_comes_before_the_landmark_is_prefetched_and_nothing_else() {
    for format in FORMATS {
        let made = make(format, &items(), 70_000, |_| {});
        let index = index_of(&made).unwrap();
        let large = index.entries().iter().find(|entry| entry.path == b"large").unwrap();
        let Kind::File { extents, .. } = &large.kind else { panic!("not a file") };
        let end = extents[0].tar_offset + extents[0].length;
        assert_eq!(index.spans()[index.prefetch() - 1].output.end, end.next_multiple_of(512));
        assert!(index.prefetch() < index.spans().len());
        let without = make(format, &items()[..3], 70_000, |_| {});
        assert_eq!(index_of(&without).unwrap().prefetch(), 0);
    }
}

#[test]
fn small_files_share_spans() {
    let items: Vec<Item> = (0..5000).map(|number| file(&format!("f{number}"), &noise(300, number))).collect();
    for format in FORMATS {
        let made = make(format, &items, 1 << 22, |_| {});
        let index = index_of(&made).unwrap();
        assert!(index.spans().len() < 10, "{} spans", index.spans().len());
        assert!(index.spans().iter().all(|span| span.output.end - span.output.start <= 1 << 20));
        assert_eq!(contents(&index, &made.layer).unwrap().len(), 5000);
        assert_eq!(prove(&index, &made.layer), None);
    }
}

#[test]
fn files_that_share_a_member_are_told_apart() {
    // As with stargz-snapshotter's --estargz-min-chunk-size: one member for two files, the second with an inner offset.
    let items = [file("a", &noise(1000, 1)), file("b", &noise(700, 2))];
    let made = make(Format::EStargz, &items, 1 << 22, |table| {
        table["entries"][1]["offset"] = table["entries"][0]["offset"].clone();
        table["entries"][1]["innerOffset"] = (1024 + 512).into();
    });
    // The same table over a layer in which both are in one member.
    let start = made.layer[..].windows(2).skip(1).position(|bytes| bytes == [0x1f, 0x8b]).unwrap() + 1;
    let toc = made.toc().unwrap();
    let body = gzip(&made.tar[512..1536 + 512 + 1024]);
    let layer = [&made.layer[..start], &body, &made.layer[toc.range().start as usize..made.layer.len() - 51]].concat();
    let offset = start + body.len();
    let footer = [
        &made.layer[made.layer.len() - 51..][..16],
        format!("{offset:016x}").as_bytes(),
        &made.layer[made.layer.len() - 19..],
    ]
    .concat();
    let made = Made { layer: [layer, footer].concat(), tar: made.tar.clone(), announced: made.announced };
    let index = index_of(&made).unwrap();
    let found = contents(&index, &made.layer).unwrap();
    assert_eq!((&found["a"], &found["b"]), (&items[0].content, &items[1].content));
    assert_eq!(prove(&index, &made.layer), None);
}

/// Lies that a table with the right digest can tell, by name.
/// What is said wrongly, and how.
type Lie = (&'static str, fn(&mut Value));

fn lies() -> Vec<Lie> {
    fn entry<'a>(table: &'a mut Value, name: &str) -> &'a mut Value {
        let entries = table["entries"].as_array_mut().unwrap();
        entries.iter_mut().find(|entry| entry["name"] == name).unwrap()
    }
    vec![
        ("mode", |table| entry(table, "etc/passwd")["mode"] = 0o4755.into()),
        ("owner", |table| entry(table, "etc/passwd")["uid"] = 0.into()),
        ("time", |table| entry(table, "etc/passwd")["modtime"] = "2017-07-14T02:40:01Z".into()),
        ("name", |table| entry(table, "same1")["name"] = "other".into()),
        ("target", |table| entry(table, "symbolic")["linkName"] = "/etc/shadow".into()),
        ("kind", |table| entry(table, "empty")["type"] = "dir".into()),
        ("attribute", |table| entry(table, "same1")["xattrs"] = json!({ "user.a": "YQ==" })),
        ("left out", |table| {
            table["entries"].as_array_mut().unwrap().retain(|entry| entry["name"] != "etc/.wh.gone");
        }),
        ("added", |table| {
            let more = json!({ "name": "more", "type": "dir", "mode": 493 });
            table["entries"].as_array_mut().unwrap().push(more);
        }),
        ("twice the same name", |table| {
            let again = entry(table, "empty").clone();
            table["entries"].as_array_mut().unwrap().push(again);
        }),
        ("names of contents swapped", |table| {
            entry(table, "same1")["name"] = "same2".into();
            let entries = table["entries"].as_array_mut().unwrap();
            entries.iter_mut().rfind(|entry| entry["name"] == "same2").unwrap()["name"] = "same1".into();
        }),
        ("contents swapped", |table| {
            let fields = ["offset", "digest", "chunkDigest"];
            let (one, two) = (entry(table, "same1").clone(), entry(table, "same2").clone());
            for field in fields {
                if one.get(field).is_some() {
                    entry(table, "same1")[field] = two[field].clone();
                    entry(table, "same2")[field] = one[field].clone();
                }
            }
        }),
        ("shortened", |table| {
            let entry = entry(table, "etc/passwd");
            entry["size"] = 4.into();
            entry["digest"] = Digest::of(b"root").to_string().into();
            entry["chunkDigest"] = Digest::of(b"root").to_string().into();
        }),
        ("from within", |table| {
            let entry = entry(table, "etc/passwd");
            entry["size"] = 4.into();
            entry["innerOffset"] = 5.into();
            entry["digest"] = Digest::of(b"x:0:").to_string().into();
            entry["chunkDigest"] = Digest::of(b"x:0:").to_string().into();
        }),
        ("digest", |table| {
            entry(table, "etc/passwd")["digest"] = Digest::of(b"x").to_string().into();
            entry(table, "etc/passwd")["chunkDigest"] = Digest::of(b"x").to_string().into();
        }),
        ("inside a member", |table| {
            let offset = entry(table, "etc/passwd")["offset"].as_u64().unwrap();
            entry(table, "etc/passwd")["offset"] = (offset + 3).into();
        }),
    ]
}

async fn lazy(directory: &Path, made: &Made, index: Index) -> Arc<LazyLayer> {
    let source = Arc::new(Whole(made.layer.clone().into()));
    LazyLayer::open(directory, Arc::new(index), source, Options::default(), Arc::new(Common::new(2))).unwrap()
}

#[tokio::test]
async fn every_lie_is_quarantined_and_shows_no_byte_that_was_not_checked() {
    let scratch = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let honest = make(format, &items(), 70_000, |_| {});
        let layer = lazy(&scratch.path().join(format!("{format:?}")), &honest, index_of(&honest).unwrap()).await;
        layer.complete_all().await.unwrap();
        assert_eq!(layer.progress().proof, Proof::Proved);
        assert!(layer.complete().is_some());
        for (name, lie) in lies() {
            let made = make(format, &items(), 70_000, lie);
            let Ok(index) = index_of(&made) else { continue };
            // Whatever it says, bytes that come out have a digest in the table.
            if let Ok(found) = contents(&index, &made.layer) {
                let digest = Digest::of(&found["etc/passwd"]).to_string();
                let honest = Digest::of(b"root:x:0:0::/:/bin/sh\n").to_string();
                assert!(digest == honest || found["etc/passwd"].len() == 4, "{format:?}, {name}");
            } else {
                assert!(["digest", "inside a member"].contains(&name), "{format:?}, {name}");
            }
            let layer = lazy(&scratch.path().join(format!("{format:?}-{name}")), &made, index).await;
            let outcome = layer.complete_all().await;
            assert!(matches!(outcome, Err(LazyError::Quarantined(_))), "{format:?}, {name}: {outcome:?}");
            assert!(layer.read(0..100).await.is_err(), "{format:?}, {name}: quarantined layers are not read");
        }
    }
}

#[tokio::test]
async fn an_image_with_another_diff_id_is_quarantined() {
    let scratch = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let made = make(format, &items(), 70_000, |_| {});
        let other = Made { tar: b"another tar".to_vec(), layer: made.layer, announced: made.announced };
        let index = index_of(&other).unwrap();
        assert!(prove(&index, &other.layer).unwrap().contains("not the image's"));
        let layer = lazy(&scratch.path().join(format!("{format:?}")), &other, index).await;
        assert!(matches!(layer.complete_all().await, Err(LazyError::Quarantined(_))));
    }
}

#[test]
fn a_proof_wants_the_whole_layer() {
    let made = make(Format::EStargz, &items(), 70_000, |_| {});
    let index = index_of(&made).unwrap();
    assert!(prove(&index, &made.layer[..made.layer.len() - 1]).is_some());
    let mut changed = made.layer.clone();
    changed[100] ^= 1;
    assert!(prove(&index, &changed).is_some());
}

#[test]
fn what_is_kept_gives_the_same_index() {
    for format in FORMATS {
        let made = make(format, &items(), 70_000, |_| {});
        let toc = made.toc().unwrap();
        let kept = toc.keep(made.stored(&toc));
        assert!(Toc::is_kept(&kept));
        assert_eq!(Toc::load(&kept).unwrap(), index_of(&made).unwrap());
        for end in 0..kept.len().min(400) {
            assert!(Toc::load(&kept[..end]).is_err(), "cut at {end}");
        }
        let mut changed = kept.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(Toc::load(&changed).is_err());
    }
}

#[test]
fn tables_with_another_digest_are_not_parsed() {
    for format in FORMATS {
        let mut made = make(format, &items(), 70_000, |_| {});
        let digest = Digest::of(b"another");
        made.announced = match made.announced {
            Announced::EStargz { .. } => Announced::EStargz { digest },
            Announced::ZstdChunked { offset, length, json_length, .. } => {
                Announced::ZstdChunked { digest, offset, length, json_length }
            }
        };
        assert!(matches!(index_of(&made), Err(TocError::Digest { .. })), "{format:?}");
    }
}

#[test]
fn places_outside_of_the_layer_are_refused() {
    let digest = Digest::of(b"x");
    let locate = |announced, footer: &[u8]| Toc::locate(digest, 1000, digest, announced, footer);
    for (offset, length, json_length) in [(u64::MAX, 2, 2), (999, 2, 2), (0, 0, 0), (0, 1001, 5), (1, u64::MAX, 5)] {
        assert!(locate(Announced::ZstdChunked { digest, offset, length, json_length }, b"").is_err());
    }
    let made = make(Format::EStargz, &items(), 70_000, |_| {});
    let footer = &made.layer[made.layer.len() - 51..];
    assert!(Toc::locate(digest, made.layer.len() as u64, digest, made.announced, footer).is_ok());
    for at in (0..16).filter(|at| !(4..10).contains(at)).chain(32..38) {
        let mut footer = footer.to_vec();
        footer[at] ^= 0x20;
        assert!(Toc::locate(digest, made.layer.len() as u64, digest, made.announced, &footer).is_err(), "byte {at}");
    }
    for offset in ["ffffffffffffffff", "+000000000000001", "000000000000 001"] {
        let footer = [&footer[..16], offset.as_bytes(), &footer[32..]].concat();
        assert!(Toc::locate(digest, made.layer.len() as u64, digest, made.announced, &footer).is_err(), "{offset}");
    }
}

/// One small file, with these changes to its entry.
fn one_file(change: &Value) -> Result<Index, TocError> {
    let content = b"a";
    let mut entry =
        json!({ "name": "a", "type": "reg", "size": 1, "offset": 100, "chunkDigest": Digest::of(content).to_string() });
    entry.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    let table = json!({ "version": 1, "entries": [entry] });
    index_of(&with_json(Format::EStargz, &serde_json::to_vec(&table).unwrap()))
}

#[test]
fn hostile_tables_are_refused() {
    assert!(one_file(&json!({})).is_ok(), "what is changed below");
    for change in [
        json!({ "size": -1 }),
        json!({ "size": i64::MAX }),
        json!({ "size": 1 << 30, "chunkSize": 1 << 30 }),
        json!({ "offset": -1 }),
        json!({ "offset": i64::MAX }),
        json!({ "innerOffset": i64::MAX }),
        json!({ "innerOffset": -1 }),
        json!({ "chunkSize": 2 }),
        json!({ "chunkSize": -1 }),
        json!({ "chunkOffset": 1 }),
        json!({ "size": 9, "chunkSize": 4 }),
        json!({ "chunkDigest": "" }),
        json!({ "chunkDigest": "md5:00" }),
        json!({ "name": "../a" }),
        json!({ "name": "a\u{0}b" }),
        json!({ "name": "\u{fffd}" }),
        json!({ "name": "n".repeat(256) }),
        json!({ "type": "socket" }),
        json!({ "type": "symlink" }),
        json!({ "type": "hardlink", "linkName": "/" }),
        json!({ "type": "char", "devMajor": -1 }),
        json!({ "type": "chunk" }),
        json!({ "uid": 1u64 << 32 }),
        json!({ "modtime": "yesterday" }),
        json!({ "xattrs": { "user.a": "not base64!" } }),
        json!({ "xattrs": { "": "YQ==" } }),
        json!({ "size": 1e300 }),
    ] {
        assert!(one_file(&change).is_err(), "{change}");
    }
    let overlapping = json!({ "version": 1, "entries": [
        { "name": "a", "type": "reg", "size": 1, "offset": 100, "chunkDigest": Digest::of(b"a").to_string() },
        { "name": "b", "type": "reg", "size": 1, "offset": 100, "chunkDigest": Digest::of(b"a").to_string() },
    ] });
    assert!(index_of(&with_json(Format::EStargz, &serde_json::to_vec(&overlapping).unwrap())).is_err());
    let deep = [&b"{\"version\":1,\"x\":"[..], &b"[".repeat(100_000)].concat();
    for text in [
        &deep[..],
        b"",
        b"{}",
        b"[]",
        b"{\"version\":2,\"entries\":[]}",
        b"{\"entries\":[]}",
        b"{\"version\":1}",
        b"{\"version\":1,\"entries\":[]}x",
        b"{\"version\":1,\"entries\":[],\"entries\":[]}",
        b"{\"version\":1,\"entries\":[null]}",
    ] {
        for format in FORMATS {
            assert!(
                index_of(&with_json(format, text)).is_err(),
                "{format:?}: {:?}",
                String::from_utf8_lossy(&text[..text.len().min(60)])
            );
        }
    }
    assert!(
        index_of(&with_json(Format::EStargz, b"{\"version\":1,\"entries\":[]}")).is_ok(),
        "an empty one is none of them"
    );
}

#[test]
fn a_table_that_inflates_without_end_is_refused() {
    let zeros = vec![b' '; 300 << 20];
    let announced = Announced::ZstdChunked { digest: Digest::of(b""), offset: 0, length: 0, json_length: 0 };
    let stored = zstd::bulk::compress(&zeros, 3).unwrap();
    let length = stored.len() as u64;
    let bomb = |json_length| Announced::ZstdChunked { digest: Digest::of(&stored), offset: 0, length, json_length };
    for (json_length, announced) in [(10, bomb(10)), (300 << 20, bomb(300 << 20)), (0, announced)] {
        let located = Toc::locate(Digest::of(b"l"), length + 100, Digest::of(b"d"), announced, b"");
        assert!(located.and_then(|toc| toc.index(&stored)).is_err(), "{json_length}");
    }
    let member = gzip(&zeros);
    let footer = {
        let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0];
        footer.extend(format!("{:016x}STARGZ", 0).bytes());
        footer.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        footer
    };
    let announced = Announced::EStargz { digest: Digest::of(&zeros) };
    let toc = Toc::locate(Digest::of(b"l"), member.len() as u64 + 51, Digest::of(b"d"), announced, &footer).unwrap();
    assert!(matches!(toc.index(&member), Err(TocError::Malformed(problem)) if problem.contains("more than")));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// A table with changed bytes and the right digest: refused, or an index whose spans decode or fail.
    #[test]
    fn changed_tables_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), estargz in any::<bool>()) {
        let format = if estargz { Format::EStargz } else { Format::ZstdChunked };
        let mut json = Vec::new();
        make(format, &items()[..8], 70_000, |table| json = serde_json::to_vec(table).unwrap());
        let length = json.len();
        json[at.index(length)] = byte;
        let made = with_json(format, &json);
        if let Ok(index) = index_of(&made) {
            for number in 0..index.spans().len() {
                let span = &index.spans()[number];
                prop_assert!(span.compressed.end <= made.layer.len() as u64);
                let _ = index.inflate_span(number, &made.layer[range(span.compressed.clone())]);
            }
            prove(&index, &made.layer);
        }
    }

    #[test]
    fn numbers_of_any_size_never_panic(
        offset in any::<i64>(), inner in any::<i64>(), size in any::<i64>(), chunk in any::<i64>(), chunk_offset in any::<i64>(),
    ) {
        let _ = one_file(&json!({
            "offset": offset, "innerOffset": inner, "size": size, "chunkSize": chunk, "chunkOffset": chunk_offset,
        }));
    }

    #[test]
    fn kept_bytes_never_panic(line in "[ -~]{0,80}", rest in proptest::collection::vec(any::<u8>(), 0..100)) {
        let kept = [b"LAPWTOC1 ", line.as_bytes(), b"\n", &rest].concat();
        prop_assert!(Toc::load(&kept).is_err());
    }
}
