"""Smoke test of `serve` on one model: it starts, answers, and answers alike alone and in company.

    python smoke.py --serve target/release/serve --model DIR [--clients 8] [-- serve's flags]

Needs Python's standard library only.
"""

import argparse
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("--serve", required=True)
parser.add_argument("--model", required=True)
parser.add_argument("--clients", type=int, default=8)
parser.add_argument("flags", nargs="*")
args = parser.parse_args()

start = time.monotonic()
server = subprocess.Popen(
    [args.serve, "--model", args.model, "--served-model-name", "smoke", "--port", "0", *args.flags],
    stdout=subprocess.PIPE,
    text=True,
)
address = None
for line in server.stdout:
    print(line, end="")
    if match := re.match(r"listening\s+http://([^:]+):(\d+)", line):
        address = match[1], int(match[2])
        break
if address is None:
    sys.exit("smoke: the server ended before it listened")
threading.Thread(target=server.stdout.read, daemon=True).start()
print(f"smoke: ready after {time.monotonic() - start:.1f} s")


def ask(i):
    connection = http.client.HTTPConnection(*address, timeout=600)
    prompt = f"Story {i}. The quick brown fox, \u00e9t\u00e9, \u732b, \U0001f680. " * 6
    body = {"model": "smoke", "prompt": prompt, "max_tokens": 16, "temperature": 0.8, "seed": i, "logprobs": 2}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        sys.exit(f"smoke: HTTP {response.status}: {answer}")
    return answer["choices"][0]["text"], answer["choices"][0]["logprobs"]["token_logprobs"]


alone = [ask(i) for i in range(args.clients)]
together = [None] * args.clients
threads = [
    threading.Thread(target=lambda i=i: together.__setitem__(i, ask(i)), daemon=True) for i in range(args.clients)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
same = sum(a == b for a, b in zip(alone, together))
server.send_signal(signal.SIGTERM)
code = server.wait(timeout=60)
print(f"smoke: {same} of {args.clients} answers in company equal those alone, exit code {code}")
sys.exit(same != args.clients or code != 0)
