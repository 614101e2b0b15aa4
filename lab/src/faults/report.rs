// SPDX-License-Identifier: MPL-2.0

//! The tables as a page of documentation.

use std::{fmt::Write as _, fs, thread};

use super::case::{By, Outcome, Row};

const HEAD: &str = "# What happens when something breaks

Made by `tests/faults.sh --write docs/5-reports`: every case runs the whole system (Mosquitto, nginx-rtmp or
MediaMTX, the bridge, a robot), breaks something, and looks whether all is well again without
anybody's help. The time is from the fault's end until then. The robot runs its line by
`gst-launch-1.0`, by `droidrelay run`, and, for comparison, as the Python scripts that Droidrelay
replaces (rewritten for this as `lab/baseline/subscriber.py`: paho-mqtt, which starts and stops
`gst-launch-1.0` with rtmp2sink). Where a server is not named it is nginx-rtmp. The robot's file of
the wrong password, its leases and the bridge are nothing that the scripts have: there, the case is
what comes closest.

";

pub fn page(bys: &[By], tables: &[(&str, Vec<Row>)]) -> String {
    let mut page = String::from(HEAD);
    // Writing to a string does not fail, here and below.
    let _ = writeln!(
        page,
        "Load average of the machine (its own load included) at the end: {}, on {} processors.",
        load(),
        thread::available_parallelism().map_or(1, usize::from)
    );
    for (name, rows) in tables {
        let _ = write!(page, "\n## {name}\n\n| fault | what must come of it |");
        for by in bys {
            let _ = write!(page, " {by} |");
        }
        page += "\n|---|---|";
        page += &"---|".repeat(bys.len());
        for row in rows {
            let _ = write!(page, "\n| {} | {} |", row.fault(), row.case.must);
            for (_, outcome) in &row.outcomes {
                let _ = write!(page, " {} |", cell(outcome));
            }
        }
        page += "\n";
    }
    page
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split(' ').take(3).collect();
    load.join(", ")
}

/// What fits into a table.
fn cell(outcome: &Outcome) -> String {
    let text = outcome.to_string().replace('|', "\\|");
    match outcome {
        Outcome::Fail(_) => text.chars().take(90).collect(),
        _ => text,
    }
}
