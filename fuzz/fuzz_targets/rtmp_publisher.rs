// SPDX-License-Identifier: MPL-2.0

//! What a server says to the publisher, in any split, while it takes what the publisher writes
//! or leaves it: an end or none, the same one in every split, but never a panic, never a secret
//! in a text, and never more memory than the protocol's own limits allow.
//!
//! The first two bytes of the input say how, the rest is what the server says.
#![no_main]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    iter,
    sync::atomic::{AtomicUsize, Ordering},
};

use droidrelay_rtmp::{Error, Event, Params, Progress, Publisher, auth::Demand, flv::FlvReader};
use droidrelay_wire::Secret;
use libfuzzer_sys::fuzz_target;

/// Most that the server says, with its repetitions.
const MAX_SAID: usize = 128 * 1024;
/// A publisher holds no more than this, whatever the server says.
const MAX_MEMORY: usize = 8 * 1024 * 1024;
/// Nor do more bytes wait to be written: what it begins with, and the answers that it allows.
const MAX_OUTPUT: usize = 72 * 1024;
/// The password as sent, and as it stands on one line: it has a tab.
const ENCODED: &str = "hunter2%09%2F";
const SHOWN: &str = "hunter2 /";

/// Counts what is allocated at this moment, and the most that was.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What became of the session.
#[derive(Debug, PartialEq)]
struct End {
    taken: Result<(), Error>,
    progress: Progress,
    ready_for_media: bool,
    events: Vec<Event>,
}

fn run<'a>(how: u8, reads: bool, pieces: impl Iterator<Item = &'a [u8]>) -> End {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let mut publisher = Publisher::new(
        Params {
            app: "live".into(),
            tc_url: "rtmp://host/live".into(),
            stream: Secret::new(format!("stream?user=me&pass={ENCODED}")),
            login: None,
            pipelined: how & 1 == 0,
            hevc: how & 2 == 0,
            pauses: false,
        },
        &[7],
    );
    let mut events = Vec::new();
    let mut taken = Ok(());
    for piece in pieces {
        let waiting = publisher.output().len();
        let result = publisher.input(piece);
        if taken.is_err() {
            assert_eq!(result, taken);
            assert_eq!(publisher.output().len(), waiting);
        }
        taken = result;
        events.extend(iter::from_fn(|| publisher.next_event()));
        assert!(publisher.output().len() <= MAX_OUTPUT + 3 * piece.len());
        if reads {
            publisher.consume(publisher.output().len());
            publisher.video(40, &[&[0x17, 1, 0, 0, 0], &[1; 100]]);
            assert_eq!(publisher.output().is_empty(), !publisher.ready_for_media());
            publisher.consume(publisher.output().len());
        }
    }
    assert!(PEAK.load(Ordering::Relaxed) - before < MAX_MEMORY);
    // One ends the session, and only Published can come before it.
    assert!(events.len() <= 2);
    events.iter().for_each(check_event);
    if let Err(error) = &taken {
        check_text(&error.to_string());
    }
    let end = End {
        taken,
        progress: publisher.progress(),
        ready_for_media: publisher.ready_for_media(),
        events,
    };
    publisher.unpublish();
    end
}

fn check_event(event: &Event) {
    match event {
        Event::Refused {
            code, description, ..
        } => {
            check_text(code);
            check_text(description);
        }
        Event::LoginDemanded(Demand::Answer(challenge)) => {
            let password = Secret::new("canary-7");
            let answer = challenge.answer("live", "me", &password, 7);
            assert!(!answer.expose().contains("canary-7"));
        }
        _ => {}
    }
}

fn check_text(text: &str) {
    assert!(text.chars().count() <= 500);
    assert!(!text.chars().any(char::is_control), "{text:?}");
    for secret in [ENCODED, SHOWN] {
        assert!(!text.contains(secret), "{text:?}");
    }
}

fuzz_target!(|input: &[u8]| {
    let [how, split, said @ ..] = input else {
        return;
    };
    let reads = how & 8 == 0;
    // The handshake needs no guessing.
    let hello: &[u8] = if how & 4 == 0 {
        &[3; 1 + 1536 * 2]
    } else {
        &[]
    };
    let times = (MAX_SAID / said.len().max(1)).min(1 << (how >> 4));
    let said = said.repeat(times);
    let pieces = |size| iter::once(hello).chain(said.chunks(size));
    let end = run(*how, reads, pieces(usize::from(*split) + 1));
    let whole = run(*how, reads, pieces(8 * 1024));
    // What waits unread is acknowledged by the piece.
    if reads {
        assert_eq!(end, whole);
    }

    let mut flv = FlvReader::new();
    for piece in said.chunks(usize::from(*split) + 1) {
        flv.push(piece);
        while let Ok(Some(_)) = flv.next_tag() {}
    }
});
