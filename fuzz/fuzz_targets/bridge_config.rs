// SPDX-License-Identifier: MPL-2.0

//! The bridge's configuration: read, or refused by one line that names a place in the file and
//! shows nothing of a secret.
#![no_main]

use std::path::Path;

use droidrelay_bridge::Config;
use libfuzzer_sys::fuzz_target;

/// What a file has in the place of a secret.
const SECRET: &str = "hunter2hunter2";

fuzz_target!(|text: &str| {
    let file = Path::new("/nonexistent/bridge.toml");
    if let Err(error) = Config::parse(text, file, |_| None) {
        let shown = error.to_string();
        let rest = shown
            .strip_prefix("/nonexistent/bridge.toml:")
            .expect(&shown);
        assert!(
            rest.len() > 1 && !rest.chars().any(char::is_control),
            "{rest:?}"
        );
        // As a key it is none.
        let is_value = |line: &str| {
            let value = line.split_once('=').map(|(_, value)| value.trim());
            let key = line.split('=').next().unwrap_or_default().trim();
            matches!(key, "password" | "token") && value == Some(&format!("\"{SECRET}\""))
        };
        let (secrets, others): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| is_value(line));
        if !secrets.is_empty() && !others.iter().any(|line| line.contains("hunter2")) {
            assert!(!rest.contains("hunter2"), "{rest:?}");
        }
    }
});
