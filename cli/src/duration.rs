//! Durations as people write them: `90`, `90s`, `5m`, `24h`, `30d`.

/// Seconds in a text; a bare number is seconds.
pub(crate) fn parse_seconds(text: &str) -> Result<u64, String> {
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("write a number with s, m, h or d, such as 90s or 24h".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit_seconds))
        .ok_or_else(|| "write a number with s, m, h or d, such as 90s or 24h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood_and_nonsense_is_not() {
        for (text, seconds) in [
            ("0", 0),
            ("90", 90),
            ("90s", 90),
            ("5m", 300),
            ("24h", 86_400),
            ("30d", 2_592_000),
        ] {
            assert_eq!(parse_seconds(text), Ok(seconds), "{text}");
        }
        for text in [
            "",
            "s",
            "-1",
            "1.5h",
            "1 h",
            "1w",
            "99999999999999999999",
            "999999999999999999d",
        ] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
