//! What errors cite of things from outside.

use crate::limits::MAX_PROBLEM_BYTES;

/// The text, cut where it is longer than anybody reads: a name in a hostile layer may have a mebibyte, a string in a table of
/// contents 200.
pub(crate) fn brief(mut text: String) -> String {
    if text.len() > MAX_PROBLEM_BYTES {
        text.truncate(text.floor_char_boundary(MAX_PROBLEM_BYTES));
        text.push_str(" ...");
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(brief("short".to_owned()), "short");
        let cut = brief("\u{20ac}".repeat(200));
        assert_eq!(cut, format!("{} ...", "\u{20ac}".repeat(100)));
        assert_eq!(brief(format!("a{}", "\u{20ac}".repeat(200))).len(), 298 + 4);
    }
}
