#!/usr/bin/env python3.13
# SPDX-License-Identifier: MPL-2.0
"""Holds what mqttvalve announces against Home Assistant's own code.

    check.py            a broker, a robot and Home Assistant's core, all started here: the robot is
                        discovered, switched on and off by the switch's service, and goes away
    check.py FILE       a captured announcement (-: standard input): schemas and templates only
    check.py --broker HOST[:PORT] [--username NAME --password-file FILE] [--prefix PREFIX]
                        the same with the announcements that are retained there

Needs mosquitto and gst-launch-1.0 with the plugin (GST_PLUGIN_PATH) for the first form.
check.sh calls it in an environment that has the package homeassistant.
"""

import argparse
import asyncio
import contextlib
import importlib
import json
import logging
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import paho.mqtt.client as paho
import voluptuous as vol
from homeassistant import auth, bootstrap, config_entries, const, core, loader
from homeassistant.components.mqtt import config_flow, discovery
from homeassistant.components.mqtt.models import MqttValueTemplate
from homeassistant.helpers import device_registry, entity_registry
from homeassistant.setup import async_setup_component
from homeassistant.util import dt

DEADLINE = 60
PREFIX = "homeassistant"
TOPIC = "robot/stream"
DEVICE = "droidrelay-robot1"
LONG = "no route to " + "host " * 60

# A state as the robot publishes it, and what Home Assistant must make of it.
EXAMPLES = [
    (
        {"state": "idle", "viewers": [], "lease_until": None, "last_error": None},
        {
            "stream": "OFF",
            "state": "idle",
            "lease_end": "None",
            "bitrate": "0",
            "last_error": "None",
        },
    ),
    (
        {
            "state": "starting",
            "lease_until": None,
            "publish": {"state": "connecting", "attempt": 1},
            "last_error": None,
        },
        {"stream": "ON", "state": "starting", "lease_end": "None", "bitrate": "0"},
    ),
    (
        {
            "state": "live",
            "lease_until": "2026-11-24T01:02:03Z",
            "publish": {"state": "publishing", "attempt": 1, "bitrate": 1498723},
            "last_error": None,
        },
        {"stream": "ON", "state": "live", "lease_end": "2026-11-24T01:02:03Z", "bitrate": "1499"},
    ),
    (
        {
            "state": "backoff",
            "lease_until": None,
            "publish": {"state": "backoff", "reason": LONG, "attempt": 3, "next_try": 1.5},
            "last_error": LONG,
        },
        {"stream": "ON", "state": "backoff", "bitrate": "0", "last_error": LONG[:255]},
    ),
    (
        {"state": "refused", "lease_until": None, "last_error": "no"},
        {"stream": "ON", "state": "refused", "last_error": "no"},
    ),
    (
        {"state": "error", "lease_until": None, "last_error": "no"},
        {"stream": "ON", "state": "error"},
    ),
]


class Failure(Exception):
    """What Home Assistant, or this check, does not accept."""


class Complaints(logging.Handler):
    """Warnings of Home Assistant's MQTT code: it drops what it dislikes with no more than that."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def expect(what, seen, wanted):
    if seen != wanted:
        raise Failure(f"{what}: {seen!r}, not {wanted!r}")


# ---- one announcement ------------------------------------------------------------------------


def check_announcement(hass, complaints, topic, payload):
    """Schemas as Home Assistant applies them, and more strictly: no key that it ignores. The
    topic is that below the prefix."""
    print(f"{topic}, {len(payload)} bytes:")
    match = discovery.TOPIC_MATCHER.fullmatch(topic)
    if not match or match["component"] != "device":
        raise Failure(f"{topic}: not a topic of device discovery")
    if not payload.strip():
        raise Failure("empty: the device is taken back")
    announced = discovery._parse_device_payload(hass, payload, match["object_id"], match["node_id"])
    if not announced:
        raise Failure("; ".join(complaints.texts) or "refused as a whole")
    templates = {}
    unique_ids = set()
    for name, component in announced["components"].items():
        platform = component.pop("platform")
        component = {**component, "device": announced["device"], "origin": announced["origin"]}
        discovery._merge_common_device_options(component, announced)
        schema = importlib.import_module(
            f"homeassistant.components.mqtt.{platform}"
        ).DISCOVERY_SCHEMA
        try:
            accepted = schema(dict(component))
        except vol.Invalid as error:
            raise Failure(f"{name} ({platform}): {error}") from error
        ignored = component.keys() - accepted.keys()
        if ignored:
            raise Failure(f"{name} ({platform}): keys that it does not know: {sorted(ignored)}")
        unique_ids.add(accepted["unique_id"])
        templates[name] = MqttValueTemplate(accepted.get("value_template"))
        print(f"  {name}: {platform}, unique_id {accepted['unique_id']}")
    expect("different unique ids", len(unique_ids), len(announced["components"]))
    for state, wanted in EXAMPLES:
        for name, value in wanted.items():
            if name not in templates:
                raise Failure(f"the component {name} is missing")
            rendered = templates[name].async_render_with_possible_json_value(json.dumps(state))
            expect(f"{name} of a robot that is {state['state']}", rendered, value)
        options = announced["components"]["state"]["options"]
        if state["state"] not in options:
            raise Failure(f"{state['state']} is none of the options {options}")
    if complaints.texts:
        raise Failure("; ".join(complaints.texts))
    print(f"  {len(EXAMPLES)} example states give the right values")


def captured(broker, username=None, password=None, prefix=PREFIX):
    """Announcements that are retained at `broker`, by topic below the prefix; where there is
    none, the first that comes."""
    host, _, port = broker.partition(":")
    done = threading.Event()
    behind = f"{prefix}/droidrelay-check"
    found = {}
    failures = []

    def on_connect(client, _userdata, _flags, reason, _properties):
        if reason.is_failure:
            failures.append(str(reason))
            done.set()
        client.subscribe([(f"{prefix}/device/+/config", 1), (behind, 1)])

    def on_subscribe(client, *_):
        client.publish(behind, "what is retained has come before this", qos=1)

    def on_message(_client, _userdata, message):
        if message.topic != behind:
            found[message.topic.removeprefix(prefix + "/")] = message.payload.decode()
        if found and (message.topic == behind or not message.retain):
            done.set()

    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.username_pw_set(username, password)
    client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
    client.connect(host, int(port or 1883))
    client.loop_start()
    done.wait(DEADLINE)
    client.disconnect()
    client.loop_stop()
    if failures:
        raise Failure(f"{broker}: {failures[0]}")
    if not found:
        raise Failure(f"{broker}: nothing is announced below {prefix}/device/")
    return found


# ---- Home Assistant's core ---------------------------------------------------------------------


@contextlib.asynccontextmanager
async def home_assistant(folder):
    """Its core with registries and templates, and nothing set up."""
    (Path(folder) / "configuration.yaml").touch()
    hass = core.HomeAssistant(str(folder))
    hass.config.skip_pip = True
    loader.async_setup(hass)
    hass.config_entries = config_entries.ConfigEntries(hass, {})
    await bootstrap.async_load_base_functionality(hass)
    hass.auth = await auth.auth_manager_from_config(hass, [], [])
    try:
        yield hass
    finally:
        await hass.async_stop(force=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


async def until(what, condition):
    """Waits for `condition` to hold; the deadline only ends what fails."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0.02)
    if not condition():
        raise Failure(f"{what}: not within {DEADLINE} s")


async def add_mqtt(hass, port):
    http = {"http": {"server_host": ["127.0.0.1"], "server_port": free_port()}}
    for domain, config in [("homeassistant", {}), ("http", http)]:
        if not await async_setup_component(hass, domain, config):
            raise Failure(f"Home Assistant's {domain} does not set up")
    flow = config_flow.FlowHandler
    await hass.config_entries.async_add(
        config_entries.ConfigEntry(
            domain="mqtt",
            title="MQTT",
            data={
                "broker": "127.0.0.1",
                "port": port,
                "discovery": True,
                "discovery_prefix": PREFIX,
            },
            options={},
            version=flow.VERSION,
            minor_version=flow.MINOR_VERSION,
            source="user",
            unique_id=None,
            discovery_keys={},
            subentries_data=None,
        )
    )
    entry = hass.config_entries.async_entries("mqtt")[0]
    if entry.state is not config_entries.ConfigEntryState.LOADED:
        raise Failure(f"Home Assistant's MQTT does not set up: {entry.state} {entry.reason}")
    await hass.async_start()
    return entry


async def check_live(hass, complaints, port, robot):
    """The robot as a person with Home Assistant meets it."""
    entry = await add_mqtt(hass, port)
    entities = entity_registry.async_get(hass)
    kinds = {
        "stream": "switch",
        "connectivity": "binary_sensor",
        "state": "sensor",
        "lease_end": "sensor",
        "bitrate": "sensor",
        "last_error": "sensor",
    }

    def entity(name):
        return entities.async_get_entity_id(kinds[name], "mqtt", f"{DEVICE}-{name}")

    def state(name):
        known = entity(name) and hass.states.get(entity(name))
        return known.state if known else None

    async def wait(**wanted):
        await until(
            f"{wanted}, last seen { ({name: state(name) for name in kinds}) }",
            lambda: all(state(name) == value for name, value in wanted.items()),
        )

    await wait(
        stream="off",
        connectivity="on",
        state="idle",
        lease_end="unknown",
        bitrate="0",
        last_error="unknown",
    )
    for name in kinds:
        known = hass.states.get(entity(name))
        print(f"  {known.entity_id}: {known.state} ({known.attributes.get('friendly_name')})")
    device = device_registry.async_get(hass).async_get_device(identifiers={("mqtt", DEVICE)})
    print(f"  device: {device.name}, {device.manufacturer} {device.model} {device.sw_version}")

    async def switch(service):
        target = {"entity_id": entity("stream")}
        await hass.services.async_call("switch", service, target, blocking=True)

    for _ in range(2):
        await switch("turn_on")
        await wait(stream="on", state="live")
        await switch("turn_off")
        await wait(stream="off", state="idle")
    print("  its switch, used twice: the robot went live, and idle again")

    lease = json.dumps({"command": "start", "id": "check", "lease": 3600})
    await hass.services.async_call(
        "mqtt", "publish", {"topic": TOPIC, "payload": lease}, blocking=True
    )
    await until("a lease's end", lambda: state("lease_end") not in (None, "unknown"))
    left = (dt.parse_datetime(state("lease_end")) - dt.utcnow()).total_seconds()
    if not 3500 < left < 3700:
        raise Failure(f"a lease of an hour ends in {left} s")
    await switch("turn_off")
    await wait(stream="off", lease_end="unknown")
    await hass.services.async_call(
        "mqtt", "publish", {"topic": TOPIC, "payload": "dance"}, blocking=True
    )
    await until("a last error", lambda: "refused" in (state("last_error") or ""))
    print(f"  last error: {state('last_error')}")

    robot.send_signal(signal.SIGINT)
    await wait(stream="unavailable", connectivity="off", state="unavailable")
    print("  the robot away: unavailable, and connectivity off")
    topic = f"{PREFIX}/device/{DEVICE}/config"
    nothing = {"topic": topic, "payload": "", "retain": True}
    await hass.services.async_call("mqtt", "publish", nothing, blocking=True)
    await until("no device", lambda: not any(entity(name) for name in kinds))
    print("  its announcement taken back: no entity is left")
    await hass.config_entries.async_unload(entry.entry_id)
    if complaints.texts:
        raise Failure("; ".join(complaints.texts))


@contextlib.contextmanager
def running(name, arguments, folder):
    with (folder / f"{name}.log").open("w+") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        except BaseException:
            log.seek(0)
            print(f"--- {name}:\n{log.read()}", file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait()


async def everything(hass, complaints, folder):
    port = free_port()
    configuration = folder / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    line = (
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64 ! mqttvalve client-id=robot1 "
        f"broker=mqtt://127.0.0.1:{port} topic={TOPIC} discovery-prefix={PREFIX} ! fakesink"
    )
    with (
        running("mosquitto", ["mosquitto", "-c", str(configuration)], folder),
        running("robot", ["gst-launch-1.0", *line.split()], folder) as robot,
    ):
        await until("a broker", lambda: listens(port))
        announced = await hass.async_add_executor_job(captured, f"127.0.0.1:{port}")
        for topic, payload in announced.items():
            check_announcement(hass, complaints, topic, payload)
        print("Home Assistant's core:")
        await check_live(hass, complaints, port, robot)


async def run(arguments):
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger().handlers[0].setLevel(logging.ERROR)
    complaints = Complaints()
    logging.getLogger("homeassistant.components.mqtt").addHandler(complaints)
    logging.getLogger("homeassistant.helpers.template").addHandler(complaints)
    with tempfile.TemporaryDirectory(prefix="homeassistant-") as folder:
        async with home_assistant(folder) as hass:
            if arguments.broker:
                password = None
                if arguments.password_file:
                    password = arguments.password_file.read_text().splitlines()[0]
                messages = captured(
                    arguments.broker, arguments.username, password, arguments.prefix
                )
            elif arguments.file:
                payload = (
                    sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text()
                )
                messages = {"device/captured/config": payload}
            else:
                return await everything(hass, complaints, Path(folder))
            for topic, payload in messages.items():
                check_announcement(hass, complaints, topic, payload)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?")
    parser.add_argument("--broker")
    parser.add_argument("--username")
    parser.add_argument("--password-file", type=Path)
    parser.add_argument("--prefix", default=PREFIX)
    arguments = parser.parse_args()
    try:
        asyncio.run(run(arguments))
    except Failure as failure:
        sys.exit(f"FAILED by Home Assistant {const.__version__}: {failure}")
    print(f"accepted by Home Assistant {const.__version__}")


main()
