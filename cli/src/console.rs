//! Printing a guest's console log, once or as it grows.
//!
//! The guest is hostile: on a terminal its bytes are shown, not obeyed. Into a file or a pipe they
//! go as they are.

use std::time::Duration;

use crate::client::Path;
use crate::failure::Failure;
use crate::session::Session;

/// Each look is an order to the node, so it is not hurried.
const POLL: Duration = Duration::from_secs(2);

/// Print the log of a VM, and with `follow` go on until interrupted.
pub(crate) fn print(
    session: &mut Session,
    vm: &str,
    follow: bool,
    tail: Option<usize>,
) -> Result<(), Failure> {
    let path = Path::of(&["v1", "vms", vm, "console", "log"]);
    let mut log = session.client.get(path.clone())?.bytes().to_vec();
    let from = tail.map_or(0, |lines| start_of_last_lines(&log, lines));
    show(session, log.get(from..).unwrap_or_default())?;
    if !follow {
        return Ok(());
    }
    loop {
        std::thread::sleep(POLL);
        let read = session.client.get(path.clone())?.bytes().to_vec();
        show(session, news(&log, &read))?;
        log = read;
    }
}

fn show(session: &mut Session, bytes: &[u8]) -> Result<(), Failure> {
    if session.screen.is_terminal() {
        session.screen.write(shown(bytes).as_bytes())
    } else {
        session.screen.write(bytes)
    }
}

/// Where the last `lines` lines begin. An unfinished last line counts as one.
fn start_of_last_lines(log: &[u8], lines: usize) -> usize {
    let ended = log.strip_suffix(b"\n").unwrap_or(log);
    match lines.checked_sub(1) {
        None => log.len(),
        Some(before) => ended
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(before)
            .map_or(0, |(at, _)| at + 1),
    }
}

/// What `new` has that `old` had not: the log grows at its end and is cut at its beginning.
fn news<'a>(old: &[u8], new: &'a [u8]) -> &'a [u8] {
    if let Some(grown) = new.strip_prefix(old) {
        return grown;
    }
    // Cut at the beginning: the longest end of the old log with which the new one begins. A guest
    // that was restarted shares nothing with its old log, and all of it is new.
    let overlap = longest_overlap(old, new);
    new.get(overlap..).unwrap_or_default()
}

/// Length of the longest end of `old` that is a beginning of `new`, in linear time (the prefix
/// function of Knuth, Morris and Pratt run over `old`).
fn longest_overlap(old: &[u8], new: &[u8]) -> usize {
    let mut borders: Vec<usize> = Vec::with_capacity(new.len());
    let extend = |borders: &[usize], mut length: usize, byte: u8| {
        loop {
            if new.get(length) == Some(&byte) {
                return length + 1;
            }
            let Some(shorter) = length.checked_sub(1).and_then(|last| borders.get(last)) else {
                return 0;
            };
            length = *shorter;
        }
    };
    for (at, byte) in new.iter().enumerate() {
        let next = match at.checked_sub(1) {
            None => 0,
            Some(last) => extend(&borders, borders.get(last).copied().unwrap_or(0), *byte),
        };
        borders.push(next);
    }
    old.iter()
        .fold(0, |length, byte| extend(&borders, length, *byte))
}

/// Text for a terminal: lines and tabs stay, other control characters are shown as escapes.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .replace("\r\n", "\n")
        .split_inclusive(['\n', '\t'])
        .map(|piece| {
            let (text, end) = match piece.char_indices().next_back() {
                Some((at, '\n' | '\t')) => piece.split_at(at),
                _ => (piece, ""),
            };
            crate::table::printable(text) + end
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_lines_are_counted_with_an_unfinished_one() {
        let from = |log: &'static [u8], lines| &log[start_of_last_lines(log, lines)..];
        assert_eq!(from(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(from(b"a\nb\nc", 2), b"b\nc");
        assert_eq!(from(b"a\nb\n", 9), b"a\nb\n");
        assert_eq!(from(b"a\nb\n", 0), b"");
        assert_eq!(from(b"", 3), b"");
    }

    #[test]
    fn following_prints_each_byte_once_also_when_the_log_is_cut_at_its_beginning() {
        assert_eq!(news(b"a\n", b"a\nb\n"), b"b\n");
        assert_eq!(news(b"a\n", b"a\n"), b"");
        assert_eq!(news(b"a\nb\nc\n", b"c\nd\n"), b"d\n");
        assert_eq!(news(b"old boot\n", b"New boot\n"), b"New boot\n");
        assert_eq!(news(b"", b"x"), b"x");
    }

    #[test]
    fn a_guest_cannot_steer_the_terminal() {
        assert_eq!(
            shown(b"a\r\n\x1b[2Jb\tc\n\xffd"),
            "a\n\\u{1b}[2Jb\tc\n\u{fffd}d"
        );
    }

    proptest! {
        #[test]
        fn a_growing_ring_is_printed_whole(
            chunks in proptest::collection::vec(proptest::collection::vec(0_u8..3, 0..9), 1..9),
        ) {
            // While at least half of the ring stays from one look to the next, the overlap found is
            // at least the true one, so nothing is ever printed twice.
            let mut whole = Vec::new();
            let mut seen: Vec<u8> = Vec::new();
            for chunk in chunks {
                whole.extend_from_slice(&chunk);
                let ring = whole[whole.len().saturating_sub(16)..].to_vec();
                prop_assert!(news(&seen, &ring).len() <= chunk.len());
                seen = ring;
            }
        }

        #[test]
        fn the_overlap_is_the_longest(
            old in proptest::collection::vec(0_u8..2, 0..12),
            new in proptest::collection::vec(0_u8..2, 0..12),
        ) {
            let brute = (0..=old.len().min(new.len()))
                .rev()
                .find(|length| old[old.len() - length..] == new[..*length])
                .unwrap_or(0);
            prop_assert_eq!(longest_overlap(&old, &new), brute);
        }
    }
}
