//! What the properties of both elements have in common.

use std::path::PathBuf;

use glib::prelude::*;
use gst::prelude::*;

/// A text that may change up to READY.
pub fn text_spec(name: &str, nick: &str, blurb: &str) -> glib::ParamSpec {
    glib::ParamSpecString::builder(name)
        .nick(nick)
        .blurb(blurb)
        .mutable_ready()
        .build()
}

/// A secret: it can be set, and never be read.
pub fn secret_spec(name: &str, nick: &str, blurb: &str) -> glib::ParamSpec {
    glib::ParamSpecString::builder(name)
        .nick(nick)
        .blurb(blurb)
        .write_only()
        .mutable_ready()
        .build()
}

/// A text.
pub fn text(value: &glib::Value) -> Option<String> {
    value.get().expect("GObject checks the type first")
}

/// A path; the empty text is none.
pub fn path(value: &glib::Value) -> Option<PathBuf> {
    text(value)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// The value of a property that is a path.
pub fn path_value(path: Option<&PathBuf>) -> glib::Value {
    path.map(|path| path.to_string_lossy().into_owned())
        .to_value()
}
