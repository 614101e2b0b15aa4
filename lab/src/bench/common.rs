// SPDX-License-Identifier: MPL-2.0

//! What all benchmarks are told, run with and print by.

use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use clap::Args;
use droidrelay_testkit::{
    artifacts::artifact,
    process::{program_of, text_of},
    robot::camera::Camera,
};
use tempfile::TempDir;

use super::plot::{self, Strip};

/// What all of them are told.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The camera shows this video file, over and over; without it, a test picture
    #[arg(long, global = true, value_name = "FILE")]
    pub clip: Option<PathBuf>,
    /// Folder for plots, performance-NAME.svg
    #[arg(long, global = true, value_name = "FOLDER")]
    pub plots: Option<PathBuf>,
}

impl Common {
    /// Plays in a process of its own.
    pub fn camera(&self) -> Result<Camera> {
        match &self.clip {
            Some(clip) => Camera::clip(clip),
            None => Camera::test_picture(),
        }
    }

    /// Writes a plot, where they are wanted, and shows it on the page.
    pub fn plot(&self, name: &str, title: &str, unit: &str, strips: &[Strip]) -> Result<()> {
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

/// GStreamer with the plugin as it is once installed: known to the registry.
pub struct Installed {
    pub folder: TempDir,
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
pub fn print_table(rows: &[Vec<String>]) -> Result<()> {
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
