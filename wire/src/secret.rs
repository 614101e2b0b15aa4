// SPDX-License-Identifier: MPL-2.0

//! A text that must appear nowhere: it does not print, and is wiped when dropped.

use std::{
    fmt, fs,
    io::{self, Read},
    path::Path,
};

use zeroize::Zeroizing;

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
        let mut text = Zeroizing::new(String::new());
        fs::File::open(path)
            .map_err(|err| {
                format!(
                    "cannot open secret file {}: {err}; create it with the secret as its first line, readable by this process only",
                    path.display()
                )
            })?
            .take(MAX_FILE)
            .read_to_string(&mut text)
            .map_err(|err| match err.kind() {
                io::ErrorKind::InvalidData => format!(
                    "secret file {} is not UTF-8: write it anew as UTF-8 text",
                    path.display()
                ),
                _ => format!("cannot read secret file {}: {err}", path.display()),
            })?;
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

/// Percent-encodes every byte but RFC 3986's unreserved characters (section 2.3), `/` included.
pub fn percent_encode(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push('%');
            encoded.push(HEX[usize::from(byte >> 4)].into());
            encoded.push(HEX[usize::from(byte & 15)].into());
        }
    }
    encoded
}

/// Undoes percent-encoding; a `%` without two hexadecimal digits stays as it is.
///
/// Fails only where the decoded bytes are not UTF-8.
pub fn percent_decode(text: &str) -> Result<String, std::string::FromUtf8Error> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes
            .get(at + 1..at + 3)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits {
            Some(digits) if bytes[at] == b'%' => {
                decoded.push(u8::from_str_radix(digits, 16).unwrap_or_default());
                at += 3;
            }
            _ => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        fs::write(&path, b"hunter2\xff\n").unwrap();
        let error = Secret::from_file(&path).unwrap_err();
        assert!(
            error.contains("UTF-8") && !error.contains("hunter"),
            "{error}"
        );
        fs::remove_file(&path).unwrap();
        assert!(
            Secret::from_file(&path)
                .unwrap_err()
                .contains("cannot open")
        );
    }

    #[test]
    fn percent_encoding_leaves_unreserved_characters_only_and_reads_back() {
        let text = "a/b&c=d%e+f#g?h@i j;pä€-._~";
        let encoded = percent_encode(text);
        assert_eq!(
            encoded,
            "a%2Fb%26c%3Dd%25e%2Bf%23g%3Fh%40i%20j%3Bp%C3%A4%E2%82%AC-._~"
        );
        assert_eq!(percent_decode(&encoded).unwrap(), text);
        assert_eq!(percent_decode("100%").unwrap(), "100%");
        assert_eq!(percent_decode("%zz%4").unwrap(), "%zz%4");
        assert!(percent_decode("%ff").is_err());
    }
}
