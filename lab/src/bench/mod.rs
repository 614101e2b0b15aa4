// SPDX-License-Identifier: MPL-2.0

//! What Droidrelay costs, beside what does the same without it, as Markdown tables.

mod bridge;
mod idle;
mod latency;
mod plot;
mod start;
mod stream;
mod valve;
mod valves;
mod viewers;

use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use tempfile::TempDir;

use plot::Strip;

use droidrelay_testkit::{
    artifacts::artifact,
    process::{program_of, text_of},
    robot::camera::Camera,
};

/// Measures what Droidrelay costs; everything where no command is given.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    common: Common,
}

/// What all of them are told.
#[derive(Debug, Clone, Args)]
struct Common {
    /// The camera shows this video file, over and over; without it, a test picture
    #[arg(long, global = true, value_name = "FILE")]
    clip: Option<PathBuf>,
    /// Folder for plots, performance-NAME.svg
    #[arg(long, global = true, value_name = "FOLDER")]
    plots: Option<PathBuf>,
}

impl Common {
    /// Plays in a process of its own.
    fn camera(&self) -> Result<Camera> {
        match &self.clip {
            Some(clip) => Camera::clip(clip),
            None => Camera::test_picture(),
        }
    }

    /// Writes a plot, where they are wanted, and shows it on the page.
    fn plot(&self, name: &str, title: &str, unit: &str, strips: &[Strip]) -> Result<()> {
        if let Some(folder) = &self.plots {
            let file = format!("performance-{name}.svg");
            fs::create_dir_all(folder)?;
            fs::write(folder.join(&file), plot::strips(title, unit, strips))?;
            println!("![{title}]({file})");
            println!();
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// The bridge under load: start requests, ten thousand robots, a hundred listeners
    Bridge(bridge::Options),
    /// A closed robot: CPU time and memory, before the first session and after the last one
    Idle(idle::Options),
    /// From the camera to the decoded picture at a viewer
    Latency(latency::Options),
    /// From `start` to the publisher and to the first picture at a reader who waits; from `stop`
    Start(start::Options),
    /// A robot that streams: CPU time and memory
    Stream(stream::Options),
    /// Instructions per buffer, open and closed, by callgrind
    Valve(valve::Options),
    /// A thousand valves in one process: threads, memory, and whether each one obeys
    Valves(valves::Options),
    /// MediaMTX: CPU time, memory and bytes for each viewer
    Viewers(viewers::Options),
}

pub fn run(options: &Options) -> Result<()> {
    let common = &options.common;
    match &options.what {
        Some(What::Bridge(options)) => bridge::run(options),
        Some(What::Idle(options)) => idle::run(options),
        Some(What::Latency(options)) => latency::run(options, common),
        Some(What::Start(options)) => start::run(options, common),
        Some(What::Stream(options)) => stream::run(options, common),
        Some(What::Valve(options)) => valve::run(options),
        Some(What::Valves(options)) => valves::run(options),
        Some(What::Viewers(options)) => viewers::run(options),
        None => {
            start::run(&start::Options::default(), common)?;
            latency::run(&latency::Options::default(), common)?;
            stream::run(&stream::Options::default(), common)?;
            idle::run(&idle::Options::default())?;
            valve::run(&valve::Options::default())?;
            valves::run(&valves::Options::default())?;
            bridge::run(&bridge::Options::default())?;
            viewers::run(&viewers::Options::default())
        }
    }
}

/// GStreamer with the plugin as it is once installed: known to the registry.
pub struct Installed {
    folder: TempDir,
}

impl Installed {
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir()?;
        let library = "libgstdroidrelay.so";
        symlink(artifact(library)?, folder.path().join(library))?;
        let installed = Installed { folder };
        // The first program to look writes the registry, and is larger for it.
        let seen = Command::new(program_of("gst-inspect-1.0", "gstreamer1.0-tools")?)
            .envs(installed.environment()?)
            .arg("mqttvalve")
            .output()?;
        ensure!(
            seen.status.success(),
            "GStreamer does not take the plugin: {}",
            String::from_utf8_lossy(&seen.stderr)
        );
        Ok(installed)
    }

    pub fn environment(&self) -> Result<[(&str, String); 2]> {
        let folder = text_of(self.folder.path())?;
        Ok([
            ("GST_PLUGIN_PATH", folder.to_owned()),
            ("GST_REGISTRY", format!("{folder}/registry.bin")),
        ])
    }
}

/// A Markdown table: the first row is the head; all columns but the first hold numbers.
fn print_table(rows: &[Vec<String>]) -> Result<()> {
    let head = rows.first().context("an empty table")?;
    let rule = (0..head.len()).map(|column| if column == 0 { "---" } else { "---:" });
    let rule: Vec<String> = rule.map(str::to_owned).collect();
    println!();
    for row in [head, &rule].into_iter().chain(&rows[1..]) {
        println!("| {} |", row.join(" | "));
    }
    println!();
    Ok(())
}
