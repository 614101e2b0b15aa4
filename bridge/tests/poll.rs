// SPDX-License-Identifier: MPL-2.0

//! Robots without MQTT, as the program serves them beside a real Mosquitto.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::common::{Bridge, Mosquitto, Robot};
use serde_json::{Value, json};

fn version(answer: &Value) -> u64 {
    answer["version"].as_u64().unwrap()
}

/// Polls as a robot does until `wanted`: each time with the version that it knows.
fn poll_until(bridge: &Bridge, known: &Value, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut answer = known.clone();
    let deadline = Instant::now() + crate::common::DEADLINE;
    while !wanted(&answer) {
        let since = version(&answer);
        let (status, json) = bridge.poll(&format!("?since={since}&wait=20"));
        assert_eq!(status, 200, "{json}");
        assert!(Instant::now() < deadline, "last answer: {json}");
        answer = json;
    }
    answer
}

#[test]
fn a_robot_that_polls_is_told_at_once_and_is_seen_by_all_as_any_other() {
    let broker = Mosquitto::start();
    let bridge = &Bridge::start(broker.port);

    let (status, first) = bridge.poll("");
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["wanted"], json!({ "open": false, "leases": [] }));
    assert_eq!(first["state"], json!(null));
    assert_eq!(bridge.report(r#"{"state":"idle","version":"9"}"#).0, 204);
    bridge.get_until("/robots/r1", |_, json| {
        json["online"] == true && json["state"]["state"] == "idle"
    });

    let since = version(&first);
    let (answer, took) = thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            let answer = bridge.poll(&format!("?since={since}&wait=30"));
            (answer, Instant::now())
        });
        // It may come before the poll: then the poll does not wait.
        let asked = Instant::now();
        let (status, _) = bridge.post("/robots/r1/stream/start?viewer=phone-7&lease=30");
        assert_eq!(status, 200);
        let (answer, at) = waiting.join().unwrap();
        (answer.1, at.saturating_duration_since(asked))
    });
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(answer["wanted"]["open"], true, "{answer}");
    assert_eq!(answer["wanted"]["leases"][0]["id"], "phone-7");
    let lease = answer["wanted"]["leases"][0]["lease"].as_f64().unwrap();
    assert!((20.0..=30.0).contains(&lease), "{answer}");
    assert_eq!(answer["state"]["version"], "9", "{answer}");

    bridge.post("/robots/r1/stream/start");
    let answer = poll_until(bridge, &answer, |answer| {
        answer["wanted"]["leases"].as_array().unwrap().len() == 2
    });
    assert_eq!(
        answer["wanted"]["leases"][0],
        json!({ "id": null, "lease": null })
    );
    let keyframes = answer["keyframe"].as_u64().unwrap();
    assert_eq!(bridge.post("/robots/r1/stream/keyframe").0, 200);
    let answer = poll_until(bridge, &answer, |answer| {
        answer["keyframe"].as_u64() == Some(keyframes + 1)
    });

    // Somebody else's command, by MQTT.
    let other = Robot::new(broker.port, "r2");
    other.command("r1", "STOP");
    let answer = poll_until(bridge, &answer, |answer| answer["wanted"]["open"] == false);
    let unchanged = Instant::now();
    let (status, same) = bridge.poll(&format!("?since={}&wait=0.2", version(&answer)));
    assert_eq!((status, version(&same)), (200, version(&answer)));
    assert!(unchanged.elapsed() >= Duration::from_millis(200));
}

#[test]
fn bridges_side_by_side_agree_and_a_new_one_knows_what_is_wanted() {
    let broker = Mosquitto::start();
    let (one, two) = (Bridge::start(broker.port), Bridge::start(broker.port));
    one.poll("");
    two.poll("");
    one.post("/robots/r1/stream/start?viewer=a&lease=60");
    two.post("/robots/r1/stream/start");
    two.post("/robots/r1/stream/start?viewer=b&lease=60");
    two.post("/robots/r1/stream/stop?viewer=b");
    one.post("/robots/r1/stream/keyframe");
    let wanted = |json: &Value| {
        let leases = json["wanted"]["leases"].as_array().unwrap();
        let ids: Vec<_> = leases.iter().map(|lease| lease["id"].clone()).collect();
        (ids, json["keyframe"].clone(), version(json))
    };
    let deadline = Instant::now() + crate::common::DEADLINE;
    let agreed = loop {
        let (at_one, at_two) = (wanted(&one.poll("").1), wanted(&two.poll("").1));
        if at_one == at_two && at_one.0 == [json!(null), json!("a")] && at_one.1 == 1 {
            break at_one;
        }
        assert!(Instant::now() < deadline, "{at_one:?} {at_two:?}");
    };
    // A robot behind a load balancer waits at either of them.
    let asked = Instant::now();
    two.poll(&format!("?since={}&wait=0.3", agreed.2));
    assert!(asked.elapsed() >= Duration::from_millis(300));

    drop((one, two));
    let three = Bridge::start(broker.port);
    let (_, json) = three.poll("");
    assert_eq!(wanted(&json).0, agreed.0, "{json}");
    let left = json["wanted"]["leases"][1]["lease"].as_f64().unwrap();
    assert!((1.0..60.0).contains(&left), "{json}");
}

#[test]
fn only_the_robot_itself_may_speak_as_the_robot_and_only_so() {
    let broker = Mosquitto::start();
    let bridge = Bridge::start(broker.port);
    bridge.wait_ready();
    let robot = format!("Bearer {}", crate::common::ROBOT_TOKEN);
    let viewer = crate::common::basic("viewer", crate::common::VIEWER_PASSWORD);
    for (method, path, authorization, body, expected) in [
        ("GET", "/robots/r1/stream", &viewer, "", 200),
        ("PUT", "/robots/r1/stream/state", &viewer, "{}", 403),
        ("PUT", "/robots/r2/stream/state", &robot, "{}", 403),
        ("GET", "/robots/r2/stream", &robot, "", 403),
        ("GET", "/robots/r1", &robot, "", 403),
        ("POST", "/robots/r1/stream/start", &robot, "", 403),
        ("POST", "/stream/stop", &robot, "", 403),
        ("PUT", "/robots/r1/stream/state", &robot, "open", 400),
        (
            "PUT",
            "/robots/r1/stream/state",
            &robot,
            "{\"state\":7}",
            400,
        ),
        (
            "PUT",
            "/robots/r1/stream/state",
            &robot,
            &" ".repeat(4097),
            413,
        ),
        ("GET", "/robots/r1/stream?wait=61", &robot, "", 400),
        ("GET", "/robots/r1/stream?since=-1", &robot, "", 400),
        ("GET", "/robots/r1/stream", &"none".to_owned(), "", 401),
    ] {
        let (status, _, json) = bridge.send_body(method, path, authorization, body);
        assert_eq!(status, expected, "{method} {path}: {json}");
        assert_eq!(json["error"].is_string(), status != 200, "{json}");
    }
    let (_, list) = bridge.get("/robots");
    assert_eq!(list["robots"], json!([]), "nobody has polled: {list}");
    assert!(!bridge.all_output().contains(crate::common::ROBOT_TOKEN));
}

#[test]
fn a_robot_that_polls_no_more_is_offline_and_without_the_broker_it_is_told_so() {
    let mut broker = Mosquitto::start();
    let bridge = &Bridge::start(broker.port);
    let (_, json) = bridge.poll("?wait=0");
    bridge.get_until("/robots/r1", |_, json| json["online"] == true);
    let asked = Instant::now();
    let silent = bridge.get_until("/robots/r1", |_, json| json["online"] == false);
    let took = asked.elapsed();
    assert!(
        (14..25).contains(&took.as_secs()),
        "{took:?} until {silent}"
    );

    let since = version(&bridge.poll("").1).max(version(&json));
    let (status, json) = thread::scope(|scope| {
        let waiting = scope.spawn(move || bridge.poll(&format!("?since={since}&wait=60")));
        bridge.get_until("/robots/r1", |_, json| json["online"] == true);
        broker.kill();
        waiting.join().unwrap()
    });
    assert_eq!(status, 503, "{json}");
    assert!(json["error"].as_str().unwrap().contains("out of reach"));
}
