// SPDX-License-Identifier: MPL-2.0

//! Opens what is behind an element of a line, and closes it again.

use std::{sync::mpsc, thread, time::Duration};

use gst::prelude::*;

/// How long opening a device may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of it.
pub enum Opened {
    Well,
    /// It opens, and lacks what the line asks for.
    Lacks(String),
    /// It does not open: why.
    Not(String),
    /// It has not opened within this time.
    Hangs(Duration),
}

/// Brings an element of a pipeline that does not run to READY and back to NULL.
pub fn open(element: &gst::Element) -> Opened {
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    // A device that hangs is left to its thread.
    let (sender, receiver) = mpsc::channel();
    let opened = element.clone();
    thread::spawn(move || {
        let ready = opened.set_state(gst::State::Ready);
        let lacks = ready
            .ok()
            .and_then(|_| droidrelay_camera::mismatch(&opened));
        let _ = opened.set_state(gst::State::Null);
        let _ = sender.send((ready.is_ok(), lacks));
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok((true, None)) => Opened::Well,
        Ok((true, Some(lacks))) => Opened::Lacks(lacks),
        Ok((false, _)) => {
            let error = bus.pop_filtered(&[gst::MessageType::Error]);
            let text = error.and_then(|message| match message.view() {
                gst::MessageView::Error(error) => Some(error.error().message().to_owned()),
                _ => None,
            });
            Opened::Not(text.unwrap_or_else(|| "it does not open".into()))
        }
        Err(_) => Opened::Hangs(PATIENCE),
    }
}

/// What the cameras of a line lack of what it asks for. One that does not open says nothing: the
/// file may be right all the same.
pub fn lacking(pipeline: &gst::Pipeline) -> Option<String> {
    let all = pipeline.iterate_recurse().into_iter().flatten();
    let mut cameras = all.filter(|element| {
        let class = element
            .factory()
            .and_then(|factory| factory.metadata("klass").map(Into::into));
        class.is_some_and(|class: String| class.contains("Source/Video"))
    });
    cameras.find_map(|camera| match open(&camera) {
        Opened::Lacks(text) => Some(format!("{}: {text}", camera.name())),
        _ => None,
    })
}
