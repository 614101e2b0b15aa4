// SPDX-License-Identifier: MPL-2.0

//! The queue through which everything that happens comes to the main loop, and its timers.

use std::{sync::mpsc, time::Duration};

use rustix::process::Signal;
use tokio::sync::oneshot;

use super::{
    changer::{Job, Outcome},
    disk,
};
use crate::remote::poll::PollEvent;

pub enum Event {
    /// A message of the run with this number.
    Message(u64, gst::Message),
    Done(Job, Outcome),
    Due(Timer, u64),
    Signal(Signal),
    Poll(PollEvent),
    /// A valve's session with its broker has come up or gone down.
    Broker,
    /// What became of a side branch, or of recordings that make room.
    Disk(disk::Id, disk::Outcome),
    /// Somebody waits for the metrics.
    Scrape(oneshot::Sender<String>),
}

/// Puts events into the queue and wakes the main loop; clones go to other threads.
#[derive(Clone)]
pub struct Inbox(mpsc::Sender<Event>);

impl Inbox {
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (sender, events) = mpsc::channel();
        (Inbox(sender), events)
    }

    pub fn put(&self, event: Event) {
        // Without a supervisor there is nobody to tell.
        let _ = self.0.send(event);
        glib::MainContext::default().wakeup();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// The running job has hung.
    Job,
    /// The back-off is over.
    Start,
    /// The pipeline has been stable.
    Stable,
    /// EOS has not come through.
    Eos,
    /// The end takes too long.
    End,
    /// The elements are to be looked at.
    Observe,
    /// systemd's watchdog waits.
    Watchdog,
    /// A side branch is to be tried again.
    Branch,
    /// Recordings are to make room.
    Room,
    /// The process may leave its place to another one.
    Succeed,
}

const TIMERS: usize = 10;

/// Timers of the main loop; to be used on its thread alone.
pub struct Timers {
    inbox: Inbox,
    /// For each timer the number of its last arming; 0: it is not armed.
    armed: [u64; TIMERS],
    count: u64,
}

impl Timers {
    pub fn new(inbox: Inbox) -> Self {
        Timers {
            inbox,
            armed: [0; TIMERS],
            count: 0,
        }
    }

    /// Puts [`Event::Due`] into the queue after `wait`, unless `timer` is armed anew or disarmed
    /// before.
    pub fn arm(&mut self, timer: Timer, wait: Duration) {
        self.count += 1;
        let number = self.count;
        self.armed[timer as usize] = number;
        let inbox = self.inbox.clone();
        glib::timeout_add_local_once(wait, move || inbox.put(Event::Due(timer, number)));
    }

    pub fn disarm(&mut self, timer: Timer) {
        self.armed[timer as usize] = 0;
    }

    pub fn is_armed(&self, timer: Timer) -> bool {
        self.armed[timer as usize] != 0
    }

    /// Whether the arming with this number still counts, which it then does no more.
    pub fn take(&mut self, timer: Timer, number: u64) -> bool {
        let counts = self.armed[timer as usize] == number;
        if counts {
            self.disarm(timer);
        }
        counts
    }
}
