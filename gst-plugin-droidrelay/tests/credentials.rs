// SPDX-License-Identifier: MPL-2.0

//! Whatever the publisher's credentials are, the server gets them as they were set.

use std::collections::BTreeSet;

use crate::common::{end, launch, no_error, start};
use droidrelay_testkit::{
    certs::{random_word, write_private},
    servers::relay::{Event, Kind, Options, Relay},
};
use gst::prelude::*;

const LINE: &str = "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=30/1 \
                    ! x264enc tune=zerolatency ! rtmpauthsink name=sink";

const NASTY: &[&str] = &[
    "a/b&c=d%e+f#g?h@i j;pä€",
    "%2F%26%3D",
    "%",
    "%%4",
    "%zz",
    "100%25",
    "&",
    "=",
    "?",
    "#",
    "/",
    "//",
    ":@",
    "+ +",
    " leading and trailing ",
    "\t\u{1}\u{7f}",
    "a\r\nb",
    "\"'`\\",
    "${HOME} $(id) <>|",
    "user=x&pass=y",
    "&token=x",
    "ÿ\u{fffd}\u{202e}🎥",
    "[::1]",
    "-._~",
];

/// Short: encoded, nginx-rtmp takes 255 bytes of stream name and query.
fn random_text() -> String {
    let word = random_word().unwrap();
    let numbers = word.as_bytes().chunks(4).map(|digits| {
        let digits = std::str::from_utf8(digits).unwrap();
        u32::from_str_radix(digits, 16).unwrap()
    });
    // Of each kind of length in UTF-8 some.
    let text = numbers.zip([0x7f, 0x7f, 0xff, 0x7ff, 0xffff, 0x10_ffff]);
    text.filter_map(|(number, limit)| char::from_u32((number * 17) % limit + 1))
        .collect()
}

/// Pairs of user and password.
fn values() -> Vec<(String, String)> {
    let nasty = NASTY.iter().map(|text| (*text).to_owned());
    let random = (0..20).map(|_| random_text());
    let passwords: Vec<String> = nasty
        .chain(random)
        .filter(|text| !text.is_empty())
        .collect();
    let mut users = passwords.clone();
    users.rotate_left(1);
    users.into_iter().zip(passwords).collect()
}

#[test]
fn what_is_set_is_what_the_server_asks_about() {
    let relay = Relay::start(Kind::Nginx).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pipeline = launch(LINE);
    let sink = pipeline.by_name("sink").unwrap();
    sink.set_property("location", relay.publish_url() + "?keep=1");
    for (user, password) in values() {
        for (mode, expected) in [
            (
                "query",
                BTreeSet::from([("user", &user), ("pass", &password)]),
            ),
            (
                "token",
                BTreeSet::from([("user", &user), ("token", &password)]),
            ),
        ] {
            sink.set_property_from_str("credential-mode", mode);
            sink.set_property("user", &user);
            // A file holds a line.
            if password.contains(['\r', '\n']) || mode == "token" {
                sink.set_property("password", &password);
                sink.set_property("password-file", "");
            } else {
                let file = write_private(folder.path(), "pass", &password).unwrap();
                sink.set_property("password-file", file.to_str().unwrap());
            }
            let questions = relay.questions().mark();
            start(&pipeline);
            let (_, question) = relay
                .questions()
                .wait(questions, "the server's question", |question| {
                    question.path == "/publish"
                })
                .unwrap();
            let given = ["user", "pass", "token"]
                .into_iter()
                .filter_map(|name| Some((name, question.find(name)?.to_owned())));
            let given: Vec<_> = given.collect();
            let given = given.iter().map(|(name, value)| (*name, value)).collect();
            assert_eq!(expected, given, "{mode}");
            assert_eq!(
                (question.get("name"), question.get("keep")),
                ("stream", "1")
            );
            pipeline.set_state(gst::State::Null).unwrap();
            no_error(&pipeline);
        }
    }
    drop(sink);
    end(pipeline);
}

#[test]
fn a_password_of_any_characters_lets_in() {
    for kind in [Kind::Nginx, Kind::MediaMtx] {
        if kind.notice_if_absent() {
            continue;
        }
        let password = NASTY.concat();
        let password: String = password.chars().take(60).collect();
        let relay = Relay::start_with(
            kind,
            Options {
                password: Some(password.clone()),
                ..Options::default()
            },
        )
        .unwrap();
        let pipeline = launch(LINE);
        let sink = pipeline.by_name("sink").unwrap();
        sink.set_property("location", relay.publish_url());
        sink.set_property("user", &relay.publisher.user);
        sink.set_property("password", &password);
        start(&pipeline);
        let events = relay.events();
        let published = events.wait(0, "publishing", |event| *event == Event::Published);
        published.unwrap_or_else(|err| panic!("{err}: {:?}\n{}", events.all(), relay.text()));
        drop(sink);
        end(pipeline);
    }
}

#[test]
fn credentials_in_the_location_are_used_and_go_nowhere_else() {
    let relay = Relay::start(Kind::Nginx).unwrap();
    for (before, behind) in [("pub:p%2Fa&b@", ""), ("", "?user=pub&pass=p%2Fa%26b")] {
        let url = relay.publish_url().replace("://", &format!("://{before}"));
        let pipeline = launch(LINE);
        let sink = pipeline.by_name("sink").unwrap();
        sink.set_property("location", url + behind);
        assert_eq!(sink.property::<String>("location"), relay.publish_url());
        let questions = relay.questions().mark();
        start(&pipeline);
        let (_, question) = relay
            .questions()
            .wait(questions, "the server's question", |question| {
                question.path == "/publish"
            })
            .unwrap();
        assert_eq!(
            (question.get("user"), question.get("pass")),
            ("pub", "p/a&b")
        );
        let app = relay.publish_url().replace("/stream", "");
        assert_eq!(
            (question.get("app"), question.get("tcurl")),
            ("live", &*app)
        );
        no_error(&pipeline);
        drop(sink);
        end(pipeline);
    }
}
