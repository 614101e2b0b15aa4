// SPDX-License-Identifier: MPL-2.0

//! Faults of every part of the system, one scripted case each: by `gst-launch-1.0`, by the
//! launcher and, for comparison, by the Python scripts that Droidrelay replaces.

mod case;
mod network;
mod parts;
pub(crate) mod system;

use std::{fmt::Write as _, fs, path::PathBuf, sync::Mutex, thread, time::Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;

use droidrelay_testkit::servers::relay::Kind;

pub(crate) use case::{By, Setup};
use case::{Case, Outcome, Row};

/// Each fault in turn, PASS or FAIL with the time to recover; exits 1 where one of ours fails.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Faults that last are over sooner, nothing is written, and the scripts are left out
    #[arg(long)]
    short: bool,
    /// Only the cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Cases at a time; times to recover are worth little where it is more than one
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Only this: gst-launch-1.0, droidrelay or scripts
    #[arg(long, value_name = "WHO")]
    by: Option<By>,
    /// Folder for faults.md; without it the table is only printed
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

/// The tables, in their order.
const TABLES: [(&str, &[Case]); 2] = [
    ("Component faults", parts::CASES),
    ("Network faults, for MQTT and RTMP at once", network::CASES),
];

pub fn run(options: &Options) -> Result<()> {
    let bys = By::ALL.into_iter().filter(|by| match options.by {
        Some(wanted) => wanted == *by,
        None => *by != By::Scripts || !options.short,
    });
    let bys: Vec<By> = bys.collect();
    let relays = [Kind::Nginx, Kind::MediaMtx];
    let relays: Vec<Kind> = relays
        .into_iter()
        .filter(|kind| !kind.notice_if_absent())
        .collect();
    let began = Instant::now();
    let mut tables = Vec::new();
    for (name, cases) in TABLES {
        let mut rows = Vec::new();
        for case in cases {
            for relay in relays.iter().copied() {
                let is_wanted = (case.at_each_relay || relay == Kind::Nginx)
                    && options
                        .only
                        .as_ref()
                        .is_none_or(|only| case.fault.contains(only.as_str()));
                if is_wanted {
                    rows.push(Row {
                        case: *case,
                        relay,
                        outcomes: Vec::new(),
                    });
                }
            }
        }
        run_all(options, &bys, &mut rows);
        tables.push((name, rows));
    }
    let rows = || tables.iter().flat_map(|(_, rows)| rows);
    ensure!(rows().next().is_some(), "no case has such a name");
    if let Some(folder) = &options.write {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("faults.md"), page(&bys, &tables))?;
    }
    let mut failed = 0;
    for by in bys {
        let outcomes = rows()
            .flat_map(|row| &row.outcomes)
            .filter(|(who, _)| *who == by);
        let count = |wanted: fn(&Outcome) -> bool| {
            outcomes
                .clone()
                .filter(|(_, outcome)| wanted(outcome))
                .count()
        };
        let fails = count(|outcome| matches!(outcome, Outcome::Fail(_)));
        println!(
            "{by}: {} passed, {fails} failed, {} not run",
            count(|outcome| matches!(outcome, Outcome::Pass(_))),
            count(|outcome| matches!(outcome, Outcome::Skip(_)))
        );
        if by != By::Scripts {
            failed += fails;
        }
    }
    println!("in {:.0} s", began.elapsed().as_secs_f64());
    if failed > 0 {
        bail!("{failed} cases failed");
    }
    Ok(())
}

/// Fills in the outcomes, some at a time, each told as soon as it is there.
fn run_all(options: &Options, bys: &[By], rows: &mut [Row]) {
    let jobs = rows
        .iter()
        .enumerate()
        .flat_map(|(n, row)| bys.iter().map(move |by| (n, row.case, row.relay, *by)));
    let jobs: Vec<_> = jobs.collect();
    let next = Mutex::new(jobs.into_iter());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let job = next.lock().map(|mut jobs| jobs.next());
                    let Ok(Some((n, case, relay, by))) = job else {
                        break;
                    };
                    let setup = Setup {
                        by,
                        relay,
                        short: options.short,
                    };
                    let outcome = Outcome::of(&case, &setup);
                    println!("{by}: {} ({relay}): {outcome}", case.fault);
                    if let Ok(mut done) = done.lock() {
                        done.push((n, by, outcome));
                    }
                }
            });
        }
    });
    for (n, by, outcome) in done.into_inner().unwrap_or_default() {
        rows[n].outcomes.push((by, outcome));
    }
    for row in rows {
        row.outcomes.sort_by_key(|(by, _)| *by as u8);
    }
}

const HEAD: &str = "# Fault injection

Generated by `tests/faults.sh --write docs/5-reports`; do not edit.

Each case runs the whole system (Mosquitto, nginx-rtmp or MediaMTX, the bridge, a robot), injects
one fault, and checks that the system recovers without help. The time is from the end of the fault
to recovery. The robot runs its line in three ways: by `gst-launch-1.0`, by `droidrelay run`, and,
for comparison, by the Python scripts that Droidrelay replaces (rewritten for this as
`lab/baseline/subscriber.py`: paho-mqtt, which starts and stops `gst-launch-1.0` with rtmp2sink).
Where no server is named, it is nginx-rtmp. The scripts have no password file, no leases and no
bridge: those cases use the closest equivalent.

";

/// The tables as a page of documentation.
fn page(bys: &[By], tables: &[(&str, Vec<Row>)]) -> String {
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
