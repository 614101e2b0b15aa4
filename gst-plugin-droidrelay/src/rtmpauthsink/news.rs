// SPDX-License-Identifier: MPL-2.0

//! What the session's task and the streaming threads have to tell the world. It is told in the
//! element's worker: an application or a pad upstream may hold that up as long as it likes.

use std::{collections::VecDeque, sync::Arc};

use droidrelay_wire::PublishState;
use gst::prelude::*;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{bitrate::Range, cat::CAT, settings::State};

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

/// Tells the log, and who listens to `element` or its bus, of its session's state.
pub fn post(element: &gst::Element, state: State, publish: &PublishState) {
    let reason = publish.reason.as_deref();
    match state {
        State::Backoff | State::Refused => gst::warning!(
            CAT,
            obj = element,
            "{}: {}, next try in {:.2} s",
            publish.state,
            reason.unwrap_or_default(),
            publish.next_try.unwrap_or_default()
        ),
        _ => gst::info!(CAT, obj = element, "{}", publish.state),
    }
    element.notify("state");
    let structure = gst::Structure::builder("rtmpauthsink-state")
        .field("state", publish.state.as_str())
        .field("reason", reason)
        .field("attempt", publish.attempt)
        .field("next-try", publish.next_try.unwrap_or_default())
        .build();
    let message = gst::message::Element::builder(structure)
        .src(element)
        .build();
    // Without a bus nobody listens.
    let _ = element.post_message(message);
    if let Some((kind, text)) = progress(state) {
        let text = reason.unwrap_or(text);
        let progress = gst::message::Progress::builder(kind, "publish", text)
            .src(element)
            .build();
        let _ = element.post_message(progress);
    }
}

fn progress(state: State) -> Option<(gst::ProgressType, &'static str)> {
    match state {
        State::Idle => None,
        State::Connecting => Some((gst::ProgressType::Start, "Connecting to the server")),
        State::Publishing => Some((gst::ProgressType::Complete, "Publishing")),
        State::Backoff => Some((gst::ProgressType::Canceled, "Waiting for the next try")),
        State::Refused => Some((gst::ProgressType::Canceled, "Refused by the server")),
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
