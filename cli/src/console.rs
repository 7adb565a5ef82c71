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
    let log = read(session, vm)?;
    let from = tail.map_or(0, |lines| start_of_last_lines(&log.bytes, lines));
    show(session, log.bytes.get(from..).unwrap_or_default())?;
    let mut printed = log.end();
    if !follow {
        return Ok(());
    }
    loop {
        std::thread::sleep(POLL);
        let log = read(session, vm)?;
        let lost = log.offset.saturating_sub(printed);
        if lost > 0 {
            session.screen.note(&format!("{lost} bytes went by unseen"));
        }
        show(session, log.after(printed))?;
        printed = log.end();
    }
}

/// The newest part of a console's output.
struct Log {
    /// Position of the first byte in all that the guest ever wrote.
    offset: u64,
    bytes: Vec<u8>,
}

impl Log {
    fn end(&self) -> u64 {
        let length = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        self.offset.saturating_add(length)
    }

    /// What comes after a position; everything if that is gone already.
    fn after(&self, position: u64) -> &[u8] {
        let known = position.saturating_sub(self.offset);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        self.bytes.get(known..).unwrap_or_default()
    }
}

fn read(session: &Session, vm: &str) -> Result<Log, Failure> {
    let reply = session
        .client
        .get(Path::of(&["v1", "vms", vm, "console", "log"]))?;
    Ok(Log {
        offset: reply.number("x-console-offset").unwrap_or(0),
        bytes: reply.into_bytes(),
    })
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
        let log = |offset, bytes: &[u8]| Log {
            offset,
            bytes: bytes.to_vec(),
        };
        assert_eq!(log(0, b"abc").end(), 3);
        assert_eq!(log(0, b"abcd").after(3), b"d");
        assert_eq!(log(2, b"cdef").after(3), b"def");
        assert_eq!(log(2, b"c").after(3), b"");
        assert_eq!(log(9, b"xyz").after(3), b"xyz");
        assert_eq!(log(0, b"").after(3), b"");
    }

    #[test]
    fn a_guest_cannot_steer_the_terminal() {
        assert_eq!(
            shown(b"a\r\n\x1b[2Jb\tc\n\xffd"),
            "a\n\\u{1b}[2Jb\tc\n\u{fffd}d"
        );
    }
}
