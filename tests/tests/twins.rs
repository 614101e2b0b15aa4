// SPDX-License-Identifier: MPL-2.0

//! Two robots from one image: the same host name, line, topic and credentials; and the worst of it,
//! one client id for both.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    certs::write_private,
    clients::observer::Observer,
    journal::DEADLINE,
    net::netns::{Namespace, isolated},
    process::poll,
    robot::{Plugins, Robot, Runner},
    servers::mosquitto::{Mosquitto, TOPIC},
};

const MACHINES: [&str; 2] = [
    "11111111111111111111111111111111",
    "22222222222222222222222222222222",
];
const REMEDY: &str = "set client-id";
const OPEN: &str = ": drop = false";
const CLOSED: &str = ": drop = true";

/// A robot on a machine of its own.
struct Twin {
    // Dropped ahead of its machine.
    robot: Robot,
    _machine: Namespace,
}

impl Twin {
    fn start(machine_id: &'static str, valve: String) -> Self {
        let machine = Namespace::machine("twin", machine_id).unwrap();
        let robot = machine.run(move |_| {
            let line = format!(
                "-v videotestsrc is-live=true ! video/x-raw,format=GRAY8,width=64,height=48,framerate=10/1 \
                 ! {valve} ! fakesink async=false"
            );
            let environment = [
                ("G_DEBUG", "fatal-criticals"),
                ("GST_DEBUG", "mqttvalve:4"),
                ("GST_DEBUG_NO_COLOR", "1"),
            ];
            Robot::start_with(Runner::GstLaunch, &line, &environment).unwrap()
        });
        Twin {
            robot,
            _machine: machine,
        }
    }

    fn wait(&self, mark: usize, what: &str) -> Instant {
        let said = self
            .robot
            .log()
            .wait(mark, what, |line| line.contains(what));
        said.unwrap_or_else(|err| panic!("{err:#}\n{}", self.robot.text()))
            .0
    }

    fn is_open(&self) -> bool {
        let lines = self.robot.log().all();
        let mut told = lines.iter().rev();
        told.find(|line| line.contains(": drop = "))
            .is_some_and(|line| line.contains(OPEN))
    }
}

#[test]
fn robots_from_one_image_have_a_session_each_and_obey_side_by_side() {
    isolated(|_| {
        let broker = Mosquitto::start().unwrap();
        let observer = Observer::start(&broker).unwrap();
        let twins = MACHINES.map(|id| Twin::start(id, broker.valve()));
        broker
            .wait_subscribers(2, |filter| filter == TOPIC)
            .unwrap();
        for _ in 0..2 {
            let marks = twins.each_ref().map(|twin| twin.robot.log().mark());
            observer.send("start").unwrap();
            for (twin, mark) in twins.iter().zip(marks) {
                twin.wait(mark, OPEN);
            }
            let marks = twins.each_ref().map(|twin| twin.robot.log().mark());
            observer.send("stop").unwrap();
            for (twin, mark) in twins.iter().zip(marks) {
                twin.wait(mark, CLOSED);
            }
        }
        // Told apart by their machines, not by what each sees running beside it.
        let log = broker.text();
        let words = log.split_whitespace();
        let ids: HashSet<&str> = words
            .filter_map(|word| word.strip_prefix("droidrelay-robot-stream-"))
            .map(|id| id.trim_end_matches(':'))
            .collect();
        assert_eq!(ids.len(), 2, "{ids:?}");
        assert!(ids.iter().all(|id| id.len() == 16), "{ids:?}");
        for mut twin in twins {
            assert!(!twin.robot.text().contains("no MQTT session"));
            twin.robot.end().unwrap();
        }
    });
}

#[test]
fn one_client_id_for_two_is_told_with_the_remedy_and_neither_streams_on() {
    const OFFLINE_TIMEOUT: Duration = Duration::from_secs(3);
    isolated(|_| {
        let broker = Mosquitto::start().unwrap();
        let observer = Observer::start(&broker).unwrap();
        let valve = format!(
            "{} client-id=robot offline-timeout={} keep-alive-interval=5",
            broker.valve(),
            OFFLINE_TIMEOUT.as_secs()
        );
        let first = Twin::start(MACHINES[0], valve.clone());
        first.wait(0, "connected to the broker");
        observer.send("start").unwrap();
        first.wait(0, OPEN);
        let second = Twin::start(MACHINES[1], valve.clone());
        let twins = [first, second];
        // The first has lost its session, so that no stop reaches it.
        twins[0].wait(0, "no MQTT session");
        observer.send("stop").unwrap();
        let told = Instant::now();
        let mark = twins[0].robot.log().mark();
        let closed = match twins[0].is_open() {
            true => twins[0].wait(mark, CLOSED),
            false => told,
        };
        let took = closed.saturating_duration_since(told);
        assert!(took < OFFLINE_TIMEOUT + Duration::from_secs(2), "{took:?}");
        // Both say why, and what to do; the state does as well.
        for twin in &twins {
            twin.wait(0, REMEDY);
            assert!(!twin.is_open(), "{}", twin.robot.text());
        }
        observer
            .wait_where(0, REMEDY, |state| {
                let error = state.last_error.as_deref();
                error.is_some_and(|error| error.contains(REMEDY))
            })
            .unwrap();

        // And the doctor, where its login may read the state.
        let folder = tempfile::tempdir().unwrap();
        let password = write_private(folder.path(), "pass", &broker.operator.password).unwrap();
        let line = format!(
            "videotestsrc is-live=true ! mqttvalve broker={} topic={TOPIC} username={} password-file={} ! fakesink\n",
            broker.url(),
            broker.operator.user,
            password.display()
        );
        let file = write_private(folder.path(), "robot.launch", &line).unwrap();
        let plugins = Plugins::new().unwrap();
        let mut doctor = plugins.droidrelay().unwrap();
        let output = doctor.arg("doctor").arg(file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(REMEDY), "{said}");
        for mut twin in twins {
            twin.robot.end().unwrap();
        }
    });
}

/// Two services on one machine, each by `droidrelay run` with the same line.
fn services(valve: &str) -> [Robot; 2] {
    let line = format!(
        "videotestsrc is-live=true ! video/x-raw,format=GRAY8,width=64,height=48,framerate=10/1 \
         ! {valve} ! fakesink async=false"
    );
    [(); 2].map(|()| Robot::start(Runner::Droidrelay, &line).unwrap())
}

fn wait(robot: &Robot, mark: usize, what: &str) {
    let said = robot.log().wait(mark, what, |line| line.contains(what));
    said.unwrap_or_else(|err| panic!("{err:#}\n{}", robot.text()));
}

/// As with a copied .env.
#[test]
fn two_services_on_one_machine_and_topic_open_and_close_together() {
    let broker = Mosquitto::start().unwrap();
    let observer = Observer::start(&broker).unwrap();
    let twins = services(&broker.valve());
    broker
        .wait_subscribers(2, |filter| filter == TOPIC)
        .unwrap();
    for _ in 0..3 {
        for (command, told) in [("start", ": live (mqtt)"), ("stop", ": idle (mqtt)")] {
            let marks = twins.each_ref().map(|twin| twin.log().mark());
            observer.send(command).unwrap();
            for (twin, mark) in twins.iter().zip(marks) {
                wait(twin, mark, told);
            }
        }
    }
    for mut twin in twins {
        assert!(!twin.text().contains("no MQTT session"), "{}", twin.text());
        twin.end().unwrap();
    }
}

#[test]
fn two_services_with_one_client_id_do_not_fight_for_it_and_the_second_says_so() {
    let broker = Mosquitto::start().unwrap();
    let observer = Observer::start(&broker).unwrap();
    let twins = services(&format!("{} client-id=robot", broker.valve()));
    let names = "another valve on this machine has the client id \"robot\"";
    let second = poll(DEADLINE, || {
        twins.iter().position(|twin| twin.text().contains(names))
    });
    let second = second.unwrap_or_else(|| panic!("{}", twins[0].text()));
    let first = &twins[1 - second];
    wait(first, 0, "connected to the broker");
    for (command, told) in [("start", ": live (mqtt)"), ("stop", ": idle (mqtt)")] {
        let mark = first.log().mark();
        observer.send(command).unwrap();
        wait(first, mark, told);
    }
    assert!(
        !first.text().contains("no MQTT session"),
        "{}",
        first.text()
    );
    assert!(!twins[second].text().contains("connected to the broker"));
    // When the first has gone the second comes.
    let [zero, one] = twins;
    let (mut first, mut second) = match second {
        0 => (one, zero),
        _ => (zero, one),
    };
    first.end().unwrap();
    wait(&second, 0, "connected to the broker");
    second.end().unwrap();
}
