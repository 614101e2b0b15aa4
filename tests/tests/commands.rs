//! What becomes of commands, whatever happens to the broker and to the robot's link: a robot of
//! gst-launch-1.0 and a real Mosquitto.

use droidrelay_tests::{
    link::Link,
    mosquitto::{self, Mosquitto},
    observer::Observer,
    rig::TINY_PICTURE,
    robot::{Robot, Runner},
};
use droidrelay_wire::{session::Properties, RobotState, StreamState};

/// Broker, link and observer; robots come and go.
struct Scene {
    observer: Observer,
    link: Link,
    broker: Mosquitto,
}

impl Scene {
    fn new() -> Self {
        Self::with(mosquitto::Options::default())
    }

    fn with(options: mosquitto::Options) -> Self {
        let broker = Mosquitto::start_with(options).unwrap();
        Scene {
            observer: Observer::start(&broker).unwrap(),
            link: Link::start(broker.port()).unwrap(),
            broker,
        }
    }

    /// Online by the link, and idle; `properties` are mqttvalve's.
    fn robot(&self, properties: &str) -> Robot {
        let valve = self.broker.valve_by(self.link.port());
        let line = format!("{TINY_PICTURE} ! {valve} {properties} ! fakesink");
        // The valve tells of each opening, critical messages of GStreamer end the robot.
        let environment = [("GST_DEBUG", "mqttvalve:4"), ("G_DEBUG", "fatal-criticals")];
        self.observer
            .robot(Runner::GstLaunch, &line, &environment)
            .unwrap()
    }

    fn send(&self, command: &str) {
        self.observer.send(command).unwrap();
    }

    /// Sends `command`; back when the robot has obeyed it.
    fn obeyed(&self, command: &str, correlation: &str) -> RobotState {
        let mark = self.observer.seen().mark();
        let properties = Properties {
            correlation: Some(correlation.into()),
            ..Properties::default()
        };
        self.observer.send_with(command, properties).unwrap();
        let done = |state: &RobotState| state.last_command_id.as_deref() == Some(correlation);
        *self.observer.wait_where(mark, correlation, done).unwrap().1
    }
}

#[test]
fn a_sender_sees_by_its_own_id_that_its_command_was_executed() {
    let scene = Scene::new();
    let mut robot = scene.robot("");
    let seen = scene.observer.seen();

    let state = scene.obeyed("start", "request-1");
    assert_ne!(state.state, StreamState::Idle);
    assert_eq!(scene.obeyed("stop", "request-2").state, StreamState::Idle);
    // Text that is not fit to be shown gives way to the id in the command.
    for correlation in [&b"\xff\xfe"[..], b"", b"a\nb", &[b'x'; 129]] {
        scene.obeyed("keyframe", "in between");
        let mark = seen.mark();
        let properties = Properties {
            correlation: Some(correlation.into()),
            ..Properties::default()
        };
        let command = r#"{"command":"stop","id":"phone-7"}"#;
        scene.observer.send_with(command, properties).unwrap();
        let named = |state: &RobotState| state.last_command_id.as_deref() == Some("phone-7");
        scene.observer.wait_where(mark, "phone-7", named).unwrap();
    }
    let mark = seen.mark();
    scene.send("start");
    let unnamed = |state: &RobotState| state.last_command_id.is_none();
    let (_, state) = scene.observer.wait_where(mark, "no id", unnamed).unwrap();
    assert_eq!(state.more["last_command"], "start");
    robot.end().unwrap();
}
