//! A thread that runs one job whenever it is woken, for work that must happen neither in a
//! streaming thread nor in the I/O thread: state changes, notifications, pushes.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

#[derive(Default)]
struct Flags {
    woken: bool,
    stopping: bool,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    flags: Mutex<Flags>,
    changed: Condvar,
}

/// Wakes a [`Worker`]; any number of wakes before the job runs are one.
#[derive(Clone, Default)]
pub struct Waker(Arc<Shared>);

impl Waker {
    pub fn wake(&self) {
        self.lock().woken = true;
        self.0.changed.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Flags> {
        self.0.flags.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Owns the thread.
pub struct Worker {
    waker: Waker,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread that calls `job` after each wake, and again when the time that it
    /// returned has passed.
    pub fn spawn(
        name: String,
        waker: Waker,
        mut job: impl FnMut() -> Option<Duration> + Send + 'static,
    ) -> io::Result<Self> {
        *waker.lock() = Flags::default();
        let thread_waker = waker.clone();
        let thread = thread::Builder::new().name(name).spawn(move || {
            let waker = thread_waker;
            let mut due = None;
            loop {
                let mut flags = waker.lock();
                while !flags.woken && !flags.stopping {
                    let Some(at) = due else {
                        flags = waker
                            .0
                            .changed
                            .wait(flags)
                            .unwrap_or_else(PoisonError::into_inner);
                        continue;
                    };
                    let now = Instant::now();
                    if now >= at {
                        break;
                    }
                    flags = waker
                        .0
                        .changed
                        .wait_timeout(flags, at - now)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
                if flags.stopping && !flags.woken {
                    flags.ended = true;
                    waker.0.changed.notify_all();
                    return;
                }
                flags.woken = false;
                drop(flags);
                due = job().map(|after| Instant::now() + after);
            }
        })?;
        Ok(Worker {
            waker,
            thread: Some(thread),
        })
    }

    /// Runs the job for wakes that are still due, ends the thread and joins it. Returns false
    /// where that takes longer than `deadline`: the thread then ends by itself, unwatched.
    pub fn stop(mut self, deadline: Duration) -> bool {
        self.end(deadline)
    }

    fn end(&mut self, deadline: Duration) -> bool {
        let Some(thread) = self.thread.take() else {
            return true;
        };
        let mut flags = self.waker.lock();
        flags.stopping = true;
        self.waker.0.changed.notify_all();
        if thread.thread().id() == thread::current().id() {
            return true;
        }
        let until = Instant::now() + deadline;
        while !flags.ended && !thread.is_finished() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            flags = self
                .waker
                .0
                .changed
                .wait_timeout(flags, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(flags);
        let _ = thread.join();
        true
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_wake_before_the_end_is_still_served() {
        let waker = Waker::default();
        let (sender, receiver) = mpsc::channel();
        let worker = Worker::spawn("test".into(), waker.clone(), move || {
            sender.send(()).unwrap();
            None
        })
        .unwrap();
        waker.wake();
        assert!(worker.stop(Duration::from_secs(10)));
        assert_eq!(receiver.iter().count(), 1);
    }

    #[test]
    fn the_job_runs_again_when_its_time_has_passed() {
        let waker = Waker::default();
        let (sender, receiver) = mpsc::channel();
        let worker = Worker::spawn("test".into(), waker.clone(), move || {
            let _ = sender.send(());
            Some(Duration::from_millis(1))
        })
        .unwrap();
        waker.wake();
        for _ in 0..3 {
            receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        assert!(worker.stop(Duration::from_secs(10)));
    }

    #[test]
    fn a_job_that_hangs_does_not_hang_the_end() {
        let waker = Waker::default();
        let (release, released) = mpsc::channel::<()>();
        let (entered, inside) = mpsc::channel();
        let worker = Worker::spawn("test".into(), waker.clone(), move || {
            entered.send(()).unwrap();
            let _ = released.recv();
            None
        })
        .unwrap();
        waker.wake();
        inside.recv().unwrap();
        assert!(!worker.stop(Duration::from_millis(1)));
        drop(release);
    }
}
