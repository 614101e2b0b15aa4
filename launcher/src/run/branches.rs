// SPDX-License-Identifier: MPL-2.0

//! Side branches of a pipeline: what a tee feeds beside the stream, such as a recording or a
//! detector. An error there takes down that branch alone, and it is tried again; the stream and the
//! other branches go on.
//!
//! Behind the tee's pad stands an `errorignore`, so that what the branch returns does not go up.

use std::time::{Duration, Instant};

use droidrelay_wire::Backoff;
use gst::prelude::*;

use super::{
    disk::{Disk, Outcome, Task},
    parts::{Head, Parts},
};

/// A branch that fails is tried again within these bounds.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Running this long makes earlier failures forgotten.
const STABLE: Duration = Duration::from_secs(60);
const GUARD: &str = "errorignore";
const STREAM: [&str; 2] = ["mqttvalve", "rtmpauthsink"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up(Instant),
    /// On the way to NULL.
    Stopping,
    /// In NULL, until this time.
    Waiting(Instant),
    Starting,
}

struct Branch {
    name: String,
    parts: Parts,
    state: State,
    backoff: Backoff,
    fault: String,
}

/// The side branches of one pipeline.
#[derive(Default)]
pub struct Branches {
    all: Vec<Branch>,
    /// Of this pipeline, among those of the process.
    number: u64,
}

/// What became of a branch, for the log.
pub enum News {
    /// It failed: its name, and the reason.
    Failed(String, String),
    /// It runs again.
    Back(String),
}

impl Branches {
    /// Finds the side branches of a pipeline that is in NULL, and keeps their errors from going up.
    pub fn of(pipeline: &gst::Pipeline, number: u64) -> Self {
        let found = find(pipeline, is_of_stream);
        let guarded = found
            .into_iter()
            .filter_map(|elements| guard(elements).ok());
        let branch = |parts: Parts| Branch {
            name: parts.elements[0].name().into(),
            parts,
            state: State::Up(Instant::now()),
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            fault: String::new(),
        };
        Branches {
            all: guarded.map(branch).collect(),
            number,
        }
    }

    /// Takes down the branch that `source` is a part of, where it is one; None: it is of the
    /// stream. `Some(None)`: what it says follows from an earlier error.
    pub fn fail(
        &mut self,
        source: &gst::Object,
        reason: &str,
        disk: &mut Disk,
    ) -> Option<Option<News>> {
        let (index, branch) = (self.all.iter_mut().enumerate()).find(|(_, branch)| {
            let mut elements = branch.parts.elements.iter();
            elements.any(|element| {
                source == element.upcast_ref::<gst::Object>() || source.has_as_ancestor(element)
            })
        })?;
        match branch.state {
            State::Stopping | State::Waiting(_) => return Some(None),
            State::Up(since) if since.elapsed() >= STABLE => branch.backoff.reset(),
            State::Up(_) | State::Starting => {}
        }
        Some(Some(take_down(branch, (self.number, index), reason, disk)))
    }

    /// A task of a branch is done: when it is to be looked at again, and what is new.
    pub fn done(
        &mut self,
        (number, index): (u64, usize),
        outcome: Outcome,
        jitter: f64,
        disk: &mut Disk,
    ) -> Option<News> {
        let branch = self.all.get_mut(index).filter(|_| number == self.number)?;
        match (branch.state, outcome) {
            (State::Stopping, _) => {
                let wait = branch.backoff.next(jitter);
                branch.state = State::Waiting(Instant::now() + wait);
                None
            }
            (State::Starting, Outcome::Up) => {
                branch.state = State::Up(Instant::now());
                branch.fault.clear();
                Some(News::Back(branch.name.clone()))
            }
            (State::Starting, Outcome::Failed) => {
                let reason = "it does not start";
                Some(take_down(branch, (number, index), reason, disk))
            }
            _ => None,
        }
    }

    /// Brings up the branches whose time has come.
    pub fn retry(&mut self, now: Instant, pipeline: &gst::Pipeline, disk: &mut Disk) {
        for (index, branch) in self.all.iter_mut().enumerate() {
            if matches!(branch.state, State::Waiting(due) if due <= now) {
                branch.state = State::Starting;
                let task = Task::Start(branch.parts.clone(), pipeline.clone());
                disk.submit((self.number, index), task);
            }
        }
    }

    /// When a branch is to be tried again.
    pub fn due(&self) -> Option<Instant> {
        let due = |branch: &Branch| match branch.state {
            State::Waiting(due) => Some(due),
            _ => None,
        };
        self.all.iter().filter_map(due).min()
    }

    /// Which branches do not run, and why.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        let down = |branch: &&Branch| !branch.fault.is_empty();
        let down = self.all.iter().filter(down);
        down.map(|branch| (branch.name.as_str(), branch.fault.as_str()))
    }

    /// Name of each branch, and whether it runs.
    pub fn states(&self) -> impl Iterator<Item = (&str, bool)> {
        let all = self.all.iter();
        all.map(|branch| (branch.name.as_str(), branch.fault.is_empty()))
    }
}

fn take_down(branch: &mut Branch, id: (u64, usize), reason: &str, disk: &mut Disk) -> News {
    branch.state = State::Stopping;
    reason.clone_into(&mut branch.fault);
    branch.parts.cut();
    disk.submit(id, Task::Stop(branch.parts.clone()));
    News::Failed(branch.name.clone(), reason.to_owned())
}

fn factory(element: &gst::Element) -> String {
    let factory = element.factory();
    factory.map_or_else(String::new, |factory| factory.name().into())
}

/// The elements of each side branch: what hangs together when all tees are cut off from what they
/// feed, is fed by one, and has no part in the stream.
fn find(
    pipeline: &gst::Pipeline,
    is_of_stream: impl Fn(&gst::Element) -> bool,
) -> Vec<Vec<gst::Element>> {
    let all: Vec<gst::Element> = pipeline.iterate_elements().into_iter().flatten().collect();
    let mut seen: Vec<gst::Element> = Vec::new();
    let mut found = Vec::new();
    for element in &all {
        if seen.contains(element) {
            continue;
        }
        let mut part = Vec::new();
        collect(element, &mut part);
        seen.extend(part.iter().cloned());
        let is_fed = part.iter().any(|element| {
            let mut pads = element.sink_pads().into_iter();
            pads.any(|pad| is_fed_by_tee(&pad))
        });
        let is_side = |element: &gst::Element| {
            factory(element) != "tee" && !is_of_stream(element) && !has_pads_to_come(element)
        };
        if is_fed && part.iter().all(is_side) {
            found.push(part);
        }
    }
    // Without a stream there is nothing that they are beside.
    if all.iter().any(is_of_stream) {
        found
    } else {
        Vec::new()
    }
}

/// Whether it is one of the elements that make a stream, or holds one.
fn is_of_stream(element: &gst::Element) -> bool {
    let bin = element.downcast_ref::<gst::Bin>();
    let inside = bin.into_iter().flat_map(|bin| bin.iterate_recurse());
    let mut all = inside.flatten().chain([element.clone()]);
    all.any(|element| STREAM.contains(&factory(&element).as_str()))
}

/// Whether nobody can know yet what it will feed.
fn has_pads_to_come(element: &gst::Element) -> bool {
    element.pad_template_list().iter().any(|template| {
        template.direction() == gst::PadDirection::Src
            && template.presence() == gst::PadPresence::Sometimes
    })
}

fn is_fed_by_tee(sink: &gst::Pad) -> bool {
    let feeder = sink.peer().and_then(|peer| peer.parent_element());
    feeder.is_some_and(|feeder| factory(&feeder) == "tee")
}

/// Adds `element` and what it hangs together with, sinks before what feeds them.
fn collect(element: &gst::Element, part: &mut Vec<gst::Element>) {
    fn walk(element: &gst::Element, visited: &mut Vec<gst::Element>, part: &mut Vec<gst::Element>) {
        if visited.contains(element) {
            return;
        }
        visited.push(element.clone());
        let is_tee = factory(element) == "tee";
        let peer = |pad: &gst::Pad| pad.peer().and_then(|peer| peer.parent_element());
        if !is_tee {
            for next in element.src_pads().iter().filter_map(peer) {
                walk(&next, visited, part);
            }
        }
        part.push(element.clone());
        for pad in element.sink_pads().iter().filter(|pad| !is_fed_by_tee(pad)) {
            if let Some(before) = peer(pad) {
                walk(&before, visited, part);
            }
        }
    }
    walk(element, &mut Vec::new(), part);
}

/// Puts guards before the branch. An error: they are not here, or do not fit.
fn guard(elements: Vec<gst::Element>) -> Result<Parts, glib::BoolError> {
    let mut heads = Vec::new();
    let fed = elements.iter().flat_map(|element| element.sink_pads());
    for first in fed.filter(is_fed_by_tee).collect::<Vec<_>>() {
        let tee = first.peer().expect("it is fed");
        let bin = first.parent_element().and_then(|element| element.parent());
        let bin = bin.and_downcast::<gst::Bin>().expect("it is in a bin");
        let guard = gst::ElementFactory::make(GUARD).build()?;
        bin.add(&guard)?;
        let (into, out) = (guard.static_pad("sink"), guard.static_pad("src"));
        let (into, out) = (into.expect("a pad"), out.expect("a pad"));
        tee.unlink(&first)?;
        let linked = tee.link(&into).and_then(|_| out.link(&first));
        if linked.is_err() {
            let _ = tee.unlink(&into);
            bin.remove(&guard)?;
            let mended = tee.link(&first);
            mended.expect("it was linked before");
            continue;
        }
        heads.push(Head::new(out, first));
    }
    let is_sink =
        |element: &&gst::Element| element.element_flags().contains(gst::ElementFlags::SINK);
    let sinks = elements.iter().filter(is_sink).cloned().collect();
    Ok(Parts {
        heads,
        elements,
        sinks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the elements of each side branch; `fakesink name=stream` stands for the stream.
    fn branches(line: &str) -> Vec<Vec<String>> {
        gst::init().unwrap();
        let pipeline = gst::parse::launch(line).unwrap();
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        let names = |part: &Vec<gst::Element>| part.iter().map(|one| one.name().into()).collect();
        let is_stream = |element: &gst::Element| element.name() == "stream";
        find(&pipeline, is_stream).iter().map(names).collect()
    }

    #[test]
    fn a_side_branch_is_what_a_tee_feeds_beside_the_stream() {
        let none: [[&str; 0]; 0] = [];
        for (line, expected) in [
            (
                "fakesrc ! tee name=t t. ! queue name=q ! fakesink name=file t. ! queue ! fakesink name=stream",
                vec![vec!["file", "q"]],
            ),
            // What comes from two tees into one file is one branch.
            (
                "fakesrc ! tee name=t t. ! input-selector name=mux ! fakesink name=file \
                 fakesrc ! tee name=u u. ! mux. t. ! fakesink name=stream u. ! fakesink name=stream2",
                vec![vec!["file", "mux"], vec!["stream2"]],
            ),
            // The stream comes out of a second tee.
            (
                "fakesrc ! tee name=t ! identity ! tee name=u ! fakesink name=file \
                 u. ! fakesink name=stream t. ! fakesink name=eye",
                vec![vec!["file"], vec!["eye"]],
            ),
            // Who knows where its pads will lead.
            (
                "fakesrc ! tee name=t ! decodebin t. ! fakesink name=stream",
                vec![],
            ),
            ("fakesrc ! fakesink name=stream", vec![]),
        ] {
            let mut found = branches(line);
            found.sort_unstable();
            let mut expected = expected;
            expected.sort_unstable();
            assert_eq!(found, expected, "{line}");
        }
        // Without a stream there is nothing beside it.
        let line = "fakesrc ! tee name=t t. ! queue ! fakesink t. ! queue ! fakesink";
        assert_eq!(branches(line), none);
    }
}
