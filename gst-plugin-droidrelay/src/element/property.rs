// SPDX-License-Identifier: MPL-2.0

//! What the properties of both elements have in common.

use std::{
    ffi::{CStr, OsString},
    ops::RangeInclusive,
    os::unix::ffi::OsStringExt,
    path::PathBuf,
    time::Duration,
};

use glib::{
    ParamFlags, ParamSpec, ParamSpecBoolean, ParamSpecBoxed, ParamSpecString, ParamSpecUInt,
    prelude::*, translate::ToGlibPtr, value::FromValue,
};

pub const READY: ParamFlags = ParamFlags::READWRITE.union(gst::PARAM_FLAG_MUTABLE_READY);
pub const PLAYING: ParamFlags = ParamFlags::READWRITE.union(gst::PARAM_FLAG_MUTABLE_PLAYING);
/// It can be set, and never be read.
pub const SECRET: ParamFlags = ParamFlags::WRITABLE.union(gst::PARAM_FLAG_MUTABLE_READY);
pub const READ_ONLY: ParamFlags = ParamFlags::READABLE;

pub fn text_spec(name: &str, nick: &str, blurb: &str, flags: ParamFlags) -> ParamSpec {
    let spec = ParamSpecString::builder(name).nick(nick).blurb(blurb);
    spec.flags(flags).build()
}

pub fn structure_spec(name: &str, nick: &str, blurb: &str, flags: ParamFlags) -> ParamSpec {
    let spec = ParamSpecBoxed::builder::<gst::Structure>(name);
    spec.nick(nick).blurb(blurb).flags(flags).build()
}

pub fn boolean_spec(
    name: &str,
    nick: &str,
    blurb: &str,
    default: bool,
    flags: ParamFlags,
) -> ParamSpec {
    let spec = ParamSpecBoolean::builder(name).default_value(default);
    spec.nick(nick).blurb(blurb).flags(flags).build()
}

pub fn number_spec(
    name: &str,
    nick: &str,
    blurb: &str,
    range: RangeInclusive<u32>,
    default: u32,
    flags: ParamFlags,
) -> ParamSpec {
    let spec = ParamSpecUInt::builder(name)
        .minimum(*range.start())
        .maximum(*range.end())
        .default_value(default);
    spec.nick(nick).blurb(blurb).flags(flags).build()
}

/// A time of whole seconds.
pub fn seconds_spec(
    name: &str,
    nick: &str,
    blurb: &str,
    range: RangeInclusive<u32>,
    default: Duration,
    flags: ParamFlags,
) -> ParamSpec {
    number_spec(name, nick, blurb, range, default.as_secs() as u32, flags)
}

/// A value of the property's own type.
pub fn typed<'a, T: FromValue<'a>>(value: &'a glib::Value) -> T {
    value.get().expect("GObject checks the type first")
}

/// A time of whole seconds.
pub fn seconds(value: &glib::Value) -> Duration {
    Duration::from_secs(typed::<u32>(value).into())
}

/// The value of a property that is a time of whole seconds.
pub fn seconds_value(time: Duration) -> glib::Value {
    (time.as_secs() as u32).to_value()
}

/// A text; the empty one is none, as launch files write what is not set. GLib lets applications
/// set any bytes: what is not UTF-8 is complained of, and no reason to end the process, as the
/// bindings would.
pub fn filled(value: &glib::Value) -> Option<String> {
    let text = String::from_utf8(bytes(value)?).unwrap_or_else(|err| {
        glib::g_warning!(
            "droidrelay",
            "a text that is not UTF-8 was set, U+FFFD stands for what is not: give UTF-8"
        );
        String::from_utf8_lossy(err.as_bytes()).into_owned()
    });
    Some(text).filter(|text| !text.is_empty())
}

/// A path; the empty text is none.
pub fn path(value: &glib::Value) -> Option<PathBuf> {
    bytes(value)
        .filter(|path| !path.is_empty())
        .map(|path| OsString::from_vec(path).into())
}

fn bytes(value: &glib::Value) -> Option<Vec<u8>> {
    assert!(value.is::<String>(), "GObject checks the type first");
    // SAFETY: a string's value holds a C string, or none, that lives as long as the value.
    unsafe {
        let text = glib::gobject_ffi::g_value_get_string(value.to_glib_none().0);
        (!text.is_null()).then(|| CStr::from_ptr(text).to_bytes().to_vec())
    }
}

/// The value of a property that is a path.
pub fn path_value(path: Option<&PathBuf>) -> glib::Value {
    path.map(|path| path.to_string_lossy().into_owned())
        .to_value()
}
