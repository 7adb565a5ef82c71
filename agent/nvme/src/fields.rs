//! Little-endian and big-endian numbers in bytes that came from a drive. What is beyond the end reads as
//! zero, as reserved fields do.

/// Bytes that were copied from a drive once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(self, offset: usize) -> [u8; N] {
        let found = self.0.get(offset..).and_then(<[u8]>::first_chunk);
        found.copied().unwrap_or([0; N])
    }

    pub(crate) fn byte(self, offset: usize) -> u8 {
        u8::from_le_bytes(self.array(offset))
    }

    pub(crate) fn le16(self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    pub(crate) fn le32(self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    pub(crate) fn le64(self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }

    pub(crate) fn le128(self, offset: usize) -> u128 {
        u128::from_le_bytes(self.array(offset))
    }

    pub(crate) fn be16(self, offset: usize) -> u16 {
        u16::from_be_bytes(self.array(offset))
    }

    pub(crate) fn be32(self, offset: usize) -> u32 {
        u32::from_be_bytes(self.array(offset))
    }

    /// Text without its padding; what is not printable ASCII is shown as `?`, so that a drive's name
    /// cannot play with a terminal or a file.
    pub(crate) fn text(self, offset: usize, bytes: usize) -> String {
        let end = offset.saturating_add(bytes).min(self.0.len());
        let raw = self.0.get(offset..end).unwrap_or_default();
        let ended = raw.split(|byte| *byte == 0).next().unwrap_or_default();
        let shown: String = ended
            .iter()
            .map(|byte| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '?',
            })
            .collect();
        shown.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beyond_the_end_are_zero() {
        let fields = Fields(&[1, 2, 3, 4, 5]);
        assert_eq!(fields.le32(1), 0x0504_0302);
        assert_eq!(fields.le32(2), 0);
        assert_eq!(fields.le64(usize::MAX), 0);
        assert_eq!(fields.be16(3), 0x0405);
    }

    #[test]
    fn text_has_no_padding_and_nothing_unprintable() {
        assert_eq!(Fields(b"  S1\x1b[2J  \0rest").text(0, 16), "S1?[2J");
        assert_eq!(Fields(b"abc").text(1, usize::MAX), "bc");
    }
}
