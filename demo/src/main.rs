// SPDX-License-Identifier: MPL-2.0

//! The whole of Droidrelay on loopback, to try by hand or, with `--once`, by itself;
//! `pipelines/demo.sh` builds and runs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use droidrelay_wire::{Command, StreamState, words::topics::OFFLINE};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use droidrelay_testkit::{
    clients::{observer::Seen, reader::Reader},
    journal::Journal,
    robot::{
        Robot, Runner,
        camera::{Camera, Probe},
    },
    servers::{
        mosquitto::TOPIC,
        relay::{Event, Kind},
    },
    testbed::Testbed,
};

/// Frames that a round must decode.
const FRAMES: usize = 60;
const CAMERA_DEVICE: &str = "/dev/video0";
/// Between two looks at the robot's open files.
const LOOK: Duration = Duration::from_millis(5);

/// Runs broker, relay, bridge and a robot with its camera on this machine.
#[derive(Debug, Clone, Default, Parser)]
#[command(version)]
pub struct Options {
    /// Does one round by itself: start, 60 decoded frames, stop; exits 0 or 1
    #[arg(long)]
    pub once: bool,
    /// Writes the round's time line here
    #[arg(long, value_name = "FILE", requires = "once")]
    pub json: Option<PathBuf>,
    /// Writes one decoded picture here, as PNG
    #[arg(long, value_name = "FILE", requires = "once")]
    pub picture: Option<PathBuf>,
    /// The video to show where there is no camera at /dev/video0
    #[arg(long, value_name = "FILE")]
    pub clip: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    let timeline = Timeline::default();
    interrupt(&timeline)?;
    let demo = Demo::start(options, &timeline)?;
    println!("{}", demo.instructions()?);
    if options.once {
        let round = demo.round(options);
        if let Some(path) = &options.json {
            let report = demo.report(&round);
            fs::write(path, format!("{report:#}\n"))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        round
    } else {
        demo.stay()
    }
}

/// What is worth telling, in the order of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    ReaderWaits,
    StartAsked,
    StartAtBroker,
    ValveOpen,
    CameraOpen,
    Publishing,
    Live,
    FirstFrame,
    Frames,
    StopAsked,
    StopAtBroker,
    Unpublished,
    ValveClosed,
    CameraReleased,
    PublisherRefused,
    ReaderRefused,
    Trouble,
    RobotOffline,
    Interrupted,
}

impl Moment {
    fn as_str(self) -> &'static str {
        match self {
            Moment::ReaderWaits => "a viewer waits",
            Moment::StartAsked => "start asked",
            Moment::StartAtBroker => "start at the broker",
            Moment::ValveOpen => "valve open",
            Moment::CameraOpen => "camera open",
            Moment::Publishing => "publishing",
            Moment::Live => "live",
            Moment::FirstFrame => "first frame",
            Moment::Frames => "60 frames",
            Moment::StopAsked => "stop asked",
            Moment::StopAtBroker => "stop at the broker",
            Moment::Unpublished => "unpublished",
            Moment::ValveClosed => "valve closed",
            Moment::CameraReleased => "camera released",
            Moment::PublisherRefused => "publisher refused",
            Moment::ReaderRefused => "viewer refused",
            Moment::Trouble => "trouble",
            Moment::RobotOffline => "robot offline",
            Moment::Interrupted => "interrupted",
        }
    }

    /// The moment from which those after it count their milliseconds.
    fn is_beginning(self) -> bool {
        matches!(
            self,
            Moment::StartAsked | Moment::StartAtBroker | Moment::StopAsked | Moment::StopAtBroker
        )
    }
}

#[derive(Clone)]
struct Entry {
    moment: Moment,
    at: Instant,
    detail: String,
}

/// The moments, whoever reports them; printed as they come.
#[derive(Clone, Default)]
struct Timeline {
    entries: Journal<Entry>,
}

impl Timeline {
    fn add(&self, moment: Moment, at: Instant, detail: &str) {
        self.entries.push(Entry {
            moment,
            at,
            detail: detail.to_owned(),
        });
    }

    /// The time of the first `moment` from `mark` on; fails at once when the user ends the demo.
    fn wait(&self, mark: usize, moment: Moment) -> Result<Instant> {
        let what = format!("\"{}\"", moment.as_str());
        let (_, entry) = self.entries.wait(mark, &what, |entry| {
            [moment, Moment::Interrupted].contains(&entry.moment)
        })?;
        ensure!(entry.moment == moment, "interrupted");
        Ok(entry.at)
    }

    /// Prints from now on. Milliseconds count from the last request.
    fn print(&self) {
        let began = Mutex::new(None::<(Instant, bool)>);
        self.entries.listen(move |_, entry: &Entry| {
            let Ok(mut began) = began.lock() else { return };
            // A request by HTTP is the beginning; that it then comes by MQTT is not another.
            let asked = matches!(entry.moment, Moment::StartAsked | Moment::StopAsked);
            let fresh = match *began {
                Some((_, by_http)) => asked || !by_http,
                None => true,
            };
            if entry.moment.is_beginning() && fresh {
                *began = Some((entry.at, asked));
            }
            let time = began.map_or(String::new(), |(began, _)| {
                format!("{:.1} ms", milliseconds(began, entry.at))
            });
            println!("{time:>12}  {:<20} {}", entry.moment.as_str(), entry.detail);
        });
    }
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    let (from, to, sign) = if to >= from {
        (from, to, 1.0)
    } else {
        (to, from, -1.0)
    };
    let micros = (to - from).as_micros() as f64;
    sign * (micros / 10.0).round() / 100.0
}

/// SIGINT, SIGTERM and SIGHUP become a moment, so that everything is taken down in order.
fn interrupt(timeline: &Timeline) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let signals = {
        let _context = runtime.enter();
        [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]
    };
    let timeline = timeline.clone();
    thread::spawn(move || {
        let [mut interrupt, mut terminate, mut hangup] = signals;
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        timeline.add(Moment::Interrupted, Instant::now(), "");
    });
    Ok(())
}

struct Demo {
    // Dropped in this order.
    _watch: Watch,
    robot: Robot,
    camera: Camera,
    testbed: Testbed,
    line: String,
    timeline: Timeline,
}

impl Demo {
    fn start(options: &Options, timeline: &Timeline) -> Result<Self> {
        let camera = match &options.clip {
            _ if Path::new(CAMERA_DEVICE).exists() => Camera::device(Path::new(CAMERA_DEVICE)),
            Some(clip) => Camera::clip(clip)?,
            None => Camera::test_picture()?,
        };
        let kind = match droidrelay_testkit::servers::relay::find_mediamtx() {
            Some(_) => Kind::MediaMtx,
            None => Kind::Nginx,
        };
        let testbed = Testbed::start(kind)?;
        let line = testbed.line(&camera.line());
        let robot = testbed.robot(Runner::GstLaunch, &line)?;
        let watch = Watch::start(camera.probe(), robot.id(), timeline);
        listen(&testbed, timeline);
        timeline.print();
        Ok(Demo {
            _watch: watch,
            robot,
            camera,
            testbed,
            line,
            timeline: timeline.clone(),
        })
    }

    fn instructions(&self) -> Result<String> {
        let Testbed {
            bridge,
            broker,
            relay,
            ..
        } = &self.testbed;
        let player = match relay.kind() {
            Kind::Nginx => "ffplay -fflags nobuffer",
            Kind::MediaMtx => "ffplay -fflags nobuffer -rtsp_transport tcp",
        };
        let curl = format!("curl -u {}:{}", bridge.user.user, bridge.user.password);
        let operator = format!(
            "-h 127.0.0.1 -p {} -u {} -P {}",
            broker.port(),
            broker.operator.user,
            broker.operator.password
        );
        let url = bridge.url();
        let watch = relay.viewer_url();
        Ok(format!(
            "\
camera:   {camera}
relay:    {kind}; publisher {publisher} / {publisher_password}; viewer {viewer} / {viewer_password}
robot:    gst-launch-1.0 {line}

watch:    {player} '{watch}'
          vlc '{watch}'
start:    {curl} -X POST {url}/stream/start
          mosquitto_pub {operator} -q 1 -t {TOPIC} -m start
stop:     {curl} -X POST {url}/stream/stop
          mosquitto_pub {operator} -q 1 -t {TOPIC} -m stop
state:    {curl} {url}/robots/robot
          mosquitto_sub {operator} -v -t '{TOPIC}/#'
",
            camera = self.camera.name(),
            kind = relay.kind(),
            publisher = relay.publisher.user,
            publisher_password = relay.publisher.password,
            viewer = relay.viewer.user,
            viewer_password = relay.viewer.password,
            line = self.line,
        ))
    }

    /// Until the user ends it. A viewer waits all the time, to tell when a picture can be seen.
    fn stay(mut self) -> Result<()> {
        println!("Ctrl-C ends it. What happens:");
        let mut mark = 0;
        let mut reader = Some(self.read(None)?);
        loop {
            let entry = self
                .timeline
                .entries
                .try_wait(mark, Duration::from_millis(500), |_| true);
            ensure!(
                self.robot.is_running(),
                "the robot has ended\n{}",
                self.robot.text()
            );
            // A relay may lose patience with a reader that waits for long.
            if reader.as_mut().is_some_and(Reader::has_ended) {
                reader = Some(self.read(None)?);
            }
            let Some((_, entry)) = entry else { continue };
            mark += 1;
            match entry.moment {
                Moment::Interrupted => return Ok(()),
                Moment::FirstFrame => reader = None,
                Moment::Unpublished => reader = Some(self.read(None)?),
                _ => {}
            }
        }
    }

    /// A reader with the viewer's password, whose first frame comes into the time line.
    fn read(&self, picture: Option<&Path>) -> Result<Reader> {
        let reader = Reader::start(&self.testbed.relay.viewer_url(), picture)?;
        let timeline = self.timeline.clone();
        // Decoding takes far longer to begin than this takes.
        let counted = AtomicUsize::new(0);
        reader.frames().listen(
            move |at, _| match counted.fetch_add(1, Ordering::Relaxed) + 1 {
                1 => timeline.add(Moment::FirstFrame, at, ""),
                FRAMES => timeline.add(Moment::Frames, at, ""),
                _ => {}
            },
        );
        Ok(reader)
    }

    fn round(&self, options: &Options) -> Result<()> {
        let Demo {
            testbed,
            timeline,
            camera,
            robot,
            ..
        } = self;
        let result = self.play(options);
        if result.is_err() {
            eprintln!("{}\n{}", robot.text(), testbed.relay.text());
        }
        result?;
        let open = camera.probe().is_open_in(robot.id())?;
        ensure!(!open, "{} is open again", camera.name());
        let first = |moment| {
            let all = timeline.entries.all();
            let entry = all.into_iter().find(|entry| entry.moment == moment);
            entry.map(|entry| entry.at).context(moment.as_str())
        };
        let took = |from, to| Ok::<_, anyhow::Error>(milliseconds(first(from)?, first(to)?));
        println!(
            "\nstart to publishing {:.0} ms, to the first frame {:.0} ms; stop to unpublished {:.0} ms, to camera released {:.0} ms",
            took(Moment::StartAsked, Moment::Publishing)?,
            took(Moment::StartAsked, Moment::FirstFrame)?,
            took(Moment::StopAsked, Moment::Unpublished)?,
            took(Moment::StopAsked, Moment::CameraReleased)?,
        );
        Ok(())
    }

    fn play(&self, options: &Options) -> Result<()> {
        let Demo {
            testbed, timeline, ..
        } = self;
        let reader = self.read(options.picture.as_deref())?;
        timeline.wait(0, Moment::ReaderWaits)?;

        timeline.add(Moment::StartAsked, Instant::now(), "by HTTP");
        testbed.bridge.post("/stream/start")?;
        for moment in [
            Moment::ValveOpen,
            Moment::CameraOpen,
            Moment::Publishing,
            Moment::Live,
            Moment::FirstFrame,
            Moment::Frames,
        ] {
            let waited = timeline.wait(0, moment);
            waited.with_context(|| reader.text())?;
        }
        if let Some(path) = &options.picture {
            let length = fs::metadata(path).map(|file| file.len()).unwrap_or(0);
            ensure!(
                length > 0,
                "no picture at {}: {}",
                path.display(),
                reader.text()
            );
        }

        let mark = timeline.entries.mark();
        timeline.add(Moment::StopAsked, Instant::now(), "by HTTP");
        testbed.bridge.post("/stream/stop")?;
        for moment in [
            Moment::Unpublished,
            Moment::ValveClosed,
            Moment::CameraReleased,
        ] {
            timeline.wait(mark, moment)?;
        }
        Ok(())
    }

    fn report(&self, round: &Result<()>) -> serde_json::Value {
        let entries = self.timeline.entries.all();
        let zero = entries
            .iter()
            .find(|entry| entry.moment == Moment::StartAsked)
            .map_or_else(Instant::now, |entry| entry.at);
        let mut events: Vec<_> = entries.iter().collect();
        events.sort_by_key(|entry| entry.at);
        let events: Vec<_> = events
            .iter()
            .map(|entry| {
                json!({
                    "event": entry.moment.as_str(),
                    "ms": milliseconds(zero, entry.at),
                    "detail": entry.detail,
                })
            })
            .collect();
        json!({
            "ok": round.is_ok(),
            "error": round.as_ref().err().map(|err| format!("{err:#}")),
            "relay": self.testbed.relay.kind().to_string(),
            "camera": self.camera.name(),
            "events": events,
        })
    }
}

/// Brings what broker and relay see into the time line.
fn listen(testbed: &Testbed, timeline: &Timeline) {
    let moments = timeline.clone();
    testbed.relay.events().listen(move |at, event| {
        let moment = match event {
            Event::Published => Moment::Publishing,
            Event::PublishRefused => Moment::PublisherRefused,
            Event::Unpublished => Moment::Unpublished,
            Event::Reader => Moment::ReaderWaits,
            Event::ReaderRefused => Moment::ReaderRefused,
        };
        moments.add(moment, at, "");
    });
    let moments = timeline.clone();
    let last = Mutex::new(StreamState::Idle);
    testbed.observer.seen().listen(move |at, seen| match seen {
        Seen::Command(text) => match Command::parse(text.as_bytes()) {
            Ok(Command::Start { .. }) => moments.add(Moment::StartAtBroker, at, text),
            Ok(Command::Stop { .. }) => moments.add(Moment::StopAtBroker, at, text),
            _ => {}
        },
        Seen::State(state, _) => {
            let Ok(mut last) = last.lock() else { return };
            let before = std::mem::replace(&mut *last, state.state.clone());
            if before == state.state {
                return;
            }
            if before == StreamState::Idle {
                moments.add(Moment::ValveOpen, at, "");
            }
            let error = state.last_error.as_deref().unwrap_or_default();
            match &state.state {
                StreamState::Idle => moments.add(Moment::ValveClosed, at, state.cause.as_str()),
                StreamState::Live => moments.add(Moment::Live, at, ""),
                StreamState::Starting => {}
                other => moments.add(Moment::Trouble, at, &format!("{}: {error}", other.as_str())),
            }
        }
        Seen::Availability(text) if text == OFFLINE => moments.add(Moment::RobotOffline, at, ""),
        _ => {}
    });
}

/// Looks again and again whether the robot holds the camera open.
struct Watch {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(probe: Probe, robot: u32, timeline: &Timeline) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let (end, timeline) = (ended.clone(), timeline.clone());
        let thread = thread::spawn(move || {
            let mut was_open = false;
            while !end.load(Ordering::Relaxed) {
                // No process, no camera; the demo notices the former by itself.
                let is_open = probe.is_open_in(robot).unwrap_or(false);
                match (was_open, is_open) {
                    (false, true) => timeline.add(Moment::CameraOpen, Instant::now(), ""),
                    (true, false) => timeline.add(Moment::CameraReleased, Instant::now(), ""),
                    _ => {}
                }
                was_open = is_open;
                thread::sleep(LOOK);
            }
        });
        Watch {
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("demo: {err:#}");
            ExitCode::FAILURE
        }
    }
}
