// SPDX-License-Identifier: MPL-2.0

//! The elements before and behind a pad, through bins and on every branch.

use std::collections::VecDeque;

use gst::prelude::*;

/// Elements that are counted; a line has far fewer.
const MOST: usize = 1000;

/// The elements that `pad` (a source pad) feeds, or that feed it (a sink pad), nearest first,
/// each once. Bins themselves are left out, what is inside them is not.
pub fn beyond(pad: &gst::Pad) -> Vec<gst::Element> {
    let direction = pad.direction();
    let mut found: Vec<gst::Element> = Vec::new();
    let mut pads = VecDeque::from([pad.clone()]);
    while let Some(pad) = pads.pop_front() {
        let Some(element) = neighbour(&pad) else {
            continue;
        };
        if found.contains(&element) || found.len() >= MOST {
            continue;
        }
        pads.extend(match direction {
            gst::PadDirection::Src => element.src_pads(),
            _ => element.sink_pads(),
        });
        found.push(element);
    }
    found
}

/// The element that `pad` is linked to, whatever bins lie between.
fn neighbour(pad: &gst::Pad) -> Option<gst::Element> {
    far_pad(pad)?.parent_element()
}

/// The pad of an element that `pad` is linked to, whatever bins lie between.
fn far_pad(pad: &gst::Pad) -> Option<gst::Pad> {
    let mut peer = pad.peer()?;
    for _ in 0..MOST {
        if let Some(ghost) = peer.downcast_ref::<gst::GhostPad>() {
            // Into a bin.
            peer = ghost.target()?;
        } else if let Some(ghost) = peer.parent().and_downcast::<gst::GhostPad>() {
            // Out of a bin: the peer is the ghost pad's inner side.
            peer = ghost.peer()?;
        } else {
            return Some(peer);
        }
    }
    None
}

/// What `element` is, in the words of its factory.
pub fn is_a(element: &gst::Element, word: &str) -> bool {
    let factory = element.factory();
    let klass = factory.as_ref().and_then(|it| it.metadata("klass"));
    klass.is_some_and(|klass| klass.split('/').any(|it| it == word))
}

/// Where what reaches a sink comes from.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Origins<V> {
    /// Valves, each as it was asked for.
    pub valves: Vec<V>,
    /// A picture or a sound comes from a source that no valve stands behind.
    pub free: bool,
}

/// Looks for what comes to `sink`; `valve` answers for a pad that is a valve's.
pub fn origins<V>(sink: &gst::Pad, valve: impl Fn(&gst::Pad) -> Option<V>) -> Origins<V> {
    let mut seen = Vec::new();
    look_for_origins(sink, &valve, &mut seen)
}

fn look_for_origins<V>(
    sink: &gst::Pad,
    valve: &dyn Fn(&gst::Pad) -> Option<V>,
    seen: &mut Vec<gst::Pad>,
) -> Origins<V> {
    let mut origins = Origins {
        valves: Vec::new(),
        free: false,
    };
    let Some(src) = far_pad(sink) else {
        return origins;
    };
    if seen.contains(&src) || seen.len() > MOST {
        return origins;
    }
    seen.push(src.clone());
    if let Some(valve) = valve(&src) {
        origins.valves.push(valve);
        return origins;
    }
    let Some(element) = src.parent_element() else {
        return origins;
    };
    let inputs = element.sink_pads();
    origins.free = inputs.is_empty();
    for input in inputs {
        let more = look_for_origins(&input, valve, seen);
        origins.valves.extend(more.valves);
        origins.free |= more.free;
    }
    // A muxer's tracks make one stream: it is the valves', whichever tracks have one.
    origins.free &= origins.valves.is_empty() || !is_a(&element, "Muxer");
    origins
}

/// The nearest video encoder beyond `pad`.
pub fn video_encoder(pad: &gst::Pad) -> Option<gst::Element> {
    let is_encoder = |element: &gst::Element| is_a(element, "Encoder") && is_a(element, "Video");
    beyond(pad).into_iter().find(is_encoder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pad: &gst::Pad) -> Vec<String> {
        beyond(pad)
            .iter()
            .map(|element| element.name().to_string())
            .collect()
    }

    #[test]
    fn elements_are_found_on_all_branches_and_in_bins() {
        gst::init().unwrap();
        let pipeline = gst::parse::launch(
            "identity name=a ! identity name=b ! tee name=t \
             t. ! queue name=q ! fakesink name=s1 \
             t. ! fakesink name=s2",
        )
        .unwrap()
        .downcast::<gst::Pipeline>()
        .unwrap();
        let bin =
            gst::parse::bin_from_description("identity name=i1 ! identity name=i2", true).unwrap();
        let source = gst::ElementFactory::make("fakesrc")
            .name("source")
            .build()
            .unwrap();
        pipeline
            .add_many([source.upcast_ref(), bin.upcast_ref::<gst::Element>()])
            .unwrap();
        let a = pipeline.by_name("a").unwrap();
        source.link(&bin).unwrap();
        bin.link(&a).unwrap();
        assert_eq!(
            names(&source.static_pad("src").unwrap()),
            ["i1", "i2", "a", "b", "t", "q", "s2", "s1"]
        );
        let s1 = pipeline.by_name("s1").unwrap();
        assert_eq!(
            names(&s1.static_pad("sink").unwrap()),
            ["q", "t", "b", "a", "i2", "i1", "source"]
        );
    }
}
