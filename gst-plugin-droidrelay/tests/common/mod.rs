// SPDX-License-Identifier: MPL-2.0

//! What the tests with real pipelines share.
#![allow(dead_code, reason = "provider and secrets use parts of it")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use gst::prelude::*;

/// Ends a test that fails; no test waits for it.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn init() {
    static PLUGIN: std::sync::Once = std::sync::Once::new();
    PLUGIN.call_once(|| {
        gst::init().unwrap();
        // What GStreamer calls critical ends the tests, as it ends an application that is debugged.
        let critical = glib::LogLevels::LEVEL_CRITICAL;
        glib::log_set_handler(
            Some("GStreamer"),
            critical,
            false,
            false,
            |_, _, message| {
                eprintln!("GStreamer-CRITICAL: {message}");
                // Some applications drop a pipeline that plays: tests do as they do.
                if !message.contains("Trying to dispose element") {
                    std::process::abort();
                }
            },
        );
        gstdroidrelay::plugin_register_static().unwrap();
    });
}

pub fn launch(description: &str) -> gst::Pipeline {
    init();
    gst::parse::launch(description).unwrap().downcast().unwrap()
}

/// Counts what reaches the element `name`, and tells of the first buffer.
pub fn count(
    pipeline: &gst::Pipeline,
    name: &str,
) -> (Arc<AtomicU64>, mpsc::Receiver<gst::Buffer>) {
    let count = Arc::new(AtomicU64::new(0));
    let (sender, receiver) = mpsc::channel();
    let counter = count.clone();
    pipeline
        .by_name(name)
        .unwrap()
        .static_pad("sink")
        .unwrap()
        .add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            counter.fetch_add(1, Ordering::SeqCst);
            if let Some(buffer) = info.buffer() {
                let _ = sender.send(buffer.clone());
            }
            gst::PadProbeReturn::Ok
        })
        .unwrap();
    (count, receiver)
}

pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what} has not happened");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn no_error(pipeline: &gst::Pipeline) {
    let bus = pipeline.bus().unwrap();
    if let Some(message) = bus.pop_filtered(&[gst::MessageType::Error]) {
        panic!("{message:?}");
    }
}

pub fn start(pipeline: &gst::Pipeline) {
    pipeline.set_state(gst::State::Playing).unwrap();
}

pub fn end(pipeline: gst::Pipeline) {
    let begin = Instant::now();
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(begin.elapsed() < DEADLINE);
    let weak = pipeline.downgrade();
    drop(pipeline);
    // A thread of GStreamer's may be just about to let go of it.
    until("the pipeline's end, which somebody still holds", || {
        weak.upgrade().is_none()
    });
}

/// Key frames and others, as they reach a pad.
pub fn is_key(buffer: &gst::Buffer) -> bool {
    !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT)
}
