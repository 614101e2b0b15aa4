// SPDX-License-Identifier: MPL-2.0

//! What URLs of every scheme have in common: userinfo, host and port, percent-encoding
//! (RFC 3986).

use std::{fmt, str::Utf8Error};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::secret::Secret;

/// All but the unreserved characters (section 2.3), so `/` is encoded, too.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Percent-encodes every byte but RFC 3986's unreserved characters, `/` included.
pub fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Undoes percent-encoding; a `%` without two hexadecimal digits stays as it is.
///
/// Fails only where the decoded bytes are not UTF-8.
pub fn percent_decode(text: &str) -> Result<String, Utf8Error> {
    percent_decode_str(text).decode_utf8().map(Into::into)
}

/// Credentials that were written into a URL (`scheme://user:password@host`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub username: Option<String>,
    pub password: Option<Secret>,
}

impl UserInfo {
    /// Reads what stands in front of the `@`, percent-decoded; fails only where that is not UTF-8.
    pub fn parse(userinfo: Option<&str>) -> Result<Self, Utf8Error> {
        let Some(userinfo) = userinfo else {
            return Ok(UserInfo::default());
        };
        let (username, password) = match userinfo.split_once(':') {
            Some((username, password)) => (username, Some(password)),
            None => (userinfo, None),
        };
        Ok(UserInfo {
            username: Some(percent_decode(username)?).filter(|username| !username.is_empty()),
            password: password.map(percent_decode).transpose()?.map(Secret::new),
        })
    }
}

/// Splits at the last `@`: a password may hold others that nobody escaped.
pub fn split_userinfo(text: &str) -> (Option<&str>, &str) {
    match text.rsplit_once('@') {
        Some((userinfo, rest)) => (Some(userinfo), rest),
        None => (None, text),
    }
}

/// Host and port as a URL has them: an IPv6 address in brackets.
pub struct Authority<'a>(pub &'a str, pub u16);

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Authority(host, port) = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

/// `scheme` for an error message, unless it may be something else, perhaps a password.
pub fn shown_scheme(scheme: &str) -> String {
    if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        format!("{scheme:?}")
    } else {
        "in front of ://".to_owned()
    }
}

/// Splits `host[:port]` or `[v6][:port]`.
pub fn split_port(address: &str) -> Result<(&str, Option<u16>), String> {
    if address.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(format!(
            "the address {address:?} contains white space or control characters: remove them"
        ));
    }
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, after) = rest
            .split_once(']')
            .ok_or_else(|| format!("the address {address:?} lacks the closing bracket"))?;
        let port = after.strip_prefix(':');
        if port.is_none() && !after.is_empty() {
            return Err(format!(
                "the address {address:?} goes on behind its bracket: only a colon and the port may"
            ));
        }
        (host, port)
    } else {
        match address.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(format!(
                    "the address {address:?} looks like IPv6: write it in brackets, [{address}]"
                ));
            }
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        }
    };
    if host.contains(['[', ']']) {
        return Err(format!(
            "the address {address:?} has a bracket too many: write [address]:port for IPv6"
        ));
    }
    let port = port
        .map(|port| {
            port.parse::<u16>()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("the port {port:?} is not a number from 1 to 65535"))
        })
        .transpose()?;
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

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
