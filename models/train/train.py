"""Trains the bundled model on what `prepare.py` made; seeded, and resumable at any time.

    python train.py --data data --out run
    python train.py --data data2 --out run2 --weights run/checkpoint.pt --steps 800 --rate 0.6

`run` gets `checkpoint.pt` (every 100 steps; found there, it is gone on from), `losses.csv` and, at the
end, the Hugging Face directory `run/model`. With the same data, seed and number of steps the batches
are the same, interrupted or not.
"""

import argparse
import csv
import json
import math
import shutil
import time
from pathlib import Path

import numpy
import torch

import chat
from model import Decoder, Shape, export

# Share of the rows of a batch by stream: at the start, and from `TURN` of the way on; and when a run
# goes on from another's weights.
MIXTURE = {"stories": (0.32, 0.26), "made": (0.06, 0.02), "books": (0.10, 0.04), "chat": (0.52, 0.68)}
SECOND = {"stories": (0.15, 0.15), "made": (0.03, 0.03), "books": (0.02, 0.02), "chat": (0.80, 0.80)}
TURN = 0.6
ROW = 512
# Long rows: the last tenth of a first run's steps, every tenth step of a second one.
LONG_ROW, LONG_FROM, LONG_EVERY = 2048, 0.9, 10
WARM_UP, DECAY_FROM = 60, 0.5
MUON_RATE, ADAM_RATE, WEIGHT_DECAY = 0.02, 0.004, 0.1


class Stream:
    """Documents of one kind, drawn at random."""

    def __init__(self, path: Path):
        with numpy.load(path) as arrays:
            self.ids, self.learned, self.starts = arrays["ids"], arrays["learned"], arrays["starts"]
        self.ends = numpy.append(self.starts[1:], len(self.ids))

    def row(self, length, rng):
        """`length + 1` ids, and which count, of documents joined; a document that does not fit is cut."""
        ids, learned, room = [], [], length + 1
        while room > 0:
            document = rng.integers(len(self.starts))
            start, end = self.starts[document], min(self.ends[document], self.starts[document] + room)
            ids.append(self.ids[start:end])
            learned.append(self.learned[start:end])
            room -= end - start
        return numpy.concatenate(ids).astype(numpy.int64), numpy.concatenate(learned)


class Data:
    def __init__(self, folder: Path, seed: int, mixture):
        self.streams = {name: Stream(folder / f"{name}.npz") for name in mixture if (folder / f"{name}.npz").exists()}
        self.seed, self.mixture = seed, mixture

    def batch(self, step, progress, rows, length):
        """Ids and targets `[rows, length]` of a step; a function of the seed and the step alone."""
        rng = numpy.random.default_rng((self.seed, step))
        names = list(self.streams)
        shares = numpy.array([self.mixture[name][progress >= TURN] for name in names])
        chosen = rng.choice(len(names), size=rows, p=shares / shares.sum())
        drawn = [self.streams[names[i]].row(length, rng) for i in chosen]
        ids = numpy.stack([ids for ids, _ in drawn])
        targets = numpy.where(numpy.stack([learned for _, learned in drawn]), ids, -100)
        return torch.from_numpy(ids[:, :-1]), torch.from_numpy(targets[:, 1:])


class Muon:
    """Momentum made orthogonal by Newton-Schulz (Jordan et al. 2024, "Muon"), for matrices."""

    def __init__(self, parameters, momentum=0.95):
        self.parameters, self.momentum = list(parameters), momentum
        self.buffers = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, rate, weight_decay):
        for parameter, buffer in zip(self.parameters, self.buffers):
            buffer.lerp_(parameter.grad, 1 - self.momentum)
            update = orthogonal(parameter.grad.lerp(buffer, self.momentum))
            rows, columns = parameter.shape
            parameter.mul_(1 - rate * weight_decay)
            parameter.add_(update, alpha=-rate * max(1, rows / columns) ** 0.5)


def orthogonal(matrix):
    """The nearest matrix with singular values about 1."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Training:
    """The model, its optimisers and where they stand."""

    def __init__(self, arguments, device):
        torch.manual_seed(arguments.seed)
        self.model = Decoder(Shape()).to(device)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
        self.step = 0

    def update(self, factor):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.muon.step(MUON_RATE * factor, WEIGHT_DECAY)
        for group in self.adam.param_groups:
            group["lr"] = ADAM_RATE * factor
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        self.step += 1

    def save(self, path: Path):
        state = {"model": self.model.state_dict(), "muon": self.muon.buffers, "adam": self.adam.state_dict()}
        temporary = path.with_suffix(".new")
        torch.save(state | {"step": self.step}, temporary)
        temporary.replace(path)

    def load(self, path: Path, device):
        state = torch.load(path, map_location=device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.muon.buffers, self.step = state["muon"], state["step"]


def rate_factor(step, steps):
    """Warm-up, a plateau, then a straight line to nothing."""
    progress = step / steps
    return min(1.0, (step + 1) / min(WARM_UP, steps / 4), (1 - progress) / (1 - DECAY_FROM))


@torch.no_grad()
def held_out_loss(model, path: Path, device, rows=24):
    """Mean loss on the first rows of the held-out stories."""
    stream = Stream(path)
    ids = torch.from_numpy(stream.ids[: rows * ROW + 1].astype(numpy.int64)).to(device)
    return model(ids[:-1].view(rows, ROW), ids[1:].view(rows, ROW)).item()


def finish(training, arguments):
    """Writes the Hugging Face directory."""
    directory = arguments.out / "model"
    export(training.model, directory)
    shutil.copy(arguments.data / "tokenizer.json", directory)
    shutil.copy(chat.TEMPLATE, directory)
    generation = {"bos_token_id": None, "eos_token_id": [2, 0], "pad_token_id": 0}
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (directory / "generation_config.json").write_text(json.dumps(generation | sampling, indent=2) + "\n")
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": chat.END_OF_TURN,
        "pad_token": chat.END_OF_TEXT,
        "model_max_length": training.model.shape.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--stop-at", type=int, help="stop there, to be resumed")
    parser.add_argument("--weights", type=Path, help="checkpoint of a first run to go on from, with more conversations")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of all learning rates")
    parser.add_argument("--tokens", type=int, default=8192, help="of a step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    device = torch.device(arguments.device)
    data = Data(arguments.data, arguments.seed, SECOND if arguments.weights else MIXTURE)
    training = Training(arguments, device)
    checkpoint, log = arguments.out / "checkpoint.pt", arguments.out / "losses.csv"
    if checkpoint.exists():
        training.load(checkpoint, device)
    elif arguments.weights:
        state = torch.load(arguments.weights, map_location=device, weights_only=True)
        training.model.load_state_dict(state["model"])
    print(f"{training.model.parameter_count():,} parameters, from step {training.step} of {arguments.steps}", flush=True)
    loss_of = torch.compile(training.model, dynamic=False) if arguments.compile else training.model
    start, recent = time.time(), []
    with log.open("a", newline="") as file:
        table = csv.writer(file)
        while training.step < (arguments.stop_at or arguments.steps):
            step, progress = training.step, training.step / arguments.steps
            is_long = step % LONG_EVERY == LONG_EVERY - 1 if arguments.weights else progress >= LONG_FROM
            length = LONG_ROW if is_long else ROW
            ids, targets = data.batch(step, progress, arguments.tokens // length, length)
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of(ids.to(device), targets.to(device))
            loss.backward()
            training.update(rate_factor(step, arguments.steps) * arguments.rate)
            recent.append(loss.item())
            if not math.isfinite(recent[-1]):
                raise SystemExit(f"the loss of step {step} is {recent[-1]}")
            if training.step % min(20, max(1, arguments.steps // 20)) == 0 or training.step == arguments.steps:
                held_out, path = "", arguments.data / "held_out.npz"
                if path.exists() and (training.step % 200 == 0 or training.step == arguments.steps):
                    held_out = f"{held_out_loss(training.model, path, device):.4f}"
                mean, speed = sum(recent) / len(recent), len(recent) * arguments.tokens / (time.time() - start)
                table.writerow([training.step, f"{mean:.4f}", held_out])
                file.flush()
                print(f"step {training.step} loss {mean:.4f} held out {held_out or '-'} {speed:,.0f} tokens/s", flush=True)
                start, recent = time.time(), []
            if training.step % 100 == 0:
                training.save(checkpoint)
    training.save(checkpoint)
    if training.step >= arguments.steps:
        finish(training, arguments)


if __name__ == "__main__":
    main()
