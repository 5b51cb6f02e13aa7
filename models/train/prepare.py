"""Makes what `train.py` reads: a tokenizer, and streams of token ids.

    python prepare.py --text ../../../shared/data/text --out data
    python prepare.py --sample sample.jsonl --tokenizer ../pocket/tokenizer.json --out data  # a trial

`--text` is a folder with `tinystories_1000`, `tinystories_10k` and `gitenberg`. A sample has one story
(`{"text": ...}`) or conversation a line; `--write-sample` draws a new one.

A stream is `NAME.npz`: `ids` (uint16, documents one after the other, each ended by `<|endoftext|>`),
`learned` (bool, whether the id counts in the loss) and `starts` (where each document begins). The
streams are `stories`, `made` (stories of `tasks.story`), `books`, `chat` and `held_out`.
"""

import argparse
import itertools
import json
import random
import re
from pathlib import Path

import numpy
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import chat
import corpus
import tasks

VOCABULARY = 2048
SPECIAL = [chat.END_OF_TEXT, chat.TURN, chat.END_OF_TURN]
MARKS = [chat.TOOL_CALL, chat.END_OF_TOOL_CALL]


def tokenizer(texts):
    """A byte-level BPE of 2,048 tokens, one for each digit."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKS),
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    assert bpe.get_vocab_size() == VOCABULARY
    return bpe


class Stream:
    """Documents as token ids, on their way to a file."""

    def __init__(self, bpe):
        self.bpe, self.ids, self.learned, self.starts = bpe, [], [], []
        self.end = bpe.token_to_id(chat.END_OF_TEXT)

    def add_texts(self, texts):
        for batch in batches(texts, 1000):
            for encoding in self.bpe.encode_batch(list(batch)):
                self.add([(encoding.ids, True)])
        return self

    def add_conversations(self, conversations):
        for batch in batches(conversations, 1000):
            pieces = [chat.segments(conversation) for conversation in batch]
            encoded = iter(self.bpe.encode_batch([text for piece in pieces for text, _ in piece]))
            for piece in pieces:
                self.add([(next(encoded).ids, learned) for _, learned in piece])
        return self

    def add(self, pieces):
        self.starts.append(len(self.ids))
        for ids, learned in pieces:
            self.ids += ids
            self.learned += [learned] * len(ids)
        self.ids.append(self.end)
        self.learned.append(True)

    def save(self, path):
        numpy.savez(
            path,
            ids=numpy.array(self.ids, numpy.uint16),
            learned=numpy.array(self.learned, bool),
            starts=numpy.array(self.starts, numpy.int64),
        )
        learned = sum(self.learned)
        print(f"{path.name}: {len(self.starts):,} documents, {len(self.ids):,} tokens, {learned:,} learned", flush=True)
        return {"documents": len(self.starts), "tokens": len(self.ids), "learned": learned}


def batches(items, size):
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def conversations(stories, count, requests, seed):
    """`count` conversations; a share of them asks for one of the stories."""
    rng = random.Random(seed)
    for _ in range(count):
        if stories and rng.random() < requests:
            yield corpus.request(corpus.renamed(rng.choice(stories), rng), rng)
        else:
            yield tasks.conversation(rng)


def save_all(streams, out):
    """Writes the streams and their sizes."""
    sizes = {name: stream.save(out / f"{name}.npz") for name, stream in streams.items()}
    (out / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")


def write_sample(path: Path, seed, count=400):
    rng = random.Random(seed)
    with path.open("w") as file:
        for i in range(count):
            line = {"text": tasks.story(rng)[0]} if i % 4 == 0 else tasks.conversation(rng)
            file.write(json.dumps(line) + "\n")


def prepare_sample(arguments):
    lines = [json.loads(line) for line in arguments.sample.read_text().splitlines()]
    bpe = Tokenizer.from_file(str(arguments.tokenizer))
    bpe.save(str(arguments.out / "tokenizer.json"))
    made = Stream(bpe).add_texts(line["text"] for line in lines if "text" in line)
    talks = Stream(bpe).add_conversations(line for line in lines if "messages" in line)
    save_all({"made": made, "chat": talks}, arguments.out)


def prepare(arguments):
    rng, count = random.Random(arguments.seed), arguments.conversations
    stories, held_out = corpus.stories(arguments.text)
    books = corpus.books(arguments.text)
    made = [tasks.story(rng)[0] for _ in range(count // 10)]

    compiled = chat.template()
    for conversation in conversations(stories, 1000, 0.1, arguments.seed + 1):
        chat.check(conversation, compiled)

    if arguments.tokenizer:
        bpe = Tokenizer.from_file(str(arguments.tokenizer))
    else:
        some = conversations(stories, count // 20, 0.0, arguments.seed + 2)
        marks = re.compile("|".join(map(re.escape, SPECIAL + MARKS)))
        plain = [marks.sub("\n", "".join(text for text, _ in chat.segments(talk))) for talk in some]
        bpe = tokenizer(stories + books[::4] + made[:2000] + plain)
    bpe.save(str(arguments.out / "tokenizer.json"))

    copies = (corpus.renamed(s, rng) if copy else s for copy in range(arguments.copies) for s in stories)
    talks = conversations(stories, count, 0.12, arguments.seed + 3)
    streams = {"stories": copies, "made": made, "books": books, "held_out": held_out}
    streams = {name: Stream(bpe).add_texts(texts) for name, texts in streams.items()}
    save_all(streams | {"chat": Stream(bpe).add_conversations(talks)}, arguments.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--sample", type=Path)
    parser.add_argument("--write-sample", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="one there is, instead of a new one")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--conversations", type=int, default=130_000)
    parser.add_argument("--copies", type=int, default=6, help="of each real story, all but one with other names")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.write_sample:
        return write_sample(arguments.write_sample, arguments.seed)
    if not arguments.out or not (arguments.text or arguments.sample and arguments.tokenizer):
        parser.error("give --out DIR, and --text DIR or both --sample FILE and --tokenizer FILE")
    arguments.out.mkdir(parents=True, exist_ok=True)
    prepare_sample(arguments) if arguments.sample else prepare(arguments)


if __name__ == "__main__":
    main()
