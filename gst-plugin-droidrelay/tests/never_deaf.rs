// SPDX-License-Identifier: MPL-2.0

//! Ending takes no time, whatever keeps the valve from its broker.

use std::{
    cell::Cell,
    fs,
    sync::{Mutex, Once, PoisonError, mpsc},
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    certs::{Authority, Validity},
    journal::DEADLINE,
    net::netns::{FAR, Loss, NameServer, isolated},
    process::{free_port, poll},
    servers::{
        mosquitto::{Mosquitto, Options, TOPIC},
        silent::SilentServer,
    },
};
use gst::prelude::*;

/// From the call to NULL.
const END: Duration = Duration::from_millis(200);
const ROUNDS: usize = 5;

/// Starts a valve with its `settings` and, once it is where `wait` brings it, ends it; several
/// times.
fn ends_in_time(settings: &str, wait: impl Fn(&Valve)) {
    // All valves of a process share one I/O thread, which is in the network of the first one.
    static ALONE: Mutex<()> = Mutex::new(());
    static PLUGIN: Once = Once::new();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    PLUGIN.call_once(|| {
        gst::init().unwrap();
        gstdroidrelay::plugin_register_static().unwrap();
    });
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let line =
                format!("videotestsrc is-live=true ! mqttvalve name=valve {settings} topic={TOPIC} drop=false ! fakesink");
            let pipeline: gst::Pipeline = gst::parse::launch(&line).unwrap().downcast().unwrap();
            let valve = Valve::start(&pipeline);
            wait(&valve);
            let begin = Instant::now();
            pipeline.set_state(gst::State::Null).unwrap();
            begin.elapsed()
        })
        .collect();
    took.sort();
    eprintln!("ends in {took:?}");
    // Others test at the same time: the middle one tells of us, the slowest of them.
    assert!(took[ROUNDS / 2] < END, "{took:?}");
}

struct Valve {
    /// What `notify::connected` tells.
    connected: mpsc::Receiver<bool>,
    bus: gst::Bus,
}

impl Valve {
    fn start(pipeline: &gst::Pipeline) -> Self {
        let (sender, connected) = mpsc::channel();
        let element = pipeline.by_name("valve").unwrap();
        element.connect_notify(Some("connected"), move |element, _| {
            let _ = sender.send(element.property::<bool>("connected"));
        });
        pipeline.set_state(gst::State::Playing).unwrap();
        Valve {
            connected,
            bus: pipeline.bus().unwrap(),
        }
    }

    fn wait_connected(&self) {
        assert_eq!(self.connected.recv_timeout(DEADLINE), Ok(true));
    }

    fn wait_error(&self, wanted: &str) {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            let message = self.bus.timed_pop_filtered(
                gst::ClockTime::from_seconds(1),
                &[gst::MessageType::Element],
            );
            let error = message.and_then(|message| {
                let error = message.structure()?.get::<Option<String>>("last-error");
                error.ok()?
            });
            if error.is_some_and(|error| error.contains(wanted)) {
                return;
            }
        }
        panic!("{wanted:?} is not said");
    }
}

fn login(broker: &Mosquitto) -> String {
    let robot = &broker.robot;
    format!("username={} password={}", robot.user, robot.password)
}

fn settings(broker: &Mosquitto, host: &str) -> String {
    format!("broker=mqtt://{host}:{} {}", broker.port(), login(broker))
}

#[test]
fn while_nobody_listens() {
    let settings = format!("broker=mqtt://127.0.0.1:{}", free_port().unwrap());
    ends_in_time(&settings, |valve| valve.wait_error("refused"));
}

#[test]
fn while_a_syn_is_lost() {
    isolated(|network| {
        network.lose(Loss::Syn).unwrap();
        ends_in_time(&format!("broker=mqtt://{FAR}"), |_| {
            let sent = poll(DEADLINE, || {
                let sockets = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
                // To 127.0.0.2:1883, SYN_SENT (Linux, proc_net_tcp).
                sockets.contains(" 0200007F:075B 02 ").then_some(())
            });
            assert!(sent.is_some(), "no SYN");
        });
    });
}

#[test]
fn while_a_connection_is_silent() {
    let silence = SilentServer::before(free_port().unwrap()).unwrap();
    for scheme in ["mqtt", "mqtts", "ws"] {
        let settings = format!("broker={scheme}://127.0.0.1:{}", silence.port());
        let connections = silence.connections();
        let seen = Cell::new(connections.mark());
        ends_in_time(&settings, |_| {
            let mark = seen.replace(seen.get() + 1);
            connections.wait(mark, "a connection", |()| true).unwrap();
        });
    }
}

#[test]
fn while_the_name_server_is_silent() {
    isolated(|network| {
        let names = NameServer::start(network).unwrap();
        ends_in_time("broker=mqtt://broker.example", |_| {
            // Where the first question is missed here, it is repeated.
            let mark = names.queries().mark();
            names.queries().wait(mark, "a question", |()| true).unwrap();
        });
    });
}

#[test]
fn while_connected() {
    let broker = Mosquitto::start().unwrap();
    ends_in_time(&settings(&broker, "127.0.0.1"), Valve::wait_connected);
}

#[test]
fn while_the_broker_stands_still() {
    let broker = Mosquitto::start().unwrap();
    ends_in_time(&settings(&broker, "127.0.0.1"), |valve| {
        // It still does from the last round.
        broker.thaw();
        valve.wait_connected();
        broker.freeze();
    });
}

#[test]
fn while_connected_through_a_black_hole() {
    isolated(|network| {
        let broker = Mosquitto::start_with(Options {
            everywhere: true,
            ..Options::default()
        })
        .unwrap();
        ends_in_time(&settings(&broker, FAR), |valve| {
            network.heal().unwrap();
            valve.wait_connected();
            network.lose(Loss::All).unwrap();
        });
    });
}

#[test]
fn while_the_login_is_refused() {
    let broker = Mosquitto::start().unwrap();
    let settings = format!(
        "broker=mqtt://127.0.0.1:{} username=robot1 password=a-wrong-one",
        broker.port()
    );
    ends_in_time(&settings, |valve| valve.wait_error("login"));
}

#[test]
fn while_the_certificate_is_refused() {
    let authority = Authority::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = authority.write(folder.path()).unwrap();
    let broker = Mosquitto::start_with(Options {
        tls: Some(authority.server(&["127.0.0.1"], Validity::Expired).unwrap()),
        ..Options::default()
    })
    .unwrap();
    let settings = format!(
        "broker=mqtts://127.0.0.1:{} ca-file={} {}",
        broker.tls_port(),
        ca.display(),
        login(&broker)
    );
    ends_in_time(&settings, |valve| valve.wait_error("expired"));
}
