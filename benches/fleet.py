"""What a gateway costs, and how long streams pause when they move.

    cargo build --release --workspace --bins
    python benches/fleet.py overhead [--rounds 5]
    python benches/fleet.py moves --model DIR [--streams 1,8,16] [--causes reset,drain,hang] [-- serve's flags]

Starts servers and a gateway of its own on free ports. Needs Python's standard library and Linux.

`overhead`: one request of one token after the other, directly and through the gateway in turn, and the gateway's
processor time while 16 streams run through it.

`moves`: two servers on one machine. All streams begin on one of them, which is then killed (reset), stopped (hang) or
drained. Of each round:

    closed    from the signal until the system had closed the killed server's connections
    detected  from then (or from the stop, or the call that drains) until the gateway knew, the last of the streams
    median, longest   gaps: from that moment to the first new token
    silence   the longest time without a token that a client saw
    tok/s     what the other server makes of a prompt of --prompt + --tokens tokens alone, right before
    allowed   2 x the time of one such prompt + 0.1 s for one stream; 1.5 x replayed / rate + 0.1 s for several
    share     the longest gap in what is allowed
    floors    the longest gap in replayed / rate, which no move can be faster than
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

KEY = "bench"
TICKS = os.sysconf("SC_CLK_TCK")
HOST = "127.0.0.1"


def free_port():
    """Below the ports of outgoing connections, which could take it while its server is down."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


def call(port, method, path, body=None):
    connection = http.client.HTTPConnection(HOST, port, timeout=600)
    headers = {"Content-Type": "application/json", "anyfleet-fleet-key": KEY}
    connection.request(method, path, body and json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


class Process:
    def __init__(self, command, port):
        self.command, self.port = command, port
        self.start()

    def start(self):
        quiet = subprocess.DEVNULL
        log = {**os.environ, "RUST_LOG": "error"}
        self.process = subprocess.Popen(self.command, stdin=quiet, stdout=quiet, stderr=quiet, env=log)
        while True:
            with contextlib.suppress(OSError):
                if call(self.port, "GET", "/health")[0] == 200:
                    return
            if self.process.poll() is not None:
                sys.exit(f"{self.command[0]} ended with {self.process.returncode}")
            time.sleep(0.05)

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        self.process.kill()
        self.process.wait()

    def processor_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            return sum(int(ticks) for ticks in stat.read().rsplit(")")[1].split()[11:13]) / TICKS


def serve(stack):
    port = free_port()
    command = [f"{args.bin}/serve", "--port", str(port), "--fleet-key", KEY, "--served-model-name", "bench"]
    server = Process(command + (["--model", args.model] if args.model else []) + args.flags, port)
    stack.callback(server.end)
    return server


def gateway(stack, servers, stall=3.0):
    config = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".toml"))
    config.write(f'fleet_key = "{KEY}"\nstall_seconds = {stall}\n')
    for server in servers:
        config.write(f'[[pool]]\nname = "{server.port}"\nurl = "http://{HOST}:{server.port}"\n')
    config.flush()
    port = free_port()
    process = Process([f"{args.bin}/gateway", "--config", config.name, "--port", str(port)], port)
    stack.callback(process.end)
    return process


def completion(prompt, tokens, stream=True, seed=0):
    return {"model": "bench", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "seed": seed,
            "ignore_eos": True, "stream": stream}


def milliseconds(values, share):
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] * 1e3


# ---------------------------------------------------------------------------------------------- overhead


def timed(connection, body):
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    connection.getresponse().read()
    return time.perf_counter() - start


def latency(server, front):
    connections = [http.client.HTTPConnection(HOST, process.port) for process in (server, front)]
    for stream in (False, True):
        direct, through = [], []
        for i in range(args.requests):
            # Who goes first is warmer.
            pairs = list(zip(connections, (direct, through)))
            for connection, times in pairs if i % 2 else pairs[::-1]:
                times.append(timed(connection, completion("Once upon", 1, stream)))
        added = [b - a for a, b in zip(direct, through)]
        kind = "streamed" if stream else "whole"
        print(f"  {kind:8} direct p50 {milliseconds(direct, 0.5):.2f} p99 {milliseconds(direct, 0.99):.2f} ms; "
              f"gateway p50 {milliseconds(through, 0.5):.2f} p99 {milliseconds(through, 0.99):.2f} ms; "
              f"added p50 {milliseconds(added, 0.5):.2f} p99 {milliseconds(added, 0.99):.2f} ms")


def processor_time(front, streams, tokens):
    """Tokens a second, and the gateway's seconds a second at 2,000 of them."""
    def one():
        timed(http.client.HTTPConnection(HOST, front.port), completion("Once upon", tokens))

    threads = [threading.Thread(target=one) for _ in range(streams)]
    used, start = front.processor_seconds(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, used = time.perf_counter() - start, front.processor_seconds() - used
    return streams * tokens / seconds, used / (streams * tokens) * 2000


def overhead():
    with contextlib.ExitStack() as stack:
        server = serve(stack)
        front = gateway(stack, [server])
        shares = []
        for number in range(args.rounds):
            print(f"round {number + 1}")
            if args.requests:
                latency(server, front)
            rate, share = processor_time(front, 16, 1500)
            shares.append(share)
            print(f"  {rate:.0f} streamed tok/s; {share:.1%} of a core at 2,000 tok/s")
        print(f"median of {args.rounds} rounds: {statistics.median(shares):.1%} of a core at 2,000 streamed tok/s")


# ---------------------------------------------------------------------------------------------- moves


class Stream(threading.Thread):
    """A client; notes when its tokens come."""

    def __init__(self, port, prompt, tokens):
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection(HOST, port, timeout=600)
        self.body = completion(prompt, tokens)
        self.times = []
        self.failure = None
        self.start()

    def run(self):
        headers = {"Content-Type": "application/json"}
        # The client goes away when the measurement is over.
        with contextlib.suppress(OSError, AttributeError, ValueError, http.client.HTTPException):
            self.connection.request("POST", "/v1/completions", json.dumps(self.body), headers)
            self.socket = self.connection.sock
            response = self.connection.getresponse()
            while line := response.readline():
                if line.startswith(b'data: {"error"'):
                    self.failure = line.decode()
                elif line.startswith(b"data: {"):
                    self.times.append(time.time())

    def stop(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.join()


def wait_for(what, seconds=300):
    end = time.time() + seconds
    while not what():
        if time.time() > end:
            sys.exit("fleet: what was waited for did not happen")
        time.sleep(0.1)


def prompt(length):
    """Token ids, so that nothing of it is in a cache."""
    return [random.randrange(300, 1000) for _ in range(length)]


def seconds_alone(server, length):
    """To the first token of a prompt alone: the median of three."""
    def one():
        start = time.perf_counter()
        status, answer = call(server.port, "POST", "/v1/completions", completion(prompt(length), 1, False))
        if status != 200:
            sys.exit(f"fleet: {answer}")
        return time.perf_counter() - start

    return statistics.median(one() for _ in range(3))


def pool(front, server):
    pools = call(front.port, "GET", "/gateway/status")[1]["pools"]
    return next(pool for pool in pools if pool["name"] == str(server.port))


class Reset(threading.Thread):
    """Notes when the system closes the connections of a server that was killed."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.socket = socket.create_connection((HOST, server.port))
        self.at = None
        self.start()

    def run(self):
        with contextlib.suppress(OSError):
            self.socket.recv(1)
        self.at = time.time()


def move(front, source, destination, count, cause):
    """One round: what the moves of `count` streams took. The source is restarted where it has to be."""
    alone = seconds_alone(destination, args.prompt + args.tokens)
    rate = (args.prompt + args.tokens) / alone
    longest = call(destination.port, "GET", "/v1/models")[1]["data"][0]["max_model_len"]
    # All streams begin on the source: the destination is away until they run.
    destination.signal(signal.SIGSTOP)
    wait_for(lambda: pool(front, destination)["health"] == "down")
    before = call(front.port, "GET", "/gateway/status")[1]["moves"]
    tokens = min(longest - args.prompt, 4000)
    streams = [Stream(front.port, prompt(args.prompt), tokens) for _ in range(count)]
    wait_for(lambda: all(len(stream.times) >= args.tokens for stream in streams))
    destination.signal(signal.SIGCONT)
    wait_for(lambda: pool(front, destination)["health"] == "up")
    reset = Reset(source)
    start = time.time()
    match cause:
        case "reset":
            source.signal(signal.SIGKILL)
        case "hang":
            source.signal(signal.SIGSTOP)
        case "drain":
            threading.Thread(target=call, args=(front.port, "POST", f"/gateway/drain/{source.port}")).start()
    wait_for(lambda: call(front.port, "GET", "/gateway/status")[1]["moves"] >= before + count)
    for stream in streams:
        wait_for(lambda stream=stream: len(stream.times) > 0 and stream.times[-1] > start)
    status = call(front.port, "GET", "/gateway/status")[1]
    moves = status["latest_moves"][-count:]
    silences = [max(b - a for a, b in zip(stream.times, stream.times[1:])) for stream in streams]
    failures = [stream.failure for stream in streams if stream.failure]
    for stream in streams:
        stream.stop()
    source.end()
    source.start()
    if failures or len(moves) < count:
        sys.exit(f"fleet: {failures or status}")
    began = (reset.at if cause == "reset" else None) or start
    replayed = sum(move["replayed_tokens"] for move in moves)
    allowed = (2 * alone if count == 1 else 1.5 * replayed / rate) + 0.1
    gaps = [move["gap_seconds"] for move in moves]
    return {
        "cause": cause, "streams": count, "closed": began - start,
        # This process may have heard of it later than the gateway.
        "detected": max(0, max(move["detected"] for move in moves) - began),
        "longest": max(gaps), "median": statistics.median(gaps), "silence": max(silences),
        "replayed": replayed, "rate": rate, "allowed": allowed, "share": max(gaps) / allowed,
        "floors": max(gaps) / (replayed / rate),
    }


def moves():
    with contextlib.ExitStack() as stack:
        servers = [serve(stack), serve(stack)]
        front = gateway(stack, servers, args.stall)
        columns = "{:>6} {:>4}  {:>7} {:>9}  {:>7} {:>7} {:>8}  {:>8} {:>7}  {:>8} {:>6} {:>6}"
        print(columns.format("cause", "n", "closed", "detected", "median", "longest", "silence", "replayed", "tok/s",
                             "allowed", "share", "floors"))
        for cause in args.causes:
            for count in args.streams:
                rounds = []
                for _ in range(args.rounds):
                    rounds.append(move(front, servers[0], servers[1], count, cause))
                    servers.reverse()
                middle = {name: statistics.median(row[name] for row in rounds)
                          for name in rounds[0] if name not in ("cause", "streams")}
                for row in [*rounds, rounds[0] | middle]:
                    name = cause if row in rounds else "median"
                    print(columns.format(
                        name, count, f"{row['closed'] * 1e3:.0f} ms", f"{row['detected'] * 1e3:.1f} ms",
                        f"{row['median']:.2f} s", f"{row['longest']:.2f} s", f"{row['silence']:.2f} s",
                        f"{row['replayed']:.0f}", f"{row['rate']:.0f}", f"{row['allowed']:.2f} s",
                        f"{row['share']:.2f}", f"{row['floors']:.2f}"), flush=True)


def numbers(text):
    return [int(number) for number in text.split(",")]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("what", choices=["overhead", "moves"])
parser.add_argument("--bin", default="target/release", help="folder of serve and gateway")
parser.add_argument("--model", help="a model directory; the bundled model without it")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--requests", type=int, default=400, help="overhead: pairs of requests a round")
parser.add_argument("--streams", type=numbers, default=[1, 8, 16], help="moves: streams at once, several with commas")
parser.add_argument("--causes", type=lambda text: text.split(","), default=["reset", "drain", "hang"])
parser.add_argument("--prompt", type=int, default=512, help="moves: tokens of each prompt")
parser.add_argument("--tokens", type=int, default=32, help="moves: tokens of each stream before it moves, at least")
parser.add_argument("--stall", type=float, default=1.0, help="moves: the gateway's stall_seconds")
# What comes after -- is serve's.
mine = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
args = parser.parse_args(sys.argv[1:mine])
args.flags = sys.argv[mine + 1:]
{"overhead": overhead, "moves": moves}[args.what]()
