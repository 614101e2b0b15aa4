// SPDX-License-Identifier: MPL-2.0

//! Faults of every part of the system, one scripted case each: by `gst-launch-1.0`, by the
//! launcher and, for comparison, by the Python scripts that Droidrelay replaces.

mod network;
mod parts;
mod report;
pub(crate) mod system;

use std::{
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use clap::Parser;

use droidrelay_testkit::{net::netns::is_forbidden, robot::Runner, servers::relay::Kind};

/// Each fault in turn, PASS or FAIL with the time to recover; exits 1 where one of ours fails.
#[derive(Debug, Clone, Parser)]
#[command(version)]
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
    /// Folder for reliability.md; without it the table is only printed
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

/// What the robot runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    #[value(name = "gst-launch-1.0")]
    GstLaunch,
    Droidrelay,
    /// Those that Droidrelay replaces.
    Scripts,
}

impl By {
    const ALL: [By; 3] = [By::GstLaunch, By::Droidrelay, By::Scripts];

    fn runner(self) -> Option<Runner> {
        match self {
            By::GstLaunch => Some(Runner::GstLaunch),
            By::Droidrelay => Some(Runner::Droidrelay),
            By::Scripts => None,
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.runner() {
            Some(runner) => runner.fmt(f),
            None => f.write_str("Python scripts"),
        }
    }
}

/// In which surroundings a case runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub by: By,
    pub relay: Kind,
    pub short: bool,
}

impl Setup {
    /// How long a fault lasts: in the short form no longer than two seconds.
    fn lasts(&self, seconds: u64) -> Duration {
        Duration::from_secs(if self.short { seconds.min(2) } else { seconds })
    }
}

/// What came of a fault.
struct Found {
    /// From its end until all is as it should be.
    recovered: Option<Duration>,
    /// What else there is to tell.
    more: String,
}

impl Found {
    /// There was nothing to recover from.
    fn well(more: impl Into<String>) -> Result<Self> {
        Ok(Found {
            recovered: None,
            more: more.into(),
        })
    }

    fn after(recovered: Duration) -> Result<Self> {
        Ok(Found {
            recovered: Some(recovered),
            more: String::new(),
        })
    }

    /// As [`Found::after`], and no later than `limit`.
    fn within(limit: Duration, recovered: Duration) -> Result<Self> {
        ensure!(
            recovered <= limit,
            "after {recovered:.2?}, which is more than {limit:?}"
        );
        Self::after(recovered)
    }
}

#[derive(Clone, Copy)]
struct Case {
    fault: &'static str,
    /// What must come of it.
    must: &'static str,
    /// The server matters: once at each.
    at_each_relay: bool,
    /// Whether the scripts have a part that this could happen to.
    scripts: bool,
    run: fn(&Setup) -> Result<Found>,
}

impl Case {
    const fn new(
        fault: &'static str,
        must: &'static str,
        run: fn(&Setup) -> Result<Found>,
    ) -> Self {
        Case {
            fault,
            must,
            at_each_relay: false,
            scripts: true,
            run,
        }
    }

    const fn at_each_relay(self) -> Self {
        Case {
            at_each_relay: true,
            ..self
        }
    }

    const fn not_by_scripts(self) -> Self {
        Case {
            scripts: false,
            ..self
        }
    }
}

/// How a case ended.
enum Outcome {
    Pass(Found),
    Fail(String),
    /// Not possible here, or nothing that the scripts have.
    Skip(&'static str),
}

impl Outcome {
    fn of(case: &Case, setup: &Setup) -> Self {
        if setup.by == By::Scripts && !case.scripts {
            return Outcome::Skip("no such part");
        }
        match catch_unwind(AssertUnwindSafe(|| (case.run)(setup))) {
            Ok(Ok(found)) => Outcome::Pass(found),
            Ok(Err(err)) if is_forbidden(&err) => Outcome::Skip("needs root"),
            Ok(Err(err)) => {
                // The programs' output stands in front of the reason.
                eprintln!("{err:#}");
                Outcome::Fail(err.root_cause().to_string())
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text =
                    text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
                Outcome::Fail(text.unwrap_or_else(|| "panicked".into()))
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Pass(found) => {
                f.write_str("PASS")?;
                if let Some(recovered) = found.recovered {
                    write!(f, ", {:.2} s", recovered.as_secs_f64())?;
                }
                if !found.more.is_empty() {
                    write!(f, ", {}", found.more)?;
                }
                Ok(())
            }
            Outcome::Fail(why) => write!(f, "FAIL: {}", why.lines().next().unwrap_or_default()),
            Outcome::Skip(why) => write!(f, "-, {why}"),
        }
    }
}

/// A case and what came of it, in the order of [`By::ALL`].
struct Row {
    case: Case,
    relay: Kind,
    outcomes: Vec<(By, Outcome)>,
}

impl Row {
    fn fault(&self) -> String {
        match self.case.at_each_relay {
            true => format!("{} ({})", self.case.fault, self.relay),
            false => self.case.fault.into(),
        }
    }
}

/// The tables, in their order.
const TABLES: [(&str, &[Case]); 2] = [
    ("Faults of the parts", parts::CASES),
    (
        "Faults of the network, for MQTT and RTMP at once",
        network::CASES,
    ),
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
        fs::write(folder.join("reliability.md"), report::page(&bys, &tables))?;
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
