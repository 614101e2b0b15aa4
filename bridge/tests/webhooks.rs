// SPDX-License-Identifier: MPL-2.0

//! Webhooks, as a receiver gets them.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::mpsc,
    thread,
    time::Instant,
};

use crate::common::{Bridge, DEADLINE, Folder, Mosquitto, Robot};
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;
use serde_json::Value;

const SECRET: &str = "canary-webhook-41c9";

struct Call {
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Call {
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        &found.unwrap_or_else(|| panic!("no {name}")).1
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Answers with these one after the other, then with 200.
fn receiver(answers: &'static [u16]) -> (u16, mpsc::Receiver<Call>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (calls_in, calls) = mpsc::channel();
    thread::spawn(move || {
        let mut answers = answers.iter();
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut reader = BufReader::new(&stream);
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let path = line.split(' ').nth(1).unwrap().to_owned();
            let mut headers = Vec::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let Some((name, value)) = line.trim_end().split_once(": ") else {
                    break;
                };
                headers.push((name.to_lowercase(), value.to_owned()));
            }
            let mut call = Call {
                path,
                headers,
                body: String::new(),
            };
            let length: usize = call.header("content-length").parse().unwrap();
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            call.body = String::from_utf8(body).unwrap();
            let status = answers.next().unwrap_or(&200);
            write!(&stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").unwrap();
            if calls_in.send(call).is_err() {
                return;
            }
        }
    });
    (port, calls)
}

#[test]
fn a_robot_that_opens_by_itself_or_falls_silent_is_told_signed_and_again_where_it_failed() {
    let broker = Mosquitto::start();
    let robot = Robot::new(broker.port, "r1");
    let (port, calls) = receiver(&[503]);
    let (dead, _) = (TcpListener::bind("127.0.0.1:0").unwrap(), ());
    let folder = Folder::new();
    folder.write("secret", SECRET);
    let more = format!(
        "[[webhook]]\nurl = \"http://127.0.0.1:{port}/hook?key=canary-url-77\"\nsecret-file = \"secret\"\n\
         [[webhook]]\nurl = \"http://127.0.0.1:{}/\"\n\
         [[webhook]]\nurl = \"http://127.0.0.1:{port}/live\"\nevents = [\"live\"]\nrobots = [\"r2\"]\n",
        dead.local_addr().unwrap().port()
    );
    let bridge = Bridge::start_in(folder, broker.port, &more, &[]);
    bridge.get_until("/robots/r1", |_, json| json["state"]["state"] == "idle");

    robot.say(
        "state",
        r#"{"state":"starting","cause":"local","viewers":["motion"],"since":"2026-11-25T08:00:00Z"}"#,
    );
    let first = calls.recv_timeout(DEADLINE).unwrap();
    // The one that never answers holds up neither this one nor the bridge.
    let asked = Instant::now();
    bridge.wait_ready();
    assert!(asked.elapsed().as_secs() < 3);
    let again = calls.recv_timeout(DEADLINE).unwrap();
    for call in [&first, &again] {
        assert_eq!(call.path, "/hook?key=canary-url-77");
        let json = call.json();
        assert_eq!(
            (&json["event"], &json["robot"]),
            (&"opened".into(), &"r1".into())
        );
        assert_eq!(json["text"], "r1 has opened its stream by itself: motion");
        assert_eq!(json["state"]["cause"], "local");
        let signed = format!(
            "{}.{}.{}",
            call.header("webhook-id"),
            call.header("webhook-timestamp"),
            call.body
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        let mac = call
            .header("webhook-signature")
            .strip_prefix("v1,")
            .unwrap();
        hmac::verify(&key, signed.as_bytes(), &STANDARD.decode(mac).unwrap()).unwrap();
    }
    assert_eq!(first.header("webhook-id"), again.header("webhook-id"));

    robot.say("availability", "offline");
    let call = calls.recv_timeout(DEADLINE).unwrap();
    assert_eq!(call.json()["event"], "offline");
    bridge.wait_log(|line| line.contains("webhook") && line.contains("delivered"));
    let output = bridge.all_output();
    assert!(
        !output.contains(SECRET) && !output.contains("canary-url-77"),
        "{output}"
    );
}
