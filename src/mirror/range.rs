//! Which bytes a `Range` header wants (RFC 9110 section 14.2).

use std::ops::Range;

use axum::http::HeaderMap;
use axum::http::header::{IF_RANGE, RANGE};

/// What to answer to a request's `Range`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// 200: there is no `Range`, or one that may be ignored: another unit, several ranges, another `If-Range`.
    Whole,
    /// 206.
    Part(Range<u64>),
    /// 416.
    Unsatisfiable,
}

/// Reads the range of a request for a blob of `length` bytes whose entity tag is `etag`.
///
/// Several ranges are answered by the whole: no runtime asks for them, and building multipart bodies out of a thousand
/// overlapping ones is an old attack. A single range that makes no sense is refused rather than ignored: a 200 would
/// be taken for the range asked for.
pub(super) fn wanted(headers: &HeaderMap, length: u64, etag: &str) -> Wanted {
    let mut ranges = headers.get_all(RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else {
        return Wanted::Whole;
    };
    if headers.get(IF_RANGE).is_some_and(|condition| condition != etag) {
        return Wanted::Whole;
    }
    let Ok(text) = range.to_str() else {
        return Wanted::Unsatisfiable;
    };
    let Some((unit, set)) = text.split_once('=') else {
        return Wanted::Unsatisfiable;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Wanted::Whole;
    }
    single(set.trim(), length).map_or(Wanted::Unsatisfiable, Wanted::Part)
}

fn single(set: &str, length: u64) -> Option<Range<u64>> {
    let (first, last) = set.split_once('-')?;
    let range = match (first, last) {
        ("", suffix) => length.saturating_sub(number(suffix)?)..length,
        (first, "") => number(first)?..length,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..last.saturating_add(1).min(length)
        }
    };
    (!range.is_empty()).then_some(range)
}

/// Digits only; a number past `u64` is past every blob.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_hundred_bytes() {
        let part = |range: Range<u64>| Wanted::Part(range);
        let cases = [
            ("bytes=0-0", part(0..1)),
            ("bytes=0-99", part(0..100)),
            ("bytes=10-19", part(10..20)),
            ("bytes=99-", part(99..100)),
            ("bytes=0-", part(0..100)),
            ("bytes=90-1000", part(90..100)),
            ("bytes=90-99999999999999999999999", part(90..100)),
            ("bytes=-1", part(99..100)),
            ("bytes=-1000", part(0..100)),
            ("Bytes= 5-5 ", part(5..6)),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=100-200", Wanted::Unsatisfiable),
            ("bytes=99999999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=5-3", Wanted::Unsatisfiable),
            ("bytes=", Wanted::Unsatisfiable),
            ("bytes=-", Wanted::Unsatisfiable),
            ("bytes=a-b", Wanted::Unsatisfiable),
            ("bytes=+1-2", Wanted::Unsatisfiable),
            ("bytes=1", Wanted::Unsatisfiable),
            ("bytes", Wanted::Unsatisfiable),
            ("bytes=0-0,2-3", Wanted::Whole),
            ("items=0-1", Wanted::Whole),
        ];
        for (text, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, text.parse().unwrap());
            assert_eq!(wanted(&headers, 100, "\"e\""), expected, "{text}");
        }
    }

    #[test]
    fn conditions_and_repetitions() {
        let mut headers = HeaderMap::new();
        assert_eq!(wanted(&headers, 100, "\"e\""), Wanted::Whole);
        headers.insert(RANGE, "bytes=1-1".parse().unwrap());
        headers.insert(IF_RANGE, "\"e\"".parse().unwrap());
        assert_eq!(wanted(&headers, 100, "\"e\""), Wanted::Part(1..2));
        assert_eq!(wanted(&headers, 100, "\"other\""), Wanted::Whole);
        headers.remove(IF_RANGE);
        headers.append(RANGE, "bytes=2-2".parse().unwrap());
        assert_eq!(wanted(&headers, 100, "\"e\""), Wanted::Whole);
        let mut thousand = HeaderMap::new();
        thousand.insert(RANGE, format!("bytes=0-{}", ",0-".repeat(1000)).parse().unwrap());
        assert_eq!(wanted(&thousand, 100, "\"e\""), Wanted::Whole);
        headers.remove(RANGE);
        headers.insert(RANGE, "bytes=0-".parse().unwrap());
        assert_eq!(wanted(&headers, 0, "\"e\""), Wanted::Unsatisfiable);
    }
}
