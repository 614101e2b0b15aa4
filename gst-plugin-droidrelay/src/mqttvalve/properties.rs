// SPDX-License-Identifier: MPL-2.0

//! The tables of properties and pads, as `gst-inspect-1.0` shows them.

use droidrelay_wire::words::topics::DEFAULT_TOPIC;
use gst::prelude::*;

use super::settings::{MAX_PREROLL_TIME, Settings, Standby};
use crate::element::property::{
    PLAYING, READ_ONLY, READY, SECRET, boolean_spec, seconds_spec, structure_spec, text_spec,
};

pub fn specs() -> Vec<glib::ParamSpec> {
    let default = Settings::default();
    vec![
        text_spec("broker", "Broker", "URL of the MQTT broker: mqtt://, mqtts://, ws:// or wss:// host[:port]. Credentials in it are taken out at once. Unset: no MQTT, only the drop property and the action signals", READY),
        glib::ParamSpecString::builder("topic")
            .nick("Topic")
            .blurb("Topic on which commands come; no wildcards")
            .default_value(Some(DEFAULT_TOPIC))
            .mutable_ready()
            .build(),
        text_spec("username", "Username", "User name at the broker. Unset: none, or the one from the broker URL", READY),
        text_spec("password", "Password", "Password at the broker; on a command line every user of the machine can read it, so prefer password-file", SECRET),
        text_spec("password-file", "Password File", "File whose first line is the password at the broker; read anew at each connect. Wins over password", READY),
        text_spec("ca-file", "CA File", "PEM file of the certificates to trust for mqtts and wss; read anew at each connect. Unset: the system's trust store", READY),
        text_spec("cert-file", "Certificate File", "PEM file of the client's certificate chain for mutual TLS; needs key-file. Read anew at each connect", READY),
        text_spec("key-file", "Key File", "PEM file of the private key for cert-file; read anew at each connect", READY),
        text_spec("client-id", "Client ID", "MQTT client id, which names the session that the broker keeps. Unset: made of a hash of the machine (its serial number or network address, not its disk), topic and element name; a second pipeline with the same names gets -2 behind it. Two clients with one id throw each other out", READY),
        seconds_spec("keep-alive-interval", "Keep Alive Interval", "Seconds between pings to the broker; a dead link is noticed within two of them. At least 5", 1..=u16::MAX.into(), default.keep_alive, READY),
        boolean_spec("drop", "Drop", "Whether buffers are dropped (closed). The local switch: false opens until it is set to true, true closes and ends all leases", true, PLAYING),
        glib::ParamSpecEnum::builder_with_default("standby", Standby::default())
            .nick("Standby")
            .blurb("What keeps running while closed. Where cold is not possible (a tee, sometimes pads, a source that is not live) it is warm, with a warning. Counts at once, in PLAYING too")
            .mutable_playing()
            .build(),
        seconds_spec("preroll-time", "Preroll Time", "With standby=hot: seconds of encoded media from before an opening that are sent first, from a key frame on (so a little more)", 1..=MAX_PREROLL_TIME.as_secs() as u32, default.preroll_time, READY),
        seconds_spec("lease", "Lease", "Seconds for which a start without a lease of its own holds (0 = until stop)", 0..=u32::MAX, default.lease, PLAYING),
        seconds_spec("offline-timeout", "Offline Timeout", "Seconds without the broker after which what was started by MQTT is closed (0 = never)", 0..=u32::MAX, default.offline_timeout, PLAYING),
        seconds_spec("source-timeout", "Source Timeout", "With standby=cold: seconds without a frame while open and PLAYING after which the source counts as failed and is tried again; longer than the time between two frames (0 = never)", 0..=u32::MAX, default.source_timeout, PLAYING),
        boolean_spec("accept-retained", "Accept Retained", "Whether a retained command is obeyed; it may be old, so by default it is refused and logged", default.accept_retained, PLAYING),
        text_spec("state-topic", "State Topic", "Topic of the retained JSON state. Unset: the topic with /state behind it", READY),
        text_spec("availability-topic", "Availability Topic", "Topic of the retained online or offline. Unset: the topic with /availability behind it", READY),
        text_spec("discovery-prefix", "Discovery Prefix", "Topic prefix by which Home Assistant discovers devices, as a rule homeassistant: the robot is announced there as one device. Unset: not announced; unset while running, it is taken back", PLAYING),
        boolean_spec("connected", "Connected", "Whether the session with the broker is up", false, READ_ONLY),
        text_spec("state", "State", "This valve's state as the state topic tells it, in JSON, without a broker too; element message mqttvalve-state says that it has changed. Unset before the first start", READ_ONLY),
        structure_spec("leases", "Leases", "Who holds the valve open, as structure application/x-mqttvalve-leases. Setting what was read, from this valve or from one that it replaces, makes it go on: with these leases in place of its own and, if set before it starts, with the commands that the broker has kept meanwhile", PLAYING),
        structure_spec("stats", "Statistics", "Structure application/x-mqttvalve-stats with passed and dropped (buffers), opens, refused-commands, reconnects (counts), viewers (leases that live), start-latency (nanoseconds from the last opening to its first buffer)", READ_ONLY),
    ]
}

pub fn pad_templates() -> Vec<gst::PadTemplate> {
    let template = |name, direction| {
        let (presence, caps) = (gst::PadPresence::Always, gst::Caps::new_any());
        gst::PadTemplate::new(name, direction, presence, &caps).unwrap()
    };
    vec![
        template("sink", gst::PadDirection::Sink),
        template("src", gst::PadDirection::Src),
    ]
}
