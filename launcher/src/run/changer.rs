// SPDX-License-Identifier: MPL-2.0

//! Changes states on a thread of its own, so that a change that hangs stops no one else.

use std::{sync::mpsc, thread};

use gst::prelude::*;

/// What the thread does, in the order asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    SetState(gst::State),
    SendEos,
    RecalculateLatency,
}

/// What became of it. A job without a result of its own is `Ok(Success)`.
pub type Outcome = Result<gst::StateChangeSuccess, gst::StateChangeError>;

pub struct Changer {
    jobs: mpsc::Sender<(gst::Pipeline, Job)>,
    thread: thread::JoinHandle<()>,
}

impl Changer {
    /// `done` is called on the thread, once after each job.
    pub fn spawn(done: impl Fn(Job, Outcome) + Send + 'static) -> Self {
        let (jobs, queue) = mpsc::channel::<(gst::Pipeline, Job)>();
        let thread = thread::Builder::new()
            .name("state-changer".into())
            .spawn(move || {
                for (pipeline, job) in queue {
                    let outcome = match job {
                        Job::SetState(state) => pipeline.set_state(state),
                        Job::SendEos => {
                            // Where it finds no way, the deadline for the EOS message ends the wait.
                            pipeline.send_event(gst::event::Eos::new());
                            Ok(gst::StateChangeSuccess::Success)
                        }
                        Job::RecalculateLatency => pipeline
                            .recalculate_latency()
                            .map(|()| gst::StateChangeSuccess::Success)
                            .map_err(|_| gst::StateChangeError),
                    };
                    drop(pipeline);
                    done(job, outcome);
                }
            })
            .expect("the system can start a thread");
        Changer { jobs, thread }
    }

    pub fn submit(&self, pipeline: &gst::Pipeline, job: Job) {
        // The thread only ends with us; if it panicked, the job's deadline tells.
        let _ = self.jobs.send((pipeline.clone(), job));
    }

    /// Ends the thread; returns when its last job is done.
    pub fn join(self) {
        drop(self.jobs);
        let _ = self.thread.join();
    }
}
