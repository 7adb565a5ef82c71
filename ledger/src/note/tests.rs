//! Tests of `note`: what its own file promises, on its public calls.

use super::*;
use crate::cosignature::Cosigner;
use crate::keys::SigningKey;

/// The example of the reference implementation.
const VKEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const TEXT: &str = "This is an example message.\n";
const SIGNED: &str = "This is an example message.\n\n— example.com/foo \
    Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

fn name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

fn signer(seed: u8) -> Signer {
    let key = SigningKey::from_seed(&[seed; 32]).unwrap();
    Signer::new(name("log.example/a"), key)
}

#[test]
fn the_published_example_verifies_and_comes_back_as_it_was() {
    let vkey: Vkey = VKEY.parse().unwrap();
    assert_eq!(vkey.to_string(), VKEY);
    assert_eq!(vkey.id(), KeyId([0x53, 0x0d, 0x90, 0x3a]));
    let note = Note::parse(SIGNED.as_bytes()).unwrap();
    assert_eq!(note.text(), TEXT);
    assert_eq!(note.to_string(), SIGNED);
    let known = [vkey];
    let verified = note.verify(&known).unwrap();
    assert_eq!(verified.len(), 1);
    assert_eq!(verified[0].time_s, None);
}

#[test]
fn a_note_counts_as_signed_by_known_keys_alone_and_a_wrong_one_spoils_it() {
    let mut note = Note::unsigned(TEXT.to_owned()).unwrap();
    note.sign(&signer(1));
    note.sign(&signer(2));
    let (first, second, third) = (signer(1), signer(2), signer(3));
    let keys = |signers: &[&Signer]| -> Vec<Vkey> {
        signers.iter().map(|signer| signer.vkey().clone()).collect()
    };
    assert_eq!(note.verify(&keys(&[&first, &second])).unwrap().len(), 2);
    assert_eq!(note.verify(&keys(&[&first, &third])).unwrap().len(), 1);
    assert_eq!(
        note.verify(&keys(&[&third])),
        Err(VerifyNoteError::NotSigned)
    );
    let mut forged = note.clone();
    forged.signatures[1].signature[0] ^= 1;
    assert!(matches!(
        forged.verify(&keys(&[&first, &second])),
        Err(VerifyNoteError::WrongSignature { .. })
    ));
    // Who does not know the second key does not see the forgery.
    forged.verify(&keys(&[&first])).unwrap();
}

#[test]
fn the_name_and_the_id_must_both_be_the_keys() {
    let mut note = Note::unsigned(TEXT.to_owned()).unwrap();
    note.sign(&signer(1));
    let known = [signer(1).vkey().clone()];
    let mut other_name = note.clone();
    other_name.signatures[0].name = name("log.example/b");
    assert_eq!(other_name.verify(&known), Err(VerifyNoteError::NotSigned));
    let mut other_id = note;
    other_id.signatures[0].key_id = KeyId([0; 4]);
    assert_eq!(other_id.verify(&known), Err(VerifyNoteError::NotSigned));
}

#[test]
fn a_cosignature_covers_its_time() {
    let key = SigningKey::from_seed(&[9; 32]).unwrap();
    let witness = Cosigner::new(name("witness.example/w"), key);
    let mut note = Note::unsigned(TEXT.to_owned()).unwrap();
    note.add(witness.sign(TEXT, 1_700_000_000));
    let known = [witness.vkey().clone()];
    let verified = note.verify(&known).unwrap();
    assert_eq!(verified[0].time_s, Some(1_700_000_000));
    note.signatures[0].signature[7] ^= 1;
    note.verify(&known).unwrap_err();
    note.signatures[0].signature.truncate(7);
    note.verify(&known).unwrap_err();
}

#[test]
fn a_key_of_one_kind_is_not_taken_for_the_other() {
    let key = || SigningKey::from_seed(&[9; 32]).unwrap();
    let witness = Cosigner::new(name("w"), key());
    let log = Signer::new(name("w"), key());
    assert_ne!(witness.vkey().id(), log.vkey().id());
    Signer::from_private_text(&witness.to_private_text()).unwrap_err();
    Cosigner::from_private_text(&log.to_private_text()).unwrap_err();
    let again = Signer::from_private_text(&log.to_private_text()).unwrap();
    assert_eq!(again.vkey(), log.vkey());
    assert!(!format!("{log:?} {witness:?}").contains("PRIVATE"));
}

#[test]
fn what_is_not_a_note_to_the_byte_is_refused() {
    let line = "— n AAAAAAA=\n";
    let check = |note: &str, expected: ParseNoteError| {
        assert_eq!(Note::parse(note.as_bytes()), Err(expected), "{note:?}");
    };
    Note::parse(format!("t\n\n{line}").as_bytes()).unwrap();
    check("", ParseNoteError::Shape);
    check("t\n", ParseNoteError::Shape);
    check(&format!("t\n{line}"), ParseNoteError::Shape);
    check("t\n\n", ParseNoteError::Shape);
    check("t\n\n— n AAAAAAA=", ParseNoteError::Shape);
    check(&format!("t\r\n\r\n{line}"), ParseNoteError::Characters);
    check(&format!("t\0\n\n{line}"), ParseNoteError::Characters);
    check(&format!("t\n\n\t{line}"), ParseNoteError::Characters);
    for bad in [
        "- n AAAAAAA=\n",
        "—  AAAAAAA=\n",
        "— n  AAAAAAA=\n",
        "— n AAAAAAA= \n",
        "— n+m AAAAAAA=\n",
        "— n\u{a0}m AAAAAAA=\n",
        "— n AAAAAAA\n",
        "— n AAAA AAA=\n",
        // An id and no signature.
        "— n AAAAAA==\n",
        "text\n",
    ] {
        check(
            &format!("t\n\n{line}{bad}"),
            ParseNoteError::SignatureLine { line: 2 },
        );
    }
    assert_eq!(
        Note::parse(b"t\xff\n\n\xe2\x80\x94 n AAAAAAA=\n"),
        Err(ParseNoteError::Characters)
    );
    let many = |count: usize| format!("t\n\n{}", line.repeat(count));
    Note::parse(many(MAX_SIGNATURES).as_bytes()).unwrap();
    check(&many(MAX_SIGNATURES + 1), ParseNoteError::TooManySignatures);
    check(&"x".repeat(MAX_NOTE_BYTES + 1), ParseNoteError::TooLong);
}

#[test]
fn the_last_empty_line_separates_the_text_from_its_signatures() {
    let note = Note::parse("a\n\nb\n\n— n AAAAAAA=\n".as_bytes()).unwrap();
    assert_eq!(note.text(), "a\n\nb\n");
}

#[test]
fn keys_that_were_mistyped_are_refused() {
    let check = |text: &str, expected: KeyError| {
        assert_eq!(text.parse::<Vkey>(), Err(expected), "{text}");
    };
    check("example.com/foo", KeyError::Shape);
    check(
        "+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        KeyError::Name,
    );
    check(&VKEY.replace("530d", "530e"), KeyError::Id);
    check(&VKEY.replace("530d", "530D"), KeyError::Id);
    check(&VKEY.replace("foo", "fop"), KeyError::Id);
    check(&VKEY.replace("+Ae", "+Be"), KeyError::Kind);
    check("n+530d903a+AekyeRrm56g=", KeyError::Kind);
    check("n+530d903a+", KeyError::Kind);
}
