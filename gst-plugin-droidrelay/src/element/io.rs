// SPDX-License-Identifier: MPL-2.0

//! The one thread on which all network I/O of the process's elements runs.

use std::{
    io,
    sync::{Arc, Weak, mpsc},
    thread,
    time::Duration,
};

use once_cell::sync::Lazy;
use parking_lot::Mutex;
use tokio::{
    runtime::{Builder, Handle},
    sync::{Notify, oneshot},
};

use super::network;

static SHARED: Lazy<Mutex<Weak<Io>>> = Lazy::new(Mutex::default);

/// Owns the thread; the last holder to drop it ends and joins it.
pub struct Io {
    handle: Handle,
    network: Arc<Notify>,
    /// It ends when the sender is dropped.
    thread: Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>,
}

impl Io {
    /// The running I/O thread, started if there is none.
    pub fn acquire() -> io::Result<Arc<Io>> {
        Self::acquire_from(&SHARED)
    }

    fn acquire_from(shared: &Mutex<Weak<Io>>) -> io::Result<Arc<Io>> {
        let mut shared = shared.lock();
        if let Some(io) = shared.upgrade() {
            return Ok(io);
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name("droidrelay-io".into())
            .spawn(move || {
                block_sigpipe();
                // Nothing is sent: what comes is that the owner is gone.
                let _ = runtime.block_on(stopped);
                // Dropping a runtime would wait for a name lookup that hangs.
                runtime.shutdown_background();
            })?;
        let network = Arc::<Notify>::default();
        // Where the system does not tell, nobody is notified.
        handle.spawn(network::watch(network.clone()));
        let io = Arc::new(Io {
            handle,
            network,
            thread: Some((stop, thread)),
        });
        *shared = Arc::downgrade(&io);
        Ok(io)
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Notifies those who wait when the network of this thread has changed for the better.
    pub fn network(&self) -> &Arc<Notify> {
        &self.network
    }

    /// Lets `work` come to its end there; false where that takes longer than `deadline`.
    pub fn finish(
        &self,
        work: impl Future<Output = ()> + Send + 'static,
        deadline: Duration,
    ) -> bool {
        let (done, finished) = mpsc::channel();
        self.handle.spawn(async move {
            work.await;
            // The receiver may have given up.
            let _ = done.send(());
        });
        finished.recv_timeout(deadline).is_ok()
    }
}

/// Makes a write to a socket that the peer has closed an error in this thread, as it is in every
/// Rust program: in a C program such as gst-launch-1.0, SIGPIPE would end the process. (Its
/// disposition is the application's; a vectored write cannot take MSG_NOSIGNAL.)
fn block_sigpipe() {
    // SAFETY: the set is initialised before it is read, and lives during the calls.
    unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // An element finalised by a task of this very thread cannot join it.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn all_holders_share_one_thread_and_the_last_one_ends_it() {
        // Not the process's, which elements of other tests hold meanwhile.
        let shared = Mutex::default();
        let first = Io::acquire_from(&shared).unwrap();
        let second = Io::acquire_from(&shared).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        let (sender, receiver) = mpsc::channel();
        first.handle().spawn(async move {
            let name = thread::current().name().map(str::to_owned);
            sender.send(name).unwrap();
        });
        assert_eq!(receiver.recv().unwrap().as_deref(), Some("droidrelay-io"));
        let weak = Arc::downgrade(&first);
        drop(first);
        assert!(weak.upgrade().is_some());
        drop(second);
        // Elements of other tests may hold it as well.
        let deadline = Instant::now() + Duration::from_secs(60);
        while weak.upgrade().is_some() {
            assert!(Instant::now() < deadline, "somebody holds it for ever");
            thread::sleep(Duration::from_millis(10));
        }
    }
}
