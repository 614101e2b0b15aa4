// SPDX-License-Identifier: MPL-2.0

//! The bridge as its users meet it: the program, a real Mosquitto, a robot on it.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::common::{
    BROKER_PASSWORD, Bridge, DEADLINE, Folder, HUMAN_PASSWORD, Heard, Mosquitto, Robot, TOKEN,
    VIEWER_PASSWORD, basic, program,
};
use serde_json::{Value, json};

fn heard(payload: &str) -> Heard {
    Heard {
        payload: payload.into(),
        expiry: None,
    }
}

#[test]
fn start_and_stop_reach_the_robot_and_are_answered_as_the_seed_does() {
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let bridge = Bridge::start(broker.port);

    // Asked the moment the bridge listens: it waits for its first connection.
    assert_eq!(
        bridge.post("/stream/start"),
        (200, json!({ "msg": "Published start" }))
    );
    let start = robot.next();
    assert_eq!(start.payload, "start");
    assert!((24..=25).contains(&start.expiry.unwrap()), "{start:?}");

    assert_eq!(
        bridge.post("/stream/stop"),
        (200, json!({ "msg": "Published stop" }))
    );
    assert_eq!(robot.next(), heard("stop"));

    let (status, json) = bridge.post("/robots/r1/stream/start?viewer=phone-7&lease=30");
    let expected = json!({ "msg": "Published start", "robot": "r1", "online": true });
    assert_eq!((status, json), (200, expected));
    let start: Value = serde_json::from_str(&robot.next().payload).unwrap();
    assert_eq!(
        start,
        json!({ "command": "start", "id": "phone-7", "lease": 30 })
    );

    bridge.post("/robots/r1/stream/stop?viewer=phone-7");
    assert_eq!(robot.next(), heard(r#"{"command":"stop","id":"phone-7"}"#));
    robot.nothing_more();
}

#[test]
fn a_start_that_waits_is_answered_when_the_robot_is_live() {
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let bridge = Bridge::start(broker.port);
    bridge.get_until("/robots/r1", |_, json| json["state"]["state"] == "idle");

    let (status, json) = thread::scope(|scope| {
        let answer = scope.spawn(|| bridge.post("/stream/start?wait=20"));
        assert_eq!(robot.next().payload, "start");
        robot.say("state", r#"{"state":"starting"}"#);
        robot.say("state", r#"{"state":"live","viewers":["*"]}"#);
        answer.join().unwrap()
    });
    assert_eq!(status, 200);
    let expected = json!({ "msg": "Published start", "live": true, "state": "live" });
    assert_eq!(json, expected);

    robot.say(
        "state",
        r#"{"state":"refused","publish":{"state":"refused","reason":"authentication failed"}}"#,
    );
    bridge.get_until("/robots/r1", |_, json| json["state"]["state"] == "refused");
    let (_, json) = bridge.post("/stream/start?wait=0.2");
    assert_eq!(json["live"], false);
    assert_eq!(
        json["reason"],
        "the media server refuses the robot: authentication failed"
    );
}

#[test]
fn a_robot_that_is_offline_or_unknown_is_told_in_the_answer() {
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let bridge = Bridge::start(broker.port);
    robot.say("availability", "offline");
    bridge.get_until("/robots/r1", |_, json| json["online"] == false);

    let (status, json) = bridge.post("/stream/start");
    assert_eq!((status, &json["msg"]), (200, &json!("Published start")));
    assert_eq!(json["online"], false);
    assert!(json["note"].as_str().unwrap().contains("offline"), "{json}");

    let (status, json) = bridge.post("/robots/nobody/stream/stop");
    assert_eq!((status, &json["online"]), (200, &json!(false)));
    assert!(
        json["note"].as_str().unwrap().contains("never announced"),
        "{json}"
    );

    let (_, json) = bridge.get("/robots");
    assert_eq!(json["robots"].as_array().unwrap().len(), 1, "{json}");
    assert_eq!(json["robots"][0]["path"], "robots/r1");
}

#[test]
fn without_the_broker_a_command_is_refused_with_the_reason_and_never_delivered() {
    let mut broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let bridge = Bridge::start(broker.port);
    bridge.wait_ready();
    broker.kill();

    for _ in 0..3 {
        let asked = Instant::now();
        let (status, json) = bridge.post("/stream/start");
        assert_eq!(status, 503, "{json}");
        assert!(
            json["error"].as_str().unwrap().contains("out of reach"),
            "{json}"
        );
        assert!(asked.elapsed() < Duration::from_secs(5));
    }
    let (status, json) = bridge.get("/robots/r1");
    assert_eq!(
        (status, &json["online"]),
        (200, &json!(null)),
        "nobody knows: {json}"
    );

    broker.restart();
    robot.wait_subscribed();
    bridge.wait_ready();
    assert_eq!(bridge.post("/stream/stop").0, 200);
    assert_eq!(
        robot.next(),
        heard("stop"),
        "first after the broker's return"
    );
    robot.nothing_more();
}

#[test]
fn a_frozen_broker_is_told_within_five_seconds() {
    let broker = Mosquitto::start();
    let bridge = Bridge::start(broker.port);
    bridge.wait_ready();
    broker.signal("STOP");
    let asked = Instant::now();
    let (status, json) = bridge.post("/stream/start");
    let took = asked.elapsed();
    broker.signal("CONT");
    assert_eq!(status, 503, "{json}");
    assert!(
        json["error"].as_str().unwrap().contains("not acknowledged"),
        "{json}"
    );
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_command_that_the_broker_forbids_is_not_a_success() {
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let bridge = Bridge::start(broker.port);
    bridge.wait_ready();
    broker.forbid_commands();
    let (status, json) = bridge.post("/stream/start");
    assert_eq!(status, 503, "{json}");
    assert!(
        json["error"].as_str().unwrap().contains("not authorized"),
        "{json}"
    );
    // Behind this acknowledgement there is nothing that came earlier.
    robot.say("state", "{}");
    robot.nothing_more();
}

#[test]
fn a_login_that_the_broker_refuses_is_the_reason_given() {
    let broker = Mosquitto::start();
    let environment = [("DROIDRELAY_MQTT_PASSWORD", "canary-wrong-0aa1")];
    let bridge = Bridge::start_with(broker.port, &environment);
    let (status, json) = bridge.post("/stream/start");
    assert_eq!(status, 503, "{json}");
    assert!(
        json["error"]
            .as_str()
            .unwrap()
            .contains("refuses the login"),
        "{json}"
    );
    assert!(!bridge.all_output().contains("canary-wrong-0aa1"));
}

#[test]
fn sixty_four_callers_at_once_are_all_answered_and_all_heard() {
    const CALLERS: usize = 64;
    const CALLS: usize = 4;
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let bridge = Bridge::start(broker.port);
    let bridge = &bridge;
    bridge.wait_ready();
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            scope.spawn(move || {
                for call in 0..CALLS {
                    let (status, json) =
                        bridge.post(&format!("/stream/stop?viewer={caller}-{call}"));
                    assert_eq!(status, 200, "{json}");
                }
            });
        }
    });
    let mut heard: Vec<_> = (0..CALLERS * CALLS).map(|_| robot.next().payload).collect();
    heard.sort_unstable();
    heard.dedup();
    assert_eq!(heard.len(), CALLERS * CALLS);
}

#[test]
fn wrong_credentials_are_refused_then_limited_and_no_secret_is_ever_shown() {
    let broker = Mosquitto::start();
    let bridge = Bridge::start(broker.port);
    bridge.wait_ready();

    for good in [
        basic("viewer", VIEWER_PASSWORD),
        basic("human", HUMAN_PASSWORD),
        format!("Bearer {TOKEN}"),
    ] {
        assert_eq!(bridge.send("GET", "/robots", &good).0, 200);
        assert_eq!(bridge.send("POST", "/stream/start", &good).0, 200);
    }
    let wrong = [
        basic("viewer", HUMAN_PASSWORD),
        basic("human", VIEWER_PASSWORD),
        basic("bridge", BROKER_PASSWORD),
        format!("Bearer {VIEWER_PASSWORD}"),
        format!("Digest {TOKEN}"),
    ];
    // As a proxy on this host says it; this host itself is not limited.
    let stranger = |authorization: &str| format!("{authorization}\r\nx-forwarded-for: 192.0.2.66");
    for wrong in wrong.iter().cycle().take(20) {
        assert_eq!(bridge.send("POST", "/stream/start", wrong).0, 401);
    }
    for wrong in &wrong {
        let wrong = stranger(wrong);
        assert_eq!(bridge.send("POST", "/stream/start", &wrong).0, 401);
    }
    let right = basic("viewer", VIEWER_PASSWORD);
    assert_eq!(bridge.send("GET", "/robots", &right).0, 200);
    let (status, head, json) = bridge.send("GET", "/robots", &stranger(&right));
    assert_eq!(status, 429, "{json}");
    assert!(head.to_lowercase().contains("\r\nretry-after: "), "{head}");
    assert_eq!(bridge.send("GET", "/", "none").0, 200);

    let output = bridge.all_output();
    assert!(output.contains("published start"), "{output}");
    for secret in [BROKER_PASSWORD, VIEWER_PASSWORD, HUMAN_PASSWORD, TOKEN] {
        assert!(!output.contains(secret), "{secret} in {output}");
    }
    for authorization in &wrong {
        let credentials = authorization.split(' ').nth(1).unwrap();
        assert!(!output.contains(credentials), "{credentials} in {output}");
    }
}

#[test]
fn sigterm_ends_it_cleanly_within_a_second_and_answers_who_waits() {
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let mut bridge = Bridge::start(broker.port);
    bridge.wait_ready();
    let (answer, took) = thread::scope(|scope| {
        let waiting = scope.spawn(|| bridge.post("/stream/start?wait=60"));
        robot.next();
        bridge.signal("TERM");
        let asked = Instant::now();
        (waiting.join().unwrap(), asked)
    });
    let status = bridge.wait();
    let took = took.elapsed();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(
        (answer.0, &answer.1["live"]),
        (200, &json!(false)),
        "{answer:?}"
    );
}

#[test]
fn sigint_ends_it_cleanly_while_the_broker_is_away() {
    let mut broker = Mosquitto::start();
    let mut bridge = Bridge::start(broker.port);
    broker.kill();
    let asked = Instant::now();
    bridge.signal("INT");
    assert!(bridge.wait().success());
    assert!(asked.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_wrong_configuration_ends_it_with_file_line_and_exit_code_78() {
    let folder = Folder::new();
    let file = folder.write(
        "wrong.toml",
        "listen = \"127.0.0.1:0\"\n\n[mqtt]\nbrocker = \"x\"\n",
    );
    let output = program().arg("--config").arg(&file).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78));
    let expected = format!(
        "droidrelay-bridge: {}:4:1: unknown field `brocker`",
        file.display()
    );
    assert!(stderr.starts_with(&expected), "{stderr}");
}

#[test]
fn the_printed_template_is_a_configuration_that_passes_the_check() {
    let output = program().arg("--print-config-template").output().unwrap();
    let folder = Folder::new();
    let file = folder.write("bridge.toml", &String::from_utf8(output.stdout).unwrap());
    let status = program().arg("--check").arg("--config").arg(file).status();
    assert!(status.unwrap().success());
}

#[test]
fn the_memory_of_passwords_that_were_checked_is_given_back() {
    /// Less than one of them takes.
    const MORE: u64 = 8 * 1024 * 1024;
    let broker = Mosquitto::start();
    let bridge = Bridge::start(broker.port);
    bridge.wait_ready();
    let resident = || {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", bridge.id())).unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    };
    let before = resident();
    thread::scope(|scope| {
        for number in 0..60 {
            let bridge = &bridge;
            scope.spawn(move || {
                let guess = basic("human", &format!("guess-{number}"));
                let guess = format!("{guess}\r\nx-forwarded-for: 198.51.100.{number}");
                let (status, _, _) = bridge.send("GET", "/robots", &guess);
                assert!(matches!(status, 401 | 429), "{status}");
            });
        }
    });
    let deadline = Instant::now() + DEADLINE;
    while resident() > before + MORE {
        assert!(
            Instant::now() < deadline,
            "{before} and then {}",
            resident()
        );
        thread::yield_now();
    }
}

#[test]
fn a_robot_whose_session_the_broker_has_lost_gets_the_stop_when_it_comes_back() {
    let broker = Mosquitto::start();
    let bridge = Bridge::start(broker.port);
    let robot = Robot::new(broker.port, "r1");
    bridge.get_until("/robots/r1", |_, json| json["online"] == true);
    assert_eq!(
        bridge.post("/robots/r1/stream/start?viewer=a&lease=600").0,
        200
    );
    let first = robot.next().payload;
    robot.say("availability", "offline");
    // Its session is not kept.
    drop(robot);
    bridge.get_until("/robots/r1", |_, json| json["online"] == false);
    let (_, json) = bridge.post("/robots/r1/stream/stop?viewer=a");
    assert!(
        json["note"]
            .as_str()
            .unwrap()
            .contains("when it comes back"),
        "{json}"
    );
    let robot = Robot::new(broker.port, "r1");
    let stop: Value = serde_json::from_str(&robot.next().payload).unwrap();
    assert_eq!(stop, json!({ "command": "stop", "id": "a" }), "{first}");

    // A lease that lives is told as well.
    assert_eq!(
        bridge.post("/robots/r1/stream/start?viewer=b&lease=600").0,
        200
    );
    robot.next();
    robot.say("availability", "offline");
    drop(robot);
    let robot = Robot::new(broker.port, "r1");
    let again = loop {
        let told: Value = serde_json::from_str(&robot.next().payload).unwrap();
        if told["command"] == "start" {
            break told;
        }
        // Sent just before it went: it may have missed that too.
        assert_eq!(told, stop);
    };
    assert_eq!(again["id"], "b");
    let left = again["lease"].as_f64().unwrap();
    assert!((100.0..=600.0).contains(&left), "{again}");
    robot.nothing_more();
}

#[test]
fn a_start_that_the_broker_keeps_is_not_told_again_when_the_robot_comes_back() {
    let broker = Mosquitto::start();
    let bridge = Bridge::start(broker.port);
    let other = Robot::new(broker.port, "r2");
    let robot = Robot::new(broker.port, "r1");
    bridge.get_until("/robots/r1", |_, json| json["online"] == true);
    other.keep_command("r1", r#"{"command":"start","id":"a"}"#);
    // It hears it as everybody does who is there.
    assert!(robot.next().payload.contains("\"a\""));
    for _ in 0..2 {
        robot.say("availability", "offline");
        bridge.get_until("/robots/r1", |_, json| json["online"] == false);
        robot.say("availability", "online");
        bridge.get_until("/robots/r1", |_, json| json["online"] == true);
        // What the bridge says now would come ahead of this one.
        assert_eq!(
            bridge.post("/robots/r1/stream/start?viewer=b&lease=600").0,
            200
        );
        loop {
            let told: Value = serde_json::from_str(&robot.next().payload).unwrap();
            if told["id"] == "b" && told["command"] == "start" {
                break;
            }
            // The stop of before, which it may have missed.
            assert_eq!(told, json!({ "command": "stop", "id": "b" }));
        }
        assert_eq!(bridge.post("/robots/r1/stream/stop?viewer=b").0, 200);
        robot.next();
    }
    robot.nothing_more();
}
