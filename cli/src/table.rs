//! Text tables: pure layout, no I/O.
//!
//! Cells hold text that tenants and guests chose, so nothing reaches a terminal that could move its
//! cursor: control characters are shown as escapes.

use unicode_width::UnicodeWidthStr as _;

/// How a cell is coloured where colour is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Caution,
    /// Somebody must act.
    Bad,
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl Cell {
    /// A cell with a tone.
    #[must_use]
    pub(crate) fn toned(text: &str, tone: Tone) -> Self {
        Self {
            text: printable(text),
            tone: Some(tone),
        }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(value: T) -> Self {
        Self {
            text: printable(&value.to_string()),
            tone: None,
        }
    }
}

/// A value that may be absent; shown as `-`.
pub(crate) fn optional<T: ToString>(value: Option<T>) -> Cell {
    value.map_or_else(|| Cell::from("-"), Cell::from)
}

/// Text with every control character, and every character that reorders text, shown as an escape.
#[must_use]
pub(crate) fn printable(text: &str) -> String {
    let reorders = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().fold(String::new(), |mut shown, c| {
        if c.is_control() || reorders(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        shown
    })
}

/// How a table is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Style {
    /// Leave the header line out.
    pub(crate) no_headers: bool,
    /// Use terminal colours.
    pub(crate) colour: bool,
}

/// Rows under headers, or names beside values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table with these columns.
    #[must_use]
    pub(crate) fn new(headers: &[&'static str]) -> Self {
        Self {
            headers: headers.to_vec(),
            rows: Vec::new(),
        }
    }

    /// One object: a name and a value on each line, no headers.
    #[must_use]
    pub(crate) fn of_object(members: impl IntoIterator<Item = (&'static str, Cell)>) -> Self {
        let rows = members
            .into_iter()
            .map(|(name, value)| vec![Cell::from(format!("{name}:")), value])
            .collect();
        Self {
            headers: Vec::new(),
            rows,
        }
    }

    /// Add a row; it has one cell for each header.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// The rows alone, for output that goes on.
    #[must_use]
    pub(crate) fn without_headers(mut self) -> Self {
        self.headers.clear();
        self
    }

    /// The text, every line ended, no line with trailing blanks.
    #[must_use]
    pub(crate) fn render(&self, style: Style) -> String {
        let header: Vec<Cell> = self.headers.iter().map(Cell::from).collect();
        let with_header = !header.is_empty() && !style.no_headers;
        let lines: Vec<&Vec<Cell>> = with_header
            .then_some(&header)
            .into_iter()
            .chain(&self.rows)
            .collect();
        let widths = column_widths(&lines);
        lines
            .into_iter()
            .map(|cells| line(cells, &widths, style))
            .collect()
    }
}

fn column_widths(lines: &[&Vec<Cell>]) -> Vec<usize> {
    let columns = lines.iter().map(|cells| cells.len()).max().unwrap_or(0);
    (0..columns)
        .map(|column| {
            lines
                .iter()
                .filter_map(|cells| cells.get(column))
                .map(|cell| cell.text.width())
                .max()
                .unwrap_or(0)
        })
        .collect()
}

fn line(cells: &[Cell], widths: &[usize], style: Style) -> String {
    let mut text = String::new();
    let mut pending = 0;
    for (cell, width) in cells.iter().zip(widths) {
        let shown = cell.text.trim_end();
        if !shown.is_empty() {
            text.push_str(&" ".repeat(pending));
            text.push_str(&painted(shown, cell.tone.filter(|_| style.colour)));
            pending = 0;
        }
        pending += width.saturating_sub(shown.width()) + 2;
    }
    text.push('\n');
    text
}

fn painted(text: &str, tone: Option<Tone>) -> String {
    let colour = match tone {
        None => return text.to_owned(),
        Some(Tone::Good) => 32,
        Some(Tone::Caution) => 33,
        Some(Tone::Bad) => 31,
    };
    format!("\x1b[{colour}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Style = Style {
        no_headers: false,
        colour: false,
    };

    fn sample() -> Table {
        let mut table = Table::new(&["NAME", "STATE", "NODE"]);
        table.row([
            "web-1".into(),
            Cell::toned("running", Tone::Good),
            "-".into(),
        ]);
        table.row(["名前".into(), Cell::toned("failed", Tone::Bad), "n1".into()]);
        table
    }

    #[test]
    fn columns_are_aligned_by_what_a_terminal_shows() {
        assert_eq!(
            sample().render(PLAIN),
            "NAME   STATE    NODE\nweb-1  running  -\n名前   failed   n1\n"
        );
    }

    #[test]
    fn headers_can_be_left_out() {
        let style = Style {
            no_headers: true,
            ..PLAIN
        };
        assert!(sample().render(style).starts_with("web-1"));
    }

    #[test]
    fn colour_changes_no_alignment() {
        let style = Style {
            colour: true,
            ..PLAIN
        };
        let coloured = sample().render(style);
        assert!(coloured.contains("\x1b[32mrunning\x1b[0m  -"));
        let bare = ["\x1b[32m", "\x1b[31m", "\x1b[0m"]
            .iter()
            .fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(bare, sample().render(PLAIN));
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(["\x1b]0;owned\x07\nx\u{202e}y".into()]);
        assert_eq!(
            table.render(PLAIN),
            "NAME\n\\u{1b}]0;owned\\u{7}\\nx\\u{202e}y\n"
        );
    }

    proptest! {
        #[test]
        fn any_text_gives_one_line_per_row_and_second_columns_that_line_up(
            names in proptest::collection::vec(any::<String>(), 1..8)
        ) {
            let mut table = Table::new(&["NAME", "MARK"]);
            for name in &names {
                table.row([name.into(), "|".into()]);
            }
            let text = table.render(PLAIN);
            let lines: Vec<&str> = text.lines().collect();
            prop_assert_eq!(lines.len(), names.len() + 1);
            prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
            let column = |line: &str| line.rfind('|').map(|at| line[..at].width());
            let first = column(lines[1]);
            prop_assert!(first.is_some());
            for line in &lines[1..] {
                prop_assert_eq!(column(line), first);
                prop_assert_eq!(line.trim_end(), *line);
            }
        }
    }
}
