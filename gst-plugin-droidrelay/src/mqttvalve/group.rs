// SPDX-License-Identifier: MPL-2.0

//! Valves of one process that share a state topic (audio and video, two cameras) publish one
//! state: that of the one that is furthest from well, by the session of one of them, so that no
//! older state can overtake a newer one on its way to the broker. They are online when all of them
//! are subscribed: a command would miss those that are not.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use droidrelay_wire::{RobotState, words::state::worst_state};
use once_cell::sync::Lazy;
use parking_lot::Mutex;

/// Broker and state topic.
type Key = (String, String);
type Wake = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Groups {
    last_number: u64,
    groups: HashMap<Key, BTreeMap<u64, Entry>>,
}

struct Entry {
    state: Option<RobotState>,
    /// What its session has published for all.
    last_published: Option<RobotState>,
    /// It has been subscribed to its commands.
    listens: bool,
    wake: Wake,
}

static GROUPS: Lazy<Mutex<Groups>> = Lazy::new(Mutex::default);

/// One valve among those of its state topic; the first of them publishes for all.
pub struct Member {
    key: Key,
    number: u64,
}

impl Member {
    /// `wake` is called when this valve is the one to publish and there is something new, and when
    /// all are subscribed.
    pub fn join(broker: &str, topic: &str, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let key = (broker.to_owned(), topic.to_owned());
        let entry = Entry {
            state: None,
            last_published: None,
            listens: false,
            wake: Arc::new(wake),
        };
        let mut groups = GROUPS.lock();
        groups.last_number += 1;
        let number = groups.last_number;
        let group = groups.groups.entry(key.clone()).or_default();
        group.insert(number, entry);
        Member { key, number }
    }

    /// Takes this valve's state; gives what is to be published, if it is new and this valve is
    /// the one to publish it.
    pub fn update(&self, state: &RobotState) -> Option<RobotState> {
        let mut groups = GROUPS.lock();
        let group = groups.groups.get_mut(&self.key)?;
        let entry = group.get_mut(&self.number)?;
        let news = entry.state.as_ref() != Some(state);
        entry.state = Some(state.clone());
        let (&first, publisher) = group.first_key_value()?;
        if first == self.number {
            let states = group.values().filter_map(|entry| entry.state.as_ref());
            let worst = worst_state(states);
            let entry = group.get_mut(&first)?;
            if entry.last_published == worst {
                return None;
            }
            entry.last_published.clone_from(&worst);
            return worst;
        }
        let wake = publisher.wake.clone();
        drop(groups);
        if news {
            wake();
        }
        None
    }

    /// This valve is subscribed; true where all are.
    pub fn listens(&self) -> bool {
        let mut groups = GROUPS.lock();
        let Some(group) = groups.groups.get_mut(&self.key) else {
            return false;
        };
        let entry = group.get_mut(&self.number);
        let news = entry.is_some_and(|entry| !std::mem::replace(&mut entry.listens, true));
        if !group.values().all(|entry| entry.listens) {
            return false;
        }
        let others = group.iter().filter(|(number, _)| **number != self.number);
        let wakes: Vec<Wake> = others.map(|(_, entry)| entry.wake.clone()).collect();
        drop(groups);
        for wake in wakes.iter().filter(|_| news) {
            wake();
        }
        true
    }

    /// Leaves; true for the last one, after which nobody publishes.
    pub fn leave(&self) -> bool {
        let mut groups = GROUPS.lock();
        let Some(group) = groups.groups.get_mut(&self.key) else {
            return false;
        };
        if group.remove(&self.number).is_none() {
            return false;
        }
        let successor = group.first_key_value().map(|(_, entry)| entry.wake.clone());
        if successor.is_none() {
            groups.groups.remove(&self.key);
        }
        drop(groups);
        if let Some(wake) = &successor {
            wake();
        }
        successor.is_none()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use droidrelay_wire::StreamState;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn state(state: StreamState) -> RobotState {
        RobotState {
            state,
            ..RobotState::default()
        }
    }

    fn member(topic: &str, woken: &Arc<AtomicU32>) -> Member {
        let woken = woken.clone();
        Member::join("mqtt://h:1883", topic, move || {
            woken.fetch_add(1, Ordering::SeqCst);
        })
    }

    #[test]
    fn they_are_online_when_all_of_them_are_subscribed() {
        let woken = Arc::default();
        let video = member("group/4/state", &woken);
        let audio = member("group/4/state", &woken);
        assert!(!video.listens() && !video.listens());
        assert_eq!(woken.load(Ordering::SeqCst), 0);
        assert!(audio.listens());
        assert_eq!(woken.load(Ordering::SeqCst), 1, "the other one says so too");
        assert!(video.listens() && audio.listens());
        assert_eq!(woken.load(Ordering::SeqCst), 1, "once");
        let late = member("group/4/state", &woken);
        assert!(!late.leave());
        assert!(video.listens());
    }

    #[test]
    fn all_are_live_before_the_topic_says_so_and_the_first_one_publishes_it() {
        let woken = Arc::default();
        let video = member("group/1/state", &woken);
        let audio = member("group/1/state", &woken);
        let publishes = |given: StreamState| {
            let published = video.update(&state(given));
            published.map(|published| published.state)
        };
        assert_eq!(publishes(StreamState::Live), Some(StreamState::Live));
        assert_eq!(audio.update(&state(StreamState::Starting)), None);
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert_eq!(publishes(StreamState::Live), Some(StreamState::Starting));
        audio.update(&state(StreamState::Live));
        audio.update(&state(StreamState::Live));
        assert_eq!(woken.load(Ordering::SeqCst), 2, "news only");
        assert_eq!(publishes(StreamState::Live), Some(StreamState::Live));
        assert_eq!(publishes(StreamState::Live), None, "published once");
        audio.update(&state(StreamState::Error));
        assert_eq!(publishes(StreamState::Idle), Some(StreamState::Error));
    }

    #[test]
    fn who_is_left_publishes_and_the_last_one_knows_that_it_is() {
        let woken = Arc::default();
        let video = member("group/2/state", &woken);
        let audio = member("group/2/state", &woken);
        let other = member("group/3/state", &woken);
        assert!(!video.leave());
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert!(audio.update(&state(StreamState::Idle)).is_some());
        assert!(audio.leave());
        assert!(other.leave());
    }
}
