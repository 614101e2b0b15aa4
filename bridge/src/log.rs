// SPDX-License-Identifier: MPL-2.0

//! The log: our own words only, and what others have written in them on one line each.

use droidrelay_wire::line::one_line;
use tracing::{Level, Subscriber};
use tracing_subscriber::{
    field::MakeExt,
    filter::Targets,
    fmt::{MakeWriter, format::debug_fn, layer},
    layer::SubscriberExt,
    registry,
};

/// Writes lines of this level and graver ones.
pub fn log<W>(level: Level, writer: W, has_colours: bool) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // Everything passes here: a robot's state, an address in a header, the text of an error.
    let fields = debug_fn(|line, field, value| {
        let text = format!("{value:?}");
        match field.name() {
            "message" => line.write_str(&one_line(&text)),
            name => write!(line, "{name}={}", one_line(&text)),
        }
    });
    let lines = layer()
        .fmt_fields(fields.delimited(" "))
        .with_writer(writer)
        .with_ansi(has_colours);
    // Libraries may log what they were given.
    let ours = Targets::new().with_target("droidrelay_bridge", level);
    registry().with(lines).with(ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;
    use tracing::{subscriber::with_default, warn};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_that_others_write_begins_a_line_or_fills_the_log() {
        let kept = Kept::default();
        let writer = kept.clone();
        let forged = "x\n2026-01-01T00:00:00Z  INFO droidrelay_bridge: all is well\x1b[2J";
        with_default(log(Level::INFO, move || writer.clone(), false), || {
            warn!(robot = "r1", address = %forged, "state that cannot be read: {forged}");
            warn!(robot = forged, "{}", "y".repeat(1_000_000));
        });
        let text = String::from_utf8(kept.0.lock().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("cannot be read: x\\n2026"), "{text}");
        assert!(text.contains("robot=\"r1\" address=x\\n2026"), "{text}");
        assert!(
            !text.contains('\x1b') && text.len() < 10_000,
            "{}",
            text.len()
        );
    }
}
