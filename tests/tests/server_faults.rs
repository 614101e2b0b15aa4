// SPDX-License-Identifier: MPL-2.0

//! Whatever becomes of the server or the way to it: the robot says what is wrong, its pipeline
//! and a recording beside the stream do not notice, it publishes again when the fault is over,
//! and it ends at once in the midst of it. By `gst-launch-1.0` as it is, with real servers.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    certs::{Authority, Identity, Validity},
    clients::reader::Reader,
    journal::{DEADLINE, Journal},
    net::netns::{FAR, Loss, NameServer, isolated},
    process::{Process, poll, program_of},
    robot::{Robot, Runner},
    servers::{
        relay::{self, Event, Kind},
        silent::SilentServer,
    },
    testbed::{ENCODER, Testbed},
    usage::StallMonitor,
};
use droidrelay_wire::StreamState;
use tempfile::TempDir;

/// From a fault's end to a stream, where that is not left to the next try.
const BACK: Duration = Duration::from_secs(2);
/// What a robot's log says of each try.
const CONNECTING: &str = "rtmpauthsink-state, state=(string)connecting";
/// What is upstream of the sink is never held for longer.
const HELD: Duration = Duration::from_millis(100);
/// From SIGINT to the end of the process.
const END: Duration = Duration::from_millis(500);
/// Between two frames.
const FRAME: Duration = Duration::from_nanos(1_000_000_000 / 30);
const ROUNDED: Duration = Duration::from_nanos(1);
/// Small, with enough in it to fill every buffer between robot and server.
const CAMERA: &str = "videotestsrc is-live=true pattern=snow \
                      ! video/x-raw,format=I420,width=160,height=90,framerate=30/1";

struct Scene {
    testbed: Testbed,
    folder: TempDir,
}

impl Scene {
    fn new(kind: Kind) -> Self {
        Self::with(kind, relay::Options::default())
    }

    fn with(kind: Kind, options: relay::Options) -> Self {
        Scene {
            testbed: Testbed::start_with(kind, options).unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// In a network of its own, with a robot that is to reach the server at [`FAR`].
    fn far(kind: Kind) -> Self {
        let options = relay::Options {
            far: true,
            ..relay::Options::default()
        };
        Self::with(kind, options)
    }

    fn far_location(&self, host: &str) -> String {
        let relay = &self.testbed.relay;
        relay.publish_url_at(host, relay.rtmp_port())
    }

    fn robot(&self) -> Witness {
        self.robot_at(&self.testbed.relay.publish_url(), "timeout=2")
    }

    /// A robot that is told to start and publishes at `location`; its picture goes two ways
    /// behind the encoder, by one thread: first to the sink, then to a recording.
    fn robot_at(&self, location: &str, more: &str) -> Witness {
        let sink = self.testbed.sink();
        let sink = sink.replace(&self.testbed.relay.publish_url(), location);
        let line = format!(
            "-v -m {CAMERA} ! {} ! queue ! {ENCODER} ! tee name=t \
             ! identity name=before ! {sink} name=sink {more} \
             t. ! identity name=after ! queue \
             ! identity name=recorded ! filesink location={}",
            self.testbed.valve(),
            self.folder.path().join("recording.h264").display()
        );
        let environment = [
            ("G_DEBUG", "fatal-criticals"),
            // What passes each identity, and when: -v leaves out some.
            ("GST_DEBUG", "basetransform:5"),
            ("GST_DEBUG_NO_COLOR", "1"),
        ];
        let robot = self
            .testbed
            .robot_with(Runner::GstLaunch, &line, &environment);
        self.testbed.observer.send("start").unwrap();
        Witness {
            robot: robot.unwrap(),
            stalls: StallMonitor::watch(),
        }
    }

    fn wait_live(&self, robot: &Witness) {
        // Neither is told ahead of the other.
        self.testbed.wait_relay(0, Event::Published);
        let live = self.testbed.observer.wait_state(0, StreamState::Live);
        live.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
        // The server's log may be behind its answers.
        self.testbed.wait_relay(0, Event::Published);
    }

    /// Where what comes next will stand.
    fn mark(&self, robot: &Witness) -> Mark {
        Mark {
            log: robot.log().mark(),
            seen: self.testbed.observer.seen().mark(),
        }
    }

    /// Waits until the fault is named after `mark`: on the broker, by the sink's property and
    /// in its message.
    fn wait_named(&self, robot: &Witness, mark: Mark, state: StreamState, reason: &str) {
        let word = state.as_str();
        let named = self
            .testbed
            .observer
            .wait_where(mark.seen, reason, |robot| {
                robot.state == state
                    && robot.publish.as_ref().is_some_and(|publish| {
                        let said = publish.reason.as_deref();
                        publish.state.as_str() == word
                            && said.is_some_and(|said| said.contains(reason))
                    })
            });
        let (_, named) = named.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
        let publish = named.publish.unwrap();
        assert!(
            publish.attempt > 0 && publish.next_try.is_some(),
            "{publish:?}"
        );
        robot.wait(mark.log, "the message", |line| {
            let text = line.replace('\\', "");
            text.contains("rtmpauthsink-state")
                && text.contains(&format!("state=(string){word}"))
                && text.contains(reason)
        });
        robot.wait(mark.log, "the property", |line| {
            line.contains(":sink: state = ") && line.to_lowercase().contains(word)
        });
    }

    /// The session has outlived the fault.
    fn is_undisturbed(&self, mark: Mark, events: usize) {
        assert_eq!(self.testbed.relay.events().since(events), []);
        let seen = self.testbed.observer.seen().since(mark.seen);
        let mut states = seen.iter().filter_map(|seen| seen.state());
        let live = states.all(|state| state.state == StreamState::Live);
        assert!(live, "{seen:?}");
    }

    /// The fault is over: the robot publishes again.
    fn wait_back(&self, robot: &Witness, events: usize, healed: Instant) {
        let published = self
            .testbed
            .relay
            .events()
            .wait(events, "published again", |event| {
                *event == Event::Published
            });
        let (at, _) = published.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
        let back = at.saturating_duration_since(healed);
        let log = robot.log().timed();
        let tries = log
            .iter()
            .filter(|(tried, line)| (healed..at).contains(tried) && line.contains(CONNECTING))
            .count();
        eprintln!("published again {back:?} after the fault's end, {tries} tries after it");
        assert!(
            back < BACK || tries <= 1,
            "{tries} in {back:?}\n{}",
            robot.text()
        );
        self.testbed.wait_now(StreamState::Live);
    }
}

#[derive(Clone, Copy, Default)]
struct Mark {
    /// In the robot's output.
    log: usize,
    /// In what the observer has seen.
    seen: usize,
}

/// The robot, and what it wrote as `gst-launch-1.0 -v -m`.
struct Witness {
    robot: Robot,
    /// Of the machine meanwhile.
    stalls: StallMonitor,
}

/// A buffer on its way through an identity.
struct Passage {
    /// Since the process began.
    at: Duration,
    /// Its presentation time.
    time: Duration,
}

impl Passage {
    /// Through the identity `name`, as GStreamer's log tells.
    fn read(line: &str, name: &str) -> Option<Self> {
        let (begin, rest) = line.split_once(&format!("<{name}> handling buffer "))?;
        let (_, time) = rest.split_once("PTS ")?;
        Some(Passage {
            at: clock(begin.split(' ').next()?)?,
            time: clock(time.split(' ').next()?)?,
        })
    }
}

/// Hours, minutes, seconds and nanoseconds, as GStreamer writes them.
fn clock(text: &str) -> Option<Duration> {
    let mut parts = text.split([':', '.']).map(str::parse::<u64>);
    let mut next = || parts.next()?.ok();
    let seconds = (next()? * 60 + next()?) * 60 + next()?;
    Some(Duration::from_secs(seconds) + Duration::from_nanos(next()?))
}

impl Witness {
    fn log(&self) -> &Journal<String> {
        self.robot.log()
    }

    fn wait(&self, mark: usize, what: &str, wanted: impl Fn(&str) -> bool) {
        let found = self.log().wait(mark, what, |line| wanted(line));
        found.unwrap_or_else(|err| panic!("{err}\n{}", self.text()));
    }

    /// Waits for `count` more frames behind the encoder: time, as the pipeline knows it.
    fn wait_frames(&self, count: usize) {
        let enough = self.frames("before").len() + count;
        let there = || (self.frames("before").len() >= enough).then_some(());
        assert!(poll(DEADLINE, there).is_some(), "{}", self.text());
    }

    /// What the robot wrote, without the frames.
    fn text(&self) -> String {
        let lines = self.log().all();
        let lines = lines.iter().filter(|line| !line.contains("basetransform"));
        lines.map(|line| line.to_owned() + "\n").collect()
    }

    /// What passed the identity `name`.
    fn frames(&self, name: &str) -> Vec<Passage> {
        let lines = self.log().all();
        let passages = lines.iter().filter_map(|line| Passage::read(line, name));
        passages.collect()
    }

    /// Ends the robot where it is; nothing of any fault has come to its pipeline.
    fn end(mut self) {
        self.wait_frames(15);
        let begin = Instant::now();
        self.robot.end().unwrap();
        let took = begin.elapsed();
        let text = self.text();
        assert!(!text.contains("ERROR"), "{text}");

        let (before, after) = (self.frames("before"), self.frames("after"));
        let held = before.iter().zip(&after).map(|(before, after)| {
            assert_eq!(before.time, after.time);
            after.at - before.at
        });
        let held = held.max().unwrap();
        let recorded = self.frames("recorded");
        assert_eq!(recorded[0].time, before[0].time);
        let steps = || recorded.windows(2).map(|pair| (&pair[0], &pair[1]));
        for (one, next) in steps() {
            let step = next.time - one.time;
            assert!(
                step.abs_diff(FRAME) <= ROUNDED,
                "{step:?} after {:?}",
                one.time
            );
        }
        let gap = steps().map(|(one, next)| next.at - one.at).max().unwrap();
        let stall = self.stalls.worst();
        eprintln!(
            "{} frames, {gap:?} between two at most; held {held:?} at most; ended in {took:?}; \
             the machine stalled for {stall:?} at most",
            recorded.len(),
        );
        // A thread that holds a lock can be made to wait as well as the one that wants it.
        let busy = 2 * stall;
        assert!(held < HELD + busy, "{held:?}, stalls {stall:?}\n{text}");
        assert!(took < END + busy, "{took:?}, stalls {stall:?}\n{text}");
    }
}

macro_rules! at_each_relay {
    ($($test:ident)*) => {
        at_each_relay! { @ nginx Nginx $($test)* }
        at_each_relay! { @ mediamtx MediaMtx $($test)* }
    };
    (@ $module:ident $kind:ident $($test:ident)*) => {
        mod $module {
            use super::*;
            $(
                #[test]
                fn $test() {
                    if !Kind::$kind.notice_if_absent() {
                        super::$test(Kind::$kind);
                    }
                }
            )*
        }
    };
}

at_each_relay! {
    a_server_that_is_not_there_yet
    a_server_that_is_killed
    a_server_that_is_terminated
    a_server_that_stands_still
    a_server_that_stands_still_for_a_moment
    a_server_that_takes_connections_and_says_nothing
    a_wrong_password
    a_path_that_another_publisher_has
    a_name_that_nobody_knows
    a_black_hole
    half_a_second_in_which_nine_of_ten_packets_are_lost
    a_certificate_of_another_ca
    a_certificate_that_has_expired
    a_certificate_for_another_name
    a_tls_handshake_without_an_answer
}

fn a_server_that_is_not_there_yet(kind: Kind) {
    let mut scene = Scene::new(kind);
    scene.testbed.relay.kill();
    let robot = scene.robot();
    // Not before the pauses between two tries have grown.
    for _ in 0..4 {
        let mark = scene.mark(&robot);
        scene.wait_named(&robot, mark, StreamState::Backoff, "refused");
    }
    let events = scene.testbed.relay.events().mark();
    scene.testbed.relay.restart().unwrap();
    scene.wait_back(&robot, events, Instant::now());
    let mark = scene.mark(&robot);
    scene.testbed.relay.kill();
    scene.wait_named(&robot, mark, StreamState::Backoff, "refused");
    robot.end();
}

fn a_server_that_is_killed(kind: Kind) {
    is_lost(kind, |scene| scene.testbed.relay.kill());
}

fn a_server_that_is_terminated(kind: Kind) {
    is_lost(kind, |scene| scene.testbed.relay.terminate().unwrap());
}

fn is_lost(kind: Kind, lose: impl Fn(&mut Scene)) {
    let mut scene = Scene::new(kind);
    let robot = scene.robot();
    scene.wait_live(&robot);
    for _ in 0..2 {
        let mark = scene.mark(&robot);
        let events = scene.testbed.relay.events().mark();
        lose(&mut scene);
        // First what was lost, then that it is not back yet.
        scene.wait_named(&robot, mark, StreamState::Backoff, "the connection");
        scene.wait_named(&robot, mark, StreamState::Backoff, "refused");
        scene.testbed.relay.restart().unwrap();
        scene.wait_back(&robot, events, Instant::now());
    }
    let mark = scene.mark(&robot);
    lose(&mut scene);
    scene.wait_named(&robot, mark, StreamState::Backoff, "the connection");
    robot.end();
}

fn a_server_that_stands_still(kind: Kind) {
    const REASON: &str = "silent for 2 s";
    let scene = Scene::new(kind);
    let robot = scene.robot();
    scene.wait_live(&robot);
    let mark = scene.mark(&robot);
    scene.testbed.relay.freeze();
    scene.wait_named(&robot, mark, StreamState::Backoff, REASON);
    // The next connection is silent from the beginning.
    let mark = scene.mark(&robot);
    scene.wait_named(&robot, mark, StreamState::Backoff, REASON);
    let events = scene.testbed.relay.events().mark();
    scene.testbed.relay.thaw();
    scene.wait_back(&robot, events, Instant::now());
    let mark = scene.mark(&robot);
    scene.testbed.relay.freeze();
    scene.wait_named(&robot, mark, StreamState::Backoff, REASON);
    robot.end();
    scene.testbed.relay.thaw();
}

fn a_server_that_stands_still_for_a_moment(kind: Kind) {
    let scene = Scene::new(kind);
    let robot = scene.robot_at(&scene.testbed.relay.publish_url(), "timeout=5");
    scene.wait_live(&robot);
    let (mark, events) = (scene.mark(&robot), scene.testbed.relay.events().mark());
    scene.testbed.relay.freeze();
    robot.wait_frames(60);
    scene.testbed.relay.thaw();
    robot.wait_frames(60);
    scene.is_undisturbed(mark, events);
    // Ending cannot wait until the server has taken what was said last.
    scene.testbed.relay.freeze();
    robot.wait_frames(60);
    robot.end();
    scene.testbed.relay.thaw();
}

fn a_server_that_takes_connections_and_says_nothing(kind: Kind) {
    let scene = Scene::new(kind);
    let silence = SilentServer::before(scene.testbed.relay.rtmp_port()).unwrap();
    let location = scene
        .testbed
        .relay
        .publish_url_at("127.0.0.1", silence.port());
    is_silenced(&scene, &silence, &location, "timeout=2", "silent for 2 s");
}

fn is_silenced(scene: &Scene, silence: &SilentServer, location: &str, more: &str, reason: &str) {
    let silenced = || {
        let connections = silence.connections();
        let first = connections.mark();
        let robot = scene.robot_at(location, more);
        let mark = scene.mark(&robot);
        scene.wait_named(&robot, mark, StreamState::Backoff, reason);
        // The worst moment: the next connection has just been lost to silence.
        connections
            .wait(connections.mark(), "the next connection", |()| true)
            .unwrap();
        // And its try has been read: what is read later is a try after the fault's end.
        let read = || {
            let log = robot.log().all();
            let tries = log.iter().filter(|line| line.contains(CONNECTING)).count();
            (tries >= connections.mark() - first).then_some(())
        };
        assert!(poll(DEADLINE, read).is_some(), "{}", robot.text());
        robot
    };
    silenced().end();
    let robot = silenced();
    let events = scene.testbed.relay.events().mark();
    silence.end();
    scene.wait_back(&robot, events, Instant::now());
    robot.end();
}

fn a_wrong_password(kind: Kind) {
    let scene = Scene::new(kind);
    let right = &scene.testbed.relay.publisher.password;
    let refused = || {
        scene
            .testbed
            .write_publisher_password("a-wrong-one")
            .unwrap();
        let robot = scene.robot();
        let mark = scene.mark(&robot);
        scene.wait_named(&robot, mark, StreamState::Refused, "password");
        robot
    };
    refused().end();
    let robot = refused();
    let events = scene.testbed.relay.events().mark();
    scene.testbed.write_publisher_password(right).unwrap();
    scene.wait_back(&robot, events, Instant::now());
    robot.end();
}

/// Somebody else, who publishes there.
fn other_publisher(scene: &Scene) -> Process {
    let login = &scene.testbed.relay.publisher;
    let mut command = Command::new(program_of("ffmpeg", "ffmpeg").unwrap());
    command.args("-v error -nostdin -re -f lavfi -i testsrc=size=64x48:rate=10".split(' '));
    command.args("-c:v libx264 -tune zerolatency -g 10 -f flv".split(' '));
    command.arg(format!(
        "{}?user={}&pass={}",
        scene.testbed.relay.publish_url(),
        login.user,
        login.password
    ));
    let events = scene.testbed.relay.events().mark();
    let other = Process::spawn("ffmpeg", &mut command).unwrap();
    scene.testbed.wait_relay(events, Event::Published);
    other
}

fn a_path_that_another_publisher_has(kind: Kind) {
    let scene = Scene::with(
        kind,
        relay::Options {
            exclusive: true,
            ..relay::Options::default()
        },
    );
    // MediaMTX says that it may publish, and hangs up two seconds later.
    let (state, reason) = match kind {
        Kind::Nginx => (StreamState::Refused, "another publisher"),
        Kind::MediaMtx => (StreamState::Backoff, "closed the connection"),
    };
    let refused = || {
        let other = other_publisher(&scene);
        let robot = scene.robot();
        let mark = scene.mark(&robot);
        scene.wait_named(&robot, mark, state.clone(), reason);
        (robot, other)
    };
    let (robot, mut other) = refused();
    robot.end();
    let mark = scene.testbed.relay.events().mark();
    other.kill();
    scene.testbed.wait_relay(mark, Event::Unpublished);

    let (robot, mut other) = refused();
    let events = scene.testbed.relay.events().mark();
    other.kill();
    scene.testbed.wait_relay(events, Event::Unpublished);
    scene.wait_back(&robot, events, Instant::now());
    robot.end();
}

fn a_name_that_nobody_knows(kind: Kind) {
    isolated(move |network| {
        let scene = Scene::far(kind);
        let robot = scene.robot_at(&scene.far_location("relay.example"), "timeout=2");
        let mark = Mark::default();
        let named = |reason| scene.wait_named(&robot, mark, StreamState::Backoff, reason);
        named("cannot look up \"relay.example\"");
        let names = NameServer::start(network).unwrap();
        named("no name server (DNS) has answered within 2 s");
        // The worst moment: the next question has just been lost.
        let (asked, said) = (names.queries().mark(), robot.log().mark());
        let queries = names.queries();
        queries.wait(asked, "the next question", |()| true).unwrap();
        // The try that asked it is not one of those after the fault.
        let tries = |line: &String| line.contains(CONNECTING);
        robot.log().wait(said, "the next try", tries).unwrap();
        let events = scene.testbed.relay.events().mark();
        names.answer();
        scene.wait_back(&robot, events, Instant::now());
        robot.end();
    });
    isolated(move |network| {
        let scene = Scene::far(kind);
        let names = NameServer::start(network).unwrap();
        let robot = scene.robot_at(&scene.far_location("relay.example"), "timeout=2");
        let queries = names.queries();
        queries.wait(0, "a question", |()| true).unwrap();
        robot.end();
    });
}

fn a_black_hole(kind: Kind) {
    isolated(move |network| {
        let scene = Scene::far(kind);
        let robot = scene.robot_at(&scene.far_location(FAR), "timeout=2");
        scene.wait_live(&robot);
        let lost = || {
            let mark = scene.mark(&robot);
            network.lose(Loss::All).unwrap();
            scene.wait_named(&robot, mark, StreamState::Backoff, "the connection");
            // The next connection is not even made.
            let reason = "has not answered within 2 s";
            scene.wait_named(&robot, mark, StreamState::Backoff, reason);
        };
        lost();
        let events = scene.testbed.relay.events().mark();
        network.heal().unwrap();
        scene.wait_back(&robot, events, Instant::now());
        lost();
        robot.end();
    });
}

fn half_a_second_in_which_nine_of_ten_packets_are_lost(kind: Kind) {
    isolated(move |network| {
        let scene = Scene::far(kind);
        let robot = scene.robot_at(&scene.far_location(FAR), "timeout=5");
        scene.wait_live(&robot);
        let reader = Reader::start(&scene.testbed.relay.viewer_url(), None).unwrap();
        reader.wait_frames(15).unwrap();
        for _ in 0..3 {
            let (mark, events) = (scene.mark(&robot), scene.testbed.relay.events().mark());
            network.lose(Loss::Most).unwrap();
            robot.wait_frames(15);
            network.heal().unwrap();
            let healed = Instant::now();
            let seen = reader.frames().mark();
            let again = reader.wait_frames(seen + 1).unwrap() - healed;
            eprintln!("the next picture comes {again:?} after the fault's end");
            assert!(again < BACK, "{again:?}\n{}", robot.text());
            reader.wait_frames(seen + 30).unwrap();
            scene.is_undisturbed(mark, events);
        }
        network.lose(Loss::Most).unwrap();
        robot.end();
    });
}

/// The server shows `wrong`, and then what the robot's `ca-file` and location ask for.
fn a_certificate(kind: Kind, wrong: impl FnOnce(&Authority) -> Identity, reason: &str) {
    const HERE: &[&str] = &["localhost"];
    let authority = Authority::new().unwrap();
    let options = relay::Options {
        tls: Some(wrong(&authority)),
        ..relay::Options::default()
    };
    let mut scene = Scene::with(kind, options);
    let ca_file = authority.write(scene.folder.path()).unwrap();
    let more = format!("timeout=2 ca-file={}", ca_file.display());
    let refused = |scene: &Scene| {
        let robot = scene.robot_at(&scene.testbed.relay.secure_publish_url("localhost"), &more);
        let mark = scene.mark(&robot);
        scene.wait_named(&robot, mark, StreamState::Backoff, reason);
        robot
    };
    refused(&scene).end();
    let robot = refused(&scene);
    scene.testbed.relay.kill();
    let right = authority.server(HERE, Validity::Now).unwrap();
    scene.testbed.relay.set_identity(right);
    let events = scene.testbed.relay.events().mark();
    scene.testbed.relay.restart().unwrap();
    scene.wait_back(&robot, events, Instant::now());
    robot.end();
}

fn a_certificate_of_another_ca(kind: Kind) {
    let wrong = |_: &Authority| {
        let other = Authority::new().unwrap();
        other.server(&["localhost"], Validity::Now).unwrap()
    };
    a_certificate(kind, wrong, "set ca-file");
}

fn a_certificate_that_has_expired(kind: Kind) {
    let wrong = |authority: &Authority| {
        let expired = authority.server(&["localhost"], Validity::Expired);
        expired.unwrap()
    };
    a_certificate(kind, wrong, "expired");
}

fn a_certificate_for_another_name(kind: Kind) {
    let wrong = |authority: &Authority| {
        let other = authority.server(&["elsewhere.example"], Validity::Now);
        other.unwrap()
    };
    a_certificate(kind, wrong, "elsewhere.example");
}

fn a_tls_handshake_without_an_answer(kind: Kind) {
    let authority = Authority::new().unwrap();
    let options = relay::Options {
        tls: Some(authority.server(&["localhost"], Validity::Now).unwrap()),
        ..relay::Options::default()
    };
    let scene = Scene::with(kind, options);
    let ca_file = authority.write(scene.folder.path()).unwrap();
    let url = scene.testbed.relay.secure_publish_url("localhost");
    let (_, port) = url.split_once("localhost:").unwrap();
    let (port, _) = port.split_once('/').unwrap();
    let silence = SilentServer::before(port.parse().unwrap()).unwrap();
    let location = url.replace(port, &silence.port().to_string());
    let more = format!("timeout=2 ca-file={}", ca_file.display());
    is_silenced(&scene, &silence, &location, &more, "no TLS session");
}
