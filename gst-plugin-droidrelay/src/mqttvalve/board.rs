// SPDX-License-Identifier: MPL-2.0

//! Valves of one process that share a state topic (audio and video, two cameras) speak with one
//! voice: the topic holds the state of the one that is furthest from well, told by one session,
//! so that no older word can overtake a newer one on its way to the broker.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use droidrelay_wire::{RobotState, words::state::worst_state};
use once_cell::sync::Lazy;

/// Broker and state topic.
type Key = (String, String);
type Wake = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Board {
    next_seat: u64,
    groups: HashMap<Key, BTreeMap<u64, Member>>,
}

struct Member {
    said: Option<RobotState>,
    /// What its session has published for all.
    told: Option<RobotState>,
    wake: Wake,
}

static BOARD: Lazy<Mutex<Board>> = Lazy::new(Mutex::default);

fn board() -> MutexGuard<'static, Board> {
    BOARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One valve's place among those of its state topic; the first of them speaks for all.
pub struct Seat {
    key: Key,
    number: u64,
}

impl Seat {
    /// `wake` is called when this valve is the one to speak and has something new to say.
    pub fn take(broker: &str, topic: &str, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let key = (broker.to_owned(), topic.to_owned());
        let mut board = board();
        board.next_seat += 1;
        let number = board.next_seat;
        let member = Member {
            said: None,
            told: None,
            wake: Arc::new(wake),
        };
        board
            .groups
            .entry(key.clone())
            .or_default()
            .insert(number, member);
        Seat { key, number }
    }

    /// Takes this valve's state; gives what is to be published, if there is news and this valve
    /// is the one to tell it.
    pub fn say(&self, said: &RobotState) -> Option<RobotState> {
        let mut board = board();
        let group = board.groups.get_mut(&self.key)?;
        let member = group.get_mut(&self.number)?;
        let news = member.said.as_ref() != Some(said);
        member.said = Some(said.clone());
        let (&first, speaker) = group.first_key_value()?;
        if first == self.number {
            let voice = voice(group).cloned();
            let speaker = group.get_mut(&first)?;
            if speaker.told == voice {
                return None;
            }
            speaker.told.clone_from(&voice);
            return voice;
        }
        let wake = speaker.wake.clone();
        drop(board);
        if news {
            wake();
        }
        None
    }

    /// Leaves; true for the last one, which has the last word.
    pub fn leave(self) -> bool {
        self.remove()
    }

    fn remove(&self) -> bool {
        let mut board = board();
        let Some(group) = board.groups.get_mut(&self.key) else {
            return false;
        };
        if group.remove(&self.number).is_none() {
            return false;
        }
        let heir = group.first_key_value().map(|(_, heir)| heir.wake.clone());
        if heir.is_none() {
            board.groups.remove(&self.key);
        }
        drop(board);
        match heir {
            Some(wake) => {
                wake();
                false
            }
            None => true,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The state of the member that is furthest from well; of equals, the first one's.
fn voice(group: &BTreeMap<u64, Member>) -> Option<&RobotState> {
    worst_state(group.values().filter_map(|member| member.said.as_ref()))
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

    fn seat(topic: &str, woken: &Arc<AtomicU32>) -> Seat {
        let woken = woken.clone();
        Seat::take("mqtt://h:1883", topic, move || {
            woken.fetch_add(1, Ordering::SeqCst);
        })
    }

    #[test]
    fn all_are_live_before_the_topic_says_so_and_the_first_one_says_it() {
        let woken = Arc::default();
        let video = seat("board/1/state", &woken);
        let audio = seat("board/1/state", &woken);
        let says = |said: StreamState| {
            let said = video.say(&state(said));
            said.map(|said| said.state)
        };
        assert_eq!(says(StreamState::Live), Some(StreamState::Live));
        assert_eq!(audio.say(&state(StreamState::Starting)), None);
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert_eq!(says(StreamState::Live), Some(StreamState::Starting));
        audio.say(&state(StreamState::Live));
        audio.say(&state(StreamState::Live));
        assert_eq!(woken.load(Ordering::SeqCst), 2, "news only");
        assert_eq!(says(StreamState::Live), Some(StreamState::Live));
        assert_eq!(says(StreamState::Live), None, "told once");
        audio.say(&state(StreamState::Error));
        assert_eq!(says(StreamState::Idle), Some(StreamState::Error));
    }

    #[test]
    fn who_is_left_speaks_and_the_last_one_has_the_last_word() {
        let woken = Arc::default();
        let video = seat("board/2/state", &woken);
        let audio = seat("board/2/state", &woken);
        let other = seat("board/3/state", &woken);
        assert!(!video.leave());
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert!(audio.say(&state(StreamState::Idle)).is_some());
        assert!(audio.leave());
        assert!(other.leave());
    }
}
