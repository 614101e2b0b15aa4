// SPDX-License-Identifier: MPL-2.0

//! The sections of the manual that are no options, and the manual page as a whole.

use std::io::{self, Write};

use clap::Command;
use clap_mangen::Man;

/// Sections behind the options: title and text, in paragraphs.
macro_rules! sections {
    ($($title:literal: $text:literal)*) => {
        const SECTIONS: &[(&str, &str)] = &[$(($title, $text)),*];
        /// The same for `--help`.
        pub const AFTER_HELP: &str = concat!($($title, ":\n", $text, "\n\n"),*);
    };
}

sections! {
    "Launch files": "  A # at the start of a word makes a comment to the end of the line. '...' and \"...\" hold
  words together, \\ takes the next character literally.
  ${NAME} and ${NAME:-default} are replaced by variables: from --set, else the environment,
  else the file of that name in $CREDENTIALS_DIRECTORY (systemd's LoadCredential=). ${NOW}
  is the time at which the file is read (UTC, 20261125T081503Z). A default is read like the
  file: it may hold variables in turn, and go over several lines.
  commandsrc command=\"PROGRAM...\" is an element of droidrelay alone: it gives what the program
  writes to its standard output, and runs it only while it is in PAUSED or PLAYING.
  A secret is never taken from --set: everybody on a machine can read a process's arguments."
    "Exit status": "  0   ended as asked, or nothing has failed
  64  the command line is wrong
  65  the launch file, or the pipeline that it describes, is wrong
  66  there is no launch file
  69  the pipeline failed too often; something is missing or out of reach
  70  the pipeline hung, or droidrelay itself has a fault
  77  a right or a login is missing (doctor)
  78  a variable has no value, or a credential cannot be read"
    "Environment": "  CREDENTIALS_DIRECTORY  files with the values of variables, named like them
  CONFIGURATION_DIRECTORY  in place of /etc/droidrelay, where doctor looks for a service's files
  GST_DEBUG              how much of GStreamer's own log is in the log; GST_DEBUG_FILE
                         sends it to a file instead, unmasked
  GST_PLUGIN_PATH        folders with more plugins
  RUNTIME_DIRECTORY      from systemd (RuntimeDirectory=): where leases are kept for the
                         process that comes after one that has died
  NOTIFY_SOCKET, WATCHDOG_USEC  from systemd: told are READY, STATUS (state, viewers,
                         bitrate), RELOADING, STOPPING; WATCHDOG while the main loop lives
                         and frames leave every rtmpauthsink that is publishing"
    "Examples": "  droidrelay check robot.launch
  sudo droidrelay enroll 'https://cloud.example:8443/enroll#...'
  sudo droidrelay doctor front
  droidrelay doctor robot.launch --set BROKER=mqtts://cloud.example
  droidrelay run robot.launch --trigger motion:lease=30 --metrics 9101
  droidrelay run robot.launch --poll https://cloud.example/robots/r1/stream \\
      --poll-token-file /etc/droidrelay/bridge.token"
}

/// Writes the manual page: all of the program's commands on one.
pub fn manual_page(program: Command, out: &mut Vec<u8>) -> io::Result<()> {
    let mut command = program.after_long_help("");
    command.build();
    let man = Man::new(command.clone()).manual("Droidrelay");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    for sub in command.get_subcommands() {
        if sub.get_name() != "help" {
            writeln!(out, ".SH COMMAND {}", sub.get_name().to_uppercase())?;
            let sub = without_globals(sub);
            let man = Man::new(sub);
            let mut body = Vec::new();
            man.render_synopsis_section(&mut body)?;
            man.render_description_section(&mut body)?;
            man.render_options_section(&mut body)?;
            // Sections of a page of its own are parts of a section here.
            out.extend(
                String::from_utf8_lossy(&body)
                    .replace(".SH ", ".SS ")
                    .into_bytes(),
            );
        }
    }
    for (title, text) in SECTIONS {
        writeln!(out, ".SH {}\n.nf", title.to_uppercase())?;
        for line in text.lines() {
            let line = line.replace('\\', "\\e").replace('-', "\\-");
            // A line that begins so would be a request.
            let guard = if line.starts_with(['.', '\'']) {
                "\\&"
            } else {
                ""
            };
            writeln!(out, "{guard}{line}")?;
        }
        writeln!(out, ".fi")?;
    }
    Ok(())
}

/// What every command has stands once, under the program's own options.
fn without_globals(command: &Command) -> Command {
    command.clone().mut_args(|arg| {
        let hide = arg.is_global_set() || arg.get_id() == "help";
        arg.hide(hide)
    })
}
