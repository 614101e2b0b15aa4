// SPDX-License-Identifier: MPL-2.0

//! Publishing by TLS: in where the server is who it says, else refused with the reason named,
//! unless just that fault is not to be checked.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use droidrelay_testkit::{
    certs::{Authority, Identity, Validity, write_private},
    journal::DEADLINE,
    net::{netns::isolated, proxy::Proxy},
    robot::{Robot, Runner},
    servers::relay::{self, Event, Kind, Relay},
    testbed::{TEST_PICTURE, Testbed},
};
use droidrelay_wire::{
    StreamState,
    net::tls::{Checks, TlsFiles},
};
use tempfile::TempDir;

/// Who trusts whom, and a server that shows what one of them signed.
struct Scene {
    testbed: Testbed,
    folder: TempDir,
}

impl Scene {
    fn shows(kind: Kind, identity: Identity) -> Self {
        Scene {
            testbed: Testbed::start_with(kind, shows(identity)).unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Opened; publishes to `localhost` by TLS.
    fn robot(&self, trusted: &str, more: &str) -> Robot {
        let secure = self.testbed.relay.secure_publish_url("localhost");
        self.robot_at(&secure, trusted, more)
    }

    fn robot_at(&self, secure: &str, trusted: &str, more: &str) -> Robot {
        let testbed = &self.testbed;
        let ca_file = write_private(self.folder.path(), "ca.pem", trusted).unwrap();
        let line = testbed
            .line(TEST_PICTURE)
            .replace(&testbed.relay.publish_url(), secure);
        let line = format!("{line} ca-file={} {more}", ca_file.display());
        let strict = [("G_DEBUG", "fatal-criticals")];
        let robot = testbed
            .robot_with(Runner::GstLaunch, &line, &strict)
            .unwrap();
        testbed.observer.send("start").unwrap();
        robot
    }

    fn is_published_to(&self, trusted: &str, more: &str) {
        let seen = self.testbed.observer.seen().mark();
        let events = self.testbed.relay.events().mark();
        let mut robot = self.robot(trusted, more);
        self.testbed.wait_relay(events, Event::Published);
        let live = self.testbed.observer.wait_state(seen, StreamState::Live);
        live.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
        robot.end().unwrap();
    }

    /// The state names `reason` and `remedy`, and the robot goes on.
    fn is_refused(&self, trusted: &str, more: &str, reason: &str, remedy: &str) -> Robot {
        let seen = self.testbed.observer.seen().mark();
        let events = self.testbed.relay.events().mark();
        let mut robot = self.robot(trusted, more);
        let waited = self.testbed.observer.wait_state(seen, StreamState::Backoff);
        let (_, state) = waited.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
        let said = state.publish.unwrap().reason.unwrap();
        for part in ["certificate is not accepted", reason, remedy] {
            assert!(said.contains(part), "no {part:?} in {said:?}");
        }
        assert!(robot.is_running());
        assert_eq!(self.testbed.relay.events().since(events), []);
        robot
    }
}

fn shows(identity: Identity) -> relay::Options {
    relay::Options {
        tls: Some(identity),
        ..relay::Options::default()
    }
}

const HERE: &[&str] = &["localhost"];
const ELSEWHERE: &[&str] = &["elsewhere.example"];

fn each_relay(test: impl Fn(Kind)) {
    for kind in [Kind::Nginx, Kind::MediaMtx] {
        if !kind.notice_if_absent() {
            test(kind);
        }
    }
}

#[test]
fn a_server_that_is_trusted_is_published_to() {
    let authority = Authority::new().unwrap();
    each_relay(|kind| {
        let identity = authority.server(HERE, Validity::Now).unwrap();
        Scene::shows(kind, identity).is_published_to(&authority.pem(), "");
    });
}

#[test]
fn a_ca_file_that_is_replaced_is_trusted_without_a_restart() {
    each_relay(|kind| {
        let (old, new) = (Authority::new().unwrap(), Authority::new().unwrap());
        let identity = old.server(HERE, Validity::Now).unwrap();
        let mut scene = Scene::shows(kind, identity);
        let mark = scene.testbed.relay.events().mark();
        let mut robot = scene.robot(&old.pem(), "");
        scene.testbed.wait_relay(mark, Event::Published);
        // The server begins anew, with another authority's certificate.
        scene.testbed.relay.kill();
        let identity = new.server(HERE, Validity::Now).unwrap();
        scene.testbed.relay.set_identity(identity);
        let seen = scene.testbed.observer.seen().mark();
        scene.testbed.relay.restart().unwrap();
        let refused = |state: &droidrelay_wire::RobotState| {
            let reason = state.publish.as_ref().and_then(|it| it.reason.as_deref());
            reason.is_some_and(|reason| reason.contains("certificate is not accepted"))
        };
        let told = scene.testbed.observer.wait_where(seen, "refused", refused);
        told.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
        // The robot's file follows.
        let mark = scene.testbed.relay.events().mark();
        write_private(scene.folder.path(), "ca.pem", &new.pem()).unwrap();
        scene.testbed.wait_relay(mark, Event::Published);
        robot.end().unwrap();
    });
}

/// A server without RTMP: it closes each connection.
fn closes_at(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
}

#[test]
fn without_a_port_that_of_https_is_taken_and_then_the_other_one() {
    isolated(|_| {
        let authority = Authority::new().unwrap();
        let trusted = authority.pem();
        let identity = authority.server(HERE, Validity::Now).unwrap();
        let scene = Scene::shows(Kind::Nginx, identity);
        let rtmps = scene.testbed.relay.rtmps_port();
        let robot = || scene.robot_at("rtmps://localhost/live/stream", &trusted, "timeout=2");

        // Nothing at either: the reason names both.
        let first = robot();
        let waited = scene.testbed.observer.wait_state(0, StreamState::Backoff);
        let (_, state) = waited.unwrap_or_else(|err| panic!("{err:#}\n{}", first.text()));
        let said = state.publish.unwrap().reason.unwrap();
        for port in ["rtmps://localhost:443/", "rtmps://localhost:1936/"] {
            assert!(said.contains(port), "{said}");
        }

        // Then at the second one, with nothing or something else at the first.
        let second = Proxy::start_at(1936, rtmps).unwrap();
        scene.testbed.wait_relay(0, Event::Published);
        drop(first);
        scene.testbed.wait_relay(0, Event::Unpublished);
        closes_at(443);
        let mark = scene.testbed.relay.events().mark();
        let again = robot();
        scene.testbed.wait_relay(mark, Event::Published);
        drop((again, second));
    });
    isolated(|_| {
        let authority = Authority::new().unwrap();
        let identity = authority.server(HERE, Validity::Now).unwrap();
        let scene = Scene::shows(Kind::Nginx, identity);
        let _first = Proxy::start_at(443, scene.testbed.relay.rtmps_port()).unwrap();
        closes_at(1936);
        let _robot = scene.robot_at("rtmps://localhost/live/stream", &authority.pem(), "");
        scene.testbed.wait_relay(0, Event::Published);
    });
}

/// Refused, with `flag` alone too; let in with all but `flag`.
fn a_fault(identity: Identity, trusted: &str, flag: &str, reason: &str, remedy: &str) {
    let scene = Scene::shows(Kind::Nginx, identity);
    for more in [String::new(), format!("tls-validation-flags={flag}")] {
        let mut robot = scene.is_refused(trusted, &more, reason, remedy);
        robot.end().unwrap();
    }
    const ALL: [&str; 7] = [
        "unknown-ca",
        "bad-identity",
        "not-activated",
        "expired",
        "revoked",
        "insecure",
        "generic-error",
    ];
    let others: Vec<_> = ALL.into_iter().filter(|other| *other != flag).collect();
    let more = format!("tls-validation-flags={}", others.join("+"));
    scene.is_published_to(trusted, &more);
}

#[test]
fn a_certificate_of_an_unknown_ca_is_refused_unless_that_is_not_checked() {
    let ours = Authority::named("ours").unwrap();
    let identity = ours.server(HERE, Validity::Now).unwrap();
    // The second is another CA of the same name.
    for name in ["theirs", "ours"] {
        let other = Authority::named(name).unwrap().pem();
        a_fault(identity.clone(), &other, "unknown-ca", "", "set ca-file");
    }
}

#[test]
fn a_certificate_for_another_name_is_refused_unless_that_is_not_checked() {
    let authority = Authority::new().unwrap();
    let identity = authority.server(ELSEWHERE, Validity::Now).unwrap();
    let trusted = authority.pem();
    a_fault(
        identity,
        &trusted,
        "bad-identity",
        "elsewhere.example",
        "by a name in it",
    );
}

#[test]
fn an_expired_certificate_is_refused_unless_that_is_not_checked() {
    let authority = Authority::new().unwrap();
    let identity = authority.server(HERE, Validity::Expired).unwrap();
    a_fault(identity, &authority.pem(), "expired", "expired", "renew it");
}

#[test]
fn a_certificate_of_tomorrow_is_refused_unless_that_is_not_checked() {
    let authority = Authority::new().unwrap();
    let identity = authority.server(HERE, Validity::NotYet).unwrap();
    let trusted = authority.pem();
    a_fault(
        identity,
        &trusted,
        "not-activated",
        "not valid yet",
        "clock",
    );
}

#[test]
fn a_renewed_certificate_is_taken_without_a_restart_of_the_robot() {
    let authority = Authority::new().unwrap();
    let expired = authority.server(HERE, Validity::Expired).unwrap();
    let mut scene = Scene::shows(Kind::Nginx, expired);
    let mut robot = scene.is_refused(&authority.pem(), "", "expired", "renew it");
    let renewed = authority.server(HERE, Validity::Now).unwrap();
    scene.testbed.relay.kill();
    scene.testbed.relay.set_identity(renewed);
    scene.testbed.relay.restart().unwrap();
    scene.testbed.wait_relay(0, Event::Published);
    robot.end().unwrap();
}

#[test]
fn a_certificate_that_signed_itself_is_trusted_by_a_ca_file_of_its_own() {
    let identity = Identity::self_signed("localhost").unwrap();
    let scene = Scene::shows(Kind::Nginx, identity.clone());
    scene.is_published_to(&identity.certificate, "");
    let other = Authority::new().unwrap().pem();
    let remedy = "set ca-file to this very certificate";
    let mut robot = scene.is_refused(&other, "", "CaUsedAsEndEntity", remedy);
    robot.end().unwrap();
}

/// Every combination of faults with every one of checks: in exactly where no fault is checked.
#[test]
fn what_is_not_checked_hides_nothing_else() {
    let ours = Authority::new().unwrap();
    let theirs = Authority::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca_file = Some(ours.write(folder.path()).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut relay = None;
    for (authority, names, validity) in [&ours, &theirs].into_iter().flat_map(|authority| {
        [HERE, ELSEWHERE].into_iter().flat_map(move |names| {
            [Validity::Now, Validity::NotYet, Validity::Expired]
                .map(|validity| (authority, names, validity))
        })
    }) {
        let identity = authority.server(names, validity).unwrap();
        let relay: &mut Relay = relay.get_or_insert_with(|| {
            Relay::start_with(Kind::Nginx, shows(identity.clone())).unwrap()
        });
        relay.kill();
        relay.set_identity(identity);
        relay.restart().unwrap();
        let address = relay.secure_publish_url("127.0.0.1");
        let address = address.split('/').nth(2).unwrap().to_owned();
        for bits in 0..16u8 {
            let is_checked = |bit: u8| bits & 1 << bit != 0;
            let checks = Checks {
                unknown_ca: is_checked(0),
                bad_identity: is_checked(1),
                not_activated: is_checked(2),
                expired: is_checked(3),
                ..Checks::default()
            };
            let faults = [
                (std::ptr::eq(authority, &theirs), checks.unknown_ca),
                (names == ELSEWHERE, checks.bad_identity),
                (validity == Validity::NotYet, checks.not_activated),
                (validity == Validity::Expired, checks.expired),
            ];
            let good = !faults.contains(&(true, true));
            let files = TlsFiles {
                ca_file: ca_file.clone(),
                checks,
                ..TlsFiles::default()
            };
            let client = files.client().unwrap();
            let tcp = TcpStream::connect(&address).unwrap();
            tcp.set_nonblocking(true).unwrap();
            let connected = runtime.block_on(async {
                let tcp = tokio::net::TcpStream::from_std(tcp).unwrap();
                tokio::time::timeout(DEADLINE, client.connect("localhost", tcp))
                    .await
                    .unwrap()
                    .map(drop)
            });
            assert_eq!(
                connected.is_ok(),
                good,
                "{faults:?} (faulty, checked): {connected:?}"
            );
        }
    }
}
