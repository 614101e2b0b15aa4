// SPDX-License-Identifier: MPL-2.0

//! What is done with the elements behind the valve.

use std::{sync::mpsc, time::Duration};

use gst::prelude::*;
use gst_base::prelude::*;

use super::cat::CAT;
use crate::element::{link, neighbours};

/// Sinks that would wait for a first buffer to preroll with, before the first opening, would
/// keep the whole pipeline from playing: live, they need none. They get back what they had.
#[derive(Debug, Default)]
pub struct FreedSinks(Vec<glib::WeakRef<gst_base::BaseSink>>);

impl FreedSinks {
    /// Frees those behind `src` that nothing else feeds.
    pub fn free(&mut self, src: &gst::Pad) {
        let kind = |pad: &gst::Pad| pad.parent_element().map(|element| element.type_());
        let is_valve = |pad: &gst::Pad| (kind(pad) == kind(src)).then_some(());
        for element in neighbours::beyond(src) {
            let Some(sink) = element.downcast_ref::<gst_base::BaseSink>() else {
                continue;
            };
            let mut pads = element.sink_pads().into_iter();
            if sink.is_async() && !pads.any(|pad| neighbours::origins(&pad, is_valve).free) {
                gst::info!(CAT, obj = src, "{}: async=false", sink.name());
                sink.set_async(false);
                self.0.push(sink.downgrade());
            }
        }
    }

    pub fn append(&mut self, mut others: FreedSinks) {
        self.0.append(&mut others.0);
    }

    /// Undoes it; a sink that somebody else has set meanwhile stays as it is.
    pub fn restore(self) {
        for sink in self.0.into_iter().filter_map(|sink| sink.upgrade()) {
            if !sink.is_async() {
                sink.set_async(true);
            }
        }
    }
}

/// How long downstream may take to let go of a camera's frames.
const DRAIN: Duration = Duration::from_secs(1);

/// Waits until the queues and elements behind `valve` have let go of what they were given, as
/// long as that may take. A camera's driver keeps its device open while somebody holds a frame of
/// it, and libcamerasrc of libcamera 0.0.3 crashes when one is given back after it is in NULL.
pub fn drain(valve: &gst::Element) {
    let (done, answer) = mpsc::sync_channel(1);
    valve.call_async(move |valve| {
        for pad in valve.src_pads() {
            pad.peer_query(&mut gst::query::Drain::new());
        }
        // Nobody waits for it any more where it has taken too long.
        let _ = done.send(());
    });
    if answer.recv_timeout(DRAIN).is_err() {
        gst::warning!(
            CAT,
            obj = valve,
            "downstream still holds frames of the camera"
        );
    }
}

/// Makes the elements between the valve and a sink that ends sessions by itself give back what
/// they hold for a stream (an encoder its pictures and threads): they begin the next one as the
/// first. Nothing may come from the valve meanwhile. Elements before any other sink keep what
/// they have, for it is theirs to write. Returns whether there were any.
pub fn reset(src: &gst::Pad) -> bool {
    let mut elements = Vec::new();
    let mut pad = src.clone();
    while let Some(peer) = pad.peer()
        && let Some(element) = peer.parent_element()
        && !link::is_of_session_sink(&peer)
    {
        let (1, [src]) = (element.num_sink_pads(), &element.src_pads()[..]) else {
            return false;
        };
        pad = src.clone();
        elements.push(element);
    }
    if elements.is_empty() || pad.peer().is_none() || !elements.iter().all(is_resettable) {
        return false;
    }
    for element in elements.iter().rev() {
        if element.set_state(gst::State::Ready).is_err() {
            gst::warning!(CAT, obj = element, "cannot be stopped");
        }
    }
    for element in elements.iter().rev() {
        if element.sync_state_with_parent().is_err() {
            gst::warning!(CAT, obj = element, "cannot be started again");
        }
    }
    true
}

/// Whether nothing is lost where it begins anew: no sink is in it, and no file is its to write.
fn is_resettable(element: &gst::Element) -> bool {
    let has_file = |element: &gst::Element| {
        let property = element.find_property("location");
        property.is_some_and(|it| it.value_type() == glib::Type::STRING)
    };
    let inside = element.downcast_ref::<gst::Bin>().map(|bin| {
        let children = bin.iterate_recurse().into_iter().flatten();
        children.collect::<Vec<_>>()
    });
    let mut all = inside.into_iter().flatten().chain([element.clone()]);
    !all.any(|it| it.element_flags().contains(gst::ElementFlags::SINK) || has_file(&it))
}
