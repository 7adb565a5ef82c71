//! Shell blocks of a Markdown document, so that a how-to is executed as it stands.

/// The fenced blocks of a document in order, each with the heading that it stands under.
#[must_use]
pub fn blocks(markdown: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut heading = String::new();
    let mut open: Option<Vec<&str>> = None;
    for line in markdown.lines() {
        match (&mut open, line.trim_start().starts_with("```")) {
            (None, true) => open = Some(Vec::new()),
            (Some(lines), true) => {
                found.push(Block {
                    heading: heading.clone(),
                    text: lines.join("\n"),
                });
                open = None;
            }
            (Some(lines), false) => lines.push(line),
            (None, false) => {
                if let Some(text) = line.strip_prefix('#') {
                    heading = text.trim_start_matches('#').trim().to_owned();
                }
            }
        }
    }
    found
}

/// One fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The nearest heading above it.
    pub heading: String,
    /// Its lines.
    pub text: String,
}

impl Block {
    /// The block with `<name>` replaced by each name's value.
    #[must_use]
    pub fn with(&self, values: &[(&str, &str)]) -> String {
        let replace =
            |text: String, (name, value): &(&str, &str)| text.replace(&format!("<{name}>"), value);
        values.iter().fold(self.text.clone(), replace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_their_lines_and_know_their_heading() {
        let text = "# Title\n\n```\na \\\n b\n```\ntext\n## Step 2\n```sh\n# no heading\nc <token> <other>\n```\n";
        let found = blocks(text);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].heading.as_str(), found[0].text.as_str()),
            ("Title", "a \\\n b")
        );
        assert_eq!(found[1].heading, "Step 2");
        assert_eq!(
            found[1].with(&[("token", "t")]),
            "# no heading\nc t <other>"
        );
    }
}
