//! The events by which valve and sink find each other through the stream.
//!
//! Downstream `droidrelay-session` (`wanted`: boolean): out-of-band at start, so that the sink
//! connects while camera and encoder come up; serialized just ahead of the first buffer, so
//! that frames of an earlier session which an encoder still holds can be told from it;
//! out-of-band at stop. Upstream `droidrelay-publish`: the sink's publishing state.

use droidrelay_wire::PublishState;

const SESSION: &str = "droidrelay-session";
const PUBLISH: &str = "droidrelay-publish";

/// A session is wanted (or no longer), told ahead of all data.
pub fn session_now(wanted: bool) -> gst::Event {
    gst::event::CustomDownstreamOob::new(session(wanted))
}

/// What follows in the stream belongs to a newly opened session.
pub fn session_begins() -> gst::Event {
    gst::event::CustomDownstream::new(session(true))
}

fn session(wanted: bool) -> gst::Structure {
    gst::Structure::builder(SESSION)
        .field("wanted", wanted)
        .build()
}

/// What a valve says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    Wanted,
    Begins,
    Unwanted,
}

/// Reads an event made by [`session_now`] or [`session_begins`].
pub fn parse_session(event: &gst::EventRef) -> Option<Session> {
    let structure = event.structure().filter(|s| s.name() == SESSION)?;
    let wanted = structure.get::<bool>("wanted").ok()?;
    Some(match (wanted, event.is_serialized()) {
        (false, _) => Session::Unwanted,
        (true, false) => Session::Wanted,
        (true, true) => Session::Begins,
    })
}

/// The sink's state on its way to the valve.
pub fn publish(state: &PublishState) -> gst::Event {
    let structure = gst::Structure::builder(PUBLISH)
        .field("state", &state.state)
        .field_if_some("reason", state.reason.as_ref())
        .field("attempt", state.attempt)
        .field_if_some("next-try", state.next_try)
        .build();
    gst::event::CustomUpstream::new(structure)
}

/// Reads an event made by [`publish`].
pub fn parse_publish(event: &gst::EventRef) -> Option<PublishState> {
    let structure = event.structure().filter(|s| s.name() == PUBLISH)?;
    Some(PublishState {
        state: structure.get("state").ok()?,
        reason: structure.get("reason").ok(),
        attempt: structure.get("attempt").ok()?,
        next_try: structure.get("next-try").ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_back_as_what_was_said() {
        gst::init().unwrap();
        assert_eq!(parse_session(&session_now(true)), Some(Session::Wanted));
        assert_eq!(parse_session(&session_now(false)), Some(Session::Unwanted));
        assert_eq!(parse_session(&session_begins()), Some(Session::Begins));
        let state = PublishState {
            state: "backoff".into(),
            reason: Some("server gone".into()),
            attempt: 3,
            next_try: Some(0.5),
        };
        assert_eq!(parse_publish(&publish(&state)), Some(state));
        assert_eq!(parse_publish(&session_begins()), None);
        assert_eq!(parse_session(&crate::keyunit::downstream(1)), None);
    }
}
