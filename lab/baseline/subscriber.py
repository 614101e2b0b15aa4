#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""The robot's side of the Python scripts that Droidrelay replaces, rewritten from their description:
what tests and benchmarks measure against, and nothing that is installed.

subscriber.py HOST PORT TOPIC USER PASSWORD_FILE LINE_FILE
"""
import os
import signal
import subprocess
import sys

import paho.mqtt.client as mqtt

host, port, topic, user, password_file, line_file = sys.argv[1:]


def first_line(path):
    with open(path, encoding="utf-8") as file:
        return file.readline().rstrip("\n")


line = first_line(line_file)
child = None


def on_connect(client, *_):
    client.subscribe(topic, 1)


def on_subscribe(*_):
    print("subscribed", flush=True)


def on_message(_client, _userdata, message):
    global child
    command = message.payload.decode()
    if command == "start" and child is None:
        child = subprocess.Popen("gst-launch-1.0 " + line, shell=True, start_new_session=True)
    elif command == "stop" and child is not None:
        os.killpg(child.pid, signal.SIGTERM)
        child = None


# paho-mqtt 2 wants the callbacks' version named.
version = getattr(mqtt, "CallbackAPIVersion", None)
client = mqtt.Client(version.VERSION2) if version else mqtt.Client()
client.username_pw_set(user, first_line(password_file))
client.on_connect = on_connect
client.on_subscribe = on_subscribe
client.on_message = on_message
client.connect(host, int(port))
client.loop_forever()
