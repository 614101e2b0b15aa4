//! What a server says to the publisher, in any split: an end or none, but never a panic, and
//! never more memory than the protocol's own limits allow.
#![no_main]
#![allow(dead_code, reason = "the module is the plugin's, as it is")]

use droidrelay_wire::Secret;
use libfuzzer_sys::fuzz_target;

#[path = "../../gst-plugin-droidrelay/src/rtmp/mod.rs"]
mod rtmp;

use rtmp::{auth::Demand, flv::FlvReader, Event, Params, Publisher};

/// Commands, their answers' acknowledgements and pongs: a server cannot make us say more than
/// it says itself, beside what we begin with.
const OURS: usize = 8 * 1024;

fuzz_target!(|input: &[u8]| {
    let [how, split, said @ ..] = input else {
        return;
    };
    let mut publisher = Publisher::new(
        Params {
            app: "live".into(),
            tc_url: "rtmp://host/live".into(),
            stream: Secret::new("stream?user=me&pass=canary-7"),
            login: None,
            pipelined: how & 1 == 0,
            hevc: how & 2 == 0,
        },
        &[7],
    );
    if how & 4 == 0 {
        // The handshake needs no guessing.
        let mut hello = vec![3];
        hello.extend([0; 1536 * 2]);
        publisher.input(&hello).unwrap();
    }
    let mut sent = 0;
    for piece in said.chunks(usize::from(*split) + 1) {
        let alive = publisher.input(piece).is_ok();
        while let Some(event) = publisher.next_event() {
            match event {
                Event::Refused {
                    code, description, ..
                } => {
                    assert!(!format!("{code} {description}").contains("canary-7"));
                }
                Event::LoginDemanded(Demand::Answer(challenge)) => {
                    let password = Secret::new("canary-7");
                    let answer = challenge.answer("live", "me", &password, 7);
                    assert!(!answer.expose().contains("canary-7"));
                }
                _ => {}
            }
        }
        publisher.video(40, &[&[0x17, 1, 0, 0, 0], &[1; 100]]);
        sent += publisher.output().len();
        publisher.consume(publisher.output().len());
        if !alive {
            break;
        }
    }
    let frames = said.len().div_ceil(usize::from(*split) + 1) * 140;
    assert!(sent <= OURS + frames + 8 * said.len(), "{sent} bytes");
    publisher.unpublish();

    let mut flv = FlvReader::new();
    for piece in said.chunks(usize::from(*split) + 1) {
        flv.push(piece);
        while let Ok(Some(_)) = flv.next_tag() {}
    }
});
