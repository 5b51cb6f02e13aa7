"""Draws the loss curve of one run, or of several that go on from each other.

    python plot.py ../pocket/loss.png run/losses.csv [run2/losses.csv ...]

Runs follow each other.
"""

import csv
import sys

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot


def read(sources):
    """`(step, loss, held-out loss or None)`, steps counted through."""
    rows, before = [], 0
    for source in sources:
        with open(source) as file:
            table = [(before + int(step), float(loss), float(held_out) if held_out else None) for step, loss, held_out in csv.reader(file)]
        rows, before = rows + table, table[-1][0]
    return rows


def main():
    target, *sources = sys.argv[1:]
    rows = read(sources)
    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), dpi=110)
    axes.plot([step for step, _, _ in rows], [loss for _, loss, _ in rows], lw=0.8, label="training mixture")
    held_out = [(step, loss) for step, _, loss in rows if loss is not None]
    axes.plot(*zip(*held_out), "o-", ms=3, lw=1.2, label="held-out TinyStories")
    axes.set(xlabel="step", ylabel="loss (nats a token)", ylim=(0.5, 5))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(target)


if __name__ == "__main__":
    main()
