// SPDX-License-Identifier: MPL-2.0

//! What is done with the elements behind the valve.

use gst::prelude::*;
use gst_base::prelude::*;

use super::cat::CAT;
use crate::element::{link, neighbours};

/// Sinks that would wait for a first buffer to preroll with, before the first opening, would
/// keep the whole pipeline from playing: live, they need none.
pub fn free_sinks(src: &gst::Pad) {
    for sink in neighbours::beyond(src) {
        if let Some(sink) = sink.downcast_ref::<gst_base::BaseSink>()
            && sink.is_async()
        {
            gst::info!(CAT, obj = src, "{}: async=false", sink.name());
            sink.set_async(false);
        }
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
    if elements.is_empty() || pad.peer().is_none() {
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
