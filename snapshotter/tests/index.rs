//! The layer index against layers that other programs made.

use lapwing_snapshotter::index::{Compression, Index};

#[path = "index/support.rs"]
mod support;

use support::{build, check_all_spans, gzip, tar_of};

#[test]
fn every_span_of_a_real_layer_inflates_alone() {
    let tar = tar_of(&["/usr/bin", "/usr/share/doc"]);
    assert!(tar.len() > 50 << 20, "this machine has too small a /usr/bin for this test: {}", tar.len());
    let layer = gzip(&tar, 6);
    let index = build(&layer).unwrap();
    assert_eq!(index.compression(), Compression::Gzip);
    assert!(index.spans().len() > tar.len() >> 21);
    check_all_spans(&index, &layer, &tar);

    let encoded = index.encode();
    assert!(encoded.len() * 100 < layer.len(), "index {} for layer {}", encoded.len(), layer.len());
    let decoded = Index::decode(&encoded).unwrap();
    assert_eq!(decoded, index);
    check_all_spans(&decoded, &layer, &tar);
}
