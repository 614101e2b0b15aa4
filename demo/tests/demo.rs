// SPDX-License-Identifier: MPL-2.0

//! The demo as its users run it.

use std::{fs, path::Path, process::Command};

use droidrelay_testkit::{
    journal::DEADLINE,
    process::{Process, Signal},
};
use serde_json::Value;
use tempfile::TempDir;

/// A demo whose files, and those of its children, are all in `folder`.
fn demo(folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.env("TMPDIR", folder.path());
    command
}

/// No file, and no process that has the folder's name in its command line.
fn assert_nothing_left(folder: &TempDir) {
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    let name = folder.path().to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let left: Vec<_> = processes
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .map(|command| String::from_utf8_lossy(&command).replace('\0', " "))
        .filter(|command| command.contains(name))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn moment(report: &Value, name: &str) -> f64 {
    let events = report["events"].as_array().unwrap();
    let event = events.iter().find(|event| event["event"] == name);
    let event = event.unwrap_or_else(|| panic!("no {name:?} in {report:#}"));
    event["ms"].as_f64().unwrap()
}

#[test]
fn one_round_is_reported_and_leaves_nothing() {
    let (folder, results) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = |name: &str| results.path().join(name);
    let (json, picture) = (file("round.json"), file("picture.png"));
    let output = demo(&folder)
        .arg("--once")
        .args([Path::new("--json"), &json, Path::new("--picture"), &picture])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(report["ok"], true);
    let order = [
        "start asked",
        "start at the broker",
        "first frame",
        "60 frames",
        "stop asked",
        "unpublished",
    ];
    let times = order.map(|name| moment(&report, name));
    assert!(times.is_sorted(), "{report:#}");
    assert!(moment(&report, "camera open") < moment(&report, "camera released"));
    for name in ["valve open", "publishing", "live", "valve closed"] {
        assert!(text.contains(name), "{text}");
        moment(&report, name);
    }
    assert!(fs::read(picture).unwrap().starts_with(b"\x89PNG"));
    assert_nothing_left(&folder);
}

#[test]
fn a_round_that_fails_exits_with_1_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let output = demo(&folder)
        .args(["--once", "--clip", "/nowhere.mp4"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("/nowhere.mp4"), "{errors}");
    assert_nothing_left(&folder);
}

#[test]
fn what_it_says_to_type_works_and_ctrl_c_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Process::spawn("demo", &mut demo(&folder)).unwrap();
    let shown = |what: &str| {
        let found = demo.log().wait(0, what, |line| line.contains(what));
        found
            .unwrap_or_else(|err| panic!("{err}\n{}", demo.text()))
            .1
    };
    let typed = |line: &str| {
        let words = line
            .split_whitespace()
            .skip_while(|word| word.ends_with(':'));
        let words: Vec<_> = words.collect();
        let status = Command::new(words[0])
            .args(&words[1..])
            .output()
            .unwrap()
            .status;
        assert!(status.success(), "{line}: {status}");
    };
    shown("Ctrl-C ends it");
    typed(&shown("/stream/start"));
    shown("first frame");
    typed(&shown("-m stop"));
    shown("unpublished");
    shown("camera released");
    demo.signal(Signal::INT);
    let status = demo.wait(DEADLINE).expect("an end");
    assert!(status.success(), "{status}");
    assert_nothing_left(&folder);
}
