//! Whom a job fills.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::limits::MAX_NODES;

/// Which machines shall have the blobs. As text: `seeds`, `here`, `all`, or how many nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) enum To {
    /// The seeds of the group: of each blob the one that nodes will ask for it.
    Seeds,
    /// The machine that was asked.
    Here,
    /// All nodes of the group.
    All,
    /// So many nodes of the group, chosen by the tracker.
    Nodes(u32),
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "seeds" => Ok(Self::Seeds),
            "here" => Ok(Self::Here),
            "all" => Ok(Self::All),
            number => match number.parse() {
                Ok(nodes @ 1..=MAX_NODES) => Ok(Self::Nodes(nodes)),
                _ => {
                    Err(format!("{text:?} is not \"seeds\", \"here\", \"all\" or a number of nodes up to {MAX_NODES}"))
                }
            },
        }
    }
}

impl TryFrom<String> for To {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<To> for String {
    fn from(to: To) -> Self {
        to.to_string()
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seeds => f.write_str("seeds"),
            Self::Here => f.write_str("here"),
            Self::All => f.write_str("all"),
            Self::Nodes(nodes) => nodes.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_numbers() {
        for text in ["seeds", "here", "all", "1", "100000"] {
            assert_eq!(text.parse::<To>().unwrap().to_string(), text);
        }
        for text in ["", "0", "-1", "100001", "nodes", "Seeds", " 3"] {
            assert!(text.parse::<To>().is_err(), "{text:?}");
        }
    }
}
