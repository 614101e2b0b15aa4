// SPDX-License-Identifier: MPL-2.0

//! What `gst-inspect-1.0 rtmpauthsink` shows beside its properties.

pub const DOC: &[(&str, &str)] = &[
    (
        "Stream",
        "
    Publishes to an RTMP server while a session is wanted: while a mqttvalve upstream is open,
    or, without one, while media comes (until 5 s after the last buffer, or EOS). Each session
    begins with metadata, sequence headers and a key frame; its timestamps start at zero (media
    at 2 s, see start-offset); during its first two seconds the sink requests a key frame every
    250 ms, because readers attach a moment after the publisher. A session that is no longer
    wanted is unpublished and closed at once. The first frames that are dropped in a session are a warning; stats counts them
    in dropped-publishing.",
    ),
    (
        "Sources",
        "
    What the source answers to the LATENCY query at each segment says whether it is live:
      live                  never waits: up to max-latency is queued, then dropped up to the next
                            key frame.
      not live, sync=true   (a file, fdsrc, videotestsrc without is-live) waits for the clock and for
                            room in the queue. While the server is away it is dropped at the pace
                            of the clock.
      not live, sync=false  goes as fast as the server takes it, and waits for a server that is away.
      time goes back        (a seek, a file that is looped) a new session.
      no time-stamps        see Time.
      EOS                   waits until all has been sent, up to 0.8 s live, up to 5 s otherwise.",
    ),
    (
        "Time",
        "
    Frames are sent by DTS, or by PTS where they have none; without either, at the time at which
    they come. The two tracks are sent sorted by time: one that comes later is waited for as long
    as it usually is late (up to 2 s) or as long as the elements upstream say (an encoder with
    look-ahead, up to 30 s), and 0.1 s more. That waiting is no sign of a slow uplink. A running time
    that goes back by more than 0.5 s, or a flush that resets it, begins a new session.",
    ),
    (
        "Weak-uplink",
        "
    The queue is measured until the server's kernel has acknowledged the data, beyond the
    link's own delay: bytes in the socket count too. More than max-latency is dropped, and a key
    frame is requested as soon as the queue is below half of that.
    adaptive-bitrate=true (off by default: the encoder belongs to the pipeline's author) controls
    the bitrate of the nearest video encoder upstream between min-bitrate and max-bitrate: down
    to four fifths of the measured throughput when media is queued for longer than 0.2 s and the
    queue grows, up by 8 % a second while the queue is empty and the encoder uses its target.
    After a cut, the sink probes for more bandwidth after 5 to 20 s. A session begins with the
    last bitrate of the previous one, if that ended within the last five minutes; while no
    session is wanted, the encoder has the bitrate that it was configured with.
    Encoders: a `bitrate` in kbit/s (x264enc, x265enc, vah264enc, vaapih264enc, nvh264enc) or
    in bit/s (openh264enc, nvv4l2h264enc), or V4L2's control video_bitrate in `extra-controls`
    (v4l2h264enc; it begins with max-bitrate where it has none).",
    ),
    (
        "Pads",
        "
    sink   H.264 (avc or byte-stream), H.265 (Enhanced RTMP: the server must support it), or a
           muxed FLV stream. Buffers outside of a wanted session are dropped. EOS is posted
           when all pads have it.
    audio  AAC (raw) or parsed MP3 (mpegaudioparse), on request. A session waits up to 0.5 s for
           both tracks, up to 2 s where the valve of a track is open, and longer where an
           encoder says that it is later. New headers in the stream (another resolution) start a
           new session.",
    ),
    (
        "Sessions",
        "
    One TCP connection each (TCP_NODELAY; addresses tried side by side as in RFC 8305), TLS
    for rtmps. Commands, headers and the first key frame are sent in one write after the
    handshake. What a session had got that the server did not accept, the next one begins with.
    A lost session is retried after 0.25 s, doubling up to 30 s, with jitter; a refused one after
    1 to 60 s; both waits begin anew once a session has lasted for a second with media. A start
    at the valve, and its MQTT session that is up again, bring the next try at once, and so does
    a link, address or route that has come (not for a refused one). A network that is not there
    makes the wait no longer than 5 s.",
    ),
    (
        "Servers",
        "
    H.264 and AAC are taken by all that were tried. What differs, and what the sink does then; what
    has worked is remembered for the server until the process ends:
      looks at 2 s of media first (MediaMTX)
                            start-offset. Not where fmsVer, in the answer to connect, begins with
                            FMS/ (nginx-rtmp, SRS, lal, node-media-server). In the first session
                            that may come after the first frame: then it has the offset.
      takes no commands or media ahead of its answers, or numbers its first stream
      otherwise than 1 (rml_rtmp)
                            where a session ends or stalls before it is accepted, the next one
                            follows at once and step by step: a pause of 0.25 s after the
                            handshake, then each command after the answer to the one before.
      does not know fourCcList, by which H.265 is announced
                            where connect fails with it, it is repeated without.
      answers a wrong password late (MediaMTX, up to 4 s)
                            it has 5 s for its decision, and is asked once a try.
      wants a login (Adobe's, Limelight's, Wowza)
                            credential-mode=rtmp.
      redirects (code 302)  followed once, to the same stream name with the same credentials, from
                            rtmps to rtmps only.
      accepts, and closes then (a wrong stream key)
                            three sessions in a row that end within a second count as refused.",
    ),
    (
        "Credentials",
        "
    credential-mode says how they reach the server:
    query  behind the stream name, ?user=USER&pass=PASSWORD (MediaMTX; nginx-rtmp, whose
           on_publish callback gets them, but no more than 255 bytes of name and query).
    token  behind the stream name, ?token=PASSWORD, with user=USER where user is set.
    rtmp   the server rejects a connection with a challenge, and the next one answers it: the
           login of Adobe's and Limelight's servers (authmod=adobe, authmod=llnw), which other
           servers have too. Only an MD5 digest of the password is sent; that protects it less
           than rtmps does. The first session takes three connections, later ones two.
    none   none.
    A query in the location reaches the server as it was written, in each mode; what is added
    takes the place of a parameter of the same name. With credential-mode=rtmp, user= and pass=
    of the query are the login where user and password are not set.
    In query and token every byte but A-Z a-z 0-9 - . _ ~ is percent-encoded, so any UTF-8
    text works. password-file, a regular file, is read at each try, so a new password needs no restart.
    Credentials appear in no readable property, message, log or dot file, nor in a server's texts
    that repeat them. A location reads back without userinfo and without those parameters of its
    query that may be secret: with user, pass, pw, token, secret, key, auth, sign, hash or cred
    in their name, with a value of more than 16 characters, or without one. On a command line
    every user of the machine sees them all the same.",
    ),
    (
        "Locations",
        "
    rtmp(s)://[USER:PASSWORD@]HOST[:PORT]/APP/STREAM[?QUERY]. The last part of the path is the
    stream, the rest the application: .../live/_definst_/stream, .../v2/pub/stream.
    With one part only, the location names an application alone (.../camera1, with a query that
    goes with it); a slash in its query begins the stream (.../live?vhost=v/stream,
    .../live?KEY/stream). A stream may have an @ in its name.",
    ),
    (
        "TLS",
        "
    For rtmps. Without a port in the location, 443 is tried, and where nothing speaks RTMP there,
    1936 (MediaMTX's); what has worked comes first from then on. The server's certificate must
    be signed by a CA that ca-file (else the system's trust store) holds, or be in ca-file
    itself; must be for the location's host; and must be valid by this machine's clock. The state's reason names the
    fault and the remedy; the sink retries by itself. tls-validation-flags names the enforced
    checks: leaving out a flag accepts that fault and no other (as an exception, insecure and
    generic-error have an effect only where unknown-ca is left out too). Disabling a check
    allows impersonation of the server: for tests only.",
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
      password-file or ca-file cannot be read within 2 s, or credential-mode=rtmp lacks user or password;
      the text names the value and the remedy.
    CORE/MISSING_PLUGIN: h264parse or h265parse is missing (gstreamer1.0-plugins-bad).
    RESOURCE/WRITE, a warning: frames are dropped while publishing, said once a session.
    RESOURCE/NOT_AUTHORIZED only with fail-fast=true: the server refuses the publisher.
    Otherwise a server that is absent, silent, lost or refuses is no error: state and reason
    name the fault, and the sink retries by itself.",
    ),
    (
        "Example",
        "
    gst-launch-1.0 videotestsrc is-live=true ! x264enc tune=zerolatency key-int-max=30 !
      rtmpauthsink location=rtmp://localhost/live/stream user=mypublisher
      password-file=rtmp.pass
    Publishes a test picture; after a restart of the server it publishes again by itself.",
    ),
    (
        "Source",
        "
    RTMP Specification 1.0 (Adobe, 2012); Video File Format Specification 10.1, Annex E (FLV);
    Enhanced RTMP v1 (Veovera) for H.265; RFC 3986, section 2 (percent-encoding); RFC 2617
    (the digest in authmod=llnw); GTlsCertificateFlags of GIO.",
    ),
];
