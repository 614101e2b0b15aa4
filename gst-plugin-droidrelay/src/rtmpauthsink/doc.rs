// SPDX-License-Identifier: MPL-2.0

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
        "Weak-uplink",
        "
    What waits is counted until the server's kernel has it, beyond the time that the line takes
    by itself: bytes in the socket wait too. More than max-latency of it is dropped, and a key
    frame is asked for as soon as half of that waits no longer.
    adaptive-bitrate=true (off by default: the encoder belongs to the pipeline's author) leads
    the bitrate of the nearest video encoder upstream between min-bitrate and max-bitrate: down
    to four fifths of what the line carries as soon as media waits for longer than 0.2 s and
    ever longer, up by 8 % a second while nothing waits and the encoder uses what it has. A
    limit that has shown is tried again after 5 to 20 s. A session begins with the bitrate of
    the one before, if that ended within the last five minutes; while none is wanted the
    encoder has its own.
    Encoders: a `bitrate` in kbit/s (x264enc, x265enc, vah264enc, vaapih264enc, nvh264enc) or
    in bit/s (openh264enc, nvv4l2h264enc), or V4L2's control video_bitrate in `extra-controls`
    (v4l2h264enc; it begins with max-bitrate where it has none).",
    ),
    (
        "Pads",
        "
    sink   H.264 (avc or byte-stream), H.265 (Enhanced RTMP: the server must know it), or a
           ready FLV stream. Buffers outside of a wanted session are dropped. EOS is posted
           when all pads have it.
    audio  AAC (raw) or parsed MP3 (mpegaudioparse), on request. A session waits up to 0.5 s for the headers of both
           tracks. New headers in the stream (another resolution) start a new session.",
    ),
    (
        "Sessions",
        "
    One TCP connection each (TCP_NODELAY; addresses tried side by side as in RFC 8305), TLS
    for rtmps. Commands, headers and the first key frame go out in one write behind the
    handshake; a server that does not take that is asked step by step from then on. A session
    that is lost is tried again after 0.25 s, doubling up to 30 s, with jitter; one that is
    refused after 1 to 60 s.",
    ),
    (
        "Credentials",
        "
    credential-mode says how they reach the server:
    query  behind the stream name, ?user=USER&pass=PASSWORD (MediaMTX; nginx-rtmp, whose
           on_publish callback gets them, but no more than 255 bytes of name and query).
    token  behind the stream name, ?token=PASSWORD.
    rtmp   the server rejects a connection with a challenge, and the next one answers it: the
           logins of Adobe's and Limelight's servers (authmod=adobe, authmod=llnw), which also
           others have. The password is not sent, only an MD5 digest; that protects it less
           than rtmps does. The first session takes three connections, later ones two.
    none   none.
    In query and token every byte but A-Z a-z 0-9 - . _ ~ is percent-encoded, so that any UTF-8
    text will do. password-file is read at each try, so that a new password needs no restart.
    Credentials are in no property that can be read, message, log or dot file, nor in texts of
    a server that repeats them. A location that holds some is set without them: on a command
    line they are seen by every user of the machine all the same.",
    ),
    (
        "TLS",
        "
    For rtmps, by default port 1936. The server's certificate must be signed by a CA that
    ca-file (else the system's trust store) holds, or be in ca-file itself; must be for the
    location's host; and must be valid by this machine's clock. What is wrong and the remedy
    stand in the state's reason; the next try is made by itself. tls-validation-flags names
    what is checked: leaving out a flag forgives that fault and no other (as an exception, the
    flags insecure and generic-error forgive something only where unknown-ca is left out too).
    Each one that is left out lets somebody on the way pose as the server: for tests only.",
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
      password-file or ca-file cannot be read, or credential-mode=rtmp lacks user or password;
      the text names the value and the remedy.
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
    Enhanced RTMP v1 (Veovera) for H.265; RFC 3986, section 2 (percent-encoding); RFC 2617
    (the digest in authmod=llnw); GTlsCertificateFlags of GIO.",
    ),
];
