#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""What the bridge is measured against: the same two endpoints by FastAPI, uvicorn and paho-mqtt.

bridge.py PORT BROKER_PORT TOPIC USER PASSWORD_FILE [NAME DIGEST]

It asks nobody for a credential and does not wait for the broker's acknowledgement. With NAME and
the base64 of a password's SHA-256 it does both, and writes a line for each command, as
droidrelay-bridge does.
"""
import base64
import hashlib
import logging
import secrets
import sys

import paho.mqtt.client as mqtt
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

port, broker_port, topic, user, password_file, *whom = sys.argv[1:]
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
with open(password_file, encoding="utf-8") as file:
    client.username_pw_set(user, file.readline().rstrip("\n"))
client.connect("127.0.0.1", int(broker_port))
client.loop_start()


async def check(credentials: HTTPBasicCredentials = Depends(HTTPBasic())):
    digest = base64.b64encode(hashlib.sha256(credentials.password.encode()).digest())
    is_known = secrets.compare_digest(credentials.username.encode(), whom[0].encode())
    if not (secrets.compare_digest(digest, whom[1].encode()) and is_known):
        raise HTTPException(401, headers={"WWW-Authenticate": "Basic"})


def publish(command):
    message = client.publish(topic, command, qos=1)
    if whom:
        message.wait_for_publish(5)
        if not message.is_published():
            raise HTTPException(503)
        logging.info("published %s", command)


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
app = FastAPI(dependencies=[Depends(check)] if whom else [])


@app.get("/")
def greeting():
    return {"msg": "Media bridge service running!"}


@app.post("/stream/start")
def start():
    publish("start")
    return {"msg": "Published start"}


@app.post("/stream/stop")
def stop():
    publish("stop")
    return {"msg": "Published stop"}


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
