#!/usr/bin/env python3
"""What the bridge is measured against: the same two endpoints by FastAPI, uvicorn and paho-mqtt.

bridge.py PORT BROKER_PORT TOPIC USER PASSWORD_FILE

It asks nobody for a credential and does not wait for the broker's acknowledgement.
"""
import sys

import paho.mqtt.client as mqtt
import uvicorn
from fastapi import FastAPI

port, broker_port, topic, user, password_file = sys.argv[1:]
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
with open(password_file, encoding="utf-8") as file:
    client.username_pw_set(user, file.readline().rstrip("\n"))
client.connect("127.0.0.1", int(broker_port))
client.loop_start()
app = FastAPI()


@app.get("/")
def greeting():
    return {"msg": "Media bridge service running!"}


@app.post("/stream/start")
def start():
    client.publish(topic, "start", qos=1)
    return {"msg": "Published start"}


@app.post("/stream/stop")
def stop():
    client.publish(topic, "stop", qos=1)
    return {"msg": "Published stop"}


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
