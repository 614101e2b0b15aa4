// SPDX-License-Identifier: MPL-2.0

//! Launch files: read, or refused by an error that names a place in the file and shows no secret;
//! the words that were read are read as the same ones when they are quoted.
#![no_main]

use droidrelay::file::launchfile::{Fault, LaunchFile, Value};
use libfuzzer_sys::fuzz_target;

/// Its first character is what no input has by itself.
const SECRET: &str = "\u{1f511}hunter2 /";

fn parse(text: &str) -> Result<LaunchFile, Fault> {
    LaunchFile::parse(text, &mut |name| {
        let (text, secret) = match name {
            "C" => ("v4l2src device=/dev/video0 ! video/x-raw,width=640", false),
            "F" => ("/tmp/a b\"c'd\\e.mkv", false),
            "E" => ("", false),
            "Z" => ("a\0b", false),
            "K" => (SECRET, true),
            "B" => return Err("cannot read it".into()),
            _ => return Ok(None),
        };
        Ok(Some(Value {
            text: text.into(),
            secret,
        }))
    })
}

fuzz_target!(|text: &str| {
    if text.contains(SECRET.chars().next().unwrap_or_default()) {
        return;
    }
    match parse(text) {
        Ok(file) => {
            assert!(!file.words.is_empty());
            let shown: Vec<String> = file
                .words
                .iter()
                .map(|word| file.mask.apply(&word.text))
                .collect();
            assert!(!shown.join(" ").contains(SECRET));
            assert!(!file.description(file.words.len()).contains('\0'));
            // A word in quotes is that word, whatever it holds.
            let quoted: Vec<String> = file
                .words
                .iter()
                .map(|word| format!("'{}'", word.text.replace('\'', "'\\''")))
                .collect();
            let again = parse(&quoted.join("\n")).unwrap_or_else(|fault| panic!("{fault:?}"));
            let texts = |file: &LaunchFile| -> Vec<String> {
                file.words.iter().map(|word| word.text.clone()).collect()
            };
            assert_eq!(texts(&again), texts(&file));
        }
        Err(fault) => {
            assert!(!fault.text.is_empty() && !fault.text.contains(SECRET));
            let place = fault.place.expect("a place");
            let lines = text.matches('\n').count() + 1;
            assert!(
                (1..=lines).contains(&place.line) && place.column >= 1,
                "{place}"
            );
        }
    }
});
