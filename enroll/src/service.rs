// SPDX-License-Identifier: MPL-2.0

//! The robot's services, by systemctl.

use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use droidrelay_wire::{exit, words::enroll::Bundle};

use crate::failure::Failure;

/// The command's URL, once it is out of the arguments, which everybody on the machine can read; no
/// program that is started here gets it.
pub const URL: &str = "DROIDRELAY_ENROLL_URL";
/// For a pipeline to play.
const ACTIVE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(500);

fn systemctl(words: &[&str]) -> Result<String, Failure> {
    let said = |text: &str| {
        let text = format!("systemctl {}: {text}", words.join(" "));
        Failure::new(exit::UNAVAILABLE, text)
    };
    let done = Command::new("systemctl")
        .args(words)
        .env_remove(URL)
        .output();
    let done = done.map_err(|err| said(&err.to_string()))?;
    if !done.status.success() {
        return Err(said(String::from_utf8_lossy(&done.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

fn unit(name: &str) -> String {
    format!("droidrelay@{name}.service")
}

/// Now and after each boot, with the files as they are.
pub fn start(name: &str) -> Result<(), Failure> {
    let unit = unit(name);
    systemctl(&["enable", "--quiet", &unit])?;
    // Whether it plays is seen afterwards.
    systemctl(&["restart", "--no-block", &unit]).map(|_| ())
}

pub fn stop(name: &str) -> Result<(), Failure> {
    systemctl(&["disable", "--quiet", "--now", &unit(name)]).map(|_| ())
}

/// Waits until all of the robot's services run, and says what they say.
pub fn wait_active(bundle: &Bundle) -> Result<(), Failure> {
    let deadline = Instant::now() + ACTIVE;
    for camera in &bundle.cameras {
        let unit = unit(&camera.name);
        while systemctl(&["is-active", "--quiet", &unit]).is_err() {
            if Instant::now() >= deadline {
                let text = format!(
                    "{unit} does not run yet: `droidrelay doctor {}` says what is missing, journalctl -u {unit} what it says",
                    camera.name
                );
                return Err(Failure::new(exit::UNAVAILABLE, text));
            }
            sleep(AGAIN);
        }
        let status = systemctl(&["show", "--property=StatusText", "--value", &unit])?;
        println!("{}: runs, and says: {status}", camera.name);
    }
    Ok(())
}
