// SPDX-License-Identifier: MPL-2.0

//! What the session's task and the streaming threads have to tell the world. It is told in the
//! element's worker: an application or a pad upstream may hold that up as long as it likes.

use std::{collections::VecDeque, sync::Arc};

use droidrelay_wire::PublishState;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::bitrate::Range;

/// Most of it that waits for a world that does not listen.
const MOST: usize = 256;

pub enum News {
    /// The state of the session has changed.
    State(PublishState),
    /// Its bitrate has.
    Bitrate(PublishState),
    /// Media is lost.
    Loss,
    /// A session begins, and asks for the bounds of the encoder's bitrate.
    Bounds(oneshot::Sender<Option<Range>>),
}

#[derive(Clone, Default)]
pub struct NewsQueue(Arc<Mutex<VecDeque<News>>>);

impl NewsQueue {
    /// What is too much is the oldest.
    pub fn push(&self, news: News) {
        let mut queue = self.0.lock();
        queue.push_back(news);
        let old = (queue.len() > MOST).then(|| queue.pop_front());
        drop(queue);
        drop(old);
    }

    pub fn next(&self) -> Option<News> {
        self.0.lock().pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_never_lost() {
        let queue = NewsQueue::default();
        for attempt in 0..1000 {
            queue.push(News::State(PublishState {
                attempt,
                ..PublishState::default()
            }));
        }
        let told = std::iter::from_fn(|| queue.next());
        let told: Vec<u32> = told
            .map(|news| match news {
                News::State(publish) => publish.attempt,
                _ => unreachable!(),
            })
            .collect();
        assert_eq!(told.len(), MOST);
        assert_eq!(told.last(), Some(&999));
        assert!(told.is_sorted());
    }
}
