#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""The robot's line inside an application, which opens and closes it itself besides.

    apt-get install python3-gi gir1.2-gstreamer-1.0
    /usr/bin/python3 examples/application.py 'videotestsrc is-live=true ! ... ! mqttvalve name=valve ... ! ...'

The line is what gst-launch-1.0 takes; its mqttvalve is called valve. What valve and sink say is
printed. What is typed is done:

    start [ID [SECONDS]]    open for ID, for so long (else until stop)
    stop [ID]               close, or end the lease of ID
    keyframe                ask the encoder for a key frame now
    quit                    as Ctrl-C
"""
import signal
import sys

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gio, GLib, Gst


def say(text):
    print(text, flush=True)


class Application:
    def __init__(self, line):
        self.exit_code = 0
        self.loop = GLib.MainLoop()
        self.pipeline = Gst.parse_launch(line)
        self.valve = self.pipeline.get_by_name("valve")
        if self.valve is None:
            sys.exit("the line has no mqttvalve name=valve")
        self.valve.connect("notify::drop", self.on_drop)

        bus = self.pipeline.get_bus()
        bus.add_signal_watch()
        bus.connect("message::element", self.on_element)
        bus.connect("message::latency", lambda *_: self.pipeline.recalculate_latency())
        bus.connect("message::error", self.on_error)
        bus.connect("message::eos", lambda *_: self.loop.quit())

        self.typed = Gio.DataInputStream.new(Gio.UnixInputStream.new(0, False))
        self.read_line()
        for number in (signal.SIGINT, signal.SIGTERM):
            GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, self.loop.quit)

    def run(self):
        # A state change that fails posts an error, which ends the loop.
        self.pipeline.set_state(Gst.State.PLAYING)
        self.loop.run()
        # The robot says offline, and the stream is unpublished, before this returns.
        self.pipeline.set_state(Gst.State.NULL)
        return self.exit_code

    def on_drop(self, valve, _):
        # Comes on the thread that opened or closed it (MQTT's, for one), which must not wait here;
        # idle_add hands over to the main loop.
        closed = valve.get_property("drop")
        GLib.idle_add(say, "valve: " + ("closed" if closed else "open"))

    def on_element(self, _, message):
        fields = message.get_structure()
        name = fields.get_name()
        if name == "mqttvalve-state":
            _, viewers = fields.get_uint("viewers")
            say(f"{name}: {fields.get_string('state')}, viewers: {viewers}")
        elif name == "rtmpauthsink-state":
            reason = fields.get_string("reason")
            say(f"{name}: {fields.get_string('state')}" + (f", {reason}" if reason else ""))

    def on_error(self, _, message):
        # `droidrelay run` would begin anew; here it is the end.
        error, _ = message.parse_error()
        print(f"{message.src.get_name()}: {error.message}", file=sys.stderr)
        self.exit_code = 1
        self.loop.quit()

    def read_line(self):
        self.typed.read_line_async(GLib.PRIORITY_DEFAULT, None, self.on_line)

    def on_line(self, typed, result):
        line, _ = typed.read_line_finish_utf8(result)
        if line is None:  # Nothing more will be typed.
            return
        self.obey(line.split())
        self.read_line()

    def obey(self, words):
        match words:
            case ["start", *rest] if len(rest) <= 2:
                who = rest[0] if rest else None
                seconds = rest[1] if len(rest) == 2 else "0"
                if not seconds.isdigit():
                    say(f"{seconds} are no seconds")
                    return
                opened = self.valve.emit("start", who, int(seconds))
                say("start: " + ("open" if opened else "closed"))
            case ["stop", *rest] if len(rest) <= 1:
                closed = self.valve.emit("stop", rest[0] if rest else None)
                say("stop: " + ("closed" if closed else "still open for others"))
            case ["keyframe"]:
                asked = self.valve.emit("keyframe")
                say("keyframe: " + ("asked for" if asked else "the valve is closed"))
            case ["quit"]:
                self.loop.quit()
            case []:
                pass
            case _:
                say("type: start [ID [SECONDS]], stop [ID], keyframe, quit")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    Gst.init(None)
    try:
        application = Application(" ".join(sys.argv[1:]))
    except GLib.Error as error:
        sys.exit(f"the line is wrong: {error.message}")
    sys.exit(application.run())
