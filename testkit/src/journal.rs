// SPDX-License-Identifier: MPL-2.0

//! What happened, in order and with its time; waiting for what is yet to come.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Ends what fails; what succeeds never gets near it.
pub const DEADLINE: Duration = Duration::from_secs(30);

type Listener<T> = Box<dyn Fn(Instant, &T) + Send>;

/// An append-only record that any thread may write and wait on.
pub struct Journal<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    grown: Condvar,
}

struct State<T> {
    entries: Vec<(Instant, T)>,
    listener: Option<Listener<T>>,
}

impl<T> Clone for Journal<T> {
    fn clone(&self) -> Self {
        Journal(self.0.clone())
    }
}

impl<T> Default for Journal<T> {
    fn default() -> Self {
        Journal(Arc::new(Shared {
            state: Mutex::new(State {
                entries: Vec::new(),
                listener: None,
            }),
            grown: Condvar::new(),
        }))
    }
}

impl<T: Clone> Journal<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, entry: T) {
        let now = Instant::now();
        let mut state = self.lock();
        if let Some(listener) = &state.listener {
            listener(now, &entry);
        }
        state.entries.push((now, entry));
        self.0.grown.notify_all();
    }

    /// Calls `listener` for each later entry, in the writer's thread; it must not block.
    pub fn listen(&self, listener: impl Fn(Instant, &T) + Send + 'static) {
        self.lock().listener = Some(Box::new(listener));
    }

    /// The place where the next entry will stand: [`Journal::wait`] from here sees only news.
    pub fn mark(&self) -> usize {
        self.lock().entries.len()
    }

    pub fn all(&self) -> Vec<T> {
        self.since(0)
    }

    pub fn since(&self, mark: usize) -> Vec<T> {
        let state = self.lock();
        let entries = state.entries.get(mark..).unwrap_or_default();
        entries.iter().map(|(_, entry)| entry.clone()).collect()
    }

    /// Every entry and its time.
    pub fn timed(&self) -> Vec<(Instant, T)> {
        self.lock().entries.clone()
    }

    /// When the entries from `mark` on came of which `wanted` holds.
    pub fn times(&self, mark: usize, wanted: impl Fn(&T) -> bool) -> Vec<Instant> {
        let state = self.lock();
        let entries = state.entries.get(mark..).unwrap_or_default().iter();
        entries
            .filter(|(_, entry)| wanted(entry))
            .map(|(at, _)| *at)
            .collect()
    }

    pub fn last(&self) -> Option<T> {
        self.lock().entries.last().map(|(_, entry)| entry.clone())
    }

    /// The first entry from `mark` on that is `wanted`, for at most `patience`.
    pub fn try_wait(
        &self,
        mark: usize,
        patience: Duration,
        wanted: impl Fn(&T) -> bool,
    ) -> Option<(Instant, T)> {
        let deadline = Instant::now() + patience;
        let mut next = mark;
        let mut state = self.lock();
        loop {
            let entries = state.entries.get(next..).unwrap_or_default();
            if let Some(found) = entries.iter().find(|(_, entry)| wanted(entry)) {
                return Some(found.clone());
            }
            next = next.max(state.entries.len());
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self
                .0
                .grown
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Where the first entry from `mark` on stands that is `wanted`, without waiting.
    pub fn position(&self, mark: usize, wanted: impl Fn(&T) -> bool) -> Option<usize> {
        let state = self.lock();
        let entries = state.entries.get(mark..).unwrap_or_default();
        let found = entries.iter().position(|(_, entry)| wanted(entry))?;
        Some(mark + found)
    }

    /// As [`Journal::try_wait`] with [`DEADLINE`]; the error names `what` did not come.
    pub fn wait(
        &self,
        mark: usize,
        what: &str,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<(Instant, T)> {
        match self.try_wait(mark, DEADLINE, wanted) {
            Some(found) => Ok(found),
            None => bail!("{what}: not within {} s", DEADLINE.as_secs()),
        }
    }
}
