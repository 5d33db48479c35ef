//! Times as Go writes them into JSON (RFC 3339, with any number of decimals).

/// Seconds since the epoch and nanoseconds, cut and not rounded.
pub(super) fn parse(text: &str) -> Option<(i64, u32)> {
    let (date, rest) = text.split_at_checked(10)?;
    let (time, rest) = rest.strip_prefix(['T', 't'])?.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let is_time = (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !is_time {
        return None;
    }
    let decimals = rest.strip_prefix('.').map_or("", |rest| {
        let end = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
        &rest[..end]
    });
    let zone = match rest.strip_prefix('.') {
        Some(after) if decimals.is_empty() || after.len() == decimals.len() => return None,
        Some(after) => &after[decimals.len()..],
        None => rest,
    };
    let digit = |at: usize| decimals.as_bytes().get(at).map_or(0, |digit| u32::from(digit - b'0'));
    let nanos = (0..9).fold(0, |nanos, at| nanos * 10 + digit(at));
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some((seconds - zone_seconds(zone)?, nanos))
}

fn zone_seconds(zone: &str) -> Option<i64> {
    if zone == "Z" || zone == "z" {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let [hours, minutes] = numbers(zone.get(1..)?, ':', [2, 2])?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut found = [0; N];
    let mut parts = text.split(between);
    for (number, digits) in found.iter_mut().zip(digits) {
        let part =
            parts.next().filter(|part| part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a day of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let before = year - 1;
    let to_year = before * 365 + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    let to_month: i64 = (1..month).map(|month| days_in(year, month)).sum();
    to_year + to_month + day - 1 - 719_162
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_go_writes() {
        for (text, time) in [
            ("1970-01-01T00:00:00Z", (0, 0)),
            ("2019-08-20T10:30:43Z", (1_566_297_043, 0)),
            ("2020-02-29T23:59:59.5Z", (1_583_020_799, 500_000_000)),
            ("2019-08-20T12:30:43.0000000019+02:00", (1_566_297_043, 1)),
            ("2019-08-20T05:00:43-05:30", (1_566_297_043, 0)),
            ("0001-01-01T00:00:00Z", (-62_135_596_800, 0)),
            ("1969-12-31T23:59:59Z", (-1, 0)),
            ("9999-12-31T23:59:59Z", (253_402_300_799, 0)),
        ] {
            assert_eq!(parse(text), Some(time), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_time() {
        for text in [
            "",
            "2019-08-20",
            "2019-08-20T10:30:43",
            "2019-13-20T10:30:43Z",
            "2019-02-29T10:30:43Z",
            "2019-08-20T24:00:00Z",
            "2019-08-20T10:30:43.Z",
            "2019-08-20T10:30:43.5",
            "2019-08-20T10:30:43+2:00",
            "2019-08-20 10:30:43Z",
            "+019-08-20T10:30:43Z",
            "2019-08-20T10:30:43ZZ",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,40}") {
            parse(&text);
        }

        #[test]
        fn never_panics_near_a_time(at in 0usize..35, character in any::<char>()) {
            let mut text: Vec<char> = "2019-08-20T12:30:43.0000000019+02:00".chars().collect();
            text[at] = character;
            parse(&text.into_iter().collect::<String>());
        }
    }
}
