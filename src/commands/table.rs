//! Tables that fit the terminal, and how sizes, times and digests are written in them.

use comfy_table::{ContentArrangement, Table, presets};

/// Narrower terminals get tables of this width: below it words fall apart into letters.
const NARROWEST: u16 = 60;

/// A table without lines; as wide as the terminal at most, and as wide as it likes where there is none.
pub(super) fn plain<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    if let Some(width) = terminal_width() {
        table.set_width(width.max(NARROWEST));
    }
    table
}

/// Columns of the terminal that the output goes to; `COLUMNS` where somebody set that.
pub(super) fn terminal_width() -> Option<u16> {
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let asked = || rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| size.ws_col);
    said.or_else(asked).filter(|width| *width > 0)
}

/// A digest's first digits.
pub(super) fn short(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}

pub(super) fn share(part: u64, whole: u64) -> String {
    format!("{} %", (u128::from(part) * 100).checked_div(u128::from(whole)).unwrap_or(100))
}

pub(super) fn size(bytes: u64) -> String {
    const STEP: f64 = 1024.0;
    let bytes_f = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes_f / STEP),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes_f / STEP / STEP),
        _ => format!("{:.1} GiB", bytes_f / STEP / STEP / STEP),
    }
}

pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 0.0995 => format!("{:.0} ms", seconds * 1000.0),
        seconds if seconds < 99.5 => format!("{seconds:.1} s"),
        seconds => format!("{seconds:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([0, 1023, 1024, 1 << 20, 3 << 29].map(size), ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.5 GiB"]);
        assert_eq!([0.0, 0.0123, 0.25, 99.44, 1234.5].map(seconds), ["0 ms", "12 ms", "0.2 s", "99.4 s", "1234 s"]);
        assert_eq!([share(1, 2), share(u64::MAX, u64::MAX), share(0, 0)], ["50 %", "100 %", "100 %"]);
    }

    #[test]
    fn a_table_is_as_wide_as_it_is_told_to_be() {
        let mut table = plain(["A", "B"]);
        table.set_width(60).add_row(["a".repeat(50), "word ".repeat(40)]);
        assert!(table.lines().all(|line| line.chars().count() <= 60), "{table}");
    }
}
