// SPDX-License-Identifier: MPL-2.0

//! The values in a server's messages: what is read can be written, and reads the same again.
#![no_main]

use droidrelay_rtmp::amf0;
use libfuzzer_sys::{Corpus, fuzz_target};

fn written(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let values = amf0::decode(bytes);
    values.iter().for_each(|value| value.encode(&mut out));
    out
}

fuzz_target!(|bytes: &[u8]| -> Corpus {
    // A key of 65,536 bytes and more has no way to be written; U+FFFD makes one byte three.
    if bytes.len() > usize::from(u16::MAX) / 3 {
        return Corpus::Reject;
    }
    let once = written(bytes);
    assert!(once.len() <= 3 * bytes.len() + 16);
    assert_eq!(written(&once), once);
    Corpus::Keep
});
