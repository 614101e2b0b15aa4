// SPDX-License-Identifier: MPL-2.0

//! Text of others on one line of a log: it can neither begin a line nor fill the log.

use std::{borrow::Cow, fmt::Write};

/// Longest text, in bytes.
pub const MAX_LINE: usize = 2048;

/// `text` with its control characters, and those that turn the direction of reading, as escapes;
/// what is longer than [`MAX_LINE`] is cut, and says so.
pub fn one_line(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| {
        !c.is_control() && !matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.len() <= MAX_LINE && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut line = String::new();
    for c in text.chars() {
        if line.len() >= MAX_LINE {
            // A String takes everything.
            let _ = write!(line, "… ({} bytes)", text.len());
            break;
        }
        if is_plain(c) {
            line.push(c);
        } else {
            line.extend(c.escape_default());
        }
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_stays_on_one_line() {
        for (text, line) in [
            ("", ""),
            ("idle: grün, \"quoted\" \\", "idle: grün, \"quoted\" \\"),
            ("a\nb", "a\\nb"),
            ("\x1b[31mred\r", "\\u{1b}[31mred\\r"),
            ("a\u{2028}b\u{202e}c\u{85}", "a\\u{2028}b\\u{202e}c\\u{85}"),
        ] {
            assert_eq!(one_line(text), line);
        }
    }

    #[test]
    fn what_others_write_is_cut() {
        let long = "\n".repeat(MAX_LINE);
        let line = one_line(&long);
        assert!(line.len() < MAX_LINE + 40, "{}", line.len());
        assert!(line.ends_with("… (2048 bytes)"), "{line}");
        let fits = "é".repeat(MAX_LINE / 2);
        assert_eq!(one_line(&fits), fits);
    }
}
