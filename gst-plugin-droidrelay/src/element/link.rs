// SPDX-License-Identifier: MPL-2.0

//! The events by which valve and sink find each other through the stream.
//!
//! Downstream `droidrelay-session` (`wanted`: boolean, `opening`: uint64): out-of-band at
//! start, so that the sink connects while camera and encoder come up, and again to ask for the next
//! try now; serialized just ahead of
//! the first buffer, so that frames of an earlier session which an encoder still holds can be
//! told from it, with `history` (uint64, nanoseconds of media from before the opening that come
//! first), and sticky, because a leaky queue drops other events along with the buffers that it
//! has no room for while an encoder comes up; out-of-band at stop. Upstream
//! `droidrelay-publish`: the sink's publishing state. Query `droidrelay-sink`: answered by a sink
//! that begins and ends sessions by these events, with itself as `sink` (object); others hand it
//! on, so the answer says who it is about. Query `droidrelay-valve`, answered by a valve in the
//! same way: whether it is `open`, and the number of its last `opening`.
//!
//! A session belongs to whoever wants it. Where an element with several inputs (a mixer, a
//! selector) lies between valves and sink, the sink goes by all of them ([`decide`]).

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use droidrelay_wire::PublishState;
use gst::prelude::*;

use super::neighbours::{self, Origins};

const SESSION: &str = "droidrelay-session";
const PUBLISH: &str = "droidrelay-publish";
const SINK: &str = "droidrelay-sink";
const VALVE: &str = "droidrelay-valve";

/// What a valve says, each with the number of the opening that it speaks of. Numbers grow in
/// the whole process: out-of-band events and the stream overtake each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEvent {
    /// A session is wanted, told ahead of all data.
    Wanted(u64),
    /// What follows in the stream belongs to the opened session, and begins with this much from
    /// before the opening.
    Begins(u64, gst::ClockTime),
    /// The session of this opening is no longer wanted, nor any before it.
    Unwanted(u64),
    /// The valve leaves the line: what comes from now on, comes without one. With its last
    /// opening.
    Released(u64),
}

/// Number of a new opening.
pub fn next_opening() -> u64 {
    static OPENINGS: AtomicU64 = AtomicU64::new(0);
    OPENINGS.fetch_add(1, Ordering::Relaxed) + 1
}

impl SessionEvent {
    /// The event that says it.
    pub fn event(self) -> gst::Event {
        let (wanted, opening) = match self {
            SessionEvent::Wanted(opening) | SessionEvent::Begins(opening, _) => (true, opening),
            SessionEvent::Unwanted(opening) | SessionEvent::Released(opening) => (false, opening),
        };
        let released = matches!(self, SessionEvent::Released(_));
        let structure = gst::Structure::builder(SESSION)
            .field("wanted", wanted)
            .field_if("released", true, released)
            .field("opening", opening);
        match self {
            SessionEvent::Begins(_, history) => {
                gst::event::CustomDownstreamSticky::new(structure.field("history", history).build())
            }
            _ => gst::event::CustomDownstreamOob::new(structure.build()),
        }
    }
}

/// Reads an event made by [`SessionEvent::event`].
pub fn parse_session(event: &gst::EventRef) -> Option<SessionEvent> {
    let structure = event.structure().filter(|s| s.name() == SESSION)?;
    let wanted = structure.get::<bool>("wanted").ok()?;
    let opening = structure.get::<u64>("opening").ok()?;
    Some(match (wanted, event.is_serialized()) {
        (false, _) if structure.has_field("released") => SessionEvent::Released(opening),
        (false, _) => SessionEvent::Unwanted(opening),
        (true, false) => SessionEvent::Wanted(opening),
        (true, true) => {
            let history = structure.get::<gst::ClockTime>("history").ok();
            SessionEvent::Begins(opening, history.unwrap_or_default())
        }
    })
}

/// The sink's state on its way to the valve.
pub fn publish(state: &PublishState) -> gst::Event {
    let structure = gst::Structure::builder(PUBLISH)
        .field("state", state.state.as_str())
        .field_if_some("reason", state.reason.as_ref())
        .field("attempt", state.attempt)
        .field_if_some("next-try", state.next_try)
        .field_if_some("bitrate", state.bitrate)
        .field_if_some("target-bitrate", state.target_bitrate)
        .build();
    gst::event::CustomUpstream::new(structure)
}

/// What is left of the wait for the next try when some more time has passed.
pub fn pass(state: &mut PublishState, time: Duration) {
    if let Some(wait) = &mut state.next_try {
        let left = (*wait - time.as_secs_f64()).max(0.0);
        *wait = (left * 1000.0).round() / 1000.0;
    }
}

/// Reads an event made by [`publish`].
pub fn parse_publish(event: &gst::EventRef) -> Option<PublishState> {
    let structure = event.structure().filter(|s| s.name() == PUBLISH)?;
    Some(PublishState {
        state: structure.get::<String>("state").ok()?.into(),
        reason: structure.get("reason").ok(),
        attempt: structure.get("attempt").ok()?,
        next_try: structure.get("next-try").ok(),
        bitrate: structure.get("bitrate").ok(),
        target_bitrate: structure.get("target-bitrate").ok(),
    })
}

/// Whether `pad` belongs to a sink that begins and ends sessions by these events.
pub fn is_of_session_sink(pad: &gst::Pad) -> bool {
    let mut query = gst::query::Custom::new(gst::Structure::new_empty(SINK));
    pad.query(&mut query) && is_about(query.structure(), "sink", pad)
}

fn is_about(answer: Option<&gst::StructureRef>, name: &str, pad: &gst::Pad) -> bool {
    let about = answer.and_then(|answer| answer.get::<gst::Element>(name).ok());
    about.is_some() && about == pad.parent_element()
}

/// The structure of `query`, where it asks for `name`.
fn asks_for<'a>(query: &'a mut gst::QueryRef, name: &str) -> Option<&'a mut gst::StructureRef> {
    let gst::QueryViewMut::Custom(query) = query.view_mut() else {
        return None;
    };
    let asked = query.structure_mut();
    (asked.name() == name).then_some(asked)
}

/// Answers [`is_of_session_sink`] as such a `sink`; false where `query` asks something else.
pub fn answer_session_sink(query: &mut gst::QueryRef, sink: &gst::Element) -> bool {
    asks_for(query, SINK).is_some_and(|answer| {
        answer.set("sink", sink);
        true
    })
}

/// What a valve says of itself, as it is at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub open: bool,
    /// The last one.
    pub opening: u64,
}

/// Answers for a `valve`; false where `query` asks something else.
pub fn answer_valve(
    query: &mut gst::QueryRef,
    valve: &gst::Element,
    claim: impl FnOnce() -> Claim,
) -> bool {
    asks_for(query, VALVE).is_some_and(|answer| {
        let Claim { open, opening } = claim();
        answer.set("valve", valve);
        answer.set("open", open);
        answer.set("opening", opening);
        true
    })
}

/// The claim of the valve whose pad `src` is.
fn claim_of(src: &gst::Pad) -> Option<Claim> {
    let mut query = gst::query::Custom::new(gst::Structure::new_empty(VALVE));
    if !src.query(&mut query) || !is_about(query.structure(), "valve", src) {
        return None;
    }
    let answer = query.structure()?;
    Some(Claim {
        open: answer.get("open").ok()?,
        opening: answer.get("opening").ok()?,
    })
}

/// What `session`, which has reached the `sink` pad of a sink, means for it.
pub fn session_at(sink: &gst::Pad, session: SessionEvent) -> Option<SessionEvent> {
    decide(session, &neighbours::origins(sink, claim_of))
}

/// A session goes on while anybody wants it: a valve that is open, or a source without a valve,
/// which always does.
fn decide(session: SessionEvent, origins: &Origins<Claim>) -> Option<SessionEvent> {
    if origins.free {
        return None;
    }
    let (SessionEvent::Wanted(own)
    | SessionEvent::Begins(own, _)
    | SessionEvent::Unwanted(own)
    | SessionEvent::Released(own)) = session;
    let others = origins.valves.iter().filter(|valve| valve.opening != own);
    let others_want = others.clone().any(|valve| valve.open);
    match session {
        // The one that runs serves both.
        SessionEvent::Wanted(_) | SessionEvent::Unwanted(_) | SessionEvent::Released(_)
            if others_want && origins.valves.len() > 1 =>
        {
            None
        }
        SessionEvent::Unwanted(own) if origins.valves.len() > 1 => {
            let last = others.map(|valve| valve.opening).max();
            Some(SessionEvent::Unwanted(last.unwrap_or(own).max(own)))
        }
        session => Some(session),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sink_itself_is_one() {
        gst::init().unwrap();
        let pipeline =
            gst::parse::launch("identity name=between ! queue name=queue ! fakesink name=sink")
                .unwrap()
                .downcast::<gst::Pipeline>()
                .unwrap();
        let pad = |name| {
            let element = pipeline.by_name(name).unwrap();
            element.static_pad("sink").unwrap()
        };
        assert!(!is_of_session_sink(&pad("sink")));
        // SAFETY: nothing else uses the pad yet.
        unsafe {
            pad("sink").set_query_function(|pad, _, query| {
                answer_session_sink(query, &pad.parent_element().unwrap())
            });
        }
        assert!(is_of_session_sink(&pad("sink")));
        assert!(!is_of_session_sink(&pad("between")));
        assert!(!is_of_session_sink(&pad("queue")));
    }

    #[test]
    fn events_read_back_as_what_was_said() {
        gst::init().unwrap();
        let opening = next_opening();
        assert!(next_opening() > opening);
        for said in [
            SessionEvent::Wanted(opening),
            SessionEvent::Begins(opening, gst::ClockTime::from_mseconds(5)),
            SessionEvent::Unwanted(opening),
            SessionEvent::Released(opening),
        ] {
            assert_eq!(parse_session(&said.event()), Some(said));
        }
        let state = PublishState {
            state: "backoff".into(),
            reason: Some("server gone".into()),
            attempt: 3,
            next_try: Some(0.5),
            bitrate: Some(1_500_000),
            target_bitrate: Some(1_600_000),
        };
        assert_eq!(parse_publish(&publish(&state)), Some(state));
        assert_eq!(
            parse_publish(&SessionEvent::Begins(1, gst::ClockTime::ZERO).event()),
            None
        );
        assert_eq!(parse_session(&crate::element::keyunit::downstream(1)), None);
    }

    #[test]
    fn a_session_belongs_to_whoever_wants_it() {
        let origins = |free, valves: &[(bool, u64)]| Origins {
            valves: valves
                .iter()
                .map(|&(open, opening)| Claim { open, opening })
                .collect(),
            free,
        };
        let (wanted, unwanted) = (SessionEvent::Wanted(5), SessionEvent::Unwanted(5));
        let alone = origins(false, &[(false, 5)]);
        assert_eq!(decide(wanted, &alone), Some(wanted));
        assert_eq!(decide(unwanted, &alone), Some(unwanted));
        // It has opened again meanwhile, and says so next.
        let again = origins(false, &[(true, 7)]);
        assert_eq!(decide(unwanted, &again), Some(unwanted));
        // A picture that is always there.
        let mixed = origins(true, &[(false, 5)]);
        for session in [
            wanted,
            unwanted,
            SessionEvent::Begins(5, gst::ClockTime::ZERO),
        ] {
            assert_eq!(decide(session, &mixed), None);
        }
        let other_is_open = origins(false, &[(false, 5), (true, 6)]);
        assert_eq!(decide(unwanted, &other_is_open), None);
        assert_eq!(decide(wanted, &other_is_open), None);
        assert_eq!(decide(SessionEvent::Released(5), &other_is_open), None);
        // Whoever closes last ends the session, whoever opened last.
        let none_is_open = origins(false, &[(false, 5), (false, 6)]);
        assert_eq!(
            decide(unwanted, &none_is_open),
            Some(SessionEvent::Unwanted(6))
        );
    }
}
