// SPDX-License-Identifier: MPL-2.0

//! What is beside the stream and never ends it: side branches that fail and are tried again, and
//! recordings that make room.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use droidrelay_wire::backoff::jitter;

use super::{
    branches::{Branches, News},
    disk::{Disk, Id, Outcome, Task},
    events::{Event, Inbox, Timer, Timers},
    retention::Retention,
};
use crate::log::{Log, Repeats};

/// How often the disk is looked at.
const ROOM_INTERVAL: Duration = Duration::from_secs(30);

pub struct Side {
    log: Log,
    logged: Repeats,
    disk: Disk,
    branches: Branches,
    /// Of this many pipelines there were branches.
    pipelines: u64,
    retention: Option<Arc<Retention>>,
}

impl Side {
    pub fn new(inbox: Inbox, retention: Option<Retention>, log: Log) -> Self {
        Side {
            log,
            logged: Repeats::default(),
            disk: Disk::spawn(move |id, outcome| inbox.put(Event::Disk(id, outcome))),
            branches: Branches::default(),
            pipelines: 0,
            retention: retention.map(Arc::new),
        }
    }

    /// Goes on with the branches of a pipeline that has not started yet.
    pub fn adopt(&mut self, pipeline: &gst::Pipeline) {
        self.pipelines += 1;
        self.branches = Branches::of(pipeline, self.pipelines);
    }

    /// Takes down the branch that `source` is a part of; false where it is of the stream.
    pub fn fail(&mut self, source: &gst::Object, reason: &str) -> bool {
        let Some(news) = self.branches.fail(source, reason, &mut self.disk) else {
            return false;
        };
        if let Some(news) = news {
            self.tell(news);
            // That may be why.
            self.make_room();
        }
        true
    }

    /// A task is done.
    pub fn done(&mut self, id: Id, outcome: Outcome, timers: &mut Timers) {
        match outcome {
            Outcome::Room(gone, fault) => {
                for file in gone {
                    self.log.info(&format!("deleted to make room: {file}"));
                }
                match fault {
                    Some(text) if self.logged.is_new("room", &text) => self.log.warning(&text),
                    Some(_) => {}
                    None => self.logged.forget("room"),
                }
            }
            outcome => {
                let news = self.branches.done(id, outcome, jitter(), &mut self.disk);
                if let Some(news) = news {
                    self.tell(news);
                }
                self.arm(timers);
            }
        }
    }

    /// Tries again the branches whose time has come, where the pipeline plays.
    pub fn retry(&mut self, pipeline: Option<&gst::Pipeline>, timers: &mut Timers) {
        if let Some(pipeline) = pipeline {
            let now = Instant::now();
            self.branches.retry(now, pipeline, &mut self.disk);
        }
        self.arm(timers);
    }

    /// Has recordings make room, now and from time to time.
    pub fn keep_room(&mut self, timers: &mut Timers) {
        if self.retention.is_some() {
            self.make_room();
            timers.arm(Timer::Room, ROOM_INTERVAL);
        }
    }

    fn make_room(&mut self) {
        if let Some(retention) = &self.retention {
            let task = Task::MakeRoom(retention.clone());
            self.disk.submit((0, 0), task);
        }
    }

    fn arm(&self, timers: &mut Timers) {
        /// A pipeline that does not play yet is looked at again.
        const SOON: Duration = Duration::from_millis(500);
        if let Some(due) = self.branches.due() {
            let wait = due.saturating_duration_since(Instant::now());
            timers.arm(Timer::Branch, wait.max(SOON));
        }
    }

    fn tell(&mut self, news: News) {
        match news {
            News::Failed(name, reason) => {
                let text = format!(
                    "the branch of {name} is taken down and tried again, the stream goes on: {reason}"
                );
                if self.logged.is_new(&name, &text) {
                    self.log.warning(&text);
                }
            }
            News::Back(name) => {
                self.logged.forget(&name);
                self.log.info(&format!("the branch of {name} runs again"));
            }
        }
    }

    /// What does not run, and why, in one line.
    pub fn fault(&self) -> Option<String> {
        let faults = self.branches.faults();
        let told = faults.map(|(name, reason)| format!("{name} does not run: {reason}"));
        let told: Vec<_> = told.collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// There are no side branches.
    pub fn is_empty(&self) -> bool {
        self.branches().next().is_none()
    }

    /// Name of each branch, and whether it runs.
    pub fn branches(&self) -> impl Iterator<Item = (&str, bool)> {
        self.branches.states()
    }

    /// Ends the thread; false where it hangs at a disk, and ends with the process alone.
    pub fn end(self) -> bool {
        let ends = !self.disk.is_busy();
        if ends {
            self.disk.join();
        }
        ends
    }
}
