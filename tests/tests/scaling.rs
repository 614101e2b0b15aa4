// SPDX-License-Identifier: MPL-2.0

//! Scaling out, on engines that exist: a cluster of brokers, bridges behind a load balancer,
//! a media server that reads from another. docs/2-guides/scaling-out.md tells how to lay that out.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use droidrelay_testkit::{
    certs::{Login, write_private},
    clients::observer::Observer,
    journal::DEADLINE,
    net::http,
    process::{poll, text_of},
    robot::{Robot, Runner},
    servers::{
        balancer::{Balancer, Way},
        bridge::{Bridge, Known},
        cloud::{Cloud, LEASE, Media},
        mosquitto::{Mosquitto, TOPIC},
        relay::{Kind, Relay},
        rmqtt::{self, Cluster},
    },
    testbed::{ENCODER, TEST_PICTURE, TINY_PICTURE},
};
use droidrelay_wire::StreamState;
use serde_json::Value;

/// A cluster agrees on who has left before it lets them in elsewhere.
const FAILOVER: Duration = Duration::from_secs(120);

const FLEET: [Known; 3] = [
    Known {
        name: "r1",
        topic: "robot/r1/stream",
        path: "live/r1",
    },
    Known {
        name: "r2",
        topic: "robot/r2/stream",
        path: "live/r2",
    },
    Known {
        name: "r3",
        topic: "robot/r3/stream",
        path: "live/r3",
    },
];

/// Three brokers, of which nginx gives robots and bridges each their own first, and the others
/// where that one is gone.
struct Grown {
    // Dropped in this order: who depends on a server goes before it.
    robots: Vec<Robot>,
    bridges: [Bridge; 2],
    balancer: Balancer,
    relay: Relay,
    cluster: Cluster,
    _folder: tempfile::TempDir,
}

const ROBOTS_NODE: usize = 0;
const FIRST_BRIDGES_NODE: usize = 1;

impl Grown {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster::start().unwrap();
        let order = |first: usize| {
            let nodes = (0..3).map(|step| cluster.port((first + step) % 3));
            Way::First(nodes.collect())
        };
        let balancer = Balancer::start(&[order(0), order(1), order(2)]).unwrap();
        let relay = Relay::start(Kind::Nginx).unwrap();
        let url = |way| format!("mqtt://127.0.0.1:{}", balancer.port(way));
        let user = Login::generate("app").unwrap();
        let bridges = [FIRST_BRIDGES_NODE, 2].map(|way| {
            let watch = relay.watch_url();
            Bridge::start_at(&url(way), cluster.operator(), &FLEET, &watch, &user).unwrap()
        });
        let secrets = folder.path();
        write_private(secrets, "mqtt.pass", &cluster.robots().password).unwrap();
        write_private(secrets, "rtmp.pass", &relay.publisher.password).unwrap();
        let robots = FLEET.iter().map(|known| {
            let line = format!(
                "{TINY_PICTURE} ! mqttvalve broker={} topic={} client-id={} username={} \
                 password-file={here}/mqtt.pass ! queue ! {ENCODER} ! rtmpauthsink \
                 location=rtmp://127.0.0.1:{}/{} user={} password-file={here}/rtmp.pass",
                url(ROBOTS_NODE),
                known.topic,
                known.name,
                cluster.robots().user,
                relay.rtmp_port(),
                known.path,
                relay.publisher.user,
                here = text_of(secrets).unwrap(),
            );
            Robot::start(Runner::GstLaunch, &line).unwrap()
        });
        let robots = robots.collect();
        Grown {
            robots,
            bridges,
            balancer,
            relay,
            cluster,
            _folder: folder,
        }
    }

    /// What a bridge says of a robot.
    fn says(&self, bridge: usize, robot: &str) -> Option<Value> {
        let bridge = &self.bridges[bridge];
        let path = format!("/robots/{robot}");
        let answer = bridge.request("GET", &path, &bridge.user.basic()).ok()?;
        serde_json::from_str(&answer.body).ok()
    }

    /// Waits until both bridges say that the robot is there, and of its state what is `wanted`.
    fn both_say(&self, robot: &str, what: &str, wanted: impl Fn(&Value) -> bool) {
        let right = |bridge| {
            let says = self.says(bridge, robot)?;
            (says["online"] == true && wanted(&says["state"])).then_some(())
        };
        for bridge in 0..2 {
            if poll(FAILOVER, || right(bridge)).is_none() {
                panic!(
                    "{robot} is not {what} at bridge {bridge}: {:?}\n{}",
                    self.says(bridge, robot),
                    self.text()
                );
            }
        }
    }

    fn both_say_state(&self, robot: &str, state: StreamState) {
        self.both_say(robot, state.as_str(), |says| {
            says["state"] == state.as_str()
        });
    }

    /// Posts until the bridge takes it; while its broker is away it says so and queues nothing.
    fn post(&self, bridge: usize, path: &str) {
        let taken = poll(FAILOVER, || self.try_post(bridge, path).then_some(()));
        assert!(
            taken.is_some(),
            "{path} at bridge {bridge}\n{}",
            self.text()
        );
    }

    /// Whether the bridge answers that the broker has it.
    fn try_post(&self, bridge: usize, path: &str) -> bool {
        let bridge = &self.bridges[bridge];
        let answer = bridge.request("POST", path, &bridge.user.basic()).unwrap();
        assert!(matches!(answer.status, 200 | 503), "{}", answer.body);
        answer.status == 200
    }

    fn text(&self) -> String {
        let texts = self.robots.iter().map(Robot::text);
        let texts = texts.chain(self.bridges.iter().map(Bridge::text));
        let texts = texts.chain([self.balancer.text(), self.cluster.text()]);
        texts.collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn a_cluster_that_loses_a_node_loses_no_command_and_both_bridges_know_every_robot() {
    if rmqtt::notice_if_absent() {
        return;
    }
    let mut grown = Grown::start();
    for known in FLEET {
        grown.both_say_state(known.name, StreamState::Idle);
    }

    // Each bridge starts one, and the other knows.
    grown.post(0, "/robots/r1/stream/start");
    grown.post(1, "/robots/r2/stream/start");
    grown.both_say_state("r1", StreamState::Live);
    grown.both_say_state("r2", StreamState::Live);
    assert_eq!(grown.relay.clients().unwrap(), 2);

    // The robots' node, while two of them stream; then one that a bridge is at.
    for node in [ROBOTS_NODE, FIRST_BRIDGES_NODE] {
        let since = grown.says(1, "r1").unwrap()["state"]["since"].clone();
        assert!(since.is_string());
        grown.cluster.kill(node);
        let killed = Instant::now();
        // A stop and viewers without end, in the time in which nobody is where they were.
        grown.post(0, "/robots/r2/stream/stop");
        let (mut taken, mut refused) = (0, 0);
        // Up to the first word that a robot which had to move says elsewhere.
        let moved = || {
            let says = grown.says(1, "r3");
            says.is_some_and(|says| says["state"]["state"] == "live")
        };
        while taken < 40 || (taken < 800 && !moved()) {
            let path = format!("/robots/r3/stream/start?viewer=v{taken}&lease=600");
            // Who is refused asks the other bridge.
            if grown.try_post((taken + refused) % 2, &path) {
                taken += 1;
            } else {
                refused += 1;
                assert!(refused < 1000, "{}", grown.text());
            }
            thread::sleep(Duration::from_millis(25));
        }
        let heard = killed.elapsed();
        grown.both_say("r3", "live for all of them", |says| {
            says["state"] == "live" && says["viewer_count"] == taken
        });
        println!(
            "node {node} killed: {taken} commands taken in {:.1} s, {refused} refused with 503; all taken obeyed {:.1} s after",
            heard.as_secs_f64(),
            killed.elapsed().as_secs_f64()
        );
        grown.both_say_state("r2", StreamState::Idle);
        // All that time it went on.
        grown.both_say("r1", "live as before", |says| {
            says["state"] == "live" && says["since"] == since
        });

        grown.cluster.restart(node).unwrap();
        grown.post(1, "/robots/r3/stream/stop");
        grown.both_say_state("r3", StreamState::Idle);
        grown.post(1, "/robots/r2/stream/start");
        grown.both_say_state("r2", StreamState::Live);
    }
}

/// What is started at one is polled at the next and heard of at both.
#[test]
fn bridges_behind_a_load_balancer_are_as_one() {
    let broker = Mosquitto::start().unwrap();
    let relay = Relay::start(Kind::Nginx).unwrap();
    let user = Login::generate("app").unwrap();
    let known = [Known {
        name: "robot",
        topic: TOPIC,
        path: "live/stream",
    }];
    let bridges = [(); 2].map(|()| {
        let watch = relay.watch_url();
        Bridge::start_at(&broker.url(), &broker.bridge, &known, &watch, &user).unwrap()
    });
    let ports = bridges.iter().map(Bridge::port).collect();
    let balancer = Balancer::start(&[Way::RoundRobin(ports)]).unwrap();
    let front = SocketAddr::from(([127, 0, 0, 1], balancer.port(0)));
    let ask = |method: &str, path: &str| {
        let answer = http::request(front, method, path, &user.basic()).unwrap();
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        serde_json::from_str::<Value>(&answer.body).unwrap()
    };
    let events: Vec<Events> = [(); 2].map(|()| Events::open(front, &user)).into();

    let observer = Observer::start(&broker).unwrap();
    let line = format!("{TINY_PICTURE} ! {} ! fakesink", broker.valve());
    let _robot = observer.robot(Runner::GstLaunch, &line, &[]).unwrap();
    let state = || ask("GET", "/robots/robot")["state"]["state"].clone();
    let both_have = |what: &str| bridges.iter().all(|bridge| bridge.text().contains(what));
    let mut rounds = 0;
    // Whose turn it is depends on how often was asked between.
    while !(both_have("published start") && both_have("published stop")) {
        rounds += 1;
        assert!(rounds < 40, "{}", balancer.text());
        if rounds % 2 == 0 {
            state();
        }
        let started = ask("POST", "/robots/robot/stream/start?viewer=a&wait=20");
        assert_eq!(started["live"], true, "{started}");
        let now = |seen: &dyn Fn() -> bool| poll(DEADLINE, || seen().then_some(())).is_some();
        // Each hears of it from the broker, at its own time.
        for _ in 0..4 {
            assert!(now(&|| state() == "live"));
            assert!(now(
                &|| ask("GET", "/robots/robot/stream")["wanted"]["open"] == true
            ));
        }
        ask("POST", "/robots/robot/stream/stop?viewer=a");
        for _ in 0..4 {
            assert!(now(&|| state() == "idle"));
            assert!(now(
                &|| ask("GET", "/robots/robot/stream")["wanted"]["open"] == false
            ));
        }
    }
    // One at each bridge, by turns; each has heard of all.
    for mut events in events {
        for _ in 0..rounds {
            events.wait("\"state\":\"live\"");
            events.wait("\"state\":\"idle\"");
        }
    }
}

/// Server-sent events, as they come.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(address: SocketAddr, user: &Login) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!(
            "GET /events HTTP/1.1\r\nhost: {address}\r\nauthorization: {}\r\n\r\n",
            user.basic()
        );
        stream.write_all(request.as_bytes()).unwrap();
        Events(BufReader::new(stream))
    }

    fn wait(&mut self, part: &str) {
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "no {part}");
        }
    }
}

#[test]
fn who_looks_at_a_replica_starts_the_robot_by_the_origins_hook_and_leaving_stops_it() {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    let cloud = Cloud::start(Media::WebRtc).unwrap();
    let replica = cloud.replica().unwrap();
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    for round in 0..2 {
        let mark = cloud.observer.seen().mark();
        let mut viewer = replica
            .view()
            .unwrap_or_else(|err| panic!("{err:#}\n{}\n{}", replica.text(), cloud.media().text()));
        let first = viewer.first_picture().unwrap();
        println!("round {round}: first picture at the replica {first:?} after connecting");
        cloud.observer.wait_state(mark, StreamState::Live).unwrap();
        let mut second = replica.view().unwrap();
        second.first_picture().unwrap();
        // The origin sends the stream once, however many look at the replica.
        let origin = cloud.media().log().all();
        let reads = origin
            .iter()
            .filter(|line| line.contains("is reading from path"));
        assert_eq!(reads.count(), round + 1, "{origin:?}");
        drop(viewer);
        assert!(second.gets_media(DEADLINE).unwrap(), "one still looks");
        drop(second);
        let idle =
            cloud
                .observer
                .seen()
                .try_wait(mark, DEADLINE + Duration::from_secs(LEASE), |seen| {
                    seen.is(StreamState::Idle)
                });
        assert!(
            idle.is_some(),
            "{}\n{}",
            replica.text(),
            cloud.bridge().text()
        );
    }
}
