// SPDX-License-Identifier: MPL-2.0

//! What is wrong with a robot at this moment: one entry for each place, the nearest to the source
//! first, because what is wrong further on is most often its consequence.

use serde::{Deserialize, Serialize};

use super::word::words;

words! {
    /// Where something is wrong, from the camera on; then what stops nothing.
    pub enum Place default "" {
        /// The camera, and what is between it and the valve.
        Source = "source",
        /// The encoder gives nothing.
        Encoder = "encoder",
        /// What is beside the stream: a recording, a full disk, a detector.
        Branch = "branch",
        /// The server does not take the stream.
        Server = "server",
        /// The session with the broker.
        Broker = "broker",
        /// Something is not done as it was asked for, and how it is done in place of that.
        Setting = "setting",
        /// The last command was refused.
        Command = "command",
    }
}

impl Place {
    /// How far from the source; words that are not known here come last.
    fn rank(&self) -> usize {
        let place = Place::ALL.iter().position(|known| known == self);
        place.unwrap_or(Place::ALL.len())
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fault {
    pub at: Place,
    pub reason: String,
}

/// All that is wrong now, the nearest to the source first; of one place the first that was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Fault>")]
pub struct Faults(Vec<Fault>);

impl From<Vec<Fault>> for Faults {
    fn from(faults: Vec<Fault>) -> Self {
        let mut sorted = Faults::default();
        sorted.add(faults);
        sorted
    }
}

impl Faults {
    /// What is wrong at `at` from now on; None: nothing.
    pub fn set(&mut self, at: Place, reason: Option<String>) {
        self.0.retain(|fault| fault.at != at);
        self.add(reason.map(|reason| Fault { at, reason }));
    }

    /// Adds what is not there yet.
    pub fn add(&mut self, more: impl IntoIterator<Item = Fault>) {
        for fault in more {
            if !self.0.contains(&fault) {
                self.0.push(fault);
            }
        }
        self.0.sort_by_key(|fault| fault.at.rank());
    }

    /// The nearest to the source.
    pub fn first(&self) -> Option<&Fault> {
        self.0.first()
    }

    /// What is wrong there.
    pub fn at(&self, at: &Place) -> Option<&str> {
        let fault = self.0.iter().find(|fault| fault.at == *at);
        fault.map(|fault| fault.reason.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes each reason; one that is empty then goes.
    pub fn map_reasons(&mut self, change: impl Fn(String) -> String) {
        for fault in &mut self.0 {
            fault.reason = change(std::mem::take(&mut fault.reason));
        }
        self.0.retain(|fault| !fault.reason.is_empty());
    }
}

impl IntoIterator for Faults {
    type Item = Fault;
    type IntoIter = std::vec::IntoIter<Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(faults: &Faults) -> Vec<&str> {
        faults.iter().map(|fault| fault.reason.as_str()).collect()
    }

    #[test]
    fn the_nearest_to_the_source_is_told_first_whichever_came_first() {
        let mut faults = Faults::default();
        faults.set(Place::Server, Some("closed the connection".into()));
        faults.set(Place::Source, Some("unplugged".into()));
        faults.set(Place::Branch, Some("disk full".into()));
        assert_eq!(
            reasons(&faults),
            ["unplugged", "disk full", "closed the connection"]
        );
        faults.set(Place::Server, Some("refused".into()));
        assert_eq!(faults.first().unwrap().at, Place::Source);
        assert_eq!(faults.at(&Place::Server), Some("refused"));
        faults.set(Place::Source, None);
        assert_eq!(reasons(&faults), ["disk full", "refused"]);
    }

    #[test]
    fn what_several_tell_is_told_once_and_in_order() {
        let mut faults = Faults::default();
        faults.set(Place::Server, Some("away".into()));
        let mut other = Faults::default();
        other.set(Place::Server, Some("away".into()));
        other.set(Place::Source, Some("unplugged".into()));
        faults.add(other);
        assert_eq!(reasons(&faults), ["unplugged", "away"]);
    }

    #[test]
    fn a_place_of_a_newer_robot_is_handed_on_and_comes_last() {
        let text = r#"[{"at":"moon","reason":"dark"},{"at":"command","reason":"refused"}]"#;
        let faults: Faults = serde_json::from_str(text).unwrap();
        assert_eq!(reasons(&faults), ["refused", "dark"]);
        let written = serde_json::to_string(&faults).unwrap();
        assert!(
            written.ends_with(r#"{"at":"moon","reason":"dark"}]"#),
            "{written}"
        );
    }
}
