"""A client of gaggled in another language, written from contrib/protocol.md alone.

usage: client.py EVENTURL CONTROLURL SECONDS

Follows a running gaggled for some seconds, puts everything down, and compares what it has folded with `dump`.
"""

import json
import sys
import time

import pynng

event_url, control_url, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
MOMENTARY = ("uptime_ms", "wait_ms", "reason")

events = pynng.Sub0(dial=event_url, recv_timeout=3000, recv_buffer_size=8192)
events.subscribe(b"event/")
events.subscribe(b"heartbeat")
control = pynng.Req0(dial=control_url, recv_timeout=60000, resend_time=-1)


def ask(request, **fields):
    control.send(json.dumps({"v": 1, "id": "", "request": request, **fields}).encode())
    reply = json.loads(control.recv())
    assert reply["ok"], reply
    return reply["body"]


def lasting(state):
    return {name: value for name, value in state.items() if name not in MOMENTARY}


class Fold:
    def __init__(self):
        self.applied = self.gaps = 0
        self.restart()

    def restart(self):
        dump = ask("dump")
        self.epoch, self.seq = dump["epoch"], dump["seq"]
        self.programs = {state["program"]: lasting(state) for state in dump["programs"]}

    def take(self, event):
        if event["epoch"] != self.epoch:
            return self.restart()
        if event["seq"] <= self.seq:
            return
        if event["seq"] > self.seq + 1:
            self.fetch()
        if event["seq"] == self.seq + 1:
            self.apply(event)

    def beat(self, beat):
        if beat["epoch"] != self.epoch:
            self.restart()
        elif beat["seq"] > self.seq:
            self.fetch()

    def fetch(self):
        self.gaps += 1
        since = self.seq
        while since is not None:
            answer = ask("events", epoch=self.epoch, since=since)
            if answer["gap"]:
                return self.restart()
            for event in answer["events"]:
                if event["seq"] == self.seq + 1:
                    self.apply(event)
            since = answer.get("next")

    def apply(self, event):
        assert event["v"] == 1
        self.seq = event["seq"]
        self.applied += 1
        if "state" in event:
            self.programs[event["program"]] = lasting(event["state"])


def follow(fold, done):
    while not done():
        topic, body = events.recv().split(b"\n", 1)
        (fold.beat if topic == b"heartbeat" else fold.take)(json.loads(body))


fold = Fold()
end = time.monotonic() + seconds
follow(fold, lambda: time.monotonic() > end)
ask("down", wait=True, timeout_ms=30000)
dump = ask("dump")
follow(fold, lambda: fold.seq >= dump["seq"])
wanted = {state["program"]: lasting(state) for state in dump["programs"]}
different = [name for name in wanted if wanted[name] != fold.programs[name]]
for name in different[:3]:
    print(wanted[name], fold.programs[name], sep="\n")
print(f"{len(wanted)} programs, {fold.applied} events, {fold.gaps} gaps, {len(different)} differ")
sys.exit(1 if different else 0)
