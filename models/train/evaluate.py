"""Perplexity of a served model on held-out TinyStories, and what it writes; only the standard library.

    serve --port 8000                        # the bundled model, or --model run/model
    python evaluate.py --text ../../../shared/data/text
    python evaluate.py --samples

The held-out stories are those `corpus.py` keeps from training: by the hash of their first words, one in
40. The server scores each story (`echo` with `logprobs`) after an end-of-text token, as in training.
"""

import argparse
import json
import math
import urllib.request
from pathlib import Path

import corpus

BEGINNINGS = [
    "Once upon a time, there was a little girl named Lily. She had a red ball.",
    "One day, a small dog went to the park.",
    "Tom and his sister were playing in the garden when they saw a frog.",
]
REQUESTS = ["Tell me a story about a cat.", "Write a short story about Anna and a kite."]


def ask(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def perplexity(url, model, stories):
    """Prints the perplexity by token, and bits by byte, which do not depend on the tokenizer."""
    loss, tokens, length = 0.0, 0, 0
    for story in stories:
        body = {"model": model, "prompt": "<|endoftext|>" + story, "max_tokens": 0, "echo": True, "logprobs": 0}
        scores = ask(url, "/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
        loss -= sum(score for score in scores if score is not None)
        tokens += sum(score is not None for score in scores)
        length += len(story.encode())
    print(f"{len(stories)} held-out stories, {tokens:,} tokens, {length:,} bytes")
    print(f"perplexity {math.exp(loss / tokens):.2f} by token; {loss / length / math.log(2):.3f} bits by byte")


def samples(url, model):
    """Prints how stories go on and what is told on request."""
    for seed, beginning in enumerate(BEGINNINGS):
        body = {"model": model, "prompt": beginning, "max_tokens": 180, "temperature": 0.6, "top_p": 0.9, "seed": seed}
        print(f"> {beginning}\n{ask(url, '/v1/completions', body)['choices'][0]['text'].strip()}\n")
    for seed, request in enumerate(REQUESTS):
        messages = [{"role": "user", "content": request}]
        body = {"model": model, "messages": messages, "max_tokens": 220, "temperature": 0.6, "top_p": 0.9, "seed": seed}
        answer = ask(url, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
        print(f"> {request}\n{answer.strip()}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--text", type=Path, help="folder with tinystories_1000 and tinystories_10k")
    parser.add_argument("--samples", action="store_true")
    arguments = parser.parse_args()
    if not arguments.text and not arguments.samples:
        parser.error("give --text DIR, --samples or both")
    with urllib.request.urlopen(arguments.url + "/v1/models") as response:
        model = json.load(response)["data"][0]["id"]
    if arguments.text:
        perplexity(arguments.url, model, corpus.stories(arguments.text)[1])
    if arguments.samples:
        samples(arguments.url, model)


if __name__ == "__main__":
    main()
