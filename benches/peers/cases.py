"""What is measured, and the form in which every peer reports it.

A case is `prompt,gen` or `prompt,gen,batch`: `batch` sequences of `prompt` tokens each are prefilled, then every sequence
decodes `gen` tokens, one step at a time. A peer's program takes cases as arguments and prints one JSON object:

    {"notes": {...}, "runs": [{"prompt", "gen", "batch", "prefill_tok_s", "decode_tok_s"}, ...]}

Both rates count all sequences: batch x prompt tokens over the time to the last prompt's logits, batch x gen tokens over the
time of the gen steps after it. Loading and a short warm-up are outside both.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from dataclasses import asdict, dataclass


@dataclass(frozen=True, order=True)
class Case:
    prompt: int
    gen: int
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.prompt},{self.gen},{self.batch}"

    def warm_up(self) -> "Case":
        """The same batch, shorter: threads, caches and code paths of both phases are touched."""
        return Case(min(self.prompt, 64), min(self.gen, 4), self.batch)


def case(text: str) -> Case:
    try:
        return Case(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not prompt,gen or prompt,gen,batch") from None


# Issue 03: prefill of 512 and 4096, decode after 128 in batches, decode at depth 4096.
CASES = [Case(512, 0), Case(128, 64, 1), Case(128, 64, 8), Case(128, 64, 16), Case(128, 64, 32), Case(4096, 64)]


def token(i: int) -> int:
    """Any spread of ordinary ids below 150,000; every peer gets the same."""
    return (i * 7919 + 1234) % 150_000


def prompts(case: Case) -> list[list[int]]:
    """Sequences share no prefix, so that no cache of prefixes can help."""
    return [[token(1 + s * 100_003 + i) for i in range(case.prompt)] for s in range(case.batch)]


def result(case: Case, prefill_s: float, decode_s: float) -> dict:
    rates = {
        "prefill_tok_s": case.batch * case.prompt / prefill_s,
        "decode_tok_s": case.batch * case.gen / decode_s if case.gen else None,
    }
    return asdict(case) | rates


def parser(doc: str) -> argparse.ArgumentParser:
    """Arguments that all peers share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path, help="the folder setup.sh made")
    parser.add_argument("cases", type=case, nargs="+", help="prompt,gen[,batch]")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser


def report(measure, cases: list[Case], notes: dict) -> None:
    """Runs `measure(case) -> (prefill seconds, decode seconds)` on each case, warmed up, and prints the JSON object."""
    runs = []
    for c in cases:
        start = time.perf_counter()
        measure(c.warm_up())
        runs.append(result(c, *measure(c)) | {"wall_s": time.perf_counter() - start})
        print(runs[-1], file=sys.stderr, flush=True)
    print(json.dumps({"notes": notes, "runs": runs}))
