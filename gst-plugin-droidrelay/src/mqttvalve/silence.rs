// SPDX-License-Identifier: MPL-2.0

//! An encoder that is fed and gives nothing: hardware encoders fall silent, without an error, at a
//! bitrate that is too low for them or after hours.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gst::prelude::*;

use crate::element::neighbours;

/// Fed for so long without giving anything, it is silent,
const PATIENCE: Duration = Duration::from_secs(5);
/// and by so many frames: more than any encoder looks ahead.
const LOOKAHEAD: u64 = 120;
/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the nearest encoder behind the valve gives.
#[derive(Debug, Default)]
pub struct EncoderWatch {
    probe: Option<Probe>,
    spell: Option<Spell>,
    /// What it had given when it began, and whether there was more since.
    begun: u64,
    gives: bool,
}

/// Counts what comes out of an encoder.
#[derive(Debug)]
struct Probe {
    pad: gst::Pad,
    id: Option<gst::PadProbeId>,
    given: Arc<AtomicU64>,
}

/// Since when nothing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spell {
    given: u64,
    /// What the valve had passed by then.
    passed: u64,
    since: Duration,
}

impl Probe {
    fn of(pad: gst::Pad) -> Self {
        let given = Arc::<AtomicU64>::default();
        let count = given.clone();
        let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST;
        let id = pad.add_probe(kinds, move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
            gst::PadProbeReturn::Ok
        });
        Probe { pad, id, given }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.pad.remove_probe(id);
        }
    }
}

impl Spell {
    /// Whether it has lasted too long by `now`.
    fn is_over(&self, passed: u64, now: Duration) -> bool {
        now.saturating_sub(self.since) >= PATIENCE
            && passed.saturating_sub(self.passed) >= LOOKAHEAD
    }
}

impl EncoderWatch {
    /// Looks at the encoder behind `src`, which has `passed` so many frames; its name where it is
    /// silent.
    pub fn look(&mut self, src: &gst::Pad, passed: u64, now: Duration) -> Option<String> {
        let encoder = neighbours::video_encoder(src)?;
        let pad = encoder.static_pad("src")?;
        if self.probe.as_ref().is_none_or(|probe| probe.pad != pad) {
            self.probe = Some(Probe::of(pad));
            (self.spell, self.begun, self.gives) = (None, 0, false);
        }
        let given = self.probe.as_ref()?.given.load(Ordering::Relaxed);
        let begins = Spell {
            given,
            passed,
            since: now,
        };
        match self.spell {
            Some(spell) if spell.given == given => {
                let is_over = spell.is_over(passed, now);
                if is_over {
                    self.spell = Some(begins);
                    (self.begun, self.gives) = (given, false);
                }
                is_over.then(|| encoder.name().into())
            }
            _ => {
                self.spell = Some(begins);
                self.gives = given > self.begun;
                None
            }
        }
    }

    /// Something has come out of it since it began, or began anew.
    pub fn gives(&self) -> bool {
        self.gives
    }

    /// Nothing is fed to it.
    pub fn rest(&mut self) {
        *self = EncoderWatch::default();
    }

    /// When to look again, while it is fed.
    pub fn next(&self, now: Duration) -> Duration {
        now + INTERVAL
    }
}

/// What is said of it.
pub fn told(encoder: &str) -> String {
    format!(
        "{encoder} was fed and gave nothing for {} s: it begins anew. A hardware encoder may need a higher bitrate (min-bitrate of rtmpauthsink)",
        PATIENCE.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoder_is_silent_when_time_and_frames_have_gone_by() {
        let spell = Spell {
            given: 7,
            passed: 1000,
            since: Duration::from_secs(10),
        };
        let at = Duration::from_secs;
        // One that looks ahead at five frames a second.
        assert!(!spell.is_over(1100, at(30)));
        assert!(!spell.is_over(5000, at(14)));
        assert!(spell.is_over(1120, at(15)));
    }
}
