// SPDX-License-Identifier: MPL-2.0

//! What others may know of upstream, and ask of it.

use std::{mem, sync::Arc};

use parking_lot::Mutex;

/// What has been done with upstream, or is being done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpstreamState {
    /// The valve is in NULL.
    #[default]
    Inactive,
    /// Not the valve's to stop: `standby` asks for less, or something stands against it.
    Untouched,
    /// At the pipeline's target.
    Running,
    /// Locked in NULL.
    Stopped,
    /// Locked in NULL until the next try: the camera has failed.
    Failed,
    /// Another valve, which it feeds too, does it for both.
    Following,
}

#[derive(Debug, Default)]
pub struct Status(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    state: UpstreamState,
    /// The one that is followed.
    leader: Option<Arc<Status>>,
    /// The first error since upstream was last started: others are most often its consequence.
    error: Option<String>,
    eos: bool,
    /// How often the valve has come from READY to PAUSED.
    life: u64,
}

impl Status {
    /// What is done with upstream, by whichever valve.
    pub fn state(&self) -> UpstreamState {
        match self.leader() {
            Some(leader) => leader.own_state(),
            None => self.own_state(),
        }
    }

    /// What this valve does.
    pub fn own_state(&self) -> UpstreamState {
        self.0.lock().state
    }

    fn leader(&self) -> Option<Arc<Status>> {
        let known = self.0.lock();
        let follows = known.state == UpstreamState::Following;
        known.leader.clone().filter(|_| follows)
    }

    /// Goes by another valve's from now on, while this one is [`UpstreamState::Following`].
    pub fn follow(&self, leader: Option<Arc<Status>>) {
        let before = mem::replace(&mut self.0.lock().leader, leader);
        drop(before);
    }

    /// Whether an element has failed since upstream was last started.
    pub fn has_failed(&self) -> bool {
        let status = self.leader();
        let status = status.as_deref().unwrap_or(self);
        status.0.lock().error.is_some()
    }

    pub fn fail(&self, error: String) {
        self.0.lock().error.get_or_insert(error);
    }

    /// Asks for an EOS in place of sources that are stopped; false where there are none.
    pub fn want_eos(&self) -> bool {
        let stopped = self.state().is_stopped();
        self.0.lock().eos |= stopped;
        stopped
    }

    /// Whether an EOS is to be pushed; from now on it is taken as pushed.
    pub fn take_eos(&self) -> bool {
        mem::take(&mut self.0.lock().eos)
    }

    /// The valve's pads are about to take data: what ran before must begin anew, for it has been
    /// told to stop pushing.
    pub fn begin_life(&self) {
        self.0.lock().life += 1;
    }

    pub fn life(&self) -> u64 {
        self.0.lock().life
    }

    pub fn take_error(&self) -> Option<String> {
        self.0.lock().error.take()
    }

    /// The only place where the state changes; `next` gives the next one and what is to be done.
    pub fn advance<T>(&self, next: impl FnOnce(UpstreamState) -> (UpstreamState, T)) -> T {
        let mut known = self.0.lock();
        let (state, action) = next(known.state);
        known.state = state;
        action
    }
}

impl UpstreamState {
    pub fn is_stopped(self) -> bool {
        matches!(self, UpstreamState::Stopped | UpstreamState::Failed)
    }
}
