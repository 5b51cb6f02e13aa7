"""Trains for 20 steps on the committed sample and fails unless the loss falls.

    python smoke.py
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def main():
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        sample = ["--sample", HERE / "sample.jsonl", "--tokenizer", HERE / "../pocket/tokenizer.json"]
        subprocess.run([sys.executable, HERE / "prepare.py", *sample, "--out", data], check=True)
        train = [HERE / "train.py", "--data", data, "--out", run, "--tokens", "2048", "--no-compile"]
        # Stopped after 10 steps and gone on with: a run can be resumed.
        subprocess.run([sys.executable, *train, "--steps", "20", "--stop-at", "10"], check=True)
        subprocess.run([sys.executable, *train, "--steps", "20"], check=True)
        losses = [float(row[1]) for row in csv.reader((run / "losses.csv").open())]
        files = sorted(path.name for path in (run / "model").iterdir())
    assert len(losses) == 20, f"{len(losses)} losses of 20 steps"
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    print(f"loss {first:.3f} at first, {last:.3f} at last; exported {', '.join(files)}")
    assert last < first - 1.0, "the loss does not fall"
    assert "model.safetensors" in files and "tokenizer.json" in files


if __name__ == "__main__":
    main()
