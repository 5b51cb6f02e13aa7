#!/usr/bin/env python3
"""Our binary against the peers: interleaved processes, medians, a table with ratios.

    DIR/venv/bin/python benches/peers/run.py DIR --json peers.json \\
        --ours "target/release/bench run --model {model} --quantize none,q8,q4 --prompt {prompt} --gen {gen} --batch {batch} \\
                --repeat 1 --json {json}"

Each round starts every program once, ours too, in an order that shifts from round to round; every program gets the same
`--threads` cores and runs all cases of the list in one process. A figure is the median over `--repeat` rounds. After the
first round, (peer, case) pairs slower than the best peer of their class by more than the factor `--keep` are left out,
which decides nothing and saves hours; `--keep 0` keeps all. See README.md for what is fair.

`--ours` is a shell command that measures our binary. It is started once for each case if it names one, as above, and once a
round otherwise. `{model}`, `{prompt}`, `{gen}`, `{batch}` and `{threads}` are filled in, and `{json}`, the file it writes (standard
output is read if there is no `{json}`): `runs[]` {prompt, gen, batch, depth, quantize, prefill_tok_s, decode_tok_s}. `quantize`
sorts its runs into classes. Set `ANYFLEET_CPU=avx2` and the like in it for `--build avx2`.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

from cases import CASES, Case, case

HERE = pathlib.Path(__file__).resolve().parent
CLASSES = {"bf16": "16-bit weights", "q8": "8-bit weights", "q4": "4-bit weights"}
OURS = "ours"
PHASES = ("prefill_tok_s", "decode_tok_s")


@dataclass(frozen=True)
class Peer:
    name: str
    weights: str  # a key of CLASSES
    program: str
    options: str = ""
    batches: bool = True  # whether it can measure more than one sequence


def peers(builds: list[str]) -> list[Peer]:
    """All ways in which a peer may be at its best; without the build amx, llama.cpp alone, under that restriction."""
    found = []
    for model, weights in (("bf16", "bf16"), ("f16", "bf16"), ("q8_0", "q8"), ("q4_0", "q4"), ("q4_k_m", "q4")):
        for build in builds:
            for flash in ("on", "off"):
                options = f"--model {model} --build {build} --flash {flash}"
                found.append(Peer(f"llama.cpp {model}, {build}, flash {flash}", weights, "peer_llama.py", options))
    if "amx" not in builds:
        return found
    for model, weights in (("fp16", "bf16"), ("int8", "q8"), ("int4", "q4")):
        for hint in ("bf16", "f32"):
            for name, flags in (("paged", ""), ("paged by 512", "--chunk 512"), ("sdpa", "--backend sdpa")):
                options = f"--model {model} --hint {hint} {flags}"
                found.append(Peer(f"OpenVINO {model}, {hint} hint, {name}", weights, "peer_openvino.py", options, name != "sdpa"))
    return [*found, Peer("torch bf16", "bf16", "peer_torch.py")]


@dataclass(frozen=True)
class Column:
    """One figure: a phase of a case."""

    case: Case
    phase: str

    def title(self) -> str:
        if self.phase == PHASES[0]:
            return f"prefill {self.case.prompt}"
        if self.case.prompt >= 1024:
            return f"decode at {self.case.prompt}"
        return "decode" if self.case.batch == 1 else f"decode x{self.case.batch}"

    def matches(self, run: dict) -> bool:
        """Whether a run of ours is this figure; its depth, if not 0, is the length at which decoding begins."""
        if run.get(self.phase) is None or run["batch"] != self.case.batch:
            return False
        length = run["prompt"] if self.phase == PHASES[0] else run.get("depth") or run["prompt"]
        return length == self.case.prompt


def columns(cases: list[Case]) -> list[Column]:
    """Prefill counts where one long sequence is prefilled, decode wherever tokens are generated."""
    prefill = [Column(c, PHASES[0]) for c in cases if c.batch == 1 and c.prompt >= 512]
    return prefill + [Column(c, PHASES[1]) for c in cases if c.gen]


@dataclass
class Results:
    """Samples of every program: name -> column -> one figure a round."""

    samples: dict[str, dict[Column, list[float]]] = field(default_factory=dict)
    notes: dict[str, dict] = field(default_factory=dict)

    def add(self, name: str, column: Column, value: float) -> None:
        self.samples.setdefault(name, {}).setdefault(column, []).append(value)

    def median(self, name: str, column: Column) -> float | None:
        values = self.samples.get(name, {}).get(column)
        return statistics.median(values) if values else None

    def best(self, names: list[str], column: Column) -> tuple[float, str] | None:
        return max(((m, n) for n in names if (m := self.median(n, column)) is not None), default=None)


class Runner:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.cores = sorted(os.sched_getaffinity(0))[: args.threads]
        # Every runtime is told the same number of threads; the affinity makes sure.
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
        self.environment = os.environ | dict.fromkeys(variables, str(args.threads)) | {"HF_HUB_OFFLINE": "1"}

    def start(self, name: str, command: list[str] | str) -> str | None:
        """Standard output of a program; None, and a line that says why, if it failed."""
        begin = time.monotonic()
        program = subprocess.Popen(
            command, shell=isinstance(command, str), env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, preexec_fn=lambda: os.sched_setaffinity(0, self.cores),
        )  # fmt: skip
        try:
            out, err = program.communicate(timeout=self.args.timeout)
        except BaseException as error:
            os.killpg(program.pid, signal.SIGKILL)  # the shell's children too
            program.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            print(f"{name}: stopped after {self.args.timeout} s", file=sys.stderr)
            return None
        if program.returncode:
            last = "\n".join(err.strip().splitlines()[-3:])
            print(f"{name}: ended with {program.returncode}: {last}", file=sys.stderr)
            return None
        print(f"{name}: {time.monotonic() - begin:.0f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        return out

    def peer(self, peer: Peer, cases: list[Case], results: Results) -> None:
        command = [sys.executable, str(HERE / peer.program), str(self.args.dir), "--threads", str(self.args.threads)]
        out = self.start(peer.name, command + shlex.split(peer.options) + [str(c) for c in cases])
        if out is None:
            return
        report = json.loads(out.splitlines()[-1])
        results.notes[peer.name] = report["notes"]
        for column in columns(cases):
            for run in report["runs"]:
                if Case(run["prompt"], run["gen"], run["batch"]) == column.case:
                    results.add(peer.name, column, run[column.phase])

    def ours(self, command: str, cases: list[Case], results: Results) -> None:
        runs, devices = [], []
        for c in cases if "{prompt}" in command else cases[:1]:
            with tempfile.TemporaryDirectory() as folder:
                file = pathlib.Path(folder) / "ours.json"
                filled = command
                for key, value in {"model": self.args.dir / "models" / "hf", "threads": self.args.threads, "json": file, **vars(c)}.items():
                    filled = filled.replace(f"{{{key}}}", shlex.quote(str(value)))
                if (out := self.start(f"{OURS} {c}", filled)) is None:
                    continue
                report = json.loads(file.read_text() if "{json}" in command else out)
            runs += report["runs"]
            devices.append(report.get("device"))
        for column in columns(cases):
            found = {}  # one figure a round and class, even if several runs would do
            for run in runs:
                if column.matches(run):
                    weights = run.get("quantize") or "none"
                    found.setdefault("bf16" if weights == "none" else weights, run[column.phase])
            for weights, figure in found.items():
                results.add(f"{OURS} {weights}", column, figure)
        if devices:
            results.notes.setdefault(OURS, {"devices": []})["devices"] += devices


def table(results: Results, all_peers: list[Peer], wanted: list[Column]) -> str:
    lines = []

    def row(title: str, cells: list[str]) -> None:
        lines.append("| " + " | ".join([title, *cells]) + " |")

    def figures(name: str) -> list[str]:
        return ["" if (m := results.median(name, c)) is None else f"{m:.1f}" if m < 100 else f"{m:.0f}" for c in wanted]

    for weights, title in CLASSES.items():
        names = [p.name for p in all_peers if p.weights == weights and p.name in results.samples]
        ours = f"{OURS} {weights}"
        if not names and ours not in results.samples:
            continue
        row(f"{title}, tok/s", [c.title() for c in wanted])
        row("---", ["---"] * len(wanted))
        if ours in results.samples:
            row("**ours**", figures(ours))
        for name in names:
            row(name, figures(name))
        for label, some in (("best peer", names), ("best llama.cpp", [n for n in names if n.startswith("llama.cpp")])):
            best = [results.best(some, c) for c in wanted]
            if label == "best peer":
                row(f"*{label}*", ["" if b is None else b[1] for b in best])
            if ours in results.samples and some:
                ratios = [None if b is None or (m := results.median(ours, c)) is None else m / b[0] for b, c in zip(best, wanted)]
                row(f"**ours / {label}**", ["" if r is None else f"**{r:.2f}**" for r in ratios])
        lines.append("")
    return "\n".join(lines)


def as_json(results: Results, args: argparse.Namespace) -> dict:
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())

    def figures(name: str) -> list[dict]:
        found = results.samples[name].items()
        return [vars(c.case) | {"phase": c.phase, "median": statistics.median(v), "samples": v} for c, v in found]

    programs = {name: {"notes": results.notes.get(name), "figures": figures(name)} for name in results.samples}
    devices = results.notes.get(OURS, {}).get("devices")
    widths = args.dir / "models" / "widths.json"
    return {
        "date": datetime.date.today().isoformat(), "cpu": cpu and cpu[1], "threads": args.threads, "rounds": args.repeat,
        "load_before": args.load, "devices": devices, "widths": json.loads(widths.read_text()) if widths.exists() else None, "programs": programs,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path, help="the folder setup.sh made")
    parser.add_argument("--ours", action="append", default=[], metavar="COMMAND", help="may be given several times")
    parser.add_argument("--cases", type=case, nargs="+", default=CASES, metavar="PROMPT,GEN[,BATCH]")
    parser.add_argument("--peers", default="", metavar="REGEX", help="only peers whose name matches")
    builds = ("amx", "avx512", "avx2vnni", "avx2")
    parser.add_argument("--build", default=["amx"], choices=builds, nargs="+", help="of llama.cpp (default amx)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--keep", type=float, default=1.3, help="factor, see above (default %(default)s)")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for one program in one round (default %(default)s)")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    args.load = os.getloadavg()[0]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the program that runs, too
    if args.load > 0.5:
        print(f"run.py: the machine is not idle (load {args.load:.1f}); these figures are disturbed", file=sys.stderr)

    all_peers = [p for p in peers(args.build) if re.search(args.peers, p.name, re.IGNORECASE)]
    todo = {p: [c for c in args.cases if c.batch == 1 or p.batches] for p in all_peers}
    wanted = columns(args.cases)
    runner, results = Runner(args), Results()
    for round in range(args.repeat):
        programs = [(lambda command=o: runner.ours(command, args.cases, results)) for o in args.ours]
        programs += [(lambda peer=p: runner.peer(peer, todo[peer], results)) for p in all_peers if todo[p]]
        shift = round * len(programs) // args.repeat
        for start in programs[shift:] + programs[:shift]:
            start()
            # An interrupted comparison keeps what it has.
            if args.json:
                args.json.write_text(json.dumps(as_json(results, args), indent=1) + "\n")
        if round == 0 and args.keep:
            for p in all_peers:
                rivals = [q.name for q in all_peers if q.weights == p.weights]
                todo[p] = [
                    c for c in todo[p]
                    if any(
                        (m := results.median(p.name, column)) is not None and m * args.keep >= results.best(rivals, column)[0]
                        for column in columns([c])
                    )
                ]  # fmt: skip
    print(table(results, all_peers, wanted))


if __name__ == "__main__":
    main()
