// SPDX-License-Identifier: MPL-2.0

//! However credentials are set, they show nowhere. A program of its own: it reads all that
//! GStreamer logs.

mod common;

use std::sync::{Arc, Mutex, PoisonError};

use common::{launch, until};
use droidrelay_testkit::{
    certs::{random_word, write_private},
    net::proxy::Proxy,
    servers::{
        mosquitto::Mosquitto,
        relay::{Event, Kind, Relay},
    },
};
use gst::prelude::*;
use gstdroidrelay::rtmpauthsink::State;

/// Texts that must not show, and where they did.
#[derive(Clone, Default)]
struct Watch(Arc<Mutex<Watched>>);

#[derive(Default)]
struct Watched {
    secrets: Vec<String>,
    texts: usize,
    leaks: Vec<String>,
}

impl Watch {
    /// A word that is watched for from now on.
    fn word(&self) -> String {
        let word = random_word().unwrap();
        self.add(&word);
        word
    }

    fn add(&self, secret: &str) {
        self.lock().secrets.push(secret.to_owned());
    }

    fn look(&self, place: &str, text: &str) {
        let mut watched = self.lock();
        watched.texts += 1;
        if watched.secrets.iter().any(|secret| text.contains(secret)) {
            watched.leaks.push(format!("{place}: {text}"));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A robot's line, made without a text of which GStreamer would log everything.
struct Line {
    pipeline: gst::Pipeline,
    valve: gst::Element,
    sink: gst::Element,
    watch: Watch,
    /// What the valve has last said is wrong.
    fault: Arc<Mutex<String>>,
}

impl Line {
    fn new(watch: &Watch) -> Self {
        let pipeline = launch(
            "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=10/1 \
             ! mqttvalve name=valve ! x264enc tune=zerolatency \
             ! rtmpauthsink name=sink",
        );
        let (looker, fault) = (watch.clone(), Arc::new(Mutex::default()));
        let last = fault.clone();
        pipeline.bus().unwrap().set_sync_handler(move |_, message| {
            looker.look("bus", &format!("{message:?}"));
            let error = message
                .structure()
                .map(|said| said.get::<String>("last-error"));
            if let Some(Ok(error)) = error {
                *last.lock().unwrap() = error;
            }
            gst::BusSyncReply::Drop
        });
        // As gst-launch-1.0 -v does.
        pipeline.add_property_deep_notify_watch(None, true);
        let element = |name| pipeline.by_name(name).unwrap();
        Line {
            valve: element("valve"),
            sink: element("sink"),
            watch: watch.clone(),
            fault,
            pipeline,
        }
    }

    fn start(&self) {
        self.pipeline.set_state(gst::State::Playing).unwrap();
        let opened: bool = self.valve.emit_by_name("start", &[&"local", &0u32]);
        assert!(opened);
    }

    fn wait(&self, state: State) {
        until(&format!("{state:?}"), || {
            self.sink.property::<State>("state") == state
        });
        self.look();
    }

    /// At all that can be asked of it.
    fn look(&self) {
        let dot = self
            .pipeline
            .debug_to_dot_data(gst::DebugGraphDetails::all());
        assert!(dot.contains("GstRtmpAuthSink"));
        self.watch.look("dot", &dot);
        for element in self.pipeline.iterate_recurse().into_iter().flatten() {
            for property in element.list_properties() {
                if property.flags().contains(glib::ParamFlags::READABLE) {
                    let value = element.property_value(property.name());
                    let place = format!("{}.{}", element.name(), property.name());
                    self.watch.look(&place, &format!("{value:?}"));
                }
            }
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// Type and whole bytes of each MQTT packet in `stream`.
fn packets(mut stream: &[u8]) -> Vec<(u8, &[u8])> {
    let mut packets = Vec::new();
    while let Some(first) = stream.first() {
        let (mut length, mut header) = (0, 1);
        loop {
            let byte = stream[header];
            length |= usize::from(byte & 0x7f) << (7 * (header - 1));
            header += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let (packet, rest) = stream.split_at((header + length).min(stream.len()));
        packets.push((first >> 4, packet));
        stream = rest;
    }
    packets
}

#[test]
fn no_secret_shows_however_it_is_set() {
    let watch = Watch::default();
    let broker = Mosquitto::start().unwrap();
    let relay = Relay::start(Kind::Nginx).unwrap();
    let link = Proxy::start(broker.port()).unwrap();
    link.record();
    let folder = tempfile::tempdir().unwrap();
    // Not to this process's terminal.
    gst::init().unwrap();
    gst::log::remove_default_log_function();
    let looker = watch.clone();
    gst::log::add_log_function(move |_, _, _, _, _, _, message| {
        if let Some(text) = message.get() {
            looker.look("log", &text);
        }
    });
    gst::log::set_default_threshold(gst::DebugLevel::Memdump);

    let (mqtt, rtmp) = (&broker.robot, &relay.publisher);
    watch.add(&mqtt.password);
    watch.add(&rtmp.password);
    let file = |name: &str, text: &str| {
        let path = write_private(folder.path(), name, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let broker_url = |login: &str| format!("mqtt://{login}127.0.0.1:{}", link.port());
    let publish_url = |login: &str| relay.publish_url().replace("://", &format!("://{login}"));

    // The ways in.
    for way in ["url", "query", "properties", "files"] {
        let line = Line::new(&watch);
        let valve = |name: &str, value: &str| line.valve.set_property(name, value);
        let sink = |name: &str, value: &str| line.sink.set_property(name, value);
        match way {
            "url" | "query" => {
                let login = format!("{}:{}@", mqtt.user, mqtt.password);
                valve("broker", &broker_url(&login));
            }
            _ => {
                valve("broker", &broker_url(""));
                valve("username", &mqtt.user);
            }
        }
        match way {
            "url" => sink(
                "location",
                &publish_url(&format!("{}:{}@", rtmp.user, rtmp.password)),
            ),
            "query" => sink(
                "location",
                &(publish_url("") + &format!("?user={}&pass={}", rtmp.user, rtmp.password)),
            ),
            _ => {
                sink("location", &publish_url(""));
                sink("user", &rtmp.user);
            }
        }
        match way {
            "properties" => {
                valve("password", &mqtt.password);
                sink("password", &rtmp.password);
            }
            "files" => {
                valve("password-file", &file("mqtt", &mqtt.password));
                sink("password-file", &file("rtmp", &rtmp.password));
            }
            _ => {}
        }
        line.start();
        line.wait(State::Publishing);
        until("a session", || line.valve.property("connected"));
        line.look();
    }

    // The ways to be refused.
    for mode in ["query", "token", "rtmp", "none"] {
        let line = Line::new(&watch);
        let login = format!("{}:{}@", mqtt.user, watch.word());
        line.valve.set_property("broker", broker_url(&login));
        let secret = watch.word() + "/&=?";
        line.sink.set_property("user", &rtmp.user);
        line.sink.set_property("password", &secret);
        line.sink.set_property("location", publish_url(""));
        line.sink.set_property_from_str("credential-mode", mode);
        line.start();
        // To nginx without credentials is to come with wrong ones.
        line.wait(State::Refused);
        until("the broker's reason", || {
            line.fault.lock().unwrap().contains("password")
        });
        line.look();
    }

    // The ways to be wrong before anything starts.
    for (name, property, value) in [
        ("valve", "broker", "http://u:{}@h"),
        ("valve", "broker", "mqtt://u:{}/x@h:x"),
        ("valve", "broker", "mqtt://u:{}@h/path"),
        ("sink", "location", "http://u:{}@h/live/stream"),
        ("sink", "location", "rtmp://u:{}/?x@h"),
        ("sink", "location", "rtmp://h?pass={}"),
    ] {
        let line = Line::new(&watch);
        line.sink.set_property("location", publish_url(""));
        let element = line.pipeline.by_name(name).unwrap();
        element.set_property(property, value.replace("{}", &watch.word()));
        line.look();
        assert!(line.pipeline.set_state(gst::State::Playing).is_err());
    }

    gst::log::set_default_threshold(gst::DebugLevel::None);
    let watched = watch.lock();
    assert_eq!(watched.leaks, [""; 0]);
    // It would have seen them: there was much to see, and they were used.
    assert!(watched.texts > 10_000, "{}", watched.texts);
    let questions = relay.questions().all();
    assert!(
        questions
            .iter()
            .any(|asked| asked.get("pass") == rtmp.password)
    );
    assert!(relay.events().all().contains(&Event::PublishRefused));
    let said = link.said();
    let mut logins = 0;
    for (kind, packet) in said.iter().flat_map(|stream| packets(stream)) {
        const CONNECT: u8 = 1;
        let text = String::from_utf8_lossy(packet);
        let is_connect = kind == CONNECT;
        let shows = |secret: &String| text.contains(secret);
        logins += usize::from(is_connect && shows(&mqtt.password));
        assert!(is_connect || !watched.secrets.iter().any(shows), "{text}");
        assert!(!shows(&rtmp.password), "{text}");
    }
    assert!(logins >= 4, "{logins}");
}
