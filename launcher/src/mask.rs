// SPDX-License-Identifier: MPL-2.0

//! Hides secrets in every text that is printed.

use std::collections::BTreeSet;

use droidrelay_wire::net::url::percent_encode;

/// Stands where a secret would.
const MASKED: &str = "***";

/// Whether a variable, property or query parameter of this name holds a secret.
/// A `password-file` names a file, which is none.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut words = name.split(['-', '_']);
    (says_secret(&name) || words.any(|word| matches!(word, "pw" | "pwd"))) && !names_file(&name)
}

/// Whether a property holds a secret, by its name or by what its element says of it.
pub fn is_secret_property(name: &str, description: &str) -> bool {
    is_secret_name(name) || says_secret(&description.to_ascii_lowercase()) && !names_file(name)
}

fn says_secret(text: &str) -> bool {
    ["pass", "secret", "token"]
        .iter()
        .any(|part| text.contains(part))
}

fn names_file(name: &str) -> bool {
    name.ends_with("-file") || name.ends_with("_file")
}

/// The secrets of one launch file. It does not print.
#[derive(Clone, Default)]
pub struct Mask {
    secrets: BTreeSet<String>,
}

impl Mask {
    /// Hides `secret`, also as it stands percent-encoded in a URL.
    pub fn hide(&mut self, secret: &str) {
        if !secret.is_empty() {
            self.secrets.insert(secret.to_owned());
            self.secrets.insert(percent_encode(secret));
        }
    }

    /// Hides what a word of a launch file holds: the value of a property named like a
    /// secret, the password of a URL and its query parameters named like secrets.
    pub fn hide_in_word(&mut self, word: &str) {
        if let Some((key, value)) = word.split_once('=') {
            // A switch such as `multipass=true` is none.
            let switch = matches!(value, "true" | "false");
            if is_secret_name(key) && !key.contains("://") && !switch {
                self.hide(value);
                self.hide(value.trim_matches(['"', '\'']));
            }
        }
        let Some((_, url)) = word.split_once("://") else {
            return;
        };
        let authority = url.split(['/', '?']).next().unwrap_or_default();
        if let Some((userinfo, _)) = authority.rsplit_once('@')
            && let Some((_, password)) = userinfo.split_once(':')
        {
            self.hide(password);
        }
        for parameter in url.split(['?', '&', ' ']).skip(1) {
            if let Some((key, value)) = parameter.split_once('=')
                && is_secret_name(key)
            {
                self.hide(value);
            }
        }
    }

    /// Hides what `other` hides, too.
    pub fn add(&mut self, other: &Mask) {
        self.secrets.extend(other.secrets.iter().cloned());
    }

    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// `text` with every secret replaced.
    pub fn apply(&self, text: &str) -> String {
        let mut secrets: Vec<&String> = self.secrets.iter().collect();
        // A secret may be part of a longer one.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets
            .into_iter()
            .fold(text.to_owned(), |text, secret| text.replace(secret, MASKED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_properties_and_urls_are_hidden_and_nothing_else() {
        let mut mask = Mask::default();
        mask.hide_in_word("password=hunter2");
        mask.hide_in_word("password-file=/etc/pass");
        mask.hide_in_word("bypass=true");
        mask.hide_in_word("user-pw=0pen");
        mask.hide_in_word("power=full");
        mask.hide_in_word("location=rtmp://bob:s3cr@host/live/x?user=bob&pass=t%2F1&x=y");
        assert_eq!(
            mask.apply("hunter2 /etc/pass true 0pen full bob s3cr host t%2F1 y"),
            "*** /etc/pass true *** full bob *** host *** y"
        );
    }

    #[test]
    fn a_property_is_known_by_its_name_or_by_its_description() {
        for (name, description, secret) in [
            ("user-pw", "", true),
            (
                "proxy-pw",
                "HTTP proxy URI user password for authentication",
                true,
            ),
            ("key", "Passphrase of the private key", true),
            ("password-file", "File with the password", false),
            (
                "user-id",
                "RTSP location URI user id for authentication",
                false,
            ),
        ] {
            assert_eq!(is_secret_property(name, description), secret, "{name}");
        }
    }

    #[test]
    fn a_secret_is_hidden_in_its_percent_encoded_form_too() {
        let mut mask = Mask::default();
        mask.hide("a/b");
        mask.hide("a/b/c");
        assert_eq!(mask.apply("a/b/c a%2Fb a/b"), "*** *** ***");
    }
}
