"""The evaluation questions that training must not contain: models/pocket/questions.jsonl, if it is there.

Held out are
- the exact wording (after `plain`) of the last user turn of every question, except for the kinds story and memory,
  whose questions mean nothing without what was said before;
- for what can be worked out, the exercise itself under any wording: the pair of a comparison, the range of a count, the number whose neighbour is asked, the word and number of a "how many",
  the word to put in capitals or to spell, the word and end of a first or last letter, the JSON object, the sentence to
  repeat, the word and number of "say X n times", the sentence whose first or last word is asked, the things to list,
  and the arguments of a tool call;
- the story of a story question, and the value of a memory question (that name, age, city ... in any memory exchange).
Facts from tables (opposites, colours, the calendar, animals, categories, word forms) cannot be worked out, and sums
within 20 are such a table for a model this small: of these only the exact wording is held out, and other wordings
teach the fact.
"""

import json
import pathlib
import re

from .words import NUMBER_WORDS

QUESTIONS = pathlib.Path(__file__).resolve().parents[2] / "pocket" / "questions.jsonl"
NUMBER = {word: number for number, word in enumerate(NUMBER_WORDS)}


def plain(text):
    """The text in lower case with single spaces: two wordings that differ only there are one."""
    return " ".join(text.lower().split())


def last_user(messages):
    """What the user said last."""
    return [m["content"] for m in messages if m["role"] == "user"][-1]


def _numbers(text):
    return [int(t) if t.isdigit() else NUMBER[t] for t in re.findall(r"\d+|[a-z]+", text.lower()) if t.isdigit() or t in NUMBER]


def keys(question):
    """The exercises in an evaluation question, whatever their wording."""
    kind, asked, check = question["kind"], last_user(question["messages"]), question["check"]
    lower, numbers = asked.lower(), _numbers(asked)
    if kind == "compare":
        return [("compare", min(numbers), max(numbers))]
    if kind == "counting":
        if run := re.search(r"\b(\w+)(?: \1)+\b", lower):
            return [("many", run[1], len(run[0].split()))]
        return [("range", *numbers)] if len(numbers) == 2 else [("before" if "before" in lower else "after", numbers[0])]
    if kind == "json":
        return [("json", json.dumps(check["json"]))]
    if kind == "tool" and "tool_call" in check:
        return [_tool_key(check["tool_call"])]
    if kind == "tool":
        return [_tool_key(call["function"]) for m in question["messages"] for call in m.get("tool_calls", ())]
    if kind == "letters":
        if end := re.search(r"(first|last) letter of (?:the word )?\W?(\w+)", lower):
            return [("letter", end[2], end[1])]
        return [("spell" if "-" in check["equals"] else "capitals", check["equals"].replace("-", "").lower())]
    if kind == "repeat":
        words = check["equals"].split()
        return [("times", words[0], len(words))] if len(set(words)) == 1 else [("repeat", check["equals"])]
    if kind == "word":
        return [("word", asked.split(": ", 1)[1], "first" if "first" in lower else "last")]
    if kind == "list" and "equals" in check:
        return [("bullets", " ".join(check["equals"].replace("- ", "").split("\n")))]
    if kind == "memory":
        return [("memory", check["contains"][0].split("|")[0].lower())]
    return []


def _tool_key(call):
    return "tool", call["name"], json.dumps(call["arguments"], sort_keys=True)


def load(path=QUESTIONS):
    """The held-out wordings, keys and the text of all story questions."""
    wordings, held_keys, stories = set(), set(), []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        question = json.loads(line)
        if question["kind"] == "story":
            stories += [m["content"] for m in question["messages"]]
        elif question["kind"] != "memory":
            wordings.add(plain(last_user(question["messages"])))
        held_keys.update(keys(question))
    return wordings, held_keys, "\n".join(stories)


WORDINGS, KEYS, STORIES = load()


def held(asked, key=None):
    """Whether an exchange may not be used for training: by its wording or by the key of its exercise."""
    return key in KEYS or (asked is not None and plain(asked) in WORDINGS)


def held_story(text):
    """Whether a story is one of an evaluation question."""
    return text in STORIES
