//! A line of the file of derived objects: codec only, no I/O.
//!
//! The first line is [`HEADER`]. Then, separated by single spaces: kind, subject, object, length in bytes, standing, and the
//! CRC-32C (RFC 3720) of what comes before the space before it, in eight hexadecimal digits. Each line ends with a newline.
//! Files of former versions have neither the header nor the checksum, and some have no standing.

use super::Standing;
use crate::digest::Digest;
use crate::discovery::{Statement, StatementKind};

/// The first line.
pub(super) const HEADER: &str = "lapwing derived objects 2\n";

/// How the lines of a file look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Former,
    Current,
}

/// The version of a file that begins with this line.
pub(super) fn version(first: &[u8]) -> Version {
    if first == HEADER.as_bytes() { Version::Current } else { Version::Former }
}

pub(super) fn encode(statement: &Statement, standing: Standing) -> String {
    let Statement { subject, kind, object, length } = statement;
    let standing = match standing {
        Standing::Own => "own",
        Standing::Accepted => "accepted",
        Standing::Refuted => "refuted",
    };
    let text = format!("{} {subject} {object} {length} {standing}", name(*kind));
    let checksum = crc32c::crc32c(text.as_bytes());
    format!("{text} {checksum:08x}\n")
}

/// What a line says; none if it is not whole.
pub(super) fn decode(line: &[u8], version: Version) -> Option<(Statement, Standing)> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let text = match version {
        Version::Former => line,
        Version::Current => {
            let (text, checksum) = line.rsplit_once(' ')?;
            (checksum == format!("{:08x}", crc32c::crc32c(text.as_bytes()))).then_some(text)?
        }
    };
    let mut words = text.split(' ');
    let kind = match words.next()? {
        "metainfo" => StatementKind::Metainfo,
        "layer-index" => StatementKind::LayerIndex,
        "referent" => StatementKind::Referent,
        "profile" => StatementKind::Profile,
        "right" => StatementKind::Right,
        _ => return None,
    };
    let mut digest = || Digest::from_own_hex(words.next()?.strip_prefix("sha256:")?);
    let (subject, object) = (digest()?, digest()?);
    let statement = Statement { subject, kind, object, length: words.next()?.parse().ok()? };
    let standing = match words.next() {
        Some("own") => Standing::Own,
        Some("accepted") => Standing::Accepted,
        None if version == Version::Former => Standing::Accepted,
        Some("refuted") => Standing::Refuted,
        _ => return None,
    };
    (statement.is_possible() && words.next().is_none()).then_some((statement, standing))
}

const fn name(kind: StatementKind) -> &'static str {
    match kind {
        StatementKind::Metainfo => "metainfo",
        StatementKind::LayerIndex => "layer-index",
        StatementKind::Referent => "referent",
        StatementKind::Profile => "profile",
        StatementKind::Right => "right",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_line() -> impl Strategy<Value = (Statement, Standing)> {
        let kinds = prop_oneof![
            Just(StatementKind::Metainfo),
            Just(StatementKind::LayerIndex),
            Just(StatementKind::Referent),
            Just(StatementKind::Profile),
            Just(StatementKind::Right),
        ];
        let standings = prop_oneof![Just(Standing::Own), Just(Standing::Accepted), Just(Standing::Refuted)];
        (any::<[u8; 32]>(), any::<[u8; 32]>(), kinds, 1_u64..1_000_000, standings).prop_map(
            |(subject, object, kind, length, standing)| {
                let (subject, object) = (Digest::from_bytes(subject), Digest::from_bytes(object));
                let length = length.min(kind.max_length());
                (Statement { subject, kind, object, length }, standing)
            },
        )
    }

    proptest! {
        #[test]
        fn a_line_survives_its_encoding((statement, standing) in any_line()) {
            let line = encode(&statement, standing);
            prop_assert_eq!(decode(line.as_bytes(), Version::Current), Some((statement, standing)));
        }

        #[test]
        fn a_changed_or_cut_line_says_nothing(
            (statement, standing) in any_line(), at in any::<prop::sample::Index>(), flip in 1_u8..,
        ) {
            let mut line = encode(&statement, standing).into_bytes();
            let at = at.index(line.len());
            prop_assert_eq!(decode(&line[..at], Version::Current), None);
            line[at] ^= flip;
            prop_assert_eq!(decode(&line, Version::Current), None);
        }
    }
}
