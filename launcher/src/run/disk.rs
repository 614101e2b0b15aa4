// SPDX-License-Identifier: MPL-2.0

//! What may wait for a disk has a thread of its own, so that a disk that hangs holds up neither the
//! stream nor the main loop: side branches that are taken down or brought up, recordings that make
//! room for others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use super::{parts::Parts, retention::Retention};

/// Pipeline and branch.
pub type Id = (u64, usize);

pub enum Task {
    Stop(Parts),
    Start(Parts, gst::Pipeline),
    MakeRoom(Arc<Retention>),
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Down,
    Up,
    Failed,
    /// Files that are gone now, and what is wrong with the others.
    Room(Vec<String>, Option<String>),
}

pub struct Disk {
    tasks: mpsc::Sender<(Id, Task)>,
    thread: thread::JoinHandle<()>,
    /// Submitted and not done.
    waiting: Arc<AtomicUsize>,
}

impl Disk {
    /// `done` is called on the thread, once after each task.
    pub fn spawn(done: impl Fn(Id, Outcome) + Send + 'static) -> Self {
        let (tasks, queue) = mpsc::channel::<(Id, Task)>();
        let waiting = Arc::<AtomicUsize>::default();
        let left = waiting.clone();
        let thread = thread::Builder::new()
            .name("disk".into())
            .spawn(move || {
                for (id, task) in queue {
                    let outcome = run(task);
                    left.fetch_sub(1, Ordering::SeqCst);
                    done(id, outcome);
                }
            })
            .expect("the system can start a thread");
        Disk {
            tasks,
            thread,
            waiting,
        }
    }

    pub fn submit(&mut self, id: Id, task: Task) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // The thread only ends with us.
        let _ = self.tasks.send((id, task));
    }

    /// Whether a task is not done yet, and may never be.
    pub fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Ends the thread; returns when its last task is done.
    pub fn join(self) {
        drop(self.tasks);
        let _ = self.thread.join();
    }
}

fn run(task: Task) -> Outcome {
    match task {
        Task::Stop(parts) => {
            parts.stop();
            Outcome::Down
        }
        Task::Start(parts, pipeline) => match parts.start(&pipeline) {
            true => Outcome::Up,
            false => Outcome::Failed,
        },
        Task::MakeRoom(retention) => {
            let (gone, fault) = retention.make_room();
            Outcome::Room(gone, fault)
        }
    }
}
