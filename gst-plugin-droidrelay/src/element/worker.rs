// SPDX-License-Identifier: MPL-2.0

//! Jobs of an element that must run neither in a streaming thread nor in the I/O thread: state
//! changes, notifications, pushes. They run in GStreamer's thread pool, one run of a job at a
//! time, and hold no thread while there is nothing to do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gst::prelude::*;
use parking_lot::{Condvar, Mutex};
use tokio::{runtime::Handle, task::AbortHandle};

type Run<E> = Box<dyn FnMut(&E) -> Option<Duration> + Send>;

struct State<E: ObjectType> {
    element: glib::WeakRef<E>,
    /// Here unless it runs.
    job: Option<Run<E>>,
    timers: Option<Handle>,
    timer: Option<AbortHandle>,
    woken: bool,
    running: bool,
    /// Grows with each start and stop: a run that was left behind knows that it is.
    life: u64,
}

/// A job that an element has while it is started; asleep until it is woken.
pub struct Worker<E: ObjectType> {
    state: Mutex<State<E>>,
    ended: Condvar,
}

impl<E: IsA<gst::Element> + Send + Sync> Worker<E> {
    pub fn new() -> Arc<Self> {
        Arc::new(Worker {
            state: Mutex::new(State {
                element: glib::WeakRef::new(),
                job: None,
                timers: None,
                timer: None,
                woken: false,
                running: false,
                life: 0,
            }),
            ended: Condvar::new(),
        })
    }

    /// From now on each wake runs `job`, and again when the time that it returned has passed;
    /// `timers` counts that time.
    pub fn start(
        self: &Arc<Self>,
        element: &E,
        timers: Handle,
        job: impl FnMut(&E) -> Option<Duration> + Send + 'static,
    ) {
        let mut state = self.state.lock();
        state.element = element.downgrade();
        state.job = Some(Box::new(job));
        state.timers = Some(timers);
        state.woken = false;
        state.running = false;
        state.life += 1;
    }

    /// Makes the job run soon; any number of wakes before it runs are one. Does nothing before
    /// [`Worker::start`] and after [`Worker::stop`].
    pub fn wake(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.woken = true;
        if state.running || state.job.is_none() {
            return;
        }
        let Some(element) = state.element.upgrade() else {
            return;
        };
        state.running = true;
        let life = state.life;
        drop(state);
        let worker = self.clone();
        element.call_async(move |element| worker.run(element, life));
    }

    /// Lets the job finish what it was woken for and forgets it. Returns false where that takes
    /// longer than `deadline`: the job then ends by itself, unwatched.
    pub fn stop(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let mut state = self.state.lock();
        while state.running && !self.ended.wait_until(&mut state, until).timed_out() {}
        let ended = !state.running;
        state.life += 1;
        state.timers = None;
        let timer = state.timer.take();
        let job = state.job.take();
        drop(state);
        if let Some(timer) = timer {
            timer.abort();
        }
        drop(job);
        ended
    }

    /// Runs in a thread of the pool.
    fn run(self: &Arc<Self>, element: &E, life: u64) {
        let mut state = self.state.lock();
        if state.life != life {
            return;
        }
        let Some(mut job) = state.job.take() else {
            return;
        };
        let mut due = None;
        while state.life == life && std::mem::take(&mut state.woken) {
            drop(state);
            due = job(element);
            state = self.state.lock();
        }
        if state.life != life {
            return;
        }
        state.running = false;
        state.job = Some(job);
        let timer = due
            .zip(state.timers.as_ref())
            .map(|(due, timers)| self.wake_after(timers, due));
        let old = std::mem::replace(&mut state.timer, timer);
        drop(state);
        self.ended.notify_all();
        if let Some(old) = old {
            old.abort();
        }
    }

    fn wake_after(self: &Arc<Self>, timers: &Handle, after: Duration) -> AbortHandle {
        let worker = Arc::downgrade(self);
        timers
            .spawn(async move {
                tokio::time::sleep(after).await;
                if let Some(worker) = worker.upgrade() {
                    worker.wake();
                }
            })
            .abort_handle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Rig {
        io: Arc<crate::element::io::Io>,
        element: gst::Bin,
        worker: Arc<Worker<gst::Bin>>,
    }

    impl Rig {
        fn start(job: impl FnMut(&gst::Bin) -> Option<Duration> + Send + 'static) -> Self {
            gst::init().unwrap();
            let rig = Rig {
                io: crate::element::io::Io::acquire().unwrap(),
                element: gst::Bin::new(),
                worker: Worker::new(),
            };
            rig.worker.wake();
            rig.worker.start(&rig.element, rig.io.handle().clone(), job);
            rig
        }
    }

    #[test]
    fn a_wake_before_the_end_is_still_served() {
        let (sender, receiver) = mpsc::channel();
        let rig = Rig::start(move |_| {
            sender.send(()).unwrap();
            None
        });
        rig.worker.wake();
        assert!(rig.worker.stop(Duration::from_secs(10)));
        rig.worker.wake();
        assert_eq!(receiver.iter().count(), 1);
    }

    #[test]
    fn the_job_runs_again_when_its_time_has_passed() {
        let (sender, receiver) = mpsc::channel();
        let rig = Rig::start(move |_| {
            let _ = sender.send(());
            Some(Duration::from_millis(1))
        });
        rig.worker.wake();
        for _ in 0..3 {
            receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        assert!(rig.worker.stop(Duration::from_secs(10)));
    }

    #[test]
    fn a_job_that_hangs_hangs_neither_the_end_nor_the_next_start() {
        let (release, released) = mpsc::channel::<()>();
        let (entered, inside) = mpsc::channel();
        let rig = Rig::start(move |_| {
            entered.send(()).unwrap();
            let _ = released.recv();
            None
        });
        rig.worker.wake();
        inside.recv().unwrap();
        assert!(!rig.worker.stop(Duration::from_millis(1)));
        let (sender, receiver) = mpsc::channel();
        rig.worker
            .start(&rig.element, rig.io.handle().clone(), move |_| {
                sender.send(()).unwrap();
                None
            });
        rig.worker.wake();
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(release);
        assert!(rig.worker.stop(Duration::from_secs(10)));
    }
}
