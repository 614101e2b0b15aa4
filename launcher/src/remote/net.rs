// SPDX-License-Identifier: MPL-2.0

//! The one thread that speaks HTTP: it serves metrics and polls the bridge, where that is asked
//! for, and is joined at the end.

use std::{
    io,
    thread::{Builder, JoinHandle},
};

use tokio::{sync::watch, task::JoinSet};

/// Tells the tasks that the end has come.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Back when the end has come.
    pub async fn asked(&mut self) {
        // Without its owner it has come, too.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// Nothing, by default.
#[derive(Default)]
pub struct Net(Option<(watch::Sender<bool>, JoinHandle<()>)>);

impl Net {
    /// Runs what `tasks` puts into the set, on a thread of its own. Each task ends soon after
    /// [`Stop::asked`].
    pub fn spawn<F>(tasks: F) -> io::Result<Self>
    where
        F: FnOnce(&mut JoinSet<()>, Stop) + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = Builder::new().name("http".into()).spawn(move || {
            runtime.block_on(async {
                let mut set = JoinSet::new();
                tasks(&mut set, Stop(stopped));
                while set.join_next().await.is_some() {}
            });
            // A name server that does not answer holds nobody up.
            runtime.shutdown_background();
        })?;
        Ok(Net(Some((stop, thread))))
    }

    /// Asks the tasks to end, without waiting for them.
    pub fn stop(&self) {
        if let Some((stop, _)) = &self.0 {
            stop.send_replace(true);
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.stop();
        if let Some((_, thread)) = self.0.take() {
            // What a task panicked with has been printed.
            let _ = thread.join();
        }
    }
}
