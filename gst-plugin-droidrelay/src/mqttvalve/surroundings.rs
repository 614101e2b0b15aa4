// SPDX-License-Identifier: MPL-2.0

//! The elements around a valve that has been started, as its pads and state changes see them.

use std::sync::Arc;

use gst::prelude::*;
use parking_lot::Mutex;

use super::{
    downstream::FreedSinks,
    elements::{Elements, Hold, Notice},
    shared::Membership,
    status::{Status, UpstreamState},
};

/// Exists from READY on.
#[derive(Debug, Default)]
pub struct Surroundings {
    pub upstream: Arc<Status>,
    hold: Arc<Hold>,
    freed: Mutex<FreedSinks>,
}

impl Surroundings {
    /// What upstream will consist of; `wake` is called when something happens there.
    pub fn elements(&self, wake: impl Fn() + Send + Sync + 'static) -> Elements {
        let upstream = self.upstream.clone();
        Elements::new(self.hold.clone(), move |notice| {
            if let Notice::Error(error) = notice {
                upstream.fail(error);
            }
            wake();
        })
    }

    /// This valve among those with which it may share its upstream; `wake` as there.
    pub fn membership(&self, wake: impl Fn() + Send + Sync + 'static) -> Membership {
        Membership::new(self.upstream.clone(), wake)
    }

    /// Whether what is upstream is stopped while nobody wants it.
    pub fn is_cold(&self) -> bool {
        let state = self.upstream.state();
        !matches!(state, UpstreamState::Untouched | UpstreamState::Inactive)
    }

    /// READY to PAUSED: upstream is brought up by the valve's job, so that a camera that does not
    /// start fails nobody's state change.
    pub fn lead(&self) {
        self.upstream.begin_life();
        self.hold.set_locked(true);
    }

    /// PAUSED to READY: what runs upstream is brought down by its bin, next.
    pub fn leave_to_bin(&self) {
        if self.upstream.state() == UpstreamState::Running {
            self.hold.set_locked(false);
        }
    }

    /// Closed, or before a camera that comes up by itself, the valve has nothing to preroll with.
    fn is_live(&self, closed: bool) -> bool {
        closed || self.is_cold()
    }

    /// A state change to PAUSED, which has gone as `success` says.
    pub fn to_paused(
        &self,
        success: gst::StateChangeSuccess,
        closed: bool,
    ) -> gst::StateChangeSuccess {
        match self.is_live(closed) {
            true => gst::StateChangeSuccess::NoPreroll,
            false => success,
        }
    }

    /// Sinks behind `src` are not kept waiting for what does not come.
    pub fn free_sinks(&self, src: &gst::Pad, closed: bool) {
        if self.is_live(closed) {
            let mut freed = std::mem::take(&mut *self.freed.lock());
            freed.free(src);
            self.freed.lock().append(freed);
        }
    }

    /// The end of it.
    pub fn restore_sinks(&self) {
        let freed = std::mem::take(&mut *self.freed.lock());
        freed.restore();
    }

    /// Answers a LATENCY query at the source pad: others that wait for all of their inputs must
    /// not wait for this one.
    pub fn latency(&self, query: &mut gst::query::Latency, sink: &gst::Pad, closed: bool) -> bool {
        // What is stopped has no answer, and the question must not wait for a camera that opens.
        let is_up = !self.is_cold() || self.upstream.state() == UpstreamState::Running;
        let answered = is_up && sink.peer_query(query.query_mut());
        let is_live = self.is_live(closed);
        if !answered {
            query.set(is_live, gst::ClockTime::ZERO, gst::ClockTime::NONE);
            return is_live;
        }
        let (live, min, max) = query.result();
        query.set(live || is_live, min, max);
        true
    }
}
