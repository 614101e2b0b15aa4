//! What `gst-inspect-1.0 rtmpauthsink` shows beside its properties.

pub const DOC: &[(&str, &str)] = &[
    (
        "Stream",
        "
    Publishes to an RTMP server for as long as that is wanted: while a mqttvalve upstream is
    open, or, without one, while media comes (until 5 s after the last buffer, or EOS). Each
    session begins with metadata, sequence headers and a key frame; its time starts at zero
    (media at 2 s, see start-offset); during its first two seconds a key frame is asked for
    every 250 ms, because readers attach a moment after the publisher. A session that is no
    longer wanted is unpublished and closed at once. Never synchronises to the clock, never
    blocks what is upstream: what cannot be sent waits up to max-latency and is then dropped
    up to a key frame.",
    ),
    (
        "Pads",
        "
    sink   H.264 (avc or byte-stream), H.265 (Enhanced RTMP: the server must know it), or a
           ready FLV stream. Buffers outside of a wanted session are dropped. EOS is posted
           when all pads have it.
    audio  AAC (raw) or MP3, on request. A session waits up to 0.5 s for the headers of both
           tracks. New headers in the stream (another resolution) start a new session.",
    ),
    (
        "Sessions",
        "
    One TCP connection each (TCP_NODELAY; addresses tried side by side as in RFC 8305), TLS
    for rtmps. Commands, headers and the first key frame go out in one write behind the
    handshake; a server that does not take that is asked step by step from then on. A session
    that is lost is tried again after 0.25 s, doubling up to 30 s, with jitter; one that is
    refused after 1 to 60 s. User and password are percent-encoded byte by byte; they are in
    no URL, property, message, log or dot file.",
    ),
    (
        "Messages",
        "
    notify::state, and element message `rtmpauthsink-state` on each change: state, reason,
    attempt (tries since the last accepted session), next-try (seconds). Progress messages of
    type `publish`: start while connecting, complete when the server has accepted, canceled
    while the next try waits. Upstream event `droidrelay-publish` for the valve.",
    ),
    (
        "Errors",
        "
    RESOURCE/SETTINGS, NULL to READY fails: location is no rtmp:// or rtmps:// URL, or
      password-file or ca-file cannot be read; the text names the value and the remedy.
    CORE/MISSING_PLUGIN: h264parse or h265parse is missing (gstreamer1.0-plugins-bad).
    RESOURCE/NOT_AUTHORIZED only with fail-fast=true: the server refuses the publisher.
    A server that is not there, silent, lost or refuses is no error otherwise: state and
    reason say what is wrong and the next try is made by itself.",
    ),
    (
        "Example",
        "
    gst-launch-1.0 videotestsrc is-live=true ! x264enc tune=zerolatency key-int-max=30 !
      rtmpauthsink location=rtmp://localhost/live/stream user=mypublisher
      password-file=rtmp.pass
    Publishes a test picture; stop the server and start it again, and it is back by itself.",
    ),
    (
        "Source",
        "
    RTMP Specification 1.0 (Adobe, 2012); Video File Format Specification 10.1, Annex E (FLV);
    Enhanced RTMP v1 (Veovera) for H.265; RFC 3986, section 2 (percent-encoding).",
    ),
];
