// SPDX-License-Identifier: MPL-2.0

//! Against a server that does as it is told: the login by challenge, for this element and other
//! publishers, and faults at each step of a session.

use std::{
    process::Command,
    sync::Once,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    journal::DEADLINE,
    process::{Process, poll, program_of},
    secrets::write_private,
};
use gst::prelude::*;

use super::State;
use droidrelay_rtmp::{
    auth::Challenge,
    double::{Access, Fault, Quirk, Seen, Server, Step},
    flv::TagKind,
};

mod logins;
mod media;
mod outages;
mod quirks;

const USER: &str = "mypublisher@example.org";
const PASSWORD: &str = "hunter2:/&?";

/// A pipeline that is playing, and its sink.
struct Line {
    pipeline: gst::Pipeline,
    sink: gst::Element,
}

impl Line {
    fn start(sink: &str) -> Self {
        Self::encoded_by("x264enc tune=zerolatency", sink)
    }

    fn encoded_by(encoder: &str, sink: &str) -> Self {
        let line = Line::of(&format!(
            "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=30/1 \
             ! {encoder} ! {sink} name=sink"
        ));
        line.play();
        line
    }

    /// What `line` describes, with a sink of the name `sink`.
    fn of(line: &str) -> Self {
        static PLUGIN: Once = Once::new();
        PLUGIN.call_once(|| {
            gst::init().unwrap();
            crate::plugin_register_static().unwrap();
        });
        let pipeline = gst::parse::launch(line).unwrap();
        let pipeline: gst::Pipeline = pipeline.downcast().unwrap();
        let sink = pipeline.by_name("sink").unwrap();
        Line { pipeline, sink }
    }

    /// Through READY, so that another session begins.
    fn play_anew(&self) {
        self.pipeline.set_state(gst::State::Ready).unwrap();
        self.play();
    }

    fn play(&self) {
        self.pipeline.set_state(gst::State::Playing).unwrap();
    }

    /// Plays to the end of the stream.
    fn play_to_the_end(&self) {
        self.play();
        let bus = self.pipeline.bus().unwrap();
        let deadline = gst::ClockTime::from_seconds(DEADLINE.as_secs());
        let wanted = [gst::MessageType::Eos, gst::MessageType::Error];
        let message = bus.timed_pop_filtered(deadline, &wanted);
        let message = message.expect("the stream has not ended");
        assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
    }

    fn count(&self, field: &str) -> u64 {
        let stats = self.sink.property::<gst::Structure>("stats");
        stats.get(field).unwrap()
    }

    fn wait(&self, wanted: State) {
        let state = || self.sink.property::<State>("state");
        let reached = poll(DEADLINE, || (state() == wanted).then_some(()));
        assert!(reached.is_some(), "{:?}: {}", state(), self.error());
    }

    fn error(&self) -> String {
        let stats = self.sink.property::<gst::Structure>("stats");
        stats.get("last-error").unwrap_or_default()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

fn line(server: &Server, more: &str) -> Line {
    Line::start(&format!(
        "rtmpauthsink location={} user={USER} {more}",
        server.url()
    ))
}

/// Applications that were asked for since `mark`, without what differs each time.
fn asked(server: &Server, mark: usize) -> Vec<String> {
    let connects = server.seen().since(mark).into_iter();
    let apps = connects.filter_map(|seen| match seen {
        Seen::Connect(app) => Some(app),
        _ => None,
    });
    let shorten = |app: String| match app.split_once("&nonce=").or(app.split_once("&challenge=")) {
        Some((shown, _)) => format!("{shown}&…"),
        None => app,
    };
    apps.map(shorten).collect()
}

/// Tries since the last accepted session.
fn attempt(line: &Line) -> u32 {
    let stats = line.sink.property::<gst::Structure>("stats");
    stats.get("attempt").unwrap_or_default()
}

/// Connections that have come as far as `connect` since `mark`.
fn connects(server: &Server, mark: usize) -> usize {
    asked(server, mark).len()
}

fn publish(seen: &Seen) -> bool {
    matches!(seen, Seen::Publish(_))
}

fn wait_count(server: &Server, mark: usize, count: usize, wanted: impl Fn(&Seen) -> bool) {
    let enough = || (server.seen().times(mark, &wanted).len() >= count).then_some(());
    assert!(
        poll(DEADLINE, enough).is_some(),
        "{:?}",
        server.seen().since(mark)
    );
}

/// The sink's states that were told on the bus, with their reason and the wait for the next try.
fn told(line: &Line) -> Vec<(String, String, f64)> {
    let bus = line.pipeline.bus().unwrap();
    let messages = std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Element]));
    let states = messages.filter_map(|message| {
        let structure = message.structure()?;
        let text = |name| structure.get::<Option<String>>(name).ok().flatten();
        Some((
            text("state").filter(|_| structure.name() == "rtmpauthsink-state")?,
            text("reason").unwrap_or_default(),
            structure.get::<f64>("next-try").unwrap_or_default(),
        ))
    });
    states.collect()
}

/// Times of the frames of `kind` that `server` has got since `mark`, in milliseconds.
fn times(server: &Server, mark: usize, kind: TagKind) -> Vec<u32> {
    let seen = server.seen().since(mark).into_iter();
    seen.filter_map(|seen| match seen {
        Seen::Frame(of, time) if of == kind => Some(time),
        _ => None,
    })
    .collect()
}
