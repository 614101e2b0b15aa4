// SPDX-License-Identifier: MPL-2.0

//! Adaptive bitrate at the encoder: the element sets what a session asks for, and gives the
//! encoder its own bitrate back when no session is wanted.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{bitrate::Range, encoder::Encoder};
use crate::element::worker::Worker;

/// A session begins with the bitrate that the last one ended with, if that was not longer ago.
const REMEMBERED: Duration = Duration::from_secs(300);

/// An encoder whose bitrate this element changes.
struct ControlledEncoder {
    encoder: Encoder,
    /// What others have set it to.
    own: Option<u64>,
    /// What this element has set it to, until it is given back.
    set: Option<u64>,
}

/// What the encoder's bitrate is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BitrateRequest {
    Set(u64),
    /// What others have set it to.
    Restore,
}

#[derive(Default)]
struct State {
    encoder: Option<ControlledEncoder>,
    request: Option<BitrateRequest>,
    /// The last one that a session asked for, and when that was still so.
    last_bitrate: Option<(u64, Instant)>,
}

impl State {
    fn controlled(&mut self, encoder: &Encoder) -> Option<&mut ControlledEncoder> {
        self.encoder
            .as_mut()
            .filter(|controlled| controlled.encoder == *encoder)
    }
}

pub struct EncoderRate {
    /// Setting an encoder's property may take it a moment.
    worker: Arc<Worker<gst::Element>>,
    /// Not held while an encoder is read or set.
    state: Arc<Mutex<State>>,
}

impl EncoderRate {
    pub fn new() -> Self {
        EncoderRate {
            worker: Worker::new(),
            state: Arc::default(),
        }
    }

    pub fn start(&self, element: &gst::Element, timers: Handle) {
        let state = self.state.clone();
        self.worker.start(element, timers, move |_| {
            apply_request(&state);
            None
        });
    }

    /// Gives the encoder its own bitrate back; false where that takes longer than `deadline`.
    pub fn stop(&self, deadline: Duration) -> bool {
        self.restore();
        self.worker.stop(deadline)
    }

    /// The bounds for a session, in bits per second, of the encoder upstream of `pad`, which is
    /// set to where the session begins. The error says why the encoder is left alone.
    pub fn begin(
        &self,
        pad: &gst::Pad,
        min: Option<u64>,
        max: Option<u64>,
    ) -> Result<Range, String> {
        let encoder = Encoder::upstream(pad)?;
        let found = encoder.bitrate();
        let mut state = self.state.lock();
        let known = state
            .controlled(&encoder)
            .filter(|known| known.set.is_some());
        let own = if let Some(known) = known {
            known.own
        } else {
            state.encoder = Some(ControlledEncoder {
                encoder,
                own: found,
                set: None,
            });
            found
        };
        let max = max
            .or(own)
            .ok_or("the encoder does not tell its bitrate: set max-bitrate")?;
        let min = min.unwrap_or(max / 10).min(max);
        let start = state
            .last_bitrate
            .filter(|(_, at)| at.elapsed() < REMEMBERED)
            .map_or(max, |(bitrate, _)| bitrate)
            .clamp(min, max);
        drop(state);
        self.request(BitrateRequest::Set(start));
        Ok(Range { min, max, start })
    }

    pub fn set(&self, bitrate: u64) {
        self.state.lock().last_bitrate = Some((bitrate, Instant::now()));
        self.request(BitrateRequest::Set(bitrate));
    }

    /// A session ended: from now on its bitrate grows old.
    pub fn end(&self) {
        if let Some((_, at)) = &mut self.state.lock().last_bitrate {
            *at = Instant::now();
        }
    }

    /// No session is wanted.
    pub fn restore(&self) {
        self.request(BitrateRequest::Restore);
    }

    fn request(&self, request: BitrateRequest) {
        self.state.lock().request = Some(request);
        self.worker.wake();
    }
}

/// Runs in the worker.
fn apply_request(state: &Mutex<State>) {
    let (request, encoder) = {
        let mut state = state.lock();
        let request = state.request.take();
        let encoder = state.encoder.as_ref();
        let Some(pair) = request.zip(encoder.map(|controlled| controlled.encoder.clone())) else {
            return;
        };
        pair
    };
    let found = encoder.bitrate();
    let bitrate = state.lock().controlled(&encoder).and_then(|controlled| {
        if controlled.set.is_none() || controlled.set != found {
            // Others have set it meanwhile.
            controlled.own = found;
        }
        match request {
            BitrateRequest::Set(bitrate) => {
                controlled.set = Some(bitrate);
                controlled.set
            }
            BitrateRequest::Restore => controlled.own.filter(|_| controlled.set.is_some()),
        }
    });
    if let Some(bitrate) = bitrate {
        encoder.set_bitrate(bitrate);
    }
    // As the encoder rounds it.
    let set = encoder
        .bitrate()
        .filter(|_| request != BitrateRequest::Restore);
    if let Some(controlled) = state.lock().controlled(&encoder) {
        controlled.set = set;
    }
}
