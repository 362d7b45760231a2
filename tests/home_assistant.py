#!/usr/bin/env python3
"""The relay beside a real Home Assistant. Run by hand, not by `cargo test`; takes about a minute.

    python3 -m venv /tmp/ha && /tmp/ha/bin/pip install homeassistant
    /tmp/ha/bin/pip install paho-mqtt==… home-assistant-frontend==…
    cargo build
    /tmp/ha/bin/python tests/home_assistant.py

pip takes the newest Home Assistant that the venv's Python can run. What the other two have to be, it
says itself in the manifests of its components `mqtt` and `frontend`: paho-mqtt 2.1.0 and
home-assistant-frontend 20250411.0 for Home Assistant 2025.4. Needs mosquitto in the path.

It starts mosquitto, `astro-relay sim`, the relay and Home Assistant, all on free ports of this machine,
and checks that every entity appears and has a state, that states change, that events fire once and
with their attributes, that the blueprint flashes a light for a tip that is large and new and for no
other, that a button and a number reach the session, that all is unavailable when the relay is killed
and comes back with it, and that a channel that is no longer configured is forgotten. Every discovery
payload is also held against Home Assistant's own schema of its component.

What it prints ends with `N passed, N failed`.
"""

import asyncio
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import jwt  # Home Assistant's own dependency
import paho.mqtt.client as mqtt
from homeassistant.const import __version__ as HA_VERSION

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("ASTRO_RELAY", str(ROOT / "target/debug/astro-relay"))
ROOM, OTHER = "5b2e2007760aeb7729487dab", "0f0e0d0c0b0a090807060504"
# How long Home Assistant may take for anything, on a busy machine.
PATIENCE = float(os.environ.get("PATIENCE", 120))
passed, failed = [], []


def check(what, holds, found=""):
    (passed if holds else failed).append(what)
    print(f"{'PASS' if holds else 'FAIL'} {what}{'' if holds else f': {found}'}", flush=True)


def until(what, condition, patience=PATIENCE):
    """Waits for a condition, level-triggered; a failure when it does not come to hold."""
    end, found = time.monotonic() + patience, None
    while time.monotonic() < end:
        try:
            found = condition()
        except (OSError, KeyError) as error:
            found = None
            last = error
        if found:
            check(what, True)
            return found
        time.sleep(0.1)
    check(what, False, f"not within {patience} s ({found!r})")
    return None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Everything:
    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.children = {}
        self.mqtt_port, self.sim_port = free_port(), free_port()
        self.http_port, self.ha_port = free_port(), free_port()
        self.token = None

    def start(self, name, *command):
        log = open(self.dir / f"{name}.log", "ab")
        self.children[name] = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )

    def end(self, name, how=signal.SIGTERM):
        child = self.children.pop(name, None)
        if child is not None:
            child.send_signal(how)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def log(self, name):
        return (self.dir / f"{name}.log").read_text(errors="replace")

    # The broker and the simulated Astro.

    def broker(self):
        config = self.dir / "mosquitto.conf"
        config.write_text(
            f"listener {self.mqtt_port} 127.0.0.1\nallow_anonymous true\nuser root\n"
            "max_queued_messages 0\n"
        )
        self.start("mosquitto", "mosquitto", "-c", str(config))

    def simulator(self):
        self.start(
            "sim", PROGRAM, "sim", "--listen", f"127.0.0.1:{self.sim_port}",
            "--room", ROOM, "--room", OTHER, "--speed", "0",
        )

    def control(self, call, body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.sim_port}/control/{call}", json.dumps(body).encode()
        )
        return urllib.request.urlopen(request, timeout=10).read()

    def happens(self, kind, data, **more):
        activity = {"type": kind, "provider": "twitch", "data": data, **more}
        self.control(f"activity?room={ROOM}", activity)

    def session(self):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.sim_port}/kappa/v2/sessions/{ROOM}",
            headers={"Authorization": "Bearer any"},
        )
        return json.load(urllib.request.urlopen(request, timeout=10))["data"]

    # The relay.

    def relay(self, channels=("main", "other"), extra=""):
        rooms = {"main": ROOM, "other": OTHER}
        text = (
            f'[astro]\nurl = "ws://127.0.0.1:{self.sim_port}"\n'
            f'api_url = "http://127.0.0.1:{self.sim_port}/kappa/v2"\nbackoff_max = "1s"\n'
            f'[journal]\ndir = "{self.dir}/journal"\nmin_free = "0B"\n'
            f'[http]\nlisten = "127.0.0.1:{self.http_port}"\n[log]\nformat = "text"\n'
            f'[sinks.home]\ntype = "mqtt"\nurl = "mqtt://127.0.0.1:{self.mqtt_port}"\n'
            'homeassistant = true\ncommands = true\nmax_age = "60s"\n' + extra
        )
        for label in channels:
            text += (
                f'[channels.{label}]\nroom = "{rooms[label]}"\ntoken = "any"\n'
                'topics = ["channel.activities", "channel.tips", "channel.session.update", '
                '"channel.session.reset", "channel.stream.status", "channel.chatbot.counters"]\n'
            )
        (self.dir / "relay.toml").write_text(text)
        self.start("relay", PROGRAM, "run", "--config", str(self.dir / "relay.toml"))

    # Home Assistant.

    def configure(self):
        config = self.dir / "ha"
        storage = config / ".storage"
        storage.mkdir(parents=True)
        source = ROOT / "deploy/home-assistant"
        shutil.copytree(source / "blueprints", config / "blueprints")
        shutil.copy(source / "automations.yaml", config / "automations.yaml")
        (config / "configuration.yaml").write_text(
            f"http:\n  server_host: 127.0.0.1\n  server_port: {self.ha_port}\n"
            "api:\nlogbook:\nautomation: !include automations.yaml\n"
            "logger:\n  default: info\n"
            "input_boolean:\n  studio:\n  door:\n"
            "counter:\n  flashes:\n"
            "light:\n" + "".join(
                f"  - platform: template\n    lights:\n      {name}:\n"
                f"        value_template: \"{{{{ is_state('input_boolean.{name}', 'on') }}}}\"\n"
                f"        turn_on:\n"
                f"          - service: input_boolean.turn_on\n"
                f"            target: {{ entity_id: input_boolean.{name} }}\n"
                + ("          - service: counter.increment\n"
                   "            target: { entity_id: counter.flashes }\n" if name == "studio" else "")
                + f"        turn_off:\n"
                f"          - service: input_boolean.turn_off\n"
                f"            target: {{ entity_id: input_boolean.{name} }}\n"
                for name in ("studio", "door")
            )
        )
        now = "2026-01-01T00:00:00+00:00"
        entry = {
            "created_at": now, "modified_at": now, "discovery_keys": {}, "disabled_by": None,
            "data": {"broker": "127.0.0.1", "port": self.mqtt_port, "discovery": True},
            "domain": "mqtt", "entry_id": "0" * 26, "minor_version": 2, "version": 1, "options": {},
            "pref_disable_new_entities": False, "pref_disable_polling": False, "source": "user",
            "subentries": [], "title": "broker", "unique_id": None,
        }
        user = {
            "id": "1" * 32, "group_ids": ["system-admin"], "is_owner": True, "is_active": True,
            "name": "test", "system_generated": False, "local_only": False,
        }
        key = os.urandom(32).hex()
        token = {
            "id": "2" * 32, "user_id": user["id"], "client_id": None, "client_name": "test",
            "client_icon": None, "token_type": "long_lived_access_token", "created_at": now,
            "access_token_expiration": 315360000.0, "token": os.urandom(32).hex(), "jwt_key": key,
            "last_used_at": None, "last_used_ip": None, "expire_at": None, "credential_id": None,
            "version": HA_VERSION,
        }
        groups = [
            {"id": f"system-{word}", "name": name}
            for word, name in
            (("admin", "Administrators"), ("users", "Users"), ("read-only", "Read Only"))
        ]
        for name, version, minor, data in (
            ("core.config_entries", 1, 2, {"entries": [entry]}),
            ("auth", 1, 1, {"users": [user], "groups": groups, "credentials": [],
                            "refresh_tokens": [token]}),
        ):
            stored = {"version": version, "minor_version": minor, "key": name, "data": data}
            (storage / name).write_text(json.dumps(stored))
        issued = int(time.time())
        claims = {"iss": token["id"], "iat": issued, "exp": issued + 86400}
        self.token = jwt.encode(claims, key, algorithm="HS256")

    def check_config(self):
        script = [sys.executable, "-m", "homeassistant", "--script", "check_config", "--config",
                  str(self.dir / "ha"), "--info", "automation"]
        run = subprocess.run(script, capture_output=True, text=True, timeout=PATIENCE)
        bad = [line for line in (run.stdout + run.stderr).splitlines()
               if "error" in line.lower() or "invalid" in line.lower()]
        check("the configuration with blueprint and automations loads", not bad, bad[:5])

    def home_assistant(self):
        self.start("ha", sys.executable, "-m", "homeassistant", "--config", str(self.dir / "ha"),
                   "--skip-pip")

    def api(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ha_port}/api/{path}", data,
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        return json.load(urllib.request.urlopen(request, timeout=10))

    def states(self):
        return {state["entity_id"]: state for state in self.api("states")}

    def state(self, entity):
        try:
            return self.api(f"states/{entity}")["state"]
        except urllib.error.HTTPError:
            return None

    def logbook(self, entity):
        """What the logbook shows of an entity since the day began, oldest first."""
        return [entry.get("state") for entry in self.api(f"logbook?entity={entity}")]

    def attributes(self, entity):
        return self.api(f"states/{entity}")["attributes"]

    # What stands on the broker.

    def retained(self, filter_):
        """Every retained message that matches, by topic."""
        found, done = {}, []
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.on_message = lambda _c, _u, message: found.update({message.topic: message.payload})
        client.on_subscribe = lambda *_: done.append(True)
        client.connect("127.0.0.1", self.mqtt_port)
        client.subscribe(filter_, 1)
        end = time.monotonic() + 10
        quiet = 0
        while time.monotonic() < end and quiet < 5:
            before = len(found)
            client.loop(0.1)
            quiet = quiet + 1 if done and len(found) == before else 0
        client.disconnect()
        return found


def of_relay(states):
    """Entities of ours, by their names."""
    return {name: state for name, state in states.items()
            if "streamelements_" in name or ".astro_relay_" in name}


async def validate(everything):
    """Every discovery payload against the schema of its component, as Home Assistant has it."""
    import importlib
    import voluptuous
    from homeassistant.core import HomeAssistant
    from homeassistant.helpers import frame

    # Schemas with templates want an instance; it need not run.
    frame.async_setup(HomeAssistant(str(everything.dir)))
    found = everything.retained("homeassistant/+/+/+/config")
    ids, bad, components = {}, [], {}
    for topic, payload in found.items():
        _, component, _, _, _ = topic.split("/")
        config = json.loads(payload)
        components[component] = components.get(component, 0) + 1
        module = importlib.import_module(f"homeassistant.components.mqtt.{component}")
        try:
            clean = module.DISCOVERY_SCHEMA(dict(config))
            unknown = set(config) - set(clean) - {"platform"}
            if unknown:
                bad.append(f"{topic}: unknown keys {sorted(unknown)}")
        except voluptuous.Invalid as error:
            bad.append(f"{topic}: {error}")
        if ids.setdefault(config["unique_id"], topic) != topic:
            bad.append(f"{topic}: the unique_id of {ids[config['unique_id']]}")
    check("many more wait to be enabled", len(found) > 100, len(found))
    check(f"{len(found)} discovery payloads fit Home Assistant's schemas {components}",
          found and not bad, bad[:5])
    return found


def appear(e):
    wanted = {f"event.streamelements_main_{kind}" for kind in
              ("tip", "subscription", "follow", "cheer", "super_chat", "raid", "redemption")} | {
        "sensor.streamelements_main_latest_follower", "sensor.streamelements_main_tips_this_session",
        "binary_sensor.streamelements_main_live", "button.streamelements_main_send_test_tip",
        "sensor.streamelements_main_latest_event",
        "sensor.astro_relay_status", "event.streamelements_other_tip"}
    ours = until("the entities appear",
                 lambda: (lambda s: s if wanted <= set(s) else None)(of_relay(e.states())))
    if ours is None:
        print(sorted(wanted - set(of_relay(e.states()))))
        return
    print(f"     {len(ours)} entities of two channels and the relay are enabled")
    rare = [name for name in ours if "merch" in name or "hype_train" in name or "this_week" in name
            or name.endswith("send_test_raid")]
    check("and only what most people want", len(ours) < 80 and not rare, (len(ours), rare))
    until("the relay is online", lambda: e.state("sensor.astro_relay_status") == "online")
    until("the channel is connected",
          lambda: e.state("binary_sensor.streamelements_main_connection") == "on")
    until("Astro is connected", lambda: e.state("binary_sensor.astro_relay_astro") == "on")
    lost = until("nothing is unavailable", lambda: not [
        name for name, state in of_relay(e.states()).items() if state["state"] == "unavailable"
    ], 60)
    if lost is None:
        print([n for n, s in of_relay(e.states()).items() if s["state"] == "unavailable"][:10])


def change(e):
    e.control(f"publish?topic=channel.stream.status&room={ROOM}", {"isLive": True})
    until("live is on", lambda: e.state("binary_sensor.streamelements_main_live") == "on")
    until("the example automation turns the lamp on", lambda: e.state("light.door") == "on")
    e.happens("follow", {"username": "ann", "displayName": "Ann"})
    until("the latest follower is shown",
          lambda: e.state("sensor.streamelements_main_latest_follower") == "Ann")
    until("a follow was an event",
          lambda: e.attributes("event.streamelements_main_follow").get("name") == "Ann")
    e.control(f"publish?topic=channel.chatbot.counters&room={ROOM}", {"counter": "deaths", "value": 7})
    until("a counter appears and counts",
          lambda: e.state("sensor.streamelements_main_counter_deaths") == "7")


def events(e):
    tip = "event.streamelements_main_tip"
    e.happens("tip", {"username": "bob", "displayName": "Bob", "amount": 2, "currency": "EUR",
                      "message": "small"})
    until("a tip is an event", lambda: e.attributes(tip).get("message") == "small")
    attributes = e.attributes(tip)
    check("its attributes are those of the tip",
          (attributes["event_type"], attributes["name"], attributes["amount"],
           attributes["currency"], attributes["backfilled"])
          == ("tip", "Bob", 2, "EUR", False), attributes)
    check("one of them is the summary", attributes["summary"] == "tip: Bob, 2.00 EUR, 'small'", attributes)
    latest = "sensor.streamelements_main_latest_event"
    told = ["follow: Ann", "tip: Bob, 2.00 EUR, 'small'"]
    until("the logbook shows what happened, each once", lambda: e.logbook(latest)[-2:] == told)
    before = int(e.state("counter.flashes"))
    e.happens("tip", {"username": "cleo", "displayName": "Cleo", "amount": 25, "currency": "EUR",
                      "message": "large"})
    until("a large tip flashes the light", lambda: int(e.state("counter.flashes")) == before + 1)
    check("a small tip did not", before == 0, before)
    until("the example automation on the topic ran",
          lambda: e.attributes("automation.show_who_tipped")["last_triggered"])
    e.happens("tip", {"username": "ann", "displayName": "Ann", "amount": "500.00",
                      "message": "emulated"}, isMock=True)
    until("a tip that nobody gave is marked",
          lambda: e.attributes(tip).get("message") == "emulated" and e.attributes(tip)["test"] is True)
    check("its amount is a number", e.attributes(tip)["amount"] == 500, e.attributes(tip))
    until("the blueprint takes it, so that one can try", lambda: int(e.state("counter.flashes")) == before + 2)
    e.api("services/button/press", {"entity_id": "button.streamelements_main_send_test_tip"})
    until("the button sends a test tip", lambda: e.attributes(tip).get("name") == "astro-relay"
          and e.attributes(tip)["test"] is True and e.attributes(tip)["amount"] == 5)
    until("which flashes the light", lambda: int(e.state("counter.flashes")) == before + 3)
    # What is told on channel.tips too happened once; the next event proves that nothing came between.
    e.control(f"publish?topic=channel.tips&room={ROOM}", {
        "donation": {"user": {"username": "Twin", "email": "a@b.c"}, "amount": 99,
                     "currency": "EUR", "message": "twin"}, "_id": "f" * 24, "approved": "allowed"})
    e.happens("tip", {"username": "dan", "displayName": "Dan", "amount": 3, "message": "after"})
    until("the next tip comes", lambda: e.attributes(tip).get("message") == "after")
    check("the duplicate of a tip did not flash the light", int(e.state("counter.flashes")) == before + 3,
          e.state("counter.flashes"))


def commands(e):
    if "number.streamelements_main_set_tip_goal" not in e.states():
        check("commands are there", False, "no number entity")
        return
    e.api("services/number/set_value",
          {"entity_id": "number.streamelements_main_set_tip_goal", "value": 12.5})
    until("a number sets the goal of the session",
          lambda: e.session()["tip-goal"]["amount"] == 12.5)
    until("and shows it",
          lambda: float(e.state("number.streamelements_main_set_tip_goal")) == 12.5)
    until("a tip stands in the session", lambda: e.session()["tip-session"]["amount"] > 0)
    e.api("services/button/press", {"entity_id": "button.streamelements_main_reset_session"})
    until("a button resets the session", lambda: e.session()["tip-session"]["amount"] == 0)
    until("and its sensor follows",
          lambda: float(e.state("sensor.streamelements_main_tips_this_session")) == 0)


def die_and_come_back(e):
    tip, flashes = "event.streamelements_main_tip", e.state("counter.flashes")
    last = e.state(tip)
    e.end("relay", signal.SIGKILL)
    until("the relay's status is offline when it is killed",
          lambda: e.state("sensor.astro_relay_status") == "offline")
    names = ("sensor.streamelements_main_latest_follower", tip,
             "binary_sensor.streamelements_main_connection")
    until("entities are unavailable",
          lambda: all(e.state(name) == "unavailable" for name in names))
    e.happens("tip", {"username": "eve", "displayName": "Eve", "amount": 50, "message": "missed"})
    e.relay()
    until("they come back", lambda: all(e.state(name) not in (None, "unavailable") for name in names))
    until("what was missed is told, and marked",
          lambda: e.attributes(tip).get("message") == "missed"
          and e.attributes(tip)["backfilled"] is True)
    check("it is another event than the last", e.state(tip) != last)
    return flashes


def start_again(e):
    """Home Assistant comes back: nothing is doubled, and no old event fires."""
    before = of_relay(e.states())
    figures = {name: state["state"] for name, state in before.items()
               if name.startswith("sensor.streamelements_")
               # What happened is not retained: it is unknown until something happens.
               and not name.endswith("_latest_event")}
    before = set(before)
    flashes = e.state("counter.flashes")
    e.end("ha")
    e.home_assistant()
    until("Home Assistant is back", lambda: of_relay(e.states()).keys() >= before)
    until("states are there again, and the same",
          lambda: (lambda now: not [name for name, state in figures.items()
                                    if now[name]["state"] != state])
          (e.states()))
    check("no entity is doubled", set(of_relay(e.states())) == before,
          sorted(set(of_relay(e.states())) ^ before)[:5])
    check("no old event fired", e.state("counter.flashes") in ("0", flashes),
          e.state("counter.flashes"))


def forget(e):
    e.end("relay")
    until("an orderly end says offline", lambda: e.state("sensor.astro_relay_status") == "offline")
    e.relay(channels=("main",))
    until("a channel that is gone is forgotten",
          lambda: not [name for name in e.states() if "streamelements_other" in name])
    until("the other is there",
          lambda: e.state("binary_sensor.streamelements_main_connection") == "on")
    e.end("relay")
    config = (e.dir / "relay.toml").read_text().replace("homeassistant = true", "homeassistant = false")
    (e.dir / "relay.toml").write_text(config)
    e.start("relay", PROGRAM, "run", "--config", str(e.dir / "relay.toml"))
    until("homeassistant = false takes everything back", lambda: not of_relay(e.states()))
    check("nothing of it stands on the broker",
          not e.retained("homeassistant/+/+/+/config"))


def main():
    print(f"Home Assistant {HA_VERSION}, Python {sys.version.split()[0]}, {PROGRAM}")
    keep = os.environ.get("KEEP")
    directory = keep or tempfile.mkdtemp(prefix="astro-ha-")
    pathlib.Path(directory).mkdir(exist_ok=True)
    e = Everything(directory)
    print(f"in {directory}")
    try:
        e.broker()
        e.simulator()
        e.configure()
        e.check_config()
        e.relay()
        e.home_assistant()
        if not until("Home Assistant answers", lambda: e.api("")):
            return
        appear(e)
        asyncio.run(validate(e))
        change(e)
        events(e)
        commands(e)
        die_and_come_back(e)
        start_again(e)
        forget(e)
        said = [line for line in e.log("ha").splitlines()
                if ("ERROR" in line or "WARNING" in line)
                and ("mqtt" in line.lower() or "template" in line)]
        check("Home Assistant complained of nothing of ours", not said, said[:5])
    finally:
        for name in ("relay", "ha", "sim", "mosquitto"):
            e.end(name)
        print(f"{len(passed)} passed, {len(failed)} failed")
        if failed or keep:
            print(f"logs in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
