"""Soak test of `serve`: mixed traffic from many clients for a while, some of it abandoned midway.

    python soak.py --serve target/release/serve --model DIR [--seconds 60] [--clients 64] [-- serve's flags]

Needs Python's standard library only. Every finished answer of a fixed set of seeded requests must
equal the one the request got when it was alone; in the end all pages must be free, memory must not
have grown, and the server must leave with exit code 0 on SIGTERM. The model needs a chat template.
"""

import argparse
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

parser = argparse.ArgumentParser()
parser.add_argument("--serve", required=True)
parser.add_argument("--model", required=True)
parser.add_argument("--seconds", type=float, default=60)
parser.add_argument("--clients", type=int, default=64)
parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
parser.add_argument("flags", nargs="*")
args = parser.parse_args()

server = subprocess.Popen(
    [args.serve, "--model", args.model, "--served-model-name", "soak", "--port", "0", *args.flags],
    stdout=subprocess.PIPE,
    text=True,
)


def address():
    for line in server.stdout:
        if match := re.match(r"listening\s+http://([^:]+):(\d+)", line):
            threading.Thread(target=server.stdout.read, daemon=True).start()
            return match[1], int(match[2])
    sys.exit("soak: the server ended before it listened")


HOST, PORT = address()


def resident_kib():
    with open(f"/proc/{server.pid}/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1])


def request(kind):
    """A path and a body; equal kinds are equal requests."""
    rng = random.Random(kind)
    words = "the cat sat on a mat and saw two red birds in the old tree by day".split()
    text = " ".join(rng.choice(words) for _ in range(rng.choice([1, 8, 40, 120])))
    body = {
        "model": "soak",
        "max_tokens": rng.choice([1, 16, 64]),
        "temperature": rng.choice([0, 0.7, 1.2]),
        "seed": kind,
        "stream": rng.random() < 0.6,
    }
    if rng.random() < 0.5:
        return "/v1/completions", body | {"prompt": text, "logprobs": rng.choice([None, 2])}
    return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]}


def text_of(choice):
    part = choice.get("delta") or choice.get("message") or choice
    return part.get("content") or part.get("text") or ""


def ask(kind, abandon=None):
    """The answer's text; None if it was abandoned after `abandon` chunks."""
    path, body = request(kind)
    connection = http.client.HTTPConnection(HOST, PORT, timeout=300)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{path}: HTTP {response.status}: {response.read()[:300]!r}")
        if not body["stream"]:
            return text_of(json.loads(response.read())["choices"][0])
        text, chunks, done = "", 0, False
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                done = True
                break
            for choice in json.loads(line[6:])["choices"]:
                text += text_of(choice)
            chunks += 1
            if abandon is not None and chunks > abandon:
                connection.sock.shutdown(socket.SHUT_RDWR)
                return None
        if not done:
            raise RuntimeError(f"{path}: the stream ended without [DONE]")
        return text
    finally:
        connection.close()


KINDS = 40
alone = {kind: ask(kind) for kind in range(KINDS)}
counts, errors = Counter(), []
deadline = time.monotonic() + args.seconds
before = None


def client(number):
    rng = random.Random(args.seed + number)
    while time.monotonic() < deadline and not errors:
        kind = rng.randrange(KINDS)
        abandon = rng.randrange(4) if rng.random() < 0.2 else None
        try:
            answer = ask(kind, abandon)
            if answer is None:
                counts["abandoned"] += 1
            elif answer != alone[kind]:
                errors.append(f"request kind {kind}: {answer!r} instead of {alone[kind]!r}")
            else:
                counts["answered"] += 1
        except Exception as error:  # whatever it is, it is what this test looks for
            errors.append(f"request kind {kind}: {error!r}")


clients = [threading.Thread(target=client, args=(number,)) for number in range(args.clients)]
for thread in clients:
    thread.start()
time.sleep(args.seconds / 2)
before = resident_kib()
for thread in clients:
    thread.join()
after = resident_kib()


def metrics():
    connection = http.client.HTTPConnection(HOST, PORT, timeout=60)
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


def in_use():
    return [
        (name, float(value))
        for name, value in re.findall(r"^(\w+)(?:\{[^}]*\})? (\S+)$", metrics(), re.M)
        if name in ("anyfleet_kv_pages_used", "anyfleet_requests_running")
    ]


idle_by = time.monotonic() + 10
while any(value for _, value in in_use()) and time.monotonic() < idle_by:
    time.sleep(0.05)
if len(in_use()) < 2:
    errors.append("/metrics says nothing of pages in use")
errors += [f"{name} is {value} when idle" for name, value in in_use() if value]
if after > before * 1.2 + 20_000:
    errors.append(f"resident memory grew from {before} to {after} KiB in the second half")
server.send_signal(signal.SIGTERM)
if (code := server.wait(timeout=60)) != 0:
    errors.append(f"the server left with exit code {code}")
print(
    f"soak: {args.clients} clients, {args.seconds:.0f} s, seed {args.seed}: {counts['answered']} answers equal to those "
    f"alone, {counts['abandoned']} abandoned, resident {before} -> {after} KiB"
)
for error in errors[:10]:
    print(f"soak: {error}", file=sys.stderr)
sys.exit(bool(errors))
