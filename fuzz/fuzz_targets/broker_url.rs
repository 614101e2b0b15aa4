// SPDX-License-Identifier: MPL-2.0

//! Broker URLs: read, or refused in one line; what is read is shown as a URL of the same broker.
#![no_main]

use droidrelay_wire::BrokerUrl;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|url: &str| {
    match BrokerUrl::parse(url) {
        Ok((broker, _)) => {
            let shown = broker.to_string();
            let (again, userinfo) = BrokerUrl::parse(&shown).expect(&shown);
            assert_eq!(again, broker);
            assert!(userinfo.username.is_none() && userinfo.password.is_none());
        }
        Err(error) => assert!(!error.is_empty() && !error.chars().any(char::is_control)),
    }
});
