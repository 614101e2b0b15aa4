// SPDX-License-Identifier: MPL-2.0

//! `droidrelay enroll` and `droidrelay leave`: from the command that the server has printed to a
//! service that runs, and back. A program of its own, which `droidrelay run` never loads.

mod files;
mod machine;
mod server;

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{self, IsTerminal, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use clap::{Args, Parser};
use droidrelay_wire::{
    exit,
    words::enroll::{Bundle, Invitation},
};

pub use droidrelay_wire::exit::Failure;
use files::{Folder, Kept};
use machine::URL;
use server::Server;

#[derive(Parser)]
#[command(name = "droidrelay", version, bin_name = "droidrelay")]
pub enum Cli {
    /// Set this robot up: fetch what it needs, find its cameras, start its service
    ///
    /// What stands in /etc/droidrelay and was changed there stays. Run again with a new command, it
    /// renews passwords and certificate; interrupted, the same command goes on.
    Enroll(Enroll),
    /// Take away what enroll made, and stop the service
    Leave(Leave),
}

#[derive(Args)]
pub struct Enroll {
    /// What the server has printed, https://HOST/enroll#...; - reads it from standard input
    #[arg(required_unless_present = "bundle", conflicts_with = "bundle")]
    url: Option<String>,
    /// In place of the URL, a file by `droidrelay-bridge robot add --bundle FILE`
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// A launch file of /usr/share/droidrelay/pipelines, in place of what fits the camera
    ///
    /// Example: --line usb-mjpeg; --line test-picture needs no camera.
    #[arg(long, value_name = "NAME")]
    line: Option<String>,
    /// In place of /, for tests
    #[arg(long, default_value = "/", hide = true)]
    root: PathBuf,
}

#[derive(Args)]
pub struct Leave {
    /// The robot; can be left out where there is one
    name: Option<String>,
    /// In place of /, for tests
    #[arg(long, default_value = "/", hide = true)]
    root: PathBuf,
}

/// Runs the command line.
pub fn run(cli: Cli) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        let text = "this writes into /etc/droidrelay and starts a service: run it by sudo";
        return Err(Failure::new(exit::NO_PERMISSION, text));
    }
    match cli {
        Cli::Enroll(options) => enroll(options),
        Cli::Leave(options) => leave(&options),
    }
}

fn enroll(options: Enroll) -> Result<(), Failure> {
    let invitation = match options.url.as_deref() {
        None => None,
        Some("-") => Some(invitation(&from_outside()?)?),
        Some(url) => {
            invitation(url)?;
            return Err(hidden(url));
        }
    };
    let folder = Folder::open(&options.root)?;
    // Before the command is used up.
    let lines = machine::Lines::of(&options.root);
    let found = match &options.line {
        Some(line) => {
            lines.check(line)?;
            machine::cameras_for(&options.root, line)
        }
        None => machine::cameras(&options.root)?,
    };
    let (bundle, server) = match (&invitation, &options.bundle) {
        (Some(invitation), _) => {
            let server = Server::new(invitation)?;
            let bundle = match folder.pending(invitation) {
                Some(bundle) => {
                    println!("this command was interrupted: going on");
                    bundle
                }
                None => {
                    server.check_clock()?;
                    let bundle = server.fetch()?;
                    folder.keep_pending(invitation, &bundle)?;
                    bundle
                }
            };
            (bundle, Some(server))
        }
        (None, file) => (read_bundle(file.as_deref())?, None),
    };
    let cameras = machine::assign(&bundle, found, options.line.as_deref())?;
    let mut kept = Kept::new(&bundle);
    for (camera, found) in bundle.cameras.iter().zip(&cameras) {
        let text = lines.read(found.line)?;
        println!("{}: {}, {}.launch", camera.name, found.what, found.line);
        let notes = folder.write(
            &bundle,
            camera,
            found,
            &text,
            options.line.is_some(),
            &mut kept,
        )?;
        notes.iter().for_each(|note| println!("  {note}"));
    }
    folder.keep(&kept)?;
    for camera in &bundle.cameras {
        machine::start(&camera.name)?;
    }
    match &server {
        Some(server) => server.wait_online(&bundle)?,
        None => machine::wait_active(&bundle)?,
    }
    folder.forget_pending();
    if bundle.page != "/" {
        println!("open {}", bundle.page);
        if io::stdout().is_terminal() {
            println!("{}", picture(&bundle.page));
        }
    }
    Ok(())
}

fn invitation(text: &str) -> Result<Invitation, Failure> {
    Invitation::parse(text.trim()).map_err(|text| Failure::new(exit::USAGE, text))
}

/// The URL of a process that has hidden it, or of standard input.
fn from_outside() -> Result<String, Failure> {
    if let Ok(url) = env::var(URL) {
        return Ok(url);
    }
    let mut url = String::new();
    let read = io::stdin().take(4096).read_to_string(&mut url);
    read.map_err(|err| Failure::new(exit::USAGE, format!("cannot read the URL: {err}")))?;
    Ok(url)
}

/// Begins anew without the URL among the arguments; an environment is for its user alone.
fn hidden(url: &str) -> Failure {
    let words = env::args_os().skip(1);
    let words = words.map(|word| match word == OsStr::new(url) {
        true => "-".into(),
        false => word,
    });
    let failed = Command::new("/proc/self/exe")
        .args(words)
        .env(URL, url)
        .exec();
    Failure::new(exit::SOFTWARE, format!("cannot start anew: {failed}"))
}

fn read_bundle(file: Option<&Path>) -> Result<Bundle, Failure> {
    let file = file.unwrap_or(Path::new(""));
    let named = |err: String| Failure::new(exit::NO_INPUT, format!("{}: {err}", file.display()));
    let length = fs::metadata(file).map_err(|err| named(err.to_string()))?;
    if length.len() > Bundle::MAX {
        return Err(named("it is too large for a bundle".into()));
    }
    let text = fs::read(file).map_err(|err| named(err.to_string()))?;
    Bundle::parse(&text).map_err(named)
}

/// A QR code for a terminal.
fn picture(url: &str) -> String {
    use qrcode::{QrCode, render::unicode::Dense1x2};
    QrCode::new(url).map_or_else(
        |_| String::new(),
        |code| code.render::<Dense1x2>().quiet_zone(true).build(),
    )
}

fn leave(options: &Leave) -> Result<(), Failure> {
    let folder = Folder::open(&options.root)?;
    let kept = folder.kept(options.name.as_deref())?;
    for service in kept.services() {
        machine::stop(service)?;
    }
    let notes = folder.remove(&kept)?;
    println!("{}: stopped and removed here", kept.robot);
    notes.iter().for_each(|note| println!("  {note}"));
    println!(
        "on its server: droidrelay-bridge robot remove {}",
        kept.robot
    );
    Ok(())
}
