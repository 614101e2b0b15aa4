// SPDX-License-Identifier: MPL-2.0

//! Gives memory back that a session needed.

use std::time::Duration;

/// Sooner it would be asked for again, and some of it is still in use.
const TRIM_AFTER: Duration = Duration::from_secs(1);

/// When to give back what a session needed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum MemoryTrim {
    #[default]
    Done,
    /// The valve is or was open.
    Needed,
    /// At this time of the element's clock.
    At(Duration),
}

impl MemoryTrim {
    /// Takes note of how the valve is; true where the time has come.
    pub fn is_due(&mut self, open: bool, now: Duration) -> bool {
        let (next, due) = match *self {
            _ if open => (MemoryTrim::Needed, false),
            MemoryTrim::Needed => (MemoryTrim::At(now + TRIM_AFTER), false),
            MemoryTrim::At(at) if at <= now => (MemoryTrim::Done, true),
            waiting => (waiting, false),
        };
        *self = next;
        due
    }

    /// When to look again.
    pub fn next(&self) -> Option<Duration> {
        match *self {
            MemoryTrim::At(at) => Some(at),
            MemoryTrim::Done | MemoryTrim::Needed => None,
        }
    }
}

/// Gives freed memory back to the system: what encoder and camera held lies scattered over the
/// heaps of their threads.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_a_while_after_the_last_of_sessions_that_follow_each_other() {
        let at = Duration::from_millis;
        let mut memory = MemoryTrim::default();
        assert!(!memory.is_due(false, at(0)));
        assert_eq!(memory.next(), None);
        assert!(!memory.is_due(true, at(100)));
        assert!(!memory.is_due(false, at(200)));
        assert_eq!(memory.next(), Some(at(1200)));
        assert!(!memory.is_due(true, at(300)));
        assert!(!memory.is_due(false, at(400)));
        assert!(!memory.is_due(false, at(1300)));
        assert!(memory.is_due(false, at(1400)));
        assert!(!memory.is_due(false, at(9000)));
    }
}
