// SPDX-License-Identifier: MPL-2.0

//! A robot's way to its broker by TLS and by WebSockets: in where both sides are who they say,
//! and else refused, with the reason named, while the pipeline goes on.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
    path::PathBuf,
};

use droidrelay_testkit::{
    certs::{Authority, Identity, Validity, write_private},
    clients::observer::Observer,
    robot::{Robot, Runner},
    servers::mosquitto::{Listener, Mosquitto, Options, TOPIC},
};
use droidrelay_wire::{
    StreamState,
    mqtt::broker::Scheme,
    words::topics::{OFFLINE, ONLINE},
};
use tempfile::TempDir;

/// A broker with what it shows to clients, and somebody who gives commands there.
struct Scene {
    // Dropped in this order: who depends on the broker goes before it.
    observer: Observer,
    broker: Mosquitto,
    folder: TempDir,
}

impl Scene {
    fn new(options: Options) -> Self {
        let broker = Mosquitto::start_with(options).unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_private(folder.path(), "pass", &broker.robot.password).unwrap();
        Scene {
            observer: Observer::start(&broker).unwrap(),
            broker,
            folder,
        }
    }

    /// With a certificate for `names` by `authority`, at the usual listener and at `listeners`.
    fn shows(authority: &Authority, names: &[&str], listeners: Vec<Listener>) -> Self {
        Scene::new(Options {
            tls: Some(authority.server(names, Validity::Now).unwrap()),
            listeners,
            ..Options::default()
        })
    }

    /// The property with which a robot trusts `authority`.
    fn ca_file(&self, authority: &Authority) -> String {
        let file = authority.write(self.folder.path()).unwrap();
        format!("ca-file={}", file.display())
    }

    fn login(&self) -> String {
        let file = self.folder.path().join("pass");
        let user = &self.broker.robot.user;
        format!("username={user} password-file={}", file.display())
    }

    fn robot(&self, url: &str, more: &str, environment: &[(&str, &str)]) -> Robot {
        let line = format!(
            "videotestsrc is-live=true ! video/x-raw,format=GRAY8,width=64,height=48,framerate=30/1 \
             ! mqttvalve broker={url} topic={TOPIC} {more} ! fakesink async=false"
        );
        let mut environment = environment.to_vec();
        environment.extend([
            ("G_DEBUG", "fatal-criticals"),
            ("GST_DEBUG", "mqttvalve:4"),
            ("GST_DEBUG_NO_COLOR", "1"),
        ]);
        Robot::start_with(Runner::GstLaunch, &line, &environment).unwrap()
    }

    /// It comes online, opens, closes and takes its leave.
    fn obeys(&self, mut robot: Robot) {
        let seen = self.observer.seen();
        let told = |done: anyhow::Result<_>| {
            done.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
        };
        told(self.observer.wait_available(0, ONLINE).map(drop));
        let mark = seen.mark();
        self.observer.send("start").unwrap();
        told(self.observer.wait_state(mark, StreamState::Live).map(drop));
        let mark = seen.mark();
        self.observer.send("stop").unwrap();
        told(self.observer.wait_state(mark, StreamState::Idle).map(drop));
        let mark = seen.mark();
        robot.end().unwrap();
        self.observer.wait_available(mark, OFFLINE).unwrap();
    }

    /// It says `reason` and the remedy at each try, and goes on; the broker never saw it.
    fn is_refused(&self, mut robot: Robot, reason: &str, remedy: &str) {
        let mut mark = 0;
        for _ in 0..2 {
            let said = robot.log().wait(mark, reason, |line| {
                line.contains("no MQTT session") && line.contains(reason) && line.contains(remedy)
            });
            said.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
            mark = robot.log().mark();
        }
        robot.end().unwrap();
        let seen = self.observer.seen();
        assert_eq!(seen.position(0, |seen| seen.is_available(ONLINE)), None);
    }
}

fn local(scheme: Scheme) -> Listener {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Listener { scheme, address }
}

/// Says so where this machine has no IPv6.
fn has_ipv6() -> bool {
    let has = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !has {
        eprintln!("NOTE: no IPv6 on this machine's loopback: its tests do not run");
    }
    has
}

#[test]
fn mqtts_by_a_ca_file() {
    let authority = Authority::new().unwrap();
    let scene = Scene::shows(&authority, &["localhost"], vec![]);
    let url = scene.broker.url_at(Scheme::Mqtts, "localhost").unwrap();
    let more = format!("{} {}", scene.login(), scene.ca_file(&authority));
    scene.obeys(scene.robot(&url, &more, &[]));
}

#[test]
fn a_ca_file_that_is_replaced_is_trusted_without_a_restart() {
    let (old, new) = (Authority::new().unwrap(), Authority::new().unwrap());
    let mut scene = Scene::shows(&old, &["localhost"], vec![]);
    let url = scene.broker.url_at(Scheme::Mqtts, "localhost").unwrap();
    let more = format!("{} {}", scene.login(), scene.ca_file(&old));
    let robot = scene.robot(&url, &more, &[]);
    scene.observer.wait_available(0, ONLINE).unwrap();
    // The same file, and the broker begins anew with the other authority's certificate.
    scene.ca_file(&new);
    let identity = new.server(&["localhost"], Validity::Now).unwrap();
    scene.broker.set_identity(&identity).unwrap();
    scene.broker.kill();
    scene.broker.restart().unwrap();
    scene
        .broker
        .wait_robot()
        .unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
    scene.obeys(robot);
}

#[test]
fn mqtts_by_the_systems_trust_store() {
    let authority = Authority::new().unwrap();
    let scene = Scene::shows(&authority, &["localhost"], vec![]);
    let url = scene.broker.url_at(Scheme::Mqtts, "localhost").unwrap();
    let store = authority.write(scene.folder.path()).unwrap();
    let environment = [("SSL_CERT_FILE", store.to_str().unwrap())];
    scene.obeys(scene.robot(&url, &scene.login(), &environment));
}

#[test]
fn a_certificate_that_the_systems_trust_store_does_not_know_is_refused() {
    let authority = Authority::new().unwrap();
    let scene = Scene::shows(&authority, &["localhost"], vec![local(Scheme::Wss)]);
    for scheme in [Scheme::Mqtts, Scheme::Wss] {
        let url = scene.broker.url_at(scheme, "localhost").unwrap();
        let robot = scene.robot(&url, &scene.login(), &[]);
        scene.is_refused(robot, "certificate is not accepted", "set ca-file");
    }
}

#[test]
fn a_certificate_of_another_ca_than_the_ca_files_is_refused() {
    let authority = Authority::named("ours").unwrap();
    let scene = Scene::shows(&authority, &["localhost"], vec![]);
    let url = scene.broker.url_at(Scheme::Mqtts, "localhost").unwrap();
    for name in ["theirs", "ours"] {
        let other = Authority::named(name).unwrap();
        let more = format!("{} {}", scene.login(), scene.ca_file(&other));
        let robot = scene.robot(&url, &more, &[]);
        scene.is_refused(robot, "certificate is not accepted", "set ca-file");
    }
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new().unwrap();
    let names = ["elsewhere.example"];
    let scene = Scene::shows(&authority, &names, vec![local(Scheme::Wss)]);
    let more = format!("{} {}", scene.login(), scene.ca_file(&authority));
    for (scheme, host) in [
        (Scheme::Mqtts, "localhost"),
        (Scheme::Mqtts, "127.0.0.1"),
        (Scheme::Wss, "localhost"),
    ] {
        let url = scene.broker.url_at(scheme, host).unwrap();
        let robot = scene.robot(&url, &more, &[]);
        scene.is_refused(robot, "certificate is not accepted", "elsewhere.example");
    }
}

/// A broker that takes those whose certificate `clients` has signed.
fn mutual(authority: &Authority, clients: &Authority) -> Scene {
    Scene::new(Options {
        tls: Some(authority.server(&["localhost"], Validity::Now).unwrap()),
        client_ca: Some(clients.pem()),
        listeners: vec![local(Scheme::Wss)],
        ..Options::default()
    })
}

/// The properties with which a robot shows `identity`.
fn shown(scene: &Scene, identity: &Identity) -> String {
    let (certificate, key): (PathBuf, PathBuf) =
        identity.write(scene.folder.path(), "robot").unwrap();
    format!(
        "cert-file={} key-file={}",
        certificate.display(),
        key.display()
    )
}

#[test]
fn a_certificate_of_its_own_is_a_robots_login() {
    let (authority, clients) = (Authority::new().unwrap(), Authority::new().unwrap());
    for scheme in [Scheme::Mqtts, Scheme::Wss] {
        let scene = mutual(&authority, &clients);
        let identity = clients.client(&scene.broker.robot.user).unwrap();
        let url = scene.broker.url_at(scheme, "localhost").unwrap();
        let more = format!("{} {}", scene.ca_file(&authority), shown(&scene, &identity));
        scene.obeys(scene.robot(&url, &more, &[]));
    }
}

#[test]
fn without_a_certificate_of_its_own_a_robot_is_told_so() {
    let (authority, clients) = (Authority::new().unwrap(), Authority::new().unwrap());
    let scene = mutual(&authority, &clients);
    let url = scene.broker.url_at(Scheme::Mqtts, "localhost").unwrap();
    // The password would do at another listener.
    let more = format!("{} {}", scene.login(), scene.ca_file(&authority));
    let robot = scene.robot(&url, &more, &[]);
    scene.is_refused(robot, "client certificate", "set cert-file and key-file");
}

#[test]
fn a_certificate_of_its_own_by_another_ca_is_refused() {
    let (authority, clients) = (Authority::new().unwrap(), Authority::new().unwrap());
    let scene = mutual(&authority, &clients);
    let url = scene.broker.url_at(Scheme::Mqtts, "localhost").unwrap();
    let identity = authority.client(&scene.broker.robot.user).unwrap();
    let more = format!("{} {}", scene.ca_file(&authority), shown(&scene, &identity));
    let robot = scene.robot(&url, &more, &[]);
    scene.is_refused(robot, "UnknownCA", "cert-file");
}

#[test]
fn ws_and_wss_by_name() {
    let authority = Authority::new().unwrap();
    for scheme in [Scheme::Ws, Scheme::Wss] {
        let scene = Scene::shows(&authority, &["localhost"], vec![local(scheme)]);
        let url = scene.broker.url_at(scheme, "localhost").unwrap();
        let more = format!("{} {}", scene.login(), scene.ca_file(&authority));
        scene.obeys(scene.robot(&url, &more, &[]));
    }
}

#[test]
fn each_scheme_by_ipv4_address() {
    let authority = Authority::new().unwrap();
    for scheme in [Scheme::Mqtts, Scheme::Ws, Scheme::Wss] {
        let listeners = vec![local(Scheme::Ws), local(Scheme::Wss)];
        let scene = Scene::shows(&authority, &["127.0.0.1"], listeners);
        let url = scene.broker.url_at(scheme, "127.0.0.1").unwrap();
        let more = format!("{} {}", scene.login(), scene.ca_file(&authority));
        scene.obeys(scene.robot(&url, &more, &[]));
    }
}

#[test]
fn each_scheme_by_ipv6_address() {
    if !has_ipv6() {
        return;
    }
    let authority = Authority::new().unwrap();
    for scheme in [Scheme::Mqtt, Scheme::Mqtts, Scheme::Ws, Scheme::Wss] {
        let address = Ipv6Addr::LOCALHOST.into();
        let scene = Scene::shows(&authority, &["::1"], vec![Listener { scheme, address }]);
        let url = scene.broker.url_at(scheme, "[::1]").unwrap();
        let more = format!("{} {}", scene.login(), scene.ca_file(&authority));
        scene.obeys(scene.robot(&url, &more, &[]));
    }
}
