// SPDX-License-Identifier: MPL-2.0

//! A text that must appear nowhere: it does not print, and is wiped when dropped.

use std::{fmt, path::Path};

use zeroize::Zeroizing;

use crate::files::read_regular;

/// Longest secret file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// A password or token. `Debug` shows `Secret(…)`, there is no `Display`, and
/// [`Secret::expose`] is the only way to the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Secret(Zeroizing::new(text.into()))
    }

    /// Reads the first line of the file at `path`, without its line end.
    ///
    /// The error names the file and the remedy, never the content.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, String> {
        let path = path.as_ref();
        let bytes = read_regular(path, MAX_FILE).map_err(|err| {
            format!(
                "cannot read secret file {}: {err}; create it as a regular file with the secret as its first line, readable by this process only",
                path.display()
            )
        })?;
        let text = str::from_utf8(&bytes).map_err(|_| {
            format!(
                "secret file {} is not UTF-8: write it anew as UTF-8 text",
                path.display()
            )
        })?;
        if text.starts_with('\u{feff}') {
            return Err(format!(
                "secret file {} begins with a byte order mark (BOM), which would be part of the secret: save it as UTF-8 without one",
                path.display()
            ));
        }
        match text.lines().next() {
            Some(line) if !line.is_empty() => Ok(Secret::new(line)),
            _ => Err(format!(
                "secret file {} is empty: write the secret as its first line",
                path.display()
            )),
        }
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_secret_does_not_print() {
        let secret = Secret::new("hunter2");
        assert!(!format!("{secret:?} {:?}", Some(&secret)).contains("hunter2"));
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_secret_file_gives_its_first_line() {
        let path = std::env::temp_dir().join(format!("droidrelay-secret-{}", std::process::id()));
        fs::write(&path, "hunter2 \r\nsecond\n").unwrap();
        assert_eq!(Secret::from_file(&path).unwrap().expose(), "hunter2 ");
        fs::write(&path, "\n").unwrap();
        assert!(Secret::from_file(&path).unwrap_err().contains("empty"));
        fs::write(&path, "\u{feff}hunter2\n").unwrap();
        let error = Secret::from_file(&path).unwrap_err();
        assert!(
            error.contains("(BOM)") && !error.contains("hunter"),
            "{error}"
        );
        fs::write(&path, b"hunter2\xff\n").unwrap();
        let error = Secret::from_file(&path).unwrap_err();
        assert!(
            error.contains("UTF-8") && !error.contains("hunter"),
            "{error}"
        );
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let error = Secret::from_file(&path).unwrap_err();
        assert!(error.contains("not a regular file"), "{error}");
        fs::remove_file(&path).unwrap();
        let error = Secret::from_file(std::env::temp_dir()).unwrap_err();
        assert!(error.contains("not a regular file"), "{error}");
        assert!(
            Secret::from_file(&path)
                .unwrap_err()
                .contains("cannot read")
        );
    }
}
