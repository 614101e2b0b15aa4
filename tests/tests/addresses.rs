// SPDX-License-Identifier: MPL-2.0

//! A broker whose name has an IPv6 address first, in a network that loses IPv6 without a word: robot
//! and bridge reach it by the other address at once, and name each address where none answers.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    certs::{Authority, Login, Validity, write_private},
    clients::observer::Observer,
    net::netns::{FAR, Loss, isolated},
    robot::{Robot, Runner},
    servers::{
        bridge::{Bridge, Known},
        mosquitto::{Listener, Mosquitto, Options, TOPIC},
    },
};
use droidrelay_wire::{
    mqtt::broker::Scheme,
    words::topics::{OFFLINE, ONLINE},
};
use tempfile::TempDir;

const NAME: &str = "broker.test";
/// Of the documentation's addresses (RFC 3849), which come before all of IPv4 (RFC 6724).
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// From a robot's or bridge's first word to its session. The second address is tried 250 ms after
/// the first.
const SOON: Duration = Duration::from_secs(1);

struct Scene {
    // Dropped in this order: who depends on the broker goes before it.
    observer: Observer,
    broker: Mosquitto,
    authority: Authority,
    folder: TempDir,
}

impl Scene {
    /// Reached by each scheme at [`FAR`]; at [`FAR6`] by none.
    fn new() -> Self {
        let authority = Authority::new().unwrap();
        let listen = |scheme| Listener {
            scheme,
            address: IpAddr::V4(FAR.parse().unwrap()),
        };
        let broker = Mosquitto::start_with(Options {
            everywhere: true,
            tls: Some(authority.server(&[NAME], Validity::Now).unwrap()),
            listeners: [Scheme::Ws, Scheme::Wss].map(listen).to_vec(),
            ..Options::default()
        })
        .unwrap();
        let scene = Scene {
            observer: Observer::start(&broker).unwrap(),
            broker,
            authority,
            folder: tempfile::tempdir().unwrap(),
        };
        write_private(scene.folder.path(), "pass", &scene.broker.robot.password).unwrap();
        scene
    }

    fn url(&self, scheme: Scheme) -> String {
        match scheme {
            Scheme::Mqtt => format!("mqtt://{NAME}:{}", self.broker.port()),
            Scheme::Mqtts => format!("mqtts://{NAME}:{}", self.broker.tls_port()),
            _ => self.broker.url_at(scheme, NAME).unwrap(),
        }
    }

    fn robot(&self, scheme: Scheme) -> Robot {
        let trust = match scheme.is_tls() {
            false => String::new(),
            true => {
                let file = self.authority.write(self.folder.path()).unwrap();
                format!("ca-file={}", file.display())
            }
        };
        let line = format!(
            "-v videotestsrc is-live=true ! video/x-raw,format=GRAY8,width=64,height=48,framerate=30/1 \
             ! mqttvalve broker={} topic={TOPIC} username={} password-file={} {trust} ! fakesink async=false",
            self.url(scheme),
            self.broker.robot.user,
            self.folder.path().join("pass").display(),
        );
        let environment = [
            ("G_DEBUG", "fatal-criticals"),
            ("GST_DEBUG", "mqttvalve:4"),
            ("GST_DEBUG_NO_COLOR", "1"),
        ];
        Robot::start_with(Runner::GstLaunch, &line, &environment).unwrap()
    }
}

#[test]
fn a_broker_whose_first_address_is_silent_is_reached_by_the_next() {
    isolated(|network| {
        let _names = network.name_both(NAME, FAR6).unwrap();
        network.lose_to(FAR6).unwrap();
        let scene = Scene::new();
        for scheme in [Scheme::Mqtt, Scheme::Mqtts, Scheme::Ws, Scheme::Wss] {
            let mark = scene.observer.seen().mark();
            let mut robot = scene.robot(scheme);
            let (first, _) = robot.log().wait(0, "a word", |_| true).unwrap();
            let online = scene.observer.wait_available(mark, ONLINE);
            let online = online.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
            let took = online - first;
            eprintln!("{}: online after {took:?}", scheme.as_str());
            assert!(took < SOON, "{took:?}\n{}", robot.text());
            let mark = scene.observer.seen().mark();
            robot.end().unwrap();
            scene.observer.wait_available(mark, OFFLINE).unwrap();
        }
    });
}

#[test]
fn a_bridge_reaches_its_broker_by_the_address_that_answers() {
    isolated(|network| {
        let _names = network.name_both(NAME, FAR6).unwrap();
        network.lose_to(FAR6).unwrap();
        let scene = Scene::new();
        let robots = [Known {
            name: "robot",
            topic: TOPIC,
            path: "robot1",
        }];
        let user = Login::generate("app").unwrap();
        let began = Instant::now();
        let watch = "rtsp://127.0.0.1:9";
        // Back when it is in touch with the broker.
        let url = scene.url(Scheme::Mqtt);
        Bridge::start_at(&url, &scene.broker.bridge, &robots, watch, &user).unwrap();
        let took = began.elapsed();
        eprintln!("the bridge is in touch after {took:?}");
        assert!(took < SOON, "{took:?}");
    });
}

#[test]
fn a_broker_that_answers_at_no_address_is_told_with_each() {
    isolated(|network| {
        let _names = network.name_both(NAME, FAR6).unwrap();
        let scene = Scene::new();
        network.lose_to(FAR6).unwrap();
        network.lose(Loss::All).unwrap();
        let mut robot = scene.robot(Scheme::Mqtt);
        let port = scene.broker.port();
        let each = [format!("[{FAR6}]:{port}"), format!("{FAR}:{port}")];
        let said = robot.log().wait(0, "each address", |line| {
            line.contains("no MQTT session") && each.iter().all(|address| line.contains(address))
        });
        said.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
        robot.end().unwrap();
    });
}
