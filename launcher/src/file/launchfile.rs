// SPDX-License-Identifier: MPL-2.0

//! The launch file: what stands after `gst-launch-1.0` on a shell's command line, over
//! several lines, with comments and variables. Pure: no I/O, no GStreamer.
//!
//! - Words end at white space; a newline is white space, a backslash before it allowed.
//! - `'…'` and `"…"` hold words together and are taken away, as a shell does; `\x` is `x`.
//! - `#` at the start of a word makes a comment to the end of the line.
//! - `${NAME}` and `${NAME:-default}` are replaced, but not within `'…'`. As part of a word
//!   the value stays one word and is taken literally; a `${NAME}` that is a whole word
//!   outside of quotes may hold several words, such as a whole source with its caps.
//!   A default may hold variables in turn, and go over several lines.

use std::fmt;

use droidrelay_wire::exit;

use crate::mask::{Mask, is_secret_name};

/// A place in the file; line and column (in characters) count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// What is wrong with the file, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub place: Option<Place>,
    pub text: String,
    /// One of [`droidrelay_wire::exit`]: `DATA` for the file's text or the pipeline that it
    /// describes, `CONFIG` for what comes from outside of the file, a variable.
    pub code: u8,
}

impl Fault {
    pub fn data(place: impl Into<Option<Place>>, text: impl Into<String>) -> Self {
        Fault {
            place: place.into(),
            text: text.into(),
            code: exit::DATA,
        }
    }

    fn configuration(place: Place, text: String) -> Self {
        Fault {
            code: exit::CONFIG,
            ..Fault::data(place, text)
        }
    }
}

/// A variable's value; a secret one is masked wherever it would be printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub text: String,
    pub secret: bool,
}

impl Value {
    pub fn plain(text: impl Into<String>) -> Self {
        let text = text.into();
        Value {
            text,
            secret: false,
        }
    }
}

/// Finds a variable: `Ok(None)` where nobody knows it, `Err` where it cannot be read.
pub type Lookup<'a> = dyn FnMut(&str) -> Result<Option<Value>, String> + 'a;

/// One word of the pipeline description.
#[derive(Clone, PartialEq, Eq)]
pub struct Word {
    /// As a shell would hand it over.
    pub text: String,
    /// With what GStreamer's parser wants escaped; may hold a secret.
    launch: String,
    pub place: Place,
    /// Where the text behind the first `=` begins.
    pub value_place: Place,
}

impl Word {
    /// Name and value where the word is `property=value`.
    pub fn property(&self) -> Option<(&str, &str)> {
        self.text
            .split_once('=')
            .filter(|(key, _)| is_identifier(key))
    }

    /// Without the signs that may stand at an element's name.
    pub fn bare(&self) -> &str {
        self.text.trim_matches(['(', ')', '!'])
    }

    /// Whether it sets this property.
    pub fn sets(&self, property: &str) -> bool {
        self.property().is_some_and(|(key, _)| key == property)
    }
}

/// Letters, digits, `-`, `_` and `:` (of child properties), as in names of GStreamer.
pub fn is_identifier(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_:".contains(c))
}

/// Factories of elements that keep their names in every pipeline.
const NAMED: [&str; 2] = ["mqttvalve", "rtmpauthsink"];

/// A launch file with its variables replaced.
#[derive(Clone)]
pub struct LaunchFile {
    pub words: Vec<Word>,
    /// Hides the secrets that are in `words`.
    pub mask: Mask,
}

impl LaunchFile {
    pub fn parse(text: &str, lookup: &mut Lookup) -> Result<Self, Fault> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = Reader {
            rest: text,
            place: Place { line: 1, column: 1 },
            words: Vec::new(),
            mask: Mask::default(),
            lookup,
        };
        if text.contains('\0') {
            while reader.peek() != Some('\0') {
                reader.next();
            }
            return Err(Fault::data(
                reader.place,
                "a NUL character: launch files are text, remove it",
            ));
        }
        let words = reader.all_words()?;
        if words.is_empty() {
            return Err(Fault::data(
                reader.place,
                "the file holds no pipeline: write what stands after gst-launch-1.0, for example \"videotestsrc ! autovideosink\"",
            ));
        }
        let first = &words[0];
        if first.text.ends_with("gst-launch-1.0") || first.text.starts_with('-') {
            return Err(Fault::data(
                first.place,
                format!(
                    "{}: the command's name and options do not belong into the file, write only the pipeline",
                    reader.mask.apply(&first.text)
                ),
            ));
        }
        let mut file = LaunchFile {
            words,
            mask: reader.mask,
        };
        file.name_elements();
        Ok(file)
    }

    /// Gives the elements in [`NAMED`] the names that GStreamer would give them in a process's
    /// first pipeline. It goes on counting in the next one: their MQTT client ids would be others,
    /// and nobody would know who takes over from whom.
    fn name_elements(&mut self) {
        let properties = self.words.iter().filter_map(Word::property);
        let taken: Vec<String> = properties
            .filter(|(key, _)| *key == "name")
            .map(|(_, name)| name.to_owned())
            .collect();
        for factory in NAMED {
            let mut free = (0..)
                .map(|number| format!("{factory}{number}"))
                .filter(|name| !taken.contains(name));
            for at in 0..self.words.len() {
                let (words, properties) = self.words.split_at_mut(at + 1);
                let mut properties = properties
                    .iter()
                    .take_while(|word| word.property().is_some());
                if words[at].text == factory && !properties.any(|word| word.sets("name")) {
                    let name = free.next().unwrap_or_default();
                    words[at].launch.push_str(&format!(" name={name}"));
                }
            }
        }
    }

    /// The description of the first `count` words for `gst_parse_launch`. Never print it.
    pub fn description(&self, count: usize) -> String {
        let launch: Vec<&str> = self.words[..count]
            .iter()
            .map(|word| word.launch.as_str())
            .collect();
        launch.join(" ")
    }
}

/// A stretch of a word; `literal` text came from a variable.
struct Piece {
    text: String,
    place: Place,
    literal: bool,
    quoted: bool,
    /// Where `text` is a variable's default: the default as it stands in the file.
    default: Option<(String, Place)>,
}

impl Piece {
    fn new(text: impl Into<String>, place: Place) -> Self {
        Piece {
            text: text.into(),
            place,
            literal: false,
            quoted: false,
            default: None,
        }
    }
}

struct Reader<'a, 'b> {
    rest: &'a str,
    place: Place,
    words: Vec<Word>,
    mask: Mask,
    lookup: &'a mut Lookup<'b>,
}

impl Reader<'_, '_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.place.line += 1;
            self.place.column = 1;
        } else {
            self.place.column += 1;
        }
        Some(c)
    }

    /// A backslash that ends its line, or the file.
    fn at_continuation(&self) -> bool {
        self.rest.strip_prefix('\\').is_some_and(|behind| {
            let mut lines = behind.split('\n');
            lines.next().is_none_or(|line| line.trim().is_empty())
        })
    }

    /// Skips white space and comments; false at the end of the file.
    fn skip_blank(&mut self) -> bool {
        while let Some(c) = self.peek() {
            if c == '#' {
                while self.peek().is_some_and(|c| c != '\n') {
                    self.next();
                }
            } else if c.is_whitespace() || self.at_continuation() {
                self.next();
            } else {
                return true;
            }
        }
        false
    }

    fn word(&mut self) -> Result<(), Fault> {
        let start = self.place;
        let mut pieces: Vec<Piece> = Vec::new();
        // The quote that we are in, and where it was opened.
        let mut quote: Option<(char, Place)> = None;
        while let Some(c) = self.peek() {
            let place = self.place;
            let in_single = matches!(quote, Some(('\'', _)));
            match c {
                _ if quote.is_some_and(|(open, _)| open == c) => {
                    self.next();
                    quote = None;
                }
                '\'' | '"' if quote.is_none() => {
                    self.next();
                    quote = Some((c, place));
                    pieces.push(Piece {
                        quoted: true,
                        ..Piece::new("", self.place)
                    });
                }
                '$' if !in_single => {
                    let mut piece = self.variable()?;
                    piece.quoted = quote.is_some();
                    pieces.push(piece);
                }
                '\\' if quote.is_none() && self.at_continuation() => break,
                '\\' if !in_single => {
                    self.next();
                    let escaped = self.peek();
                    match (quote, escaped) {
                        (Some(_), Some(c)) if !"\"\\$".contains(c) => {
                            push(&mut pieces, '\\', place)
                        }
                        (_, Some(c)) => {
                            self.next();
                            push(&mut pieces, c, place);
                        }
                        (_, None) => {}
                    }
                }
                _ if quote.is_none() && c.is_whitespace() => break,
                _ => {
                    self.next();
                    push(&mut pieces, c, place);
                }
            }
        }
        if let Some((open, place)) = quote {
            return Err(Fault::data(
                place,
                format!(
                    "the quote {open} is not closed: close it, or write \\{open} for the character itself"
                ),
            ));
        }
        self.finish(start, pieces)
    }

    /// `${NAME}` or `${NAME:-default}`; any other `$` that is not followed by a name is a `$`.
    fn variable(&mut self) -> Result<Piece, Fault> {
        let place = self.place;
        self.next();
        if self.peek() != Some('{') {
            let name: String = self
                .rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            if !name.is_empty() {
                return Err(Fault::data(
                    place,
                    format!(
                        "${name}: write ${{{name}}} for the variable, or \\${name} for the text itself"
                    ),
                ));
            }
            return Ok(Piece::new("$", place));
        }
        self.next();
        let start = self.place;
        let Some(inner) = self.braced() else {
            return Err(Fault::data(
                place,
                "${ without }: close it, as in ${CAMERA:-default}",
            ));
        };
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner.as_str(), None),
        };
        let valid = name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        if name.is_empty() || name.starts_with(['.', '-']) || !valid {
            return Err(Fault::data(
                place,
                format!(
                    "{name:?} is not a variable's name: use letters, digits, _ - and ., as in ${{CAMERA}} or ${{CAMERA:-default}}"
                ),
            ));
        }
        let found = (self.lookup)(name)
            .map_err(|err| Fault::configuration(place, format!("variable {name}: {err}")))?
            // As in a shell, `:-` stands in for an empty value as well.
            .filter(|value| !(default.is_some() && value.text.is_empty()));
        if found
            .as_ref()
            .is_some_and(|value| value.text.contains('\0'))
        {
            let text =
                format!("variable {name} holds a NUL character: give it a value that is text");
            return Err(Fault::configuration(place, text));
        }
        let mut piece = Piece {
            literal: true,
            ..Piece::new("", place)
        };
        match (found, default) {
            (Some(value), _) => {
                if value.secret || is_secret_name(name) {
                    self.mask.hide(&value.text);
                    // As words of its own it would show in parts, unless it describes elements.
                    if !value.text.contains('!') {
                        let words = value.text.split_whitespace();
                        words.for_each(|word| self.mask.hide(word));
                    }
                }
                piece.text = value.text;
            }
            (None, Some(default)) => {
                let place = Place {
                    column: start.column + name.chars().count() + 2,
                    ..start
                };
                piece.text = self.within(default, place, |reader| reader.flat())?;
                piece.default = Some((default.to_owned(), place));
            }
            (None, None) => {
                let set = if is_secret_name(name) {
                    String::new()
                } else {
                    format!("with --set {name}=…, ")
                };
                return Err(Fault::configuration(
                    place,
                    format!(
                        "variable {name} has no value: give it {set}in the environment or as a file of that name in $CREDENTIALS_DIRECTORY, or write ${{{name}:-default}}"
                    ),
                ));
            }
        }
        Ok(piece)
    }

    /// What stands before the `}` that closes a `${`, other variables with theirs skipped.
    fn braced(&mut self) -> Option<String> {
        let rest = self.rest;
        let mut depth = 1;
        while let Some(c) = self.peek() {
            if self.rest.starts_with("${") {
                depth += 1;
            } else if c == '}' {
                depth -= 1;
            }
            self.next();
            if depth == 0 {
                return Some(rest[..rest.len() - self.rest.len() - 1].to_owned());
            }
        }
        None
    }

    /// Reads `text`, which stands at `place`, by `read`.
    fn within<T>(
        &mut self,
        text: &str,
        place: Place,
        read: impl FnOnce(&mut Reader) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut inner = Reader {
            rest: text,
            place,
            words: Vec::new(),
            mask: std::mem::take(&mut self.mask),
            lookup: &mut *self.lookup,
        };
        let read = read(&mut inner);
        self.mask = inner.mask;
        read
    }

    /// The rest as it stands, variables replaced.
    fn flat(&mut self) -> Result<String, Fault> {
        let mut text = String::new();
        while let Some(c) = self.peek() {
            if self.rest.starts_with("${") {
                text += &self.variable()?.text;
            } else {
                text.push(c);
                self.next();
            }
        }
        Ok(text)
    }

    /// The words of the rest.
    fn all_words(&mut self) -> Result<Vec<Word>, Fault> {
        while self.skip_blank() {
            self.word()?;
        }
        Ok(std::mem::take(&mut self.words))
    }

    fn finish(&mut self, start: Place, mut pieces: Vec<Piece>) -> Result<(), Fault> {
        let full = pieces
            .iter()
            .filter(|piece| !piece.text.is_empty() || piece.literal)
            .count();
        if full == 1 {
            let quoted = pieces.iter().any(|piece| piece.quoted);
            if let Some(piece) = pieces.iter_mut().find(|piece| piece.literal) {
                if !quoted {
                    if let Some((text, place)) = piece.default.take() {
                        let words = self.within(&text, place, |reader| reader.all_words())?;
                        self.words.extend(words);
                    } else {
                        for word in piece.text.split_whitespace() {
                            self.add(start, &[Piece::new(word, start)]);
                        }
                    }
                    return Ok(());
                }
                piece.literal = false;
            }
        }
        self.add(start, &pieces);
        Ok(())
    }

    fn add(&mut self, place: Place, pieces: &[Piece]) {
        let mut word = Word {
            text: String::new(),
            launch: String::new(),
            place,
            value_place: place,
        };
        // GStreamer's own quotes, which a shell's user writes as \" or '"'.
        let mut in_quotes = false;
        let mut has_value = false;
        for piece in pieces {
            let mut at = piece.place;
            let mut last = '\0';
            if has_value && word.text.ends_with('=') && word.text.matches('=').count() == 1 {
                word.value_place = at;
            }
            for c in piece.text.chars() {
                let escape = if piece.literal {
                    c.is_whitespace() || "\\\"'".contains(c)
                } else {
                    if c == '"' && !(in_quotes && last == '\\') {
                        in_quotes = !in_quotes;
                    }
                    c.is_whitespace() && !in_quotes
                };
                if escape {
                    word.launch.push('\\');
                }
                // The parser's escapes do not reach a newline.
                word.launch.push(if c.is_whitespace() { ' ' } else { c });
                word.text.push(c);
                last = c;
                at.column += 1;
                if c == '=' && !has_value {
                    has_value = true;
                    word.value_place = at;
                }
            }
        }
        if word.text.is_empty() {
            return;
        }
        // An empty value in quotes or from a variable must not swallow the next word.
        if word.text.ends_with('=') && pieces.len() > 1 {
            word.launch.push_str("\"\"");
        }
        self.mask.hide_in_word(&word.text);
        self.words.push(word);
    }
}

fn push(pieces: &mut Vec<Piece>, c: char, place: Place) {
    match pieces.last_mut() {
        Some(piece) if !piece.literal => {
            if piece.text.is_empty() {
                piece.place = place;
            }
            piece.text.push(c);
        }
        _ => pieces.push(Piece::new(c, place)),
    }
}

#[cfg(test)]
mod tests;
