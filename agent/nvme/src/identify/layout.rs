//! How a drive is divided into namespaces, as text for an approval and back. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// How long a namespace is and how it is formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks (NSZE).
    pub blocks: u64,
    /// Bytes of data in a block.
    pub block_bytes: u32,
    /// Bytes of metadata of a block.
    pub metadata_bytes: u16,
    /// Whether the metadata is at the end of each block's data.
    pub is_extended: bool,
    /// Kind of end-to-end protection (DPS bits 3:0).
    pub protection: u8,
}

impl Shape {
    /// Bytes of data and metadata; `None` if that is more than a drive can have.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.blocks
            .checked_mul(u64::from(self.stride()))
            .filter(|bytes| *bytes < 1 << 62)
    }

    /// Bytes of one block with its metadata.
    pub(crate) fn stride(&self) -> u32 {
        self.block_bytes + u32::from(self.metadata_bytes)
    }
}

/// Namespaces by id. As text: `1:244190646x4096+0/0`, separated by `, `: blocks, bytes, bytes of
/// metadata with `e` where they are inside the block, kind of protection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout(pub BTreeMap<u32, Shape>);

impl fmt::Display for Layout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (id, shape)) in self.0.iter().enumerate() {
            let before = if index == 0 { "" } else { ", " };
            let extended = if shape.is_extended { "e" } else { "" };
            write!(
                formatter,
                "{before}{id}:{}x{}+{}{extended}/{}",
                shape.blocks, shape.block_bytes, shape.metadata_bytes, shape.protection
            )?;
        }
        if self.0.is_empty() {
            formatter.write_str("none")?;
        }
        Ok(())
    }
}

/// A layout that does not read as one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a list of namespaces such as `1:244190646x4096+0/0`")]
pub struct LayoutMalformed(String);

impl FromStr for Layout {
    type Err = LayoutMalformed;

    fn from_str(text: &str) -> Result<Self, LayoutMalformed> {
        if text == "none" {
            return Ok(Self::default());
        }
        let entries: Option<Vec<_>> = text.split(", ").map(entry).collect();
        let entries = entries.ok_or_else(|| LayoutMalformed(text.to_owned()))?;
        let count = entries.len();
        let layout: BTreeMap<_, _> = entries.into_iter().collect();
        if layout.len() != count {
            return Err(LayoutMalformed(text.to_owned()));
        }
        Ok(Self(layout))
    }
}

fn entry(text: &str) -> Option<(u32, Shape)> {
    let (id, rest) = text.split_once(':')?;
    let (blocks, rest) = rest.split_once('x')?;
    let (block_bytes, rest) = rest.split_once('+')?;
    let (metadata, protection) = rest.split_once('/')?;
    let (metadata, is_extended) = match metadata.strip_suffix('e') {
        Some(metadata) => (metadata, true),
        None => (metadata, false),
    };
    let shape = Shape {
        blocks: blocks.parse().ok()?,
        block_bytes: block_bytes.parse().ok()?,
        metadata_bytes: metadata.parse().ok()?,
        is_extended,
        protection: protection.parse().ok()?,
    };
    let is_possible = shape.blocks > 0
        && shape.block_bytes.is_power_of_two()
        && (512..=65536).contains(&shape.block_bytes)
        && shape.bytes().is_some();
    is_possible.then_some((id.parse().ok()?, shape))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_the_same_after_text_and_back() {
        for text in ["none", "1:8x512+0/0", "1:100x4096+8e/1, 7:5x512+8/0"] {
            assert_eq!(text.parse::<Layout>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn text_that_is_no_layout_is_refused() {
        for text in [
            "",
            "1",
            "1:0x512+0/0",
            "1:8x100+0/0",
            "1:8x512+0/0,2:8x512+0/0",
            "1:8x512+0/0, 1:8x512+0/0",
            "1:18446744073709551615x512+0/0",
        ] {
            assert!(text.parse::<Layout>().is_err(), "{text}");
        }
    }
}
