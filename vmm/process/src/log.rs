//! One line per event on standard error, as `key=value` pairs.
//!
//! Owns the quoting and a bound on how much is said: a guest or a parent that makes events without
//! end cannot fill the journal. No guest data is ever a value.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Lines that one period may have.
const LINES_PER_PERIOD: u32 = 50;
const PERIOD: Duration = Duration::from_secs(10);

/// The log of one process. Used by one thread.
#[derive(Debug)]
pub(crate) struct Log {
    vm: String,
    period: Cell<Instant>,
    lines: Cell<u32>,
    suppressed: Cell<u64>,
}

impl Log {
    /// A log whose lines name the machine.
    pub(crate) fn new(vm: &str) -> Self {
        Self {
            vm: vm.to_owned(),
            period: Cell::new(Instant::now()),
            lines: Cell::new(0),
            suppressed: Cell::new(0),
        }
    }

    /// Writes one line, unless this period has had its share.
    pub(crate) fn event(&self, name: &str, fields: &[(&str, &dyn fmt::Display)]) {
        if self.period.get().elapsed() >= PERIOD {
            self.period.set(Instant::now());
            self.lines.set(0);
        }
        if self.lines.get() >= LINES_PER_PERIOD {
            self.suppressed.set(self.suppressed.get().saturating_add(1));
            return;
        }
        self.lines.set(self.lines.get() + 1);
        let mut line = format_line(&self.vm, name, fields);
        let suppressed = self.suppressed.take();
        if suppressed > 0 {
            append(&mut line, "suppressed", &suppressed);
        }
        line.push('\n');
        // Who closed standard error does not want the log.
        std::io::stderr().write_all(line.as_bytes()).unwrap_or(());
    }
}

fn format_line(vm: &str, name: &str, fields: &[(&str, &dyn fmt::Display)]) -> String {
    let mut line = format!("event={name}");
    append(&mut line, "vm", &vm);
    for (key, value) in fields {
        append(&mut line, key, value);
    }
    line
}

/// Appends ` key=value`, quoted if the value has anything but plain characters.
fn append(line: &mut String, key: &str, value: &dyn fmt::Display) {
    let value = value.to_string();
    let is_plain = !value.is_empty()
        && value
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && ![b'"', b'='].contains(&byte));
    let written = if is_plain {
        write!(line, " {key}={value}")
    } else {
        write!(line, " {key}={value:?}")
    };
    written.expect("a string takes all that is written to it");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_spaces_are_quoted_and_line_feeds_escaped() {
        let line = format_line(
            "vm-1",
            "refused",
            &[("field", &"kernel"), ("problem", &"a\n\"b\"")],
        );
        assert_eq!(
            line,
            r#"event=refused vm=vm-1 field=kernel problem="a\n\"b\"""#
        );
    }
}
