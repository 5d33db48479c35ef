//! Durations and sizes as people write them: `1s`, `250ms`, `5m`; `64KiB`, `10GiB`, `0`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time, written as a whole number and `ms`, `s`, `m` or `h`; `0` needs no unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub Duration);

/// A number of bytes, written as a whole number and `B`, `KiB`, `MiB`, `GiB` or `TiB`; `0` needs no unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteSize(pub u64);

impl schemars::JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^(0|[0-9]+(B|KiB|MiB|GiB|TiB))$",
            "description": "A whole number of bytes with its unit; \"0\" needs none.",
        })
    }
}

impl Span {
    pub(crate) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not a duration; write a whole number with ms, s, m or h, such as \"30s\"");
        let (number, unit) = split(text).ok_or_else(error)?;
        let milliseconds = match unit {
            "" if number == 0 => 0,
            "ms" => number,
            "s" => number.checked_mul(1000).ok_or_else(error)?,
            "m" => number.checked_mul(60_000).ok_or_else(error)?,
            "h" => number.checked_mul(3_600_000).ok_or_else(error)?,
            _ => return Err(error()),
        };
        Ok(Self(Duration::from_millis(milliseconds)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        match milliseconds {
            0 => f.write_str("0"),
            n if n % 3_600_000 == 0 => write!(f, "{}h", n / 3_600_000),
            n if n % 60_000 == 0 => write!(f, "{}m", n / 60_000),
            n if n % 1000 == 0 => write!(f, "{}s", n / 1000),
            n => write!(f, "{n}ms"),
        }
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error =
            || format!("{text:?} is not a size; write a whole number with B, KiB, MiB, GiB or TiB, such as \"10GiB\"");
        let (number, unit) = split(text).ok_or_else(error)?;
        let shift = match unit {
            "" if number == 0 => 0,
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(error()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.iter().find(|(shift, _)| self.0 != 0 && self.0.trailing_zeros() >= *shift) {
            _ if self.0 == 0 => f.write_str("0"),
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

macro_rules! as_text {
    ($type:ty) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}
as_text!(Span);
as_text!(ByteSize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_durations() {
        for (text, milliseconds) in [("0", 0), ("250ms", 250), ("1s", 1000), ("5m", 300_000), ("2h", 7_200_000)] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.0.as_millis(), milliseconds);
            assert_eq!(span.to_string(), text);
        }
        for bad in ["", "1", "s", "-1s", "1.5s", "1d", "99999999999999999999s"] {
            assert!(bad.parse::<Span>().unwrap_err().contains("30s"), "{bad}");
        }
    }

    #[test]
    fn reads_and_writes_sizes() {
        for (text, bytes) in [("0", 0), ("5B", 5), ("64KiB", 65536), ("10GiB", 10 << 30), ("1TiB", 1 << 40)] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.0, bytes);
            assert_eq!(size.to_string(), text);
        }
        for bad in ["", "1", "10GB", "1.5GiB", "99999999999TiB"] {
            assert!(bad.parse::<ByteSize>().unwrap_err().contains("10GiB"), "{bad}");
        }
    }
}
