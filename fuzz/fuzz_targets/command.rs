// SPDX-License-Identifier: MPL-2.0

//! Payloads of the command topic: read, or refused in one short line; what is read can be
//! written and read again.
#![no_main]

use droidrelay_wire::Command;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    match Command::parse(payload) {
        Ok(command) => {
            let again = Command::parse(command.to_payload().as_bytes()).unwrap();
            assert_eq!(again.id(), command.id());
            assert_eq!(again.to_payload(), command.to_payload());
        }
        Err(refusal) => {
            let text = refusal.to_string();
            assert!(!text.is_empty() && text.len() < 300);
            assert!(!text.chars().any(char::is_control));
        }
    }
});
