#!/usr/bin/env python3
"""What mqttvalve is measured against: a subscriber that runs a GStreamer line as a child process.

subscriber.py PORT TOPIC USER PASSWORD_FILE LINE
"""
import shlex
import subprocess
import sys

import paho.mqtt.client as mqtt

port, topic, user, password_file, line = sys.argv[1:]
child = None


def on_connect(client, *_):
    client.subscribe(topic, 1)


def on_subscribe(*_):
    print("subscribed", flush=True)


def on_message(_client, _userdata, message):
    global child
    if message.payload == b"start" and child is None:
        child = subprocess.Popen(["gst-launch-1.0", *shlex.split(line)])
    elif message.payload == b"stop" and child is not None:
        child.terminate()
        child.wait()
        child = None


# paho-mqtt 2 wants the callbacks' version named.
version = getattr(mqtt, "CallbackAPIVersion", None)
client = mqtt.Client(version.VERSION2) if version else mqtt.Client()
with open(password_file, encoding="utf-8") as file:
    client.username_pw_set(user, file.readline().rstrip("\n"))
client.on_connect = on_connect
client.on_subscribe = on_subscribe
client.on_message = on_message
client.connect("127.0.0.1", int(port))
client.loop_forever()
