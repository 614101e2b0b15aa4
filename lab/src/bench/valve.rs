// SPDX-License-Identifier: MPL-2.0

//! What a buffer costs on its way through a valve, in instructions.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tempfile::TempDir;

use super::common::{Installed, print_table};
use droidrelay_testkit::process::{Process, program_of, text_of};

/// Buffers of the run that is taken away, so that start and end cancel out.
const FEW: u64 = 1_000;
/// Ends a run that hangs.
const PATIENCE: Duration = Duration::from_secs(600);
const RAW: &str = "! video/x-raw,format=I420,width=64,height=48,framerate=30/1";

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Over how many buffers the mean is taken
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    buffers: u64,
    /// Of how many such means the median is taken
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            buffers: 100_000,
            rounds: 3,
        }
    }
}

/// Elements that do the same thing to the same stream.
struct Group {
    name: &'static str,
    open: bool,
    caps: &'static str,
    /// The first one is what the others are compared with.
    elements: &'static [&'static str],
}

/// A `valve` that drops all would drop the end of the stream too. `standby=cold` would have no
/// buffers to drop.
const GROUPS: [Group; 3] = [
    Group {
        name: "open",
        open: true,
        caps: "",
        elements: &["valve", "mqttvalve drop=false", "identity"],
    },
    Group {
        name: "closed",
        open: false,
        caps: "",
        elements: &[
            "valve drop=true drop-mode=forward-sticky-events",
            "mqttvalve standby=warm",
        ],
    },
    Group {
        name: "closed, raw video",
        open: false,
        caps: RAW,
        elements: &[
            "valve drop=true drop-mode=forward-sticky-events",
            "mqttvalve standby=warm",
        ],
    },
];

pub fn run(options: &Options) -> Result<()> {
    let installed = Installed::new()?;
    let (few, many) = (FEW, FEW + options.buffers);
    println!("## Instructions per buffer");
    println!();
    println!(
        "callgrind, `fakesrc num-buffers=N sizetype=empty ! X ! fakesink`: the difference of N = \
         {many} and N = {few}. In brackets the ratio to `valve`. X alone is without what the line \
         takes with no X in it; a closed line does not get as far as its sink. Medians of {}.",
        options.rounds
    );
    // Under valgrind, GStreamer may find its registry out of date once.
    instructions(
        &installed,
        "-q fakesrc num-buffers=1 ! mqttvalve drop=false ! fakesink",
    )?;
    let head = ["", "X", "whole line", "X alone"];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for group in &GROUPS {
        let cost = |element: &str| {
            let line = |buffers: u64| {
                let line = format!(
                    "-q fakesrc num-buffers={buffers} sizetype=empty {} {element} ! fakesink",
                    group.caps
                );
                instructions(&installed, &line)
            };
            // Runs differ by some ten instructions a buffer.
            let mut costs = Vec::new();
            for _ in 0..options.rounds {
                let used = line(many)? as f64 - line(few)? as f64;
                costs.push(used / options.buffers as f64);
            }
            costs.sort_by(f64::total_cmp);
            costs.get(costs.len() / 2).copied().context("no rounds")
        };
        let bare = if group.open { Some(cost("")?) } else { None };
        let costs: Vec<f64> = group
            .elements
            .iter()
            .map(|element| cost(&format!("! {element}")))
            .collect::<Result<_>>()?;
        for (element, whole) in group.elements.iter().zip(&costs) {
            let ratio = |without: f64| {
                let (alone, base) = (whole - without, costs[0] - without);
                format!("{alone:.1} ({:.3})", alone / base)
            };
            table.push(vec![
                group.name.into(),
                format!("`{element}`"),
                ratio(0.0),
                bare.map_or("-".into(), ratio),
            ]);
        }
    }
    print_table(&table)
}

/// What the whole run of `line` took.
fn instructions(installed: &Installed, line: &str) -> Result<u64> {
    let folder = TempDir::new()?;
    let out = folder.path().join("callgrind");
    let mut command = Command::new(program_of("valgrind", "valgrind")?);
    command
        .envs(installed.environment()?)
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", text_of(&out)?))
        .arg(program_of("gst-launch-1.0", "gstreamer1.0-tools")?)
        .args(line.split_whitespace());
    let mut process = Process::spawn("valgrind", &mut command)?;
    let status = process
        .wait(PATIENCE)
        .with_context(|| format!("{line} does not end"))?;
    ensure!(status.success(), "{line}: {status}\n{}", process.text());
    total(&out).with_context(|| process.text())
}

/// The sum over all functions and threads (Callgrind Format Specification, `totals`).
fn total(out: &Path) -> Result<u64> {
    let text = fs::read_to_string(out)?;
    let total = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("totals: "));
    Ok(total.context("callgrind wrote no totals")?.trim().parse()?)
}
