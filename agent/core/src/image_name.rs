//! The name of an image: also the name of its folder, so no name can lead out of it.

use std::fmt;
use std::str::FromStr;

/// Longest name of an image, in bytes; a controller lists no longer one.
const MAX_BYTES: usize = 63;

/// A name that is safe as a folder's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName(String);

/// Why a text is not an image's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an image's name has 1 to 63 lower-case letters, digits, dots, hyphens or underscores and begins with a letter or digit"
)]
pub struct ParseImageNameError;

impl ImageName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageName {
    type Err = ParseImageNameError;

    fn from_str(text: &str) -> Result<Self, ParseImageNameError> {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let whole = (1..=MAX_BYTES).contains(&text.len())
            && text.starts_with(letter)
            && text
                .chars()
                .all(|c| letter(c) || matches!(c, '.' | '-' | '_'));
        if whole {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseImageNameError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_out_of_its_folder() {
        for good in ["debian-12", "a", "ubuntu_24.04", &"a".repeat(63)] {
            assert!(good.parse::<ImageName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "a/b", "A", "a b", &"a".repeat(64)] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }
}
