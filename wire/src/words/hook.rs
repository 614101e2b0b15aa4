// SPDX-License-Identifier: MPL-2.0

//! What the media server's hooks tell a bridge of a path's viewers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a bridge takes it, by POST.
pub const PATH: &str = "/mediamtx/demand";

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum HookEvent {
    /// runOnDemand: a viewer waits for a stream that is not there. With runOnDemandRestart, again
    /// every five seconds for as long as it is wanted.
    Demand,
    /// runOnUnDemand: nobody wants it any more.
    Undemand,
    /// runOnRead: a viewer begins to get the stream.
    Read,
    /// runOnUnread: the viewer has left.
    Unread,
}

impl fmt::Display for HookEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The word that serde writes.
        self.serialize(f)
    }
}

/// Body of a hook's request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    pub event: HookEvent,
    /// The media server's path, which is that of a robot.
    pub path: String,
    /// When the hook's process was started, in seconds by `clock`.
    pub at: Option<f64>,
    /// Names the clock of `at`: times of other clocks do not compare.
    #[serde(default)]
    pub clock: String,
    /// How many seconds before this was sent the process was started, by no clock in particular.
    #[serde(default)]
    pub age: Option<f64>,
    /// The viewer, for [`HookEvent::Read`] and [`HookEvent::Unread`].
    pub reader: Option<Reader>,
}

/// A viewer, as the media server names it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reader {
    /// The protocol, for example `rtspSession`.
    pub r#type: String,
    pub id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_read_as_it_was_written() {
        use HookEvent::{Demand, Read, Undemand, Unread};
        for (event, word) in [
            (Demand, "demand"),
            (Undemand, "undemand"),
            (Read, "read"),
            (Unread, "unread"),
        ] {
            assert_eq!(serde_json::to_value(event).unwrap(), word);
            assert_eq!(event.to_string(), word);
            let hook = Hook {
                event,
                path: "robots/r1/live".into(),
                at: Some(17.25),
                clock: "boot 1".into(),
                age: Some(0.25),
                reader: Some(Reader {
                    r#type: "rtspSession".into(),
                    id: "7".into(),
                }),
            };
            let written = serde_json::to_vec(&hook).unwrap();
            assert_eq!(serde_json::from_slice::<Hook>(&written).unwrap(), hook);
        }
    }

    #[test]
    fn time_and_viewer_may_be_missing_and_an_unknown_event_is_none() {
        let hook: Hook =
            serde_json::from_str(r#"{"event":"demand","path":"p","reader":null}"#).unwrap();
        assert_eq!(
            (hook.at, hook.clock.as_str(), hook.age, hook.reader),
            (None, "", None, None)
        );
        assert!(serde_json::from_str::<Hook>(r#"{"event":"danced","path":"p"}"#).is_err());
    }
}
