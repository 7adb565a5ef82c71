//! A stream of numbers that looks random and comes out the same for the same key: places to read, and
//! what is written into blocks so that no drive can store it in less room. Not a secret. Pure.

/// Numbers from a key.
#[derive(Debug, Clone)]
pub(crate) struct Stream(u64);

impl Stream {
    pub(crate) fn new(key: u64) -> Self {
        Self(key)
    }

    /// The stream of one block.
    pub(crate) fn of_block(key: u64, nsid: u32, lba: u64) -> Self {
        let place = Self(u64::from(nsid)).next_number() ^ lba;
        Self(key ^ Self(place).next_number())
    }

    /// The next number, by the `SplitMix64` sequence of Steele, Lea and Flood (2014).
    pub(crate) fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, which is not zero.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        let wide = u128::from(self.next_number()) * u128::from(end);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for place in bytes.chunks_mut(8) {
            let number = self.next_number().to_le_bytes();
            place.copy_from_slice(&number[..place.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_one_key_differ_and_come_out_the_same_again() {
        let block = |key, nsid, lba| {
            let mut bytes = [0; 32];
            Stream::of_block(key, nsid, lba).fill(&mut bytes);
            bytes
        };
        assert_eq!(block(1, 1, 5), block(1, 1, 5));
        for other in [block(2, 1, 5), block(1, 2, 5), block(1, 1, 6)] {
            assert_ne!(block(1, 1, 5), other);
        }
    }

    #[test]
    fn a_number_is_below_its_end() {
        let mut stream = Stream::new(3);
        assert!((0..1000).all(|_| stream.below(7) < 7));
        assert_eq!(stream.below(1), 0);
    }
}
