// SPDX-License-Identifier: MPL-2.0

//! What `gst-inspect-1.0 mqttvalve` shows beside properties and signals. GStreamer's registry
//! takes no title with a space.

pub fn metadata() -> gst::subclass::ElementMetadata {
    gst::subclass::ElementMetadata::with_additional(
        "MQTT valve",
        "Filter/Network",
        "Passes media while somebody asks for it over MQTT, drops it otherwise",
        env!("CARGO_PKG_REPOSITORY"),
        DOC,
    )
}

const DOC: &[(&str, &str)] = &[
    (
        "Stream",
        "
    Passes buffers while open, drops them while closed; closed at start. The first buffer
    after an opening is DISCONT and a key frame: in front of an encoder (raw or JPEG video)
    the valve sends it a force-key-unit event, behind one it asks upstream and drops up to
    the key frame. Sticky events and EOS always pass; other serialized events are dropped
    while closed. Closed, or cold, it is live (NO_PREROLL, and so in the LATENCY query): what
    waits for all of its inputs, as a mixer does, does not wait for this one, and sinks behind it
    that nothing else feeds are set to async=false until the valve is in NULL, so that none of
    them keeps the others from playing until the first opening. (Not so a sink that is made only
    later, as splitmuxsink makes its own.) Open with standby=warm, it is as live as its source. A
    pipeline-wide EOS passes also while upstream is stopped.
    Needs a live source; put the valve in front of the encoder, so that nothing is encoded
    while nobody watches.",
    ),
    (
        "Standby",
        "
    cold   All elements that feed nothing but the valve are in NULL: device closed, no CPU,
           from the first moment on. A source that fails to open, is lost or falls silent for
           `source-timeout` is tried again every 0.5 to 5 s while somebody wants the stream;
           its error goes into the state instead of ending the pipeline. Where that is not possible (see Neighbours) it is
           warm, with a warning.
    warm   They run and are dropped; the newest raw frame is sent first at opening.
    hot    They run, the encoder too: put the valve behind it. The last `preroll-time` of
           encoded media, back to a key frame, is sent first at opening, faster than real
           time, then live. At most 64 MiB are kept.
    In all three, one second after a session the elements between the valve and rtmpauthsink
    go to READY and back, where there is nothing beside them: an encoder gives back its
    pictures and threads. What is free is given
    back to the system then (malloc_trim). glibc keeps some MB of it in each of its arenas, the
    more the larger the pictures, unless MALLOC_TRIM_THRESHOLD_=131072 stands in the environment:
    set it where gst-launch-1.0 or an application runs a robot for long. droidrelay run does so
    by itself.",
    ),
    (
        "Neighbours",
        "
    What the valve does with other elements, from READY on; all of it is undone at NULL:
      upstream, cold        each element is locked in its state, which the valve drives: NULL
                            while closed, else the pipeline's state. Its errors go to the valve,
                            its clock is not offered to the pipeline. An element that is put in,
                            taken out or brought to another state while playing is taken up,
                            given back (unlocked, in the state that it has) or brought back.
                            While the pipeline is in PAUSED a sink holds the frame that it has:
                            a valve that closes then stops upstream when it goes on.
      a tee for valves      what feeds nothing but cold valves (two qualities, two servers) is
                            stopped with the last of them and started with the first.
      left alone, warm      where an element upstream feeds another branch too (a tee), makes its
                            pads as it runs (decodebin, rtspsrc), is not live, is locked by the
                            application, holds a sink, is another mqttvalve, or is in a bin with
                            elements that do not feed the valve. The warning names it.
      behind it             an encoder begins anew after a session (see Standby) only where
                            all lies between the valve and rtmpauthsink: not with a bin that holds
                            a sink, nor an element with a `location`, which may write a file.
      mixer, selector       an input without a valve always wants the stream: then rtmpauthsink
                            publishes on whatever the valve does. With valves at all inputs it
                            publishes while any of them is open. A muxer's tracks are one stream,
                            which the valves decide on, whichever tracks have one.
      taken out of the line the sink is told at unlinking and at READY, and is then as without a
                            valve: it publishes what comes.
      a device              that is open 4 s after its element went to NULL is named in a warning
                            and in `still_open`. v4l2src of GStreamer 1.22 does so wherever the
                            driver can orphan buffers, unless GST_V4L2_FORCE_DRAIN=1 stands in the
                            environment: droidrelay run sets it, and puts another process in its
                            own place where a device stays open all the same.
      a clock               that a camera provided already when the valve came is named in a
                            warning: it stands still while the valve is closed.",
    ),
    (
        "Commands",
        "
    On `topic`, QoS 1, UTF-8, at most 4096 bytes:
      start  ON                                      open until stop, or for `lease` seconds
      stop  OFF  {\"command\":\"stop\"}                  end all leases
      {\"command\":\"start\",\"id\":\"phone-7\",\"lease\":30}  open or renew for 30 s for this viewer
      {\"command\":\"stop\",\"id\":\"phone-7\"}            end the lease of this viewer
      keyframe  {\"command\":\"keyframe\"}               a key frame now, at most two a second
    Case and surrounding white space do not matter, nor a byte order mark, a NUL at the end or
    quotes around the word; unknown JSON fields are ignored. An empty message is no command. The
    valve is open while any lease lives (up to 1000 ids of up to 128 bytes). Retained
    commands, and whatever else comes, are refused: logged, counted, named in the state.
    Commands sent while the robot is offline are delivered when it is back, unless the sender gave them
    an MQTT 5 message expiry that has run out; commands from before the element was started
    are not (see `leases` for one that goes on where another has ended). The same commands are
    given on the robot itself by `drop` and the action signals
    start(id: string or NULL, lease: uint, seconds, 0 = the property) -> boolean, is open, and
    stop(id: string or NULL = all) -> boolean, is closed; keyframe() -> boolean, is open. The
    last command wins.
    Encoders are asked by a force-key-unit event (x264enc, openh264enc and all others of
    GstVideoEncoder) and, where one is a V4L2 device, by its control force_key_frame.
    Valves on the same `topic` open and close together; valves of one process on the same
    `state-topic` publish one state: the worst one among them.",
    ),
    (
        "State",
        "
    Retained JSON on `state-topic`: state (idle, starting, live, backoff, refused, error),
    since (RFC 3339), cause (boot, mqtt, local, lease, offline), viewers (the first 64 ids, or
    fewer where the state would have more than 4096 bytes, or than the broker takes; `*`
    is a start without id, `local` the local switch), viewer_count, broker_limits (what is
    lost at this broker, see Brokers; absent where nothing is), lease_until, publish (what
    rtmpauthsink says: state, reason, attempt, next_try in seconds, bitrate in bits per second
    of the last five seconds or more), last_error (what is wrong now, or null), faults (see
    Faults; absent where nothing is wrong), last_command (the last one obeyed), last_command_id (its MQTT 5 correlation data, printable UTF-8 of at
    most 128 bytes, or else its id: so a sender sees that it was executed), opens (openings so
    far), refused_commands, standby, start_latency_ms, still_open (devices of upstream that this
    process has open though upstream is stopped; only where there are any), version. `live` means that the server has
    accepted the publisher and frames flow. `availability-topic`: online or offline, retained;
    offline is the last will and is sent at a clean end too; online is sent again 15 s after
    connecting and each time that the connection is twice as old, should a will have come late.",
    ),
    (
        "Faults",
        "
    `faults` lists what is wrong now, one entry for each place, as {\"at\":PLACE,\"reason\":TEXT}; the
    nearest to the camera comes first, and its reason is last_error. An entry goes away:
      source    the camera fails or gives no frame        with the next frame, or at closing
                for `source-timeout` (a warm camera too)
      encoder   it is fed and gives nothing               when it gives something, or at closing
      branch    beside the stream: a recording,           when the application takes it back
                a full disk
      server    rtmpauthsink cannot publish               with what it says next, or at closing
      broker    no session, or a message is refused       when a session has lasted for 30 s
      setting   something is not done as it was asked     at the next opening
      command   one was refused                           with one that is obeyed, or at opening
    The action signal report-fault(at: string, reason: string or NULL) -> boolean, is a place, adds
    what the application knows, until it is called with NULL. droidrelay run tells so why the
    pipeline does not play, and which side branch does not run.",
    ),
    (
        "Brokers",
        "
    MQTT 5 is used where the broker speaks it, else MQTT 3.1.1, found out when connecting. Needed
    are QoS 1, sessions that outlive the connection, retained messages and last wills. What a
    broker lacks is said once in the log, and in broker_limits:
      MQTT 3.1.1 only       commands do not expire at the broker. A stop that waited there is
                            obeyed; a start that comes in the first second of a resumed session
                            only if it says that it is at most 30 s old, by
                            {\"command\":\"start\",\"sent\":SECONDS since 1970}, which the bridge adds.
                            Refused messages are not told
      no retained messages  who comes later sees neither state nor availability
      small packets         the state is shortened
    `client-id` is by default another one for each machine, topic and element, also where robots
    run from copies of one disk. A second valve on one machine with the same client-id stays away from
    the broker while the first is there, and says so. Where another client takes the session, log and
    state say so with the remedy, the session is tried again after 10 to 60 s, and what was started by MQTT is closed when no session has lasted
    for 10 s during `offline-timeout`. Addresses of the broker are tried side by side (RFC 8305), and an
    error names each. `password-file`, `ca-file`, `cert-file` and `key-file` may be
    replaced at any time: they are read for each connection. The last will is delayed by 1 s.",
    ),
    (
        "Discovery",
        "
    For Home Assistant: with `discovery-prefix`, one retained message on
    PREFIX/device/ID/config announces the robot as a device: a switch (start and stop on
    `topic`), connectivity, state, lease end, bitrate, last error. ID is made of `client-id`,
    and what people set up in Home Assistant hangs on it: keep it. Sent at each connect, and
    when Home Assistant says online on PREFIX/status, which is never taken for a command.
    Changed or unset while running, the old announcement is taken back. At the element's end
    it stays, and the device is unavailable; one that an earlier run has left goes by
    `mosquitto_pub -r -n -t PREFIX/device/ID/config`.
    Where the broker has access rights per user, the robot must be allowed to write the first
    topic (if not, last_error says so) and to read the second.",
    ),
    (
        "Messages",
        "
    Element message `mqttvalve-state` on each change, also of last_error (why there is no MQTT
    session, for example) or of `still_open` alone: state, open (boolean), cause, who, viewers (uint), lease-until,
    last-error, fault-at (its place, see Faults). Latency message after upstream was started.",
    ),
    (
        "Errors",
        "
    RESOURCE/SETTINGS, NULL to READY fails: broker, topic, keep-alive-interval, password-file
      or certificate files are not usable; the text names the value and the remedy.
    RESOURCE/SETTINGS as a warning: standby=cold is not possible here; it is warm instead.
    A broker that is down, slow, lost or refuses the login is no error: it is tried again every
    0.25 to 3 s, named in the log; the stream goes on (see offline-timeout).",
    ),
    (
        "Example-cold",
        "
    gst-launch-1.0 v4l2src ! video/x-raw,width=640,height=480 ! mqttvalve
      broker=mqtt://localhost topic=robot/stream ! videoconvert ! autovideosink
    Shows nothing, and the camera's light is off, until
    `mosquitto_pub -t robot/stream -m start`; `-m stop` turns it off again.",
    ),
    (
        "Example-warm",
        "
    gst-launch-1.0 v4l2src ! video/x-raw,format=NV12 ! tee name=t
      t. ! queue ! x264enc ! splitmuxsink location=day%05d.mp4
      t. ! queue leaky=downstream ! mqttvalve standby=warm broker=mqtt://localhost ! queue !
      x264enc tune=zerolatency key-int-max=30 ! rtmpauthsink location=rtmp://localhost/live/s
    Records all day, and shows its newest frame at once when a viewer starts the stream.",
    ),
    (
        "Example-hot",
        "
    gst-launch-1.0 v4l2src ! video/x-raw,format=NV12 ! x264enc tune=zerolatency key-int-max=30 !
      mqttvalve standby=hot preroll-time=10 broker=mqtt://localhost !
      rtmpauthsink location=rtmp://localhost/live/s
    Shows the ten seconds before `start` as well.",
    ),
    (
        "Example-local",
        "
    A detector on the robot opens the stream for 30 s, with or without a broker (Python):
      valve = Gst.parse_launch(line).get_by_name('valve')
      valve.emit('start', 'motion', 30)    # again while it goes on
      valve.emit('stop', 'motion')         # or let the 30 s pass
    From C: g_signal_emit_by_name (valve, \"start\", \"motion\", 30, &open);",
    ),
    (
        "Source",
        "
    MQTT Version 5.0 (OASIS): 3.1.2.5 will, 3.3.2.3.3 message expiry, 4.7 topics.
    GStreamer: force-key-unit events (GstVideo), NO_PREROLL (states design document).",
    ),
];
