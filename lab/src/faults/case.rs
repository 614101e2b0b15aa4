// SPDX-License-Identifier: MPL-2.0

//! A case, in which surroundings it runs, and how it ended.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use anyhow::{Result, ensure};
use droidrelay_testkit::{net::netns::is_forbidden, robot::Runner, servers::relay::Kind};

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
    pub const ALL: [By; 3] = [By::GstLaunch, By::Droidrelay, By::Scripts];

    pub fn runner(self) -> Option<Runner> {
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
pub struct Setup {
    pub by: By,
    pub relay: Kind,
    pub short: bool,
}

impl Setup {
    /// How long a fault lasts: in the short form no longer than two seconds.
    pub fn lasts(&self, seconds: u64) -> Duration {
        Duration::from_secs(if self.short { seconds.min(2) } else { seconds })
    }
}

/// What came of a fault.
pub struct Found {
    /// From its end until all is as it should be.
    pub recovered: Option<Duration>,
    /// What else there is to tell.
    pub more: String,
}

impl Found {
    /// There was nothing to recover from.
    pub fn well(more: impl Into<String>) -> Result<Self> {
        Ok(Found {
            recovered: None,
            more: more.into(),
        })
    }

    pub fn after(recovered: Duration) -> Result<Self> {
        Ok(Found {
            recovered: Some(recovered),
            more: String::new(),
        })
    }

    /// As [`Found::after`], and no later than `limit`.
    pub fn within(limit: Duration, recovered: Duration) -> Result<Self> {
        ensure!(
            recovered <= limit,
            "after {recovered:.2?}, which is more than {limit:?}"
        );
        Self::after(recovered)
    }
}

#[derive(Clone, Copy)]
pub struct Case {
    pub fault: &'static str,
    /// What must come of it.
    pub must: &'static str,
    /// The server matters: once at each.
    pub at_each_relay: bool,
    /// Whether the scripts have a part that this could happen to.
    pub scripts: bool,
    pub run: fn(&Setup) -> Result<Found>,
}

impl Case {
    pub const fn new(
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

    pub const fn at_each_relay(self) -> Self {
        Case {
            at_each_relay: true,
            ..self
        }
    }

    pub const fn not_by_scripts(self) -> Self {
        Case {
            scripts: false,
            ..self
        }
    }
}

/// How a case ended.
pub enum Outcome {
    Pass(Found),
    Fail(String),
    /// Not possible here, or nothing that the scripts have.
    Skip(&'static str),
}

impl Outcome {
    pub fn of(case: &Case, setup: &Setup) -> Self {
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
pub struct Row {
    pub case: Case,
    pub relay: Kind,
    pub outcomes: Vec<(By, Outcome)>,
}

impl Row {
    pub fn fault(&self) -> String {
        match self.case.at_each_relay {
            true => format!("{} ({})", self.case.fault, self.relay),
            false => self.case.fault.into(),
        }
    }
}
