//! Tests of `leaf`: what its own file promises, on its public calls.

use super::*;

fn leaf() -> Leaf {
    let key = ViewKey::derive(&[1; 32], "acme");
    Leaf::of_event(
        0x0102_0304,
        key.tag(7),
        Commitment::of(&Nonce([2; 32]), b"{}"),
    )
}

#[test]
fn a_leaf_is_eighty_bytes_that_come_back_as_they_were() {
    let bytes = leaf().to_bytes();
    assert_eq!(&bytes[..16], b"LDG1\x01\0\0\0\0\0\0\0\x01\x02\x03\x04");
    assert_eq!(&bytes[16..48], &leaf().tag.0);
    assert_eq!(&bytes[48..], &leaf().commitment.0);
    assert_eq!(Leaf::parse(&bytes), Ok(leaf()));
    let start = Leaf::of_epoch_start(5, b"last checkpoint");
    assert_eq!(Leaf::parse(&start.to_bytes()), Ok(start));
}

#[test]
fn what_is_not_a_leaf_is_refused() {
    let bytes = leaf().to_bytes();
    let changed = |place: usize, byte: u8| {
        let mut changed = bytes;
        changed[place] = byte;
        Leaf::parse(&changed)
    };
    assert_eq!(
        Leaf::parse(&bytes[..79]),
        Err(ParseLeafError::Length { bytes: 79 })
    );
    assert_eq!(changed(3, b'2'), Err(ParseLeafError::Version));
    assert_eq!(changed(4, 2), Err(ParseLeafError::Kind));
    assert_eq!(changed(7, 1), Err(ParseLeafError::Version));
}

/// So that others can write them from the formulas: computed with Python's `hmac` and `hashlib`.
#[test]
fn commitments_tags_and_view_keys_follow_their_formulas() {
    let check = |bytes: [u8; 32], expected: &str| assert_eq!(hex::encode(bytes), expected);
    check(
        Commitment::of(&Nonce([2; 32]), b"{}").0,
        "25a78a6ff46360a683a3b5fb9d333dccec732e68c3d22df6854a8f2f274a0468",
    );
    check(
        ViewKey::from_bytes([0x0b; 32]).tag(1).0,
        "9cd6798f25c2dced845335307b5a75a490604aaf3747aa4ecd9a7d2f8fb2f857",
    );
    check(
        *ViewKey::derive(&[1; 32], "acme").as_bytes(),
        "e6c7ee1a1f697799e5361a096bfc0072125eb54b15b05635ca3a35c0b69b24ec",
    );
}

#[test]
fn secrets_are_not_shown() {
    let key = ViewKey::from_bytes([0xab; 32]);
    assert_eq!(format!("{key:?} {:?}", Nonce([0xab; 32])), "ViewKey Nonce");
}
