//! Until when a certificate is good (RFC 5280, 4.1.2.5), which the verifier knows and does not tell.
//!
//! Reads as much DER as it takes to get there: certificate, its signed part, version, serial number, algorithm, issuer, dates.

/// Tags (X.690, 8.1.2).
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The last second at which `certificate` is good, since the Unix epoch.
pub(super) fn not_after(certificate: &[u8]) -> Option<u64> {
    let (signed, _) = expect(SEQUENCE, expect(SEQUENCE, certificate)?.0)?;
    let rest = expect(VERSION, signed).map_or(signed, |(_, rest)| rest);
    let (_, rest) = expect(INTEGER, rest)?;
    let (_, rest) = expect(SEQUENCE, rest)?;
    let (_, rest) = expect(SEQUENCE, rest)?;
    let (dates, _) = expect(SEQUENCE, rest)?;
    let (_, _, rest) = element(dates)?;
    let (tag, text, _) = element(rest)?;
    seconds(tag, text)
}

/// Tag and content of the first element, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, bytes) = bytes.split_first()?;
    let (&first, bytes) = bytes.split_first()?;
    let (length, bytes) = match first {
        0..=0x7f => (usize::from(first), bytes),
        // A certificate is shorter than 16 MiB.
        0x81..=0x83 => {
            let (digits, bytes) = bytes.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)), bytes)
        }
        _ => return None,
    };
    let (content, rest) = bytes.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn expect(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    element(bytes).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`, the only forms that certificates have.
fn seconds(tag: u8, text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME, 12) => {
            let year: i64 = text.get(..2)?.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text.get(2..)?)
        }
        (GENERALIZED_TIME, 14) => (text.get(..4)?.parse().ok()?, text.get(4..)?),
        _ => return None,
    };
    let part = |place: usize, most: i64| -> Option<i64> {
        let part = rest.get(2 * place..2 * place + 2)?.parse().ok()?;
        (0..=most).contains(&part).then_some(part)
    };
    let (month, day) = (part(0, 12)?.max(1), part(1, 31)?.max(1));
    let time = (part(2, 23)? * 60 + part(3, 59)?) * 60 + part(4, 60)?;
    // Days of the proleptic Gregorian calendar, in years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (month * 153 + 2) / 5 + day;
    // 1970-01-01 is day 719 469 of them.
    u64::try_from((days - 719_469) * 86_400 + time).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_read_in_both_forms() {
        let cases = [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "240229120000Z", Some(1_709_208_000)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "20000301000001Z", Some(951_868_801)),
            (GENERALIZED_TIME, "19691231235959Z", None),
            (UTC_TIME, "20500101000000Z", None),
            (UTC_TIME, "2402291200Z", None),
            (UTC_TIME, "240229120000+0100", None),
            (UTC_TIME, "24022912000xZ", None),
            (SEQUENCE, "240229120000Z", None),
        ];
        for (tag, text, expected) in cases {
            assert_eq!(seconds(tag, text.as_bytes()), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = not_after(&bytes);
        }
    }
}
