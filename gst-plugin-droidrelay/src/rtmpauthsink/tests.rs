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

const USER: &str = "mypublisher@example.org";
const PASSWORD: &str = "hunter2:/&?";

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
fn media_starts_at_two_seconds_unless_start_offset_says_otherwise() {
    let server = Server::start(Access::Everybody);
    for (more, expected) in [("", 2000), ("start-offset=false", 0)] {
        let mark = server.seen().mark();
        let _line = line(&server, more);
        let first = |seen: &Seen| matches!(seen, Seen::FirstFrame(_));
        server.seen().wait(mark, "a frame", first).unwrap();
        let seen = server.seen().since(mark);
        assert!(seen.contains(&Seen::FirstFrame(expected)), "{seen:?}");
    }
}

#[test]
fn a_session_begins_with_the_largest_bitrate_and_gives_the_encoder_its_own_back() {
    let server = Server::start(Access::Everybody);
    let line = line(&server, "adaptive-bitrate=true max-bitrate=700");
    let encoders = line.pipeline.iterate_all_by_element_factory_name("x264enc");
    let encoder = encoders.into_iter().flatten().next().unwrap();
    let bitrate = || encoder.property::<u32>("bitrate");
    line.wait(State::Publishing);
    let set = poll(DEADLINE, || (bitrate() == 700).then_some(()));
    assert!(set.is_some(), "{}", bitrate());
    let stats = line.sink.property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("target-bitrate"), Ok(700_000));
    line.pipeline.set_state(gst::State::Null).unwrap();
    assert_eq!(bitrate(), 2048);
}

#[test]
fn a_refusal_is_an_error_of_the_pipeline_with_fail_fast_alone() {
    let server = Server::start(Access::Nobody("[ authmod=other ] : ?reason=needauth"));
    for (more, is_error) in [("", false), ("fail-fast=true", true)] {
        let line = line(&server, &format!("credential-mode=rtmp password=x {more}"));
        line.wait(State::Refused);
        let bus = line.pipeline.bus().unwrap();
        // The refusal's own message comes ahead of the error.
        let deadline = gst::ClockTime::from_seconds(DEADLINE.as_secs());
        let wanted = [gst::MessageType::Error, gst::MessageType::Progress];
        let mut error = None;
        while let Some(message) = bus.timed_pop_filtered(deadline, &wanted) {
            match message.view() {
                gst::MessageView::Error(found) => error = Some(found.error()),
                // The next try begins: nothing more is said of the last one.
                gst::MessageView::Progress(progress)
                    if progress.get().0 == gst::ProgressType::Start && attempt(&line) > 1 => {}
                _ => continue,
            }
            break;
        }
        assert_eq!(error.is_some(), is_error, "{more}: {error:?}");
        if let Some(error) = error {
            assert!(error.matches(gst::ResourceError::NotAuthorized), "{error}");
        }
    }
}

/// Tries since the last accepted session.
fn attempt(line: &Line) -> u32 {
    let stats = line.sink.property::<gst::Structure>("stats");
    stats.get("attempt").unwrap_or_default()
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

/// Whatever goes wrong wherever: the state says why, the pipeline goes on, ends at once if it is
/// told to, and publishes again when it is over.
fn is_outlived(step: Step, fault: Fault) {
    const END: Duration = Duration::from_millis(500);
    let server = Server::start(Access::Everybody);
    let what = format!("{fault:?} at {step:?}");
    let started = || Line::start(&format!("rtmpauthsink location={} timeout=1", server.url()));
    server.fail(Some((step, fault)));
    let line = started();
    let failed = |mark| {
        let failed = |seen: &Seen| *seen == Seen::Failed;
        server.seen().wait(mark, &what, failed).unwrap();
    };
    failed(0);
    let said = poll(DEADLINE, || {
        Some(line.error()).filter(|error| !error.is_empty())
    });
    let said = said.unwrap_or_else(|| panic!("{what}: nothing is said"));
    let named = match fault {
        Fault::Drop => ["closed", "lost"].iter().any(|word| said.contains(word)),
        Fault::Stall | Fault::Trickle => said.contains("silent") || said.contains("answered"),
        Fault::Garbage => !said.is_empty(),
    };
    assert!(named, "{what}: {said}");
    let bus = line.pipeline.bus().unwrap();
    // The server has got media, or the next try is under way: either way it is not left.
    server.fail(None);
    line.wait(State::Publishing);
    let mark = server.seen().mark();
    let video = server
        .seen()
        .wait(mark, "media", |seen| *seen == Seen::Video);
    assert!(video.is_ok(), "{what}");
    let error = bus.pop_filtered(&[gst::MessageType::Error]);
    assert!(error.is_none(), "{what}: {error:?}");
    drop(line);

    server.fail(Some((step, fault)));
    let mark = server.seen().mark();
    let line = started();
    failed(mark);
    let begin = Instant::now();
    line.pipeline.set_state(gst::State::Null).unwrap();
    assert!(begin.elapsed() < END, "{what}: {:?}", begin.elapsed());
}

#[test]
fn connections_that_close_are_outlived_at_each_step() {
    for step in Step::ALL {
        is_outlived(step, Fault::Drop);
    }
}

/// Not behind the last step: what a silent server's kernel still takes is on its way.
#[test]
fn a_server_that_falls_silent_is_outlived_at_each_step() {
    for step in Step::ALL.into_iter().filter(|step| *step != Step::Media) {
        is_outlived(step, Fault::Stall);
    }
}

#[test]
fn a_server_that_trickles_is_outlived_at_each_step() {
    for step in Step::ALL.into_iter().filter(|step| *step != Step::Media) {
        is_outlived(step, Fault::Trickle);
    }
}

#[test]
fn nonsense_is_outlived_at_each_step() {
    for step in Step::ALL {
        is_outlived(step, Fault::Garbage);
    }
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

#[test]
fn a_server_that_takes_no_pipelined_commands_is_published_to_at_once_and_remembered() {
    for quirk in [
        Quirk::EatsWithC2,
        Quirk::ClosesOnHaste(Step::Connect),
        Quirk::ClosesOnHaste(Step::CreateStream),
        Quirk::ClosesOnHaste(Step::Publish),
        Quirk::LosesHaste(Step::Connect),
        Quirk::LosesHaste(Step::CreateStream),
        Quirk::CountsFrom(5),
    ] {
        let server = Server::quirky(quirk.clone());
        let line = Line::start(&format!("rtmpauthsink location={} timeout=1", server.url()));
        let video = |seen: &Seen| *seen == Seen::Video;
        server.seen().wait(0, "video", video).unwrap();
        line.wait(State::Publishing);
        let states: Vec<_> = told(&line).into_iter().map(|told| told.0).collect();
        assert!(
            !states
                .iter()
                .any(|state| state == "backoff" || state == "refused"),
            "{quirk:?}: {states:?}"
        );
        assert!(server.seen().all().contains(&Seen::Hasty), "{quirk:?}");

        let mark = server.seen().mark();
        line.play_anew();
        // Video of the session before may still be on its way.
        server
            .seen()
            .wait(mark, "a second session", publish)
            .unwrap();
        let seen = server.seen().since(mark);
        assert!(!seen.contains(&Seen::Hasty), "{quirk:?}: {seen:?}");
        assert_eq!(connects(&server, mark), 1, "{quirk:?}");
    }
}

#[test]
fn a_server_that_refuses_in_every_manner_is_asked_once_for_each_try_and_is_not_slower_afterwards() {
    let server = Server::start(Access::Everybody);
    server.fail(Some((Step::Publish, Fault::Drop)));
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    let failed = |seen: &Seen| *seen == Seen::Failed;
    wait_count(&server, 0, 3, failed);
    server.fail(None);
    line.wait(State::Publishing);
    // The first try in two ways, each other one in one.
    let refused = told(&line).into_iter().filter(|told| told.0 == "refused");
    let failures = server.seen().times(0, failed).len();
    assert_eq!(refused.count(), failures - 1);

    let mark = server.seen().mark();
    server.set_quirk(Some(Quirk::LosesHaste(Step::Publish)));
    line.play_anew();
    let hasty = |seen: &Seen| *seen == Seen::Hasty;
    server.seen().wait(mark, "pipelined again", hasty).unwrap();
}

/// Some servers answer late, so that passwords are not tried out: asked in another manner they do
/// the same, and a wait that is too short never learns of it.
#[test]
fn a_server_that_takes_its_time_to_refuse_is_heard_and_asked_once_a_try() {
    let server = Server::quirky(Quirk::DeniesAfter(Duration::from_secs(3)));
    let line = Line::start(&format!("rtmpauthsink location={} timeout=1", server.url()));
    line.wait(State::Refused);
    assert_eq!(server.seen().times(0, publish).len(), 1);
    let error = line.error();
    assert!(error.contains("refuses the credentials"), "{error}");
    let states: Vec<_> = told(&line).into_iter().map(|told| told.0).collect();
    assert!(!states.iter().any(|state| state == "backoff"), "{states:?}");
}

/// What a server gets ahead of its acceptance, and does not accept, the next connection begins with:
/// neither the first group of pictures nor the end of a stream is lost.
#[test]
fn no_frame_is_lost_to_a_connection_that_was_not_accepted() {
    const FRAMES: usize = 60;
    for quirk in [
        Quirk::EatsWithC2,
        Quirk::ClosesOnHaste(Step::Connect),
        Quirk::ClosesOnHaste(Step::Publish),
    ] {
        for source in ["", "is-live=true"] {
            let server = Server::quirky(quirk.clone());
            let line = Line::of(&format!(
                "videotestsrc num-buffers={FRAMES} {source} \
                 ! video/x-raw,width=64,height=48,framerate=30/1 \
                 ! x264enc tune=zerolatency key-int-max=1000 \
                 ! rtmpauthsink name=sink timeout=1 max-latency=3000000000 location={}",
                server.url()
            ));
            line.play_to_the_end();
            let ended = |seen: &Seen| *seen == Seen::Ended;
            server.seen().wait(0, "the end", ended).unwrap();
            let times = times(&server, 0, TagKind::Video);
            assert!(times.is_sorted(), "{quirk:?} {source}: {times:?}");
            assert_eq!(times.len(), FRAMES, "{quirk:?} {source}");
            assert_eq!(line.count("dropped"), 0, "{quirk:?} {source}");
        }
    }
}

#[test]
fn h265_is_published_to_a_server_that_does_not_know_its_announcement() {
    for quirk in [Quirk::ClosesOnFourCcList, Quirk::IgnoresFourCcList] {
        let server = Server::quirky(quirk.clone());
        let sink = format!("rtmpauthsink location={} timeout=1", server.url());
        let line = Line::encoded_by("x265enc tune=zerolatency", &sink);
        let video = |seen: &Seen| *seen == Seen::Video;
        server.seen().wait(0, "video", video).unwrap();
        line.wait(State::Publishing);
        let mark = server.seen().mark();
        line.play_anew();
        // Video of the session before may still be on its way.
        server
            .seen()
            .wait(mark, "a second session", publish)
            .unwrap();
        assert_eq!(connects(&server, mark), 1, "{quirk:?}");
    }
}

#[test]
fn sessions_that_end_as_soon_as_they_are_accepted_are_a_refusal_after_three() {
    let server = Server::quirky(Quirk::ClosesOncePublished);
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    line.wait(State::Refused);
    assert_eq!(server.seen().times(0, publish).len(), 3);
    let error = line.error();
    assert!(
        error.contains("3 times in a row") && error.contains("stream key"),
        "{error}"
    );
    server.set_quirk(None);
    line.wait(State::Publishing);

    let server = Server::quirky(Quirk::ClosesAndFails);
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    wait_count(&server, 0, 4, publish);
    let told = told(&line);
    assert!(!told.iter().any(|told| told.0 == "refused"), "{told:?}");
}

#[test]
fn a_rejected_connection_is_not_always_the_password() {
    let server = Server::quirky(Quirk::HasNoSuchApplication);
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    line.wait(State::Refused);
    let error = line.error();
    assert!(
        error.contains("application (live)") && error.contains("No such scope"),
        "{error}"
    );
    assert!(!error.contains("refuses the credentials"), "{error}");
}

#[test]
fn a_redirect_is_followed_once() {
    let other = Server::start(Access::Everybody);
    let url = other.url().replace("/live/stream", "/other");
    let server = Server::quirky(Quirk::Redirects(url));
    let line = Line::start(&format!("rtmpauthsink location={}?x=1", server.url()));
    let video = |seen: &Seen| *seen == Seen::Video;
    other.seen().wait(0, "video", video).unwrap();
    line.wait(State::Publishing);
    let seen = other.seen().all();
    assert!(seen.contains(&Seen::Connect("other".into())), "{seen:?}");
    assert!(
        seen.contains(&Seen::Publish("stream?x=1".into())),
        "{seen:?}"
    );
    assert_eq!(connects(&server, 0), 1);
    drop(line);

    other.set_quirk(Some(Quirk::Redirects(server.url())));
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    line.wait(State::Refused);
    assert!(line.error().contains("redirects again"), "{}", line.error());
}

#[test]
fn an_outage_after_frames_begins_with_the_shortest_wait() {
    // Media that makes a session stable, and some more.
    const FRAMES: usize = 60;
    let server = Server::start(Access::Everybody);
    let line = Line::start(&format!("rtmpauthsink location={}", server.url()));
    let video = |seen: &Seen| *seen == Seen::Video;
    for _ in 0..3 {
        wait_count(&server, server.seen().mark(), FRAMES, video);
        told(&line);
        let mark = server.seen().mark();
        server.fail(Some((Step::Media, Fault::Drop)));
        let failed = |seen: &Seen| *seen == Seen::Failed;
        server.seen().wait(mark, "the outage", failed).unwrap();
        server.fail(None);
        let next_try = poll(DEADLINE, || {
            let backoff = told(&line).into_iter().find(|told| told.0 == "backoff");
            backoff.map(|(_, _, next_try)| next_try)
        });
        assert!(next_try.is_some_and(|wait| wait <= 0.25), "{next_try:?}");
        line.wait(State::Publishing);
    }
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

fn sessions(server: &Server) -> usize {
    let seen = server.seen().all().into_iter();
    seen.filter(|seen| matches!(seen, Seen::Publish(_))).count()
}

#[test]
fn a_source_that_is_not_live_loses_nothing_up_to_its_end() {
    let server = Server::start(Access::Everybody);
    for (encoder, frames) in [
        ("tune=zerolatency", 300),
        ("rc-lookahead=40 bframes=2", 150),
    ] {
        let mark = server.seen().mark();
        let line = Line::of(&format!(
            "videotestsrc num-buffers={frames} ! video/x-raw,width=64,height=48,framerate=30/1 \
             ! x264enc {encoder} ! rtmpauthsink name=sink sync=false location={}",
            server.url()
        ));
        line.play_to_the_end();
        let ended = |seen: &Seen| *seen == Seen::Ended;
        server.seen().wait(mark, "the end", ended).unwrap();
        let times = times(&server, mark, TagKind::Video);
        assert_eq!(times.len(), frames, "{encoder}");
        assert!(times.is_sorted());
        assert_eq!(
            (line.count("dropped"), line.count("dropped-publishing")),
            (0, 0)
        );
    }
}

#[test]
fn a_source_that_is_not_live_keeps_to_the_clock() {
    let server = Server::start(Access::Everybody);
    let line = Line::of(&format!(
        "videotestsrc num-buffers=31 ! video/x-raw,width=64,height=48,framerate=30/1 \
         ! x264enc tune=zerolatency ! rtmpauthsink name=sink location={}",
        server.url()
    ));
    let began = Instant::now();
    line.play_to_the_end();
    assert!(began.elapsed() >= Duration::from_millis(950));
    let ended = |seen: &Seen| *seen == Seen::Ended;
    server.seen().wait(0, "the end", ended).unwrap();
    assert_eq!(times(&server, 0, TagKind::Video).len(), 31);
}

#[test]
fn buffers_that_lack_times_are_published() {
    for (has_dts, what) in [(true, "DTS and no PTS"), (false, "no time at all")] {
        let server = Server::start(Access::Everybody);
        let line = Line::of(&format!(
            "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=30/1 \
             ! x264enc tune=zerolatency key-int-max=10 option-string=repeat-headers=1 \
             ! video/x-h264,stream-format=byte-stream ! rtmpauthsink name=sink location={}",
            server.url()
        ));
        let pad = line.sink.static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let buffer = info.buffer_mut().unwrap().make_mut();
            buffer.set_pts(None);
            if !has_dts {
                buffer.set_dts(None);
            }
            gst::PadProbeReturn::Ok
        });
        line.play();
        let enough = poll(DEADLINE, || {
            Some(times(&server, 0, TagKind::Video)).filter(|times| times.len() >= 30)
        });
        let enough = enough.unwrap_or_else(|| panic!("{what}: {}", line.error()));
        assert!(enough.is_sorted(), "{what}: {enough:?}");
        assert!(enough[29] - enough[0] >= 500, "{what}: {enough:?}");
    }
}

#[test]
fn a_seek_back_is_a_new_session() {
    let server = Server::start(Access::Everybody);
    let line = Line::of(&format!(
        "videotestsrc ! video/x-raw,width=64,height=48,framerate=30/1 \
         ! x264enc tune=zerolatency key-int-max=30 ! rtmpauthsink name=sink location={}",
        server.url()
    ));
    line.play();
    for session in 1..=3 {
        let mark = server.seen().mark();
        let enough = poll(DEADLINE, || {
            let times = times(&server, mark, TagKind::Video);
            (times.len() >= 20 && sessions(&server) == session).then_some(())
        });
        assert!(enough.is_some(), "session {session}: {}", line.error());
        line.pipeline
            .seek_simple(gst::SeekFlags::FLUSH, gst::ClockTime::ZERO)
            .unwrap();
    }
    // In each of them, time goes forward.
    let mut last = 0;
    for seen in server.seen().all() {
        match seen {
            Seen::Publish(_) => last = 0,
            Seen::Frame(_, time) => {
                assert!(time >= last, "{time} behind {last}");
                last = time;
            }
            _ => {}
        }
    }
}

#[test]
fn sound_beside_an_encoder_with_look_ahead_is_one_session_of_both_sorted_by_time() {
    let server = Server::start(Access::Everybody);
    let line = Line::of(&format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=30/1 \
         ! x264enc rc-lookahead=40 bframes=0 key-int-max=30 ! queue max-size-time=0 ! sink. \
         audiotestsrc is-live=true samplesperbuffer=1024 ! audio/x-raw,rate=48000,channels=1 \
         ! voaacenc ! queue max-size-time=0 ! sink.audio \
         rtmpauthsink name=sink location={}",
        server.url()
    ));
    line.play();
    let enough = poll(DEADLINE, || {
        let [video, audio] = [TagKind::Video, TagKind::Audio].map(|kind| times(&server, 0, kind));
        (video.len() >= 60 && audio.len() >= 80).then_some((video, audio))
    });
    let (video, audio) = enough.unwrap_or_else(|| panic!("{}", line.error()));
    assert_eq!(sessions(&server), 1);
    assert_eq!(line.count("dropped-publishing"), 0);
    // No picture is missing, and no sound but what the first picture came after.
    let seconds = f64::from(video[video.len() - 1] - video[0]) / 1000.0;
    assert!(
        (video.len() as f64 - 1.0 - 30.0 * seconds).abs() < 2.0,
        "{video:?}"
    );
    let seconds = f64::from(audio[audio.len() - 1] - audio[0]) / 1000.0;
    let expected = 48_000.0 / 1024.0 * seconds;
    assert!(
        (audio.len() as f64 - 1.0 - expected).abs() < 3.0,
        "{audio:?}"
    );
    assert!(audio[0] < video[0] + 100, "{} and {}", audio[0], video[0]);
    let all = server.seen().all().into_iter();
    let all: Vec<u32> = all
        .filter_map(|seen| match seen {
            Seen::Frame(_, time) => Some(time),
            _ => None,
        })
        .collect();
    assert!(all.is_sorted(), "{all:?}");
}

#[test]
fn media_that_is_lost_while_publishing_is_said_once() {
    let server = Server::start(Access::Everybody);
    server.fail(Some((Step::Media, Fault::Stall)));
    let line = Line::of(&format!(
        "videotestsrc is-live=true pattern=snow \
         ! video/x-raw,format=I420,width=640,height=480,framerate=30/1 \
         ! x264enc tune=zerolatency speed-preset=ultrafast bitrate=60000 \
         ! rtmpauthsink name=sink timeout=60 max-latency=100000000 location={}",
        server.url()
    ));
    line.play();
    let bus = line.pipeline.bus().unwrap();
    let deadline = gst::ClockTime::from_seconds(DEADLINE.as_secs());
    let warning = bus.timed_pop_filtered(deadline, &[gst::MessageType::Warning]);
    let warning = warning.expect("nothing is said");
    let gst::MessageView::Warning(warning) = warning.view() else {
        unreachable!()
    };
    assert!(warning.error().matches(gst::ResourceError::Write));
    let lost = line.count("dropped-publishing");
    assert!(lost > 0);
    let more = poll(DEADLINE, || {
        (line.count("dropped-publishing") > lost + 10).then_some(())
    });
    assert!(more.is_some());
    assert!(bus.pop_filtered(&[gst::MessageType::Warning]).is_none());
}

#[test]
fn a_server_that_needs_no_offset_gets_none_once_it_is_known() {
    for (version, expected) in [
        (Some("FMS/3,0,1,123"), 0),
        (Some("LNX 9,0,124,2"), 2000),
        (None, 2000),
    ] {
        let server = Server::start(Access::Everybody);
        server.call_itself(version);
        let line = line(&server, "");
        line.wait(State::Publishing);
        line.pipeline.set_state(gst::State::Ready).unwrap();
        let mark = server.seen().mark();
        line.play();
        let first = |seen: &Seen| matches!(seen, Seen::FirstFrame(_));
        let (_, first) = server.seen().wait(mark, "a frame", first).unwrap();
        assert_eq!(first, Seen::FirstFrame(expected), "{version:?}");
    }
}

#[test]
fn a_start_brings_the_next_try_at_once_and_the_wait_is_told_as_it_is() {
    let port = droidrelay_testkit::process::free_port().unwrap();
    let line = Line::of(&format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=30/1 \
         ! mqttvalve name=valve drop=false standby=warm ! x264enc tune=zerolatency \
         ! rtmpauthsink name=sink location=rtmp://127.0.0.1:{port}/live/stream"
    ));
    line.play();
    let bus = line.pipeline.bus().unwrap();
    // Told ahead of each wait.
    let wait = poll(DEADLINE, || {
        let message = bus.timed_pop_filtered(
            gst::ClockTime::from_mseconds(100),
            &[gst::MessageType::Element],
        )?;
        let said = message.structure()?;
        let wait = said.get::<f64>("next-try").ok()?;
        (said.name() == "rtmpauthsink-state" && wait > 3.0).then_some(wait)
    });
    let (wait, began) = (wait.unwrap(), Instant::now());
    let tries = attempt(&line);
    let valve = line.pipeline.by_name("valve").unwrap();
    valve.emit_by_name::<bool>("start", &[&Some("phone"), &0u32 as &dyn ToValue]);
    let next = poll(DEADLINE, || (attempt(&line) > tries).then_some(()));
    assert!(next.is_some());
    assert!(began.elapsed().as_secs_f64() < wait / 2.0);
}

/// Whoever is told of one sink's state, and does not return, harms nobody else.
#[test]
fn a_handler_that_does_not_return_holds_up_no_other_session() {
    let server = Server::start(Access::Everybody);
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let (entered, inside) = std::sync::mpsc::channel();
    let held = Line::of(&format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=30/1 \
         ! x264enc tune=zerolatency ! rtmpauthsink name=sink location={}",
        server.url()
    ));
    held.sink.connect_notify(Some("state"), move |_, _| {
        let _ = entered.send(());
        let _ = released.lock().unwrap().recv();
    });
    held.play();
    inside.recv_timeout(DEADLINE).unwrap();
    let other = line(&server, "");
    other.wait(State::Publishing);
    let mark = server.seen().mark();
    let media = |seen: &Seen| *seen == Seen::Video;
    server.seen().wait(mark, "media", media).unwrap();
    drop(release);
    drop(held);
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
