// SPDX-License-Identifier: MPL-2.0

//! `tests/README.md` names the tests of each property, command and endpoint: all of them, and no
//! test that is not there.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// What stands in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows below a heading: what it is about, and what its tests are named by.
fn rows<'a>(map: &'a str, heading: &str) -> BTreeMap<&'a str, Vec<&'a str>> {
    let (_, section) = map
        .split_once(&format!("## {heading}\n"))
        .unwrap_or_else(|| panic!("no heading {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let row = |line: &'a str| {
        let mut words = quoted(line);
        Some((words.next()?, words.collect()))
    };
    section.lines().filter_map(row).collect()
}

/// What has no row, rows of nothing, and names of tests that are not there.
fn faults(map: &str, heading: &str, wanted: &[String]) -> Vec<String> {
    let rows = rows(map, heading);
    let mut faults = Vec::new();
    for name in wanted {
        if rows.get(name.as_str()).is_none_or(Vec::is_empty) {
            faults.push(format!("{heading}: {name} has no test"));
        }
    }
    for (name, tests) in rows {
        if !wanted.iter().any(|wanted| wanted == name) {
            faults.push(format!("{heading}: there is no {name}"));
        }
        let mut source = String::new();
        for test in tests {
            if test.contains('/') {
                source = read(test);
            } else if !source.contains(&format!("fn {test}(")) {
                faults.push(format!("{heading}: {name}: there is no test {test}"));
            }
        }
    }
    faults
}

/// An element's own properties, by its reference, which is what `gst-inspect-1.0` says.
fn properties(element: &str) -> Vec<String> {
    let reference = read(&format!("docs/4-reference/{element}.txt"));
    let (_, section) = reference.split_once("\nElement Properties:\n").unwrap();
    let section = section.split("\n\n").next().unwrap();
    let name = |line: &str| {
        let line = line.strip_prefix("  ")?;
        let name = line.split([' ', ':']).next()?;
        (!name.is_empty()).then(|| name.to_owned())
    };
    section.lines().filter_map(name).collect()
}

fn endpoints() -> Vec<String> {
    let document: Value = serde_json::from_str(&read("bridge/openapi.json")).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let methods = ["get", "post", "put", "patch", "delete"];
    let endpoint = |(path, operations): (&String, &Value)| {
        let operations = operations.as_object().unwrap().keys();
        let known = operations.filter(|method| methods.contains(&method.as_str()));
        known
            .map(|method| format!("{} {path}", method.to_uppercase()))
            .collect::<Vec<_>>()
    };
    paths.iter().flat_map(endpoint).collect()
}

#[test]
fn everything_has_a_test_that_is_there() {
    let map = read("tests/README.md");
    let commands = ["start", "stop", "on", "off", "keyframe"].map(String::from);
    let faults: Vec<String> = [
        ("Properties of mqttvalve", properties("mqttvalve")),
        ("Properties of rtmpauthsink", properties("rtmpauthsink")),
        ("Commands by MQTT", commands.to_vec()),
        ("Endpoints of the bridge", endpoints()),
    ]
    .into_iter()
    .inspect(|(heading, wanted)| assert!(wanted.len() > 4, "{heading}: {wanted:?}"))
    .flat_map(|(heading, wanted)| faults(&map, heading, &wanted))
    .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_has_no_row_or_no_test_is_found() {
    let map = "## Things\n| `a` | `tests/tests/map.rs` `no_such_test` |\n| `b` | |\n| `d` | |\n";
    let wanted = ["a", "b", "c"].map(String::from);
    assert_eq!(
        faults(map, "Things", &wanted),
        [
            "Things: b has no test",
            "Things: c has no test",
            "Things: a: there is no test no_such_test",
            "Things: there is no d",
        ]
    );
}
