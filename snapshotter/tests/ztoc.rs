//! Layers with a zTOC beside them: honest ones are the tar, lying ones are found out, hostile ones harm nobody.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "toc/support.rs"]
#[allow(dead_code, reason = "shared with the tests of other tables")]
mod support;
#[path = "ztoc/write.rs"]
mod write;

use std::sync::Arc;

use lapwing_p2p::digest::Digest;
use lapwing_snapshotter::index::{Form, Index, SpanError};
use lapwing_snapshotter::lazy::{Common, LazyError, LazyLayer, Options, Proof};
use lapwing_snapshotter::toc::{Toc, TocError};
use proptest::prelude::*;
use support::{Whole, range};
use write::{Made, Ztoc, made};

type Change = fn(&mut Ztoc);

fn toc(made: &Made, ztoc: &[u8]) -> Toc {
    let (layer, length) = (Digest::of(&made.layer), made.layer.len() as u64);
    Toc::ztoc(layer, length, Digest::of(&made.tar), Digest::of(ztoc), ztoc.len() as u64).unwrap()
}

fn index_of(made: &Made, ztoc: &Ztoc) -> Result<Index, TocError> {
    let bytes = ztoc.write();
    toc(made, &bytes).index(&bytes)
}

async fn proved(made: &Made, index: Index) -> Result<(), LazyError> {
    let scratch = tempfile::tempdir().unwrap();
    let source = Arc::new(Whole(made.layer.clone().into()));
    let common = Arc::new(Common::new(2));
    let layer = LazyLayer::open(scratch.path(), Arc::new(index), source, Options::default(), common).unwrap();
    let outcome = layer.complete_all().await;
    assert_eq!(outcome.is_ok(), layer.progress().proof == Proof::Proved);
    outcome
}

#[tokio::test]
async fn an_honest_ztoc_is_the_tar_and_is_proved() {
    for plain in [false, true] {
        let made = made(plain);
        let index = index_of(&made, &made.ztoc).unwrap();
        assert_eq!((index.form(), index.spans().len() > 3), (Form::Soci, true));
        for (number, span) in index.spans().iter().enumerate() {
            let output = index.inflate_span(number, &made.layer[range(span.compressed.clone())]).unwrap();
            assert!(output == made.tar[range(span.output.clone())], "span {number}");
        }
        assert!(index.tar_length() < made.tar.len() as u64, "the end of the tar is not in it");
        let bytes = made.ztoc.write();
        let kept = toc(&made, &bytes).keep(&bytes);
        assert_eq!(Toc::load(&kept).unwrap(), index);
        proved(&made, index).await.unwrap();
    }
}

#[tokio::test]
async fn every_lie_of_a_ztoc_is_quarantined() {
    let lies: [(&str, Change); 9] = [
        ("mode", |ztoc| ztoc.files[0].mode = 0o4755),
        ("owner", |ztoc| ztoc.files[0].uid = 0),
        ("name", |ztoc| ztoc.files[0].name = b"other".to_vec()),
        ("time", |ztoc| ztoc.files[0].modified = "2017-07-14T02:40:00.5Z".to_owned()),
        ("offset", |ztoc| ztoc.files[0].offset += 512),
        ("size", |ztoc| ztoc.files[0].size -= 1),
        ("left out", |ztoc| drop(ztoc.files.pop())),
        ("attribute", |ztoc| ztoc.files[0].pax.push((b"SCHILY.xattr.user.a".to_vec(), b"x".to_vec()))),
        // The right input, and other bytes out of it: nothing but the whole layer tells.
        ("window", |ztoc| ztoc.checkpoints[2].window.fill(b'x')),
    ];
    let made = made(false);
    for (name, lie) in lies {
        let mut ztoc = made.ztoc.clone();
        lie(&mut ztoc);
        let outcome = proved(&made, index_of(&made, &ztoc).unwrap()).await;
        assert!(matches!(outcome, Err(LazyError::Quarantined(_))), "{name}: {outcome:?}");
    }
    let mut ztoc = made.ztoc.clone();
    ztoc.digests[1] = Digest::of(b"another").to_string();
    let index = index_of(&made, &ztoc).unwrap();
    let input = &made.layer[range(index.spans()[1].compressed.clone())];
    assert!(matches!(index.inflate_span(1, input), Err(SpanError::WrongInput { .. })));
}

#[test]
fn what_ends_the_tar_early_or_contradicts_itself_is_refused() {
    let made = made(false);
    let changes: [(&str, Change); 14] = [
        ("another layer", |ztoc| ztoc.layer_length += 1),
        ("no tar", |ztoc| ztoc.tar_length = 0),
        ("a negative tar", |ztoc| ztoc.tar_length = -1),
        ("a tar beyond its spans", |ztoc| ztoc.tar_length = 1 << 42),
        ("a digest too few", |ztoc| drop(ztoc.digests.pop())),
        ("no digest", |ztoc| ztoc.digests[0] = "sha256:0".to_owned()),
        ("backwards", |ztoc| ztoc.checkpoints[2].tar = 0),
        ("backwards in the layer", |ztoc| ztoc.checkpoints[2].layer = 0),
        ("outside of the layer", |ztoc| ztoc.checkpoints[2].layer = u64::MAX),
        ("bits", |ztoc| ztoc.checkpoints[2].bits = 8),
        ("a start that is none", |ztoc| ztoc.checkpoints[0].tar = 512),
        ("a file behind the end", |ztoc| ztoc.files[0].offset = i64::MAX),
        ("a sparse file", |ztoc| ztoc.files[0].pax.push((b"GNU.sparse.map".to_vec(), b"0,1".to_vec()))),
        ("a way out", |ztoc| ztoc.files[0].name = b"../../etc/passwd".to_vec()),
    ];
    for (name, change) in changes {
        let mut ztoc = made.ztoc.clone();
        change(&mut ztoc);
        assert!(index_of(&made, &ztoc).is_err(), "{name}");
    }
    let bytes = made.ztoc.write();
    assert!(matches!(toc(&made, b"another").index(&bytes), Err(TocError::Digest { .. })));
    let digest = Digest::of(b"x");
    for length in [0, u64::MAX, (256 << 20) + 1] {
        assert!(Toc::ztoc(digest, 100, digest, digest, length).is_err(), "{length}");
    }
    for end in (0..bytes.len()).step_by(211) {
        assert!(toc(&made, &bytes[..end.max(1)]).index(&bytes[..end.max(1)]).is_err(), "cut at {end}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn changed_ztocs_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let made = write::small();
        let mut bytes = made.ztoc.write();
        let length = bytes.len();
        for (at, byte) in changes {
            bytes[at.index(length)] = byte;
        }
        if let Ok(index) = toc(&made, &bytes).index(&bytes) {
            for (number, span) in index.spans().iter().enumerate() {
                let _ = index.inflate_span(number, &made.layer[range(span.compressed.clone())]);
            }
        }
    }

    #[test]
    fn arbitrary_ztocs_never_panic(bytes in proptest::collection::vec(any::<u8>(), 1..400)) {
        let made = write::small();
        prop_assert!(toc(&made, &bytes).index(&bytes).is_err());
    }
}
