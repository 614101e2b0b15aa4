// SPDX-License-Identifier: MPL-2.0

//! RTMP publishing, sans-I/O: bytes and media in, bytes and events out. No socket, no
//! clock, no thread; the caller moves the bytes and owns every deadline.
//!
//! - [`Publisher`]: the session (handshake, commands, media, answers).
//! - [`flv`]: what stands in front of a frame in a message body, and a reader for a ready
//!   FLV byte stream.
//! - [`location`]: where to publish, and how credentials get there.
//! - [`auth`]: the login by challenge that some servers ask for.
//! - [`amf0`], `chunk`: the layers below.
//!
//! Sources: Adobe's RTMP Specification 1.0 (2012), Action Message Format AMF 0 (2007),
//! Video File Format Specification 10.1, Annex E (FLV), and Enhanced RTMP v1 for HEVC.

pub mod amf0;
pub mod auth;
mod chunk;
#[cfg(feature = "double")]
pub mod double;
mod error;
pub mod flv;
pub mod location;
mod publisher;

pub use error::Error;
pub use publisher::{Event, Params, Progress, Publisher, RefusalKind};

/// Deterministic noise for the tests that feed garbage.
#[cfg(test)]
struct Noise(u64);

#[cfg(test)]
impl Noise {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }
}
