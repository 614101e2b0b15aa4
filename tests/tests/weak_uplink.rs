//! A line that gets narrow and wide again: the encoder follows, and the viewer is never far
//! behind.

use std::{
    thread,
    time::{Duration, Instant},
};

use droidrelay_tests::{
    journal::DEADLINE,
    line::{Line, Quality, SERVER},
    netns::{is_forbidden, tell_skipped},
    relay::{Kind, Options, Relay},
    robot::{Robot, Runner},
    secrets::write_private,
    stamps::{Arrival, StampReader, StampedCamera},
};

const MAX_LATENCY: Duration = Duration::from_secs(1);
/// The encoder's own, in kilobits per second.
const BITRATE: u32 = 1500;

/// A robot and a viewer of its stream, with a line between robot and server.
struct Scene {
    // Dropped in this order: who depends on something goes before it.
    robot: Robot,
    reader: StampReader,
    camera: StampedCamera,
    _relay: Relay,
    _secrets: tempfile::TempDir,
    line: Line,
}

impl Scene {
    /// None where this machine does not permit it.
    fn start(sink: &str) -> Option<Self> {
        let line = match Line::new(Quality::rate(2000)) {
            Ok(line) => line,
            Err(err) if is_forbidden(&err) => {
                tell_skipped(thread::current().name().unwrap_or_default());
                return None;
            }
            Err(err) => panic!("{err:#}"),
        };
        let zero = Instant::now();
        let relay = line.server.run(|_| {
            let options = Options {
                far: true,
                ..Options::default()
            };
            Relay::start_with(Kind::Nginx, options).unwrap()
        });
        let url = relay.viewer_url();
        let reader = line
            .server
            .run(move |_| StampReader::start(&url, zero).unwrap());
        let camera = StampedCamera::start(zero).unwrap();
        let secrets = tempfile::tempdir().unwrap();
        let password = write_private(secrets.path(), "pass", &relay.publisher.password).unwrap();
        let robot = format!(
            "-v {} ! x264enc name=enc tune=zerolatency speed-preset=ultrafast bitrate={BITRATE} key-int-max=25 \
             ! rtmpauthsink location={} user={} password-file={} max-latency={} {sink}",
            camera.source(),
            relay.publish_url().replace("127.0.0.1", SERVER),
            relay.publisher.user,
            password.display(),
            MAX_LATENCY.as_nanos(),
        );
        let robot = line.robot.run(move |_| {
            let environment = [("GST_DEBUG", "rtmpauthsink:5"), ("GST_DEBUG_NO_COLOR", "1")];
            Robot::start_with(Runner::GstLaunch, &robot, &environment).unwrap()
        });
        Some(Scene {
            robot,
            reader,
            camera,
            _relay: relay,
            _secrets: secrets,
            line,
        })
    }

    fn wait_frame(&self, mark: usize, what: &str, wanted: impl Fn(&Arrival) -> bool) -> Arrival {
        match self.reader.arrivals().wait(mark, what, wanted) {
            Ok((_, arrival)) => arrival,
            Err(err) => panic!("{err}\n{}\n{}", self.robot.text(), self.reader.text()),
        }
    }

    /// Waits until the encoder is told a bitrate like this.
    fn wait_bitrate(&self, mark: usize, patience: Duration, wanted: impl Fn(u32) -> bool) -> u32 {
        let told = |line: &String| bitrate(line).is_some_and(&wanted);
        match self.robot.log().try_wait(mark, patience, told) {
            Some((_, line)) => bitrate(&line).unwrap(),
            None => panic!("not such a bitrate\n{}", self.robot.text()),
        }
    }

    fn latest(&self, mark: usize) -> Duration {
        let arrivals = self.reader.arrivals().since(mark);
        arrivals.iter().map(Arrival::latency).max().unwrap()
    }
}

/// In kilobits per second, where the encoder's is told.
fn bitrate(line: &str) -> Option<u32> {
    line.split_once("GstX264Enc:enc: bitrate = ")?
        .1
        .parse()
        .ok()
}

#[test]
fn the_encoder_follows_the_line_and_the_viewer_is_never_far_behind() {
    let Some(scene) = Scene::start("adaptive-bitrate=true") else {
        return;
    };
    let arrivals = scene.reader.arrivals();
    scene.wait_frame(0, "a picture", |_| true);
    scene.wait_frame(100, "a steady stream", |frame| {
        frame.latency() < Duration::from_millis(300)
    });

    let (frames, lines) = (arrivals.mark(), scene.robot.log().mark());
    let narrow = Instant::now();
    scene.line.become_like(Quality::rate(400)).unwrap();
    scene.wait_bitrate(lines, DEADLINE, |bitrate| bitrate < 400);
    println!("below the line's rate after {:?}", narrow.elapsed());
    // Those that were sent before are through when a frame is as early as ever.
    let mark = arrivals.mark();
    scene.wait_frame(mark, "a frame in time", |frame| {
        frame.latency() < Duration::from_millis(300)
    });
    let settled = arrivals.mark();
    scene.wait_frame(settled + 100, "more frames", |_| true);
    // What waits at the narrow place itself comes on top of what waits in the robot.
    let latest = scene.latest(frames);
    println!(
        "at most {latest:?} behind, {:?} later on",
        scene.latest(settled)
    );
    assert!(
        latest < MAX_LATENCY + Duration::from_millis(1500),
        "{latest:?}"
    );
    assert!(scene.latest(settled) < MAX_LATENCY);

    let lines = scene.robot.log().mark();
    scene.line.become_like(Quality::rate(2000)).unwrap();
    scene.wait_bitrate(lines, 3 * DEADLINE, |bitrate| bitrate == BITRATE);
    let taken = scene.camera.taken().mark();
    println!("{} of {taken} pictures came", arrivals.mark());
}

#[test]
fn without_adaptive_bitrate_the_viewer_is_not_far_behind_either() {
    let Some(scene) = Scene::start("") else {
        return;
    };
    let arrivals = scene.reader.arrivals();
    scene.wait_frame(0, "a picture", |_| true);
    let narrow = arrivals.mark();
    scene.line.become_like(Quality::rate(400)).unwrap();
    scene.wait_frame(narrow + 50, "50 pictures", |_| true);
    let latest = scene.latest(narrow);
    println!("at most {latest:?} behind");
    assert!(
        latest < MAX_LATENCY + Duration::from_millis(1500),
        "{latest:?}"
    );
    let wide = arrivals.mark();
    scene.line.become_like(Quality::rate(2000)).unwrap();
    scene.wait_frame(wide, "a frame in time", |frame| {
        frame.latency() < Duration::from_millis(300)
    });
    let told = |line: &String| bitrate(line).is_some();
    let lines = scene.robot.log().all();
    assert_eq!(lines.iter().find(|line| told(line)), None);
}
