// SPDX-License-Identifier: MPL-2.0

//! Against a server that does as it is told: the login by challenge, for this element and other
//! publishers, and faults at each step of a session.

use std::{
    process::Command,
    sync::Once,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    certs::write_private,
    journal::DEADLINE,
    process::{Process, poll, program_of},
};
use gst::prelude::*;

use super::State;
use droidrelay_rtmp::{
    auth::Challenge,
    double::{Access, Fault, Quirk, Seen, Server, Step},
    flv::TagKind,
};

mod media;
mod outages;

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

fn adobe(opaque: bool) -> Challenge {
    Challenge::Adobe {
        salt: "WvviAT4cmEkeosgbQXFJTodwlqtZjBC5".into(),
        challenge: "KqLT7N==".into(),
        opaque: opaque.then(|| "vgoAAA==".into()),
    }
}

fn limelight() -> Challenge {
    Challenge::Limelight {
        nonce: "b2c3d4e5f6a7".into(),
    }
}

fn login(challenge: Challenge) -> Access {
    Access::Login {
        user: USER.into(),
        password: PASSWORD.into(),
        challenge,
        at_once: false,
    }
}

#[test]
fn each_kind_of_challenge_is_answered() {
    let password = format!("credential-mode=rtmp password=\"{PASSWORD}\"");
    for (challenge, name) in [
        (adobe(true), "adobe"),
        (adobe(false), "adobe"),
        (limelight(), "llnw"),
    ] {
        let server = Server::start(login(challenge));
        let line = line(&server, &password);
        line.wait(State::Publishing);
        server
            .seen()
            .wait(0, "video", |seen| *seen == Seen::Video)
            .unwrap();
        let introduced = format!("live?authmod={name}&user={USER}");
        let answered = format!("{introduced}&…");
        assert_eq!(
            asked(&server, 0),
            ["live", introduced.as_str(), answered.as_str()]
        );
        let publish = Seen::Publish("stream".into());
        assert!(server.seen().all().contains(&publish));

        // The next session knows the way.
        let mark = server.seen().mark();
        line.play_anew();
        let again = |seen: &Seen| *seen == publish;
        server.seen().wait(mark, "a second session", again).unwrap();
        assert_eq!(asked(&server, mark), [introduced, answered]);
        assert_eq!(line.error(), "");
    }
}

#[test]
fn a_challenge_that_comes_at_once_is_answered() {
    let server = Server::start(Access::Login {
        user: USER.into(),
        password: PASSWORD.into(),
        challenge: adobe(true),
        at_once: true,
    });
    let password = format!("credential-mode=rtmp password=\"{PASSWORD}\"");
    line(&server, &password).wait(State::Publishing);
    assert_eq!(asked(&server, 0).len(), 2);
}

#[test]
fn a_server_without_a_login_is_published_to_all_the_same() {
    let server = Server::start(Access::Everybody);
    line(&server, "credential-mode=rtmp password=x").wait(State::Publishing);
    assert_eq!(asked(&server, 0), ["live"]);
}

#[test]
fn a_wrong_password_is_named_and_mended_without_a_restart() {
    for challenge in [adobe(true), limelight()] {
        let server = Server::start(login(challenge));
        let folder = tempfile::tempdir().unwrap();
        let file = write_private(folder.path(), "pass", "a-wrong-one").unwrap();
        let more = format!("credential-mode=rtmp password-file={}", file.display());
        let line = line(&server, &more);
        line.wait(State::Refused);
        let error = line.error();
        assert!(error.contains("password-file"), "{error}");
        assert!(error.contains("authfailed"), "{error}");
        write_private(folder.path(), "pass", PASSWORD).unwrap();
        line.wait(State::Publishing);
    }
}

#[test]
fn a_server_that_is_never_satisfied_is_a_refusal() {
    for description in [
        "[ AccessManager.Reject ] : [ code=403 need auth; authmod=adobe ] : ",
        "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=needauth&salt=s&challenge=c",
    ] {
        let server = Server::start(Access::Nobody(description));
        let line = line(&server, "credential-mode=rtmp password=x");
        line.wait(State::Refused);
        assert!(line.error().contains("check user and password"));
    }
    let server = Server::start(Access::Nobody("[ authmod=other ] : ?reason=needauth"));
    let line = line(&server, "credential-mode=rtmp password=x");
    line.wait(State::Refused);
    assert!(line.error().contains("authmod=other"), "{}", line.error());
}

#[test]
fn a_demand_for_a_login_tells_the_mode_to_set() {
    let server = Server::start(login(limelight()));
    let line = line(&server, "password=x");
    line.wait(State::Refused);
    let error = line.error();
    assert!(
        error.contains("authmod=llnw") && error.contains("credential-mode=rtmp"),
        "{error}"
    );
}

/// Somebody else's clients agree on what the right answer is.
#[test]
fn ffmpeg_is_let_in_by_the_same_challenges() {
    for (challenge, password, accepted) in [
        (adobe(true), "hunter2", true),
        (adobe(false), "hunter2", true),
        (limelight(), "hunter2", true),
        (adobe(true), "hunter3", false),
        (limelight(), "hunter3", false),
    ] {
        let server = Server::start(Access::Login {
            user: "pub".into(),
            password: "hunter2".into(),
            challenge,
            at_once: false,
        });
        let url = server
            .url()
            .replace("rtmp://", &format!("rtmp://pub:{password}@"));
        let picture = "testsrc=size=64x48:rate=10";
        let mut command = Command::new(program_of("ffmpeg", "ffmpeg").unwrap());
        command.args(["-v", "warning", "-re", "-f", "lavfi", "-i", picture]);
        command.args(["-c:v", "libx264", "-f", "flv", &url]);
        let ffmpeg = Process::spawn("ffmpeg", &mut command).unwrap();
        let wanted = |seen: &Seen| match seen {
            Seen::Publish(_) => accepted,
            Seen::Rejected(description) => !accepted && description.contains("authfailed"),
            _ => false,
        };
        let seen = server.seen().wait(0, "ffmpeg", wanted);
        seen.unwrap_or_else(|err| panic!("{err}\n{}", ffmpeg.text()));
    }
}

#[test]
fn rtmp2sink_is_let_in_by_the_same_challenge() {
    let server = Server::start(Access::Login {
        user: "pub".into(),
        password: "hunter2".into(),
        challenge: adobe(true),
        at_once: false,
    });
    let url = server.url().replace("rtmp://", "rtmp://pub:hunter2@");
    let _line = Line::start(&format!(
        "flvmux streamable=true ! rtmp2sink async=false location={url}"
    ));
    let video = |seen: &Seen| *seen == Seen::Video;
    server.seen().wait(0, "video", video).unwrap();
    assert_eq!(asked(&server, 0).len(), 3);
}

#[test]
fn a_password_file_that_is_no_file_is_refused_at_once() {
    let server = Server::start(Access::Everybody);
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let line = Line::of(&format!(
        "fakesrc ! video/x-h264,stream-format=avc,alignment=au \
         ! rtmpauthsink name=sink location={} user=u password-file={}",
        server.url(),
        fifo.display()
    ));
    let began = Instant::now();
    let refused = line.sink.set_state(gst::State::Ready);
    assert!(refused.is_err());
    line.sink.set_state(gst::State::Null).unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
    let bus = line.pipeline.bus().unwrap();
    let error = bus.pop_filtered(&[gst::MessageType::Error]).unwrap();
    let gst::MessageView::Error(error) = error.view() else {
        unreachable!()
    };
    let text = error.error().to_string();
    assert!(
        text.contains("fifo") && text.contains("regular file"),
        "{text}"
    );
}
