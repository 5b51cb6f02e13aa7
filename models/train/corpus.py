"""Reads, cleans and splits the text there is to train on."""

import hashlib
import json
import random
import re
import unicodedata
from pathlib import Path

BOOKS = [
    "The-Wonderful-Wizard-of-Oz/55.txt",
    "Alice-s-Adventures-in-Wonderland/11-0.txt",
    "Andersen-s-Fairy-Tales/1597-0.txt",
    "Peter-Pan/16-0.txt",
    "The-Jungle-Book/236-0.txt",
    "The-Secret-Garden/113-0.txt",
    "The-Wind-in-the-Willows/289-0.txt",
]
GIRLS = (
    "Lily Lucy Mia Anna Sara Amy Jane Emma Ella Sue Sally Molly Daisy Kitty Jill Jenny Mary Lisa Rosie Clara Annie "
    "Zoe Bella Emily Sarah Rose Grace Alice Nina Ruby Maya Polly Kate Eva Ivy Nora Tara Lola Betty Hannah"
).split()
BOYS = (
    "Tim Tom Ben Max Jack Sam Bob Joe Timmy Tommy Billy Jimmy John Johnny Bobby Mark Mike Peter Fred Leo Alex Adam "
    "Danny Charlie Harry Henry Luke Oscar Toby Finn Noah Simon Oliver Daniel Robert Paul George Will Theo Owen"
).split()
PUNCTUATION = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "-", "–": "-", "…": "...", "\u00a0": " "})
HELD_OUT_OF = 40


def clean(text):
    """Plain ASCII punctuation, no accents, single blank lines."""
    text = unicodedata.normalize("NFKC", text.replace("\r", "").translate(PUNCTUATION)).translate(PUNCTUATION)
    text = unicodedata.normalize("NFD", text).encode("ascii", "ignore").decode()
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r" *\n\s*", "\n", text).strip()


def stories(folder: Path):
    """`(training, held_out)` TinyStories, each once; a story is held out by the hash of its first words."""
    texts = json.loads((folder / "tinystories_1000/tinystories_1000.json").read_text())
    texts += (folder / "tinystories_10k/tinystories_10k.txt").read_text().split("<|endoftext|>")
    seen, training, held_out = set(), [], []
    for text in map(clean, texts):
        key = hashlib.sha256(re.sub(r"\W+", "", text[:120].lower()).encode()).digest()
        if len(text) < 200 or text[-1] not in '.!?"' or key in seen:
            continue
        seen.add(key)
        (held_out if key[0] % HELD_OUT_OF == 0 else training).append(text)
    return training, held_out


def books(folder: Path, longest=2400):
    """Pieces of public-domain children's books, without Project Gutenberg's header, footer and line breaks."""
    pieces = []
    for name in BOOKS:
        raw = (folder / "gitenberg" / name).read_bytes().decode("utf-8", "replace")
        body = re.split(r"\*\*\* ?END OF", re.split(r"\*\*\* ?START OF[^\n]*\n", raw)[-1])[0]
        paragraphs = [clean(" ".join(p.split())) for p in re.split(r"\n\s*\n", body.replace("\r", ""))]
        paragraphs = [p for p in paragraphs if len(p) > 40 and p[-1] in '.!?",;:' and not p.isupper() and "_" not in p]
        piece = ""
        for paragraph in paragraphs:
            if len(piece) + len(paragraph) > longest:
                pieces.append(piece.strip())
                piece = ""
            piece += paragraph + "\n"
        pieces.append(piece.strip())
    return [p for p in pieces if len(p) > 200]


def renamed(text, rng: random.Random):
    """The story with its common children's names exchanged for others of the same kind."""
    words = set(re.findall(r"\b[A-Z][a-z]+\b", text))
    exchange = {}
    for names in (GIRLS, BOYS):
        free = [n for n in names if n not in words]
        rng.shuffle(free)
        exchange |= dict(zip([n for n in names if n in words], free))
    if not exchange:
        return text
    return re.sub(r"\b(" + "|".join(exchange) + r")\b", lambda m: exchange[m[1]], text)


THINGS = (
    "cat dog bird fish frog rabbit bear mouse fox lion duck horse cow pig monkey elephant butterfly bee squirrel owl "
    "turtle dragon fairy princess prince king queen knight robot train car truck boat ball doll toy kite tree flower "
    "garden park beach forest castle house box cake cookie apple banana book hat ring key star moon snow rain river "
    "lake sea farm zoo bike bus plane balloon bug ant spider snake wolf sheep goat hen chicken puppy kitten"
).split()
ASK = [
    "Tell me a story about {}.",
    "Write a story about {}.",
    "Write a short story about {}.",
    "Can you tell me a story about {}?",
    "Please tell me a story about {}.",
    "I want to hear a story about {}.",
    "Make up a story about {}.",
]
ASK_ANY = ["Tell me a story.", "Write a short story.", "Tell me a bedtime story.", "Can you tell me a story?"]
CONTINUE = [
    "Continue this story: {}",
    "Continue the story: {}",
    "Please continue this story: {}",
    "What happens next? {}",
    "Finish this story: {}",
    "How does this story go on? {}",
]


def request(text, rng: random.Random):
    """A conversation in which the assistant writes this story, or the rest of it."""
    turn = rng.random()
    if turn < 0.4:
        sentences = re.split(r"(?<=[.!?])\s+", text)
        cut = len(" ".join(sentences[: rng.randint(1, min(4, max(1, len(sentences) - 2)))]))
        prompt, answer = rng.choice(CONTINUE).format(" ".join(text[:cut].split())), text[cut:].strip()
    else:
        prompt, answer = rng.choice(ASK_ANY), text
        names = [n for n in GIRLS + BOYS if re.search(rf"\b{n}\b", text)]
        things = [t for t in THINGS if len(re.findall(rf"\b{t}\b", text)) >= 2]
        if turn < 0.9 and (names or things):
            article = lambda t: ("an " if t[0] in "aeiou" else "a ") + t
            about = [rng.choice(names)] if names and (not things or rng.random() < 0.6) else []
            about += [article(rng.choice(things))] if things and (not about or rng.random() < 0.6) else []
            prompt = rng.choice(ASK).format(" and ".join(about))
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"kind": "write a story", "messages": messages}
