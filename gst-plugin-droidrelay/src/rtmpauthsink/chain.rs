// SPDX-License-Identifier: MPL-2.0

//! What stands behind the always pad: a parser where the input needs one, then the sink.

use gst::prelude::*;

/// What comes on the always pad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    H264,
    H265,
    Flv,
}

impl Input {
    pub fn of(caps: &gst::CapsRef) -> Self {
        match caps.structure(0).map(|structure| structure.name().as_str()) {
            Some("video/x-flv") => Input::Flv,
            Some("video/x-h265") => Input::H265,
            _ => Input::H264,
        }
    }

    /// The element that makes it what the session sends.
    fn parser(self) -> Option<&'static str> {
        match self {
            Input::H264 => Some("h264parse"),
            Input::H265 => Some("h265parse"),
            Input::Flv => None,
        }
    }
}

pub struct Chain {
    pub input: Input,
    elements: Vec<gst::Element>,
}

impl Chain {
    /// Adds the elements to `bin`, `sink` as the last, and makes `pad` feed them.
    pub fn build(
        input: Input,
        bin: &gst::Bin,
        pad: &gst::GhostPad,
        sink: gst::Element,
    ) -> Result<Self, String> {
        let mut elements = vec![sink];
        if let Some(name) = input.parser() {
            let parser = gst::ElementFactory::make(name).build().map_err(|_| {
                format!("the element {name} is missing: install gstreamer1.0-plugins-bad")
            })?;
            elements.insert(0, parser);
        }
        bin.add_many(&elements).map_err(failed)?;
        gst::Element::link_many(&elements).map_err(failed)?;
        let target = elements[0].static_pad("sink");
        pad.set_target(target.as_ref()).map_err(failed)?;
        for element in elements.iter().rev() {
            element.sync_state_with_parent().map_err(failed)?;
        }
        Ok(Chain { input, elements })
    }

    /// The last of the elements.
    pub fn sink(&self) -> gst::Element {
        self.elements.last().expect("there is one").clone()
    }

    /// Takes the elements out of `bin` and stops them.
    pub fn remove(self, bin: &gst::Bin) -> Result<(), String> {
        for element in self.elements {
            bin.remove(&element).map_err(failed)?;
            element
                .set_state(gst::State::Null)
                .map_err(|err| format!("cannot stop {}: {err}", element.name()))?;
        }
        Ok(())
    }
}

fn failed(err: glib::BoolError) -> String {
    format!("cannot set up the bin: {err}")
}
