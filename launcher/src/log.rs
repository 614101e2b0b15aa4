// SPDX-License-Identifier: MPL-2.0

//! One line per event on stderr, with its level; secrets masked. GStreamer's own log too.

use std::{
    collections::HashMap,
    env,
    fmt::Write as _,
    io::Write,
    os::fd::AsFd,
    sync::{Arc, PoisonError, RwLock},
};

use clap::ValueEnum;
use droidrelay_wire::line::one_line;
use serde_json::json;

use crate::mask::Mask;

/// How lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// LEVEL and the text
    #[default]
    Text,
    /// One JSON object a line: time (RFC 3339, UTC), level (error, warning, info, debug), message;
    /// of GStreamer also category, object, source
    Json,
}

/// Name, and priority of syslog(3) as journald reads it in front of a line (sd-daemon(3)).
type Level = (&'static str, u8);

const ERROR: Level = ("error", 3);
const WARNING: Level = ("warning", 4);
const INFO: Level = ("info", 6);
const DEBUG: Level = ("debug", 7);

/// Clones write to the same place and hide the same secrets.
#[derive(Clone, Default)]
pub struct Log(Arc<Inner>);

#[derive(Default)]
struct Inner {
    format: Format,
    /// stderr is the journal.
    journal: bool,
    mask: RwLock<Mask>,
}

/// Where in GStreamer a line comes from.
struct Origin<'a> {
    category: &'a str,
    object: Option<String>,
    source: String,
}

impl Log {
    pub fn new(format: Format) -> Self {
        Log(Arc::new(Inner {
            format,
            journal: is_journal(),
            mask: RwLock::default(),
        }))
    }

    /// Hides these secrets as well from now on.
    pub fn hide(&self, mask: &Mask) {
        let mut known = self.0.mask.write().unwrap_or_else(PoisonError::into_inner);
        known.add(mask);
    }

    pub fn error(&self, text: &str) {
        self.line(ERROR, text, None);
    }

    pub fn warning(&self, text: &str) {
        self.line(WARNING, text, None);
    }

    pub fn info(&self, text: &str) {
        self.line(INFO, text, None);
    }

    /// `text` on one line, without its secrets: what others write in it neither begins a line, nor
    /// moves the cursor of a terminal, nor fills the log.
    pub fn clean(&self, text: &str) -> String {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let mask = self.0.mask.read().unwrap_or_else(PoisonError::into_inner);
        one_line(&mask.apply(&lines.join("; "))).into_owned()
    }

    /// Takes GStreamer's log over, as much of it as $GST_DEBUG asks for. To be called before
    /// GStreamer is initialised; with $GST_DEBUG_FILE it is left alone.
    pub fn bridge(&self) {
        if env::var_os("GST_DEBUG_FILE").is_some() {
            return;
        }
        gst::log::remove_default_log_function();
        let log = self.clone();
        gst::log::add_log_function(move |category, level, file, _, line, object, message| {
            let level = match level {
                gst::DebugLevel::None => return,
                gst::DebugLevel::Error => ERROR,
                gst::DebugLevel::Warning => WARNING,
                gst::DebugLevel::Fixme | gst::DebugLevel::Info => INFO,
                _ => DEBUG,
            };
            let origin = Origin {
                category: category.name(),
                object: object.map(|object| object.to_string()),
                source: format!("{}:{line}", file.rsplit('/').next().unwrap_or_default()),
            };
            let message = message.get();
            log.line(level, message.as_deref().unwrap_or_default(), Some(&origin));
        });
    }

    fn line(&self, (level, priority): Level, text: &str, origin: Option<&Origin>) {
        let text = self.clean(text);
        let object = origin
            .and_then(|origin| origin.object.as_deref())
            .map(|object| self.clean(object));
        let mut line = String::new();
        if self.0.journal {
            let _ = write!(line, "<{priority}>");
        }
        match self.0.format {
            Format::Json => {
                let mut fields = json!({
                    "time": now(),
                    "level": level,
                    "message": text,
                });
                if let Some(origin) = origin {
                    fields["category"] = origin.category.into();
                    fields["object"] = object.into();
                    fields["source"] = origin.source.as_str().into();
                }
                let _ = write!(line, "{fields}");
            }
            Format::Text => {
                let _ = write!(line, "{} ", level.to_ascii_uppercase());
                if let Some(origin) = origin {
                    let _ = write!(line, "{} {} ", origin.category, origin.source);
                    if let Some(object) = object {
                        let _ = write!(line, "{object} ");
                    }
                }
                line.push_str(&text);
            }
        }
        line.push('\n');
        // With stderr gone there is nobody left to tell.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// Time of day in UTC, RFC 3339 with microseconds.
fn now() -> String {
    glib::DateTime::now_utc()
        .and_then(|now| now.format("%Y-%m-%dT%H:%M:%S.%fZ"))
        .map(String::from)
        .unwrap_or_default()
}

/// Whether stderr leads to journald, which says so by the stream's device and inode.
fn is_journal() -> bool {
    let Some(stream) = env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    rustix::fs::fstat(std::io::stderr().as_fd())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Texts on one subject that differ in their numbers alone are logged this many times in a row.
const ALIKE: u32 = 3;

/// The last text on each subject, so that a fault that lasts does not fill the log: none is logged
/// twice in a row, nor again and again with other numbers (times, ports, counts).
#[derive(Default)]
pub struct Repeats(HashMap<String, Last>);

struct Last {
    text: String,
    /// Logged in a row with other numbers.
    alike: u32,
}

impl Repeats {
    /// Whether `text` is to be logged: it is the last one on its subject from now on.
    pub fn is_new(&mut self, subject: &str, text: &str) -> bool {
        let Some(last) = self.0.get_mut(subject) else {
            let (text, alike) = (text.to_owned(), 1);
            self.0.insert(subject.to_owned(), Last { text, alike });
            return true;
        };
        if last.text == text {
            return false;
        }
        if without_numbers(&last.text).eq(without_numbers(text)) {
            last.alike = last.alike.saturating_add(1);
        } else {
            last.alike = 1;
        }
        text.clone_into(&mut last.text);
        last.alike <= ALIKE
    }

    pub fn forget(&mut self, subject: &str) {
        self.0.remove(subject);
    }
}

/// `text` with each run of digits as one.
fn without_numbers(text: &str) -> impl Iterator<Item = char> {
    let mut in_number = false;
    text.chars().filter_map(move |char| {
        let is_digit = char.is_ascii_digit();
        let goes_on = std::mem::replace(&mut in_number, is_digit) && is_digit;
        (!goes_on).then_some(if is_digit { '0' } else { char })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_others_write_begins_a_line_or_fills_the_log() {
        let log = Log::default();
        let forged = "refused\r\n  <3>ERROR all is lost\x1b[2J\u{202e}";
        assert_eq!(
            log.clean(forged),
            "refused; <3>ERROR all is lost\\u{1b}[2J\\u{202e}"
        );
        assert!(log.clean(&"x".repeat(1_000_000)).len() < 4096);
    }

    #[test]
    fn a_fault_that_lasts_is_logged_once_and_a_few_times_with_other_numbers() {
        let mut repeats = Repeats::default();
        let mut logged = |text: &str| repeats.is_new("sink", text);
        assert!(logged("refused"));
        assert!(!logged("refused"));
        let text = |port| format!("127.0.0.1:{port} closed the connection after {port} ms");
        let times = (998..1050).filter(|port| logged(&text(*port))).count();
        assert_eq!(times, ALIKE as usize);
        assert!(logged("publishing"));
        assert!(logged(&text(7)), "it came back");
        assert!(logged("HTTP 503"));
        assert!(logged("HTTP 404"), "a number may be the news");
        repeats.forget("sink");
        assert!(repeats.is_new("sink", "HTTP 404"));
        assert!(repeats.is_new("other", "HTTP 404"));
    }
}
