"""Checks the synthetic training data: `python3 models/train/test_tasks.py [--show]`.

Draws conversations and stories, looks at their form, and works out again, from the text alone, what can be worked
out: sums, counts, JSON objects, letters, tool calls. Reads the evaluation questions itself, so that a fault in the
held-out rules of the package shows here.
"""

import argparse
import collections
import json
import pathlib
import random
import re
import time

import tasks

QUESTIONS = pathlib.Path(__file__).resolve().parents[1] / "pocket" / "questions.jsonl"
WORDS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
         "seventeen eighteen nineteen twenty").split()
TYPES = {"string": str, "integer": int, "number": int}
WRONG_ARTICLE = re.compile(r"\ba (?=[aeiou])(?!uni|use|one)\w+|\ban (?![aeiou]|hour|honest|[AEIOU])\w+")
GLUE = set("""a about afraid after along an ate at bake because belonged broken brought called came cried did eat empty fast felt for found
from gave gift got had helped is it lost loved met no of pick place planted s saw see shared some stopped story the them there they to too took
wanted was went were with won wore yes""".split())  # words an answer may have that the story does not
CHECKS = {"equals", "contains", "json", "tool_call"}


def numbers(text):
    """The numbers in a text, in digits or words."""
    found = re.findall(r"\d+|[a-z]+", text.lower())
    return [int(t) if t.isdigit() else WORDS.index(t) for t in found if t.isdigit() or t in WORDS]


def check_form(c):
    """Roles in order, contents there, tools as clients send them."""
    assert set(c) <= {"kind", "tools", "messages"} and c["kind"] in tasks.KINDS, c
    roles = "".join({"system": "s", "user": "u", "assistant": "a", "tool": "t"}[m["role"]] for m in c["messages"])
    assert re.fullmatch(r"s?(ua(ta)?)+", roles), (roles, c)
    for before, message in zip([None, *c["messages"]], c["messages"]):
        text, calls = message["content"], message.get("tool_calls")
        assert isinstance(text, str) and bool(text) != bool(calls) and text == text.strip(), c
        assert not re.search(r"\{\w*\}|\s\s(?<!\n\n)", text), c
        assert not WRONG_ARTICLE.search(text), (WRONG_ARTICLE.search(text), c)
        if message["role"] == "tool":
            assert before.get("tool_calls") and isinstance(json.loads(text), dict), c
    for tool in c.get("tools", ()):
        function = tool["function"]
        assert tool["type"] == "function" and set(function) == {"name", "description", "parameters"}, c
        assert set(function["parameters"]["required"]) == set(function["parameters"]["properties"]), c
    names = [t["function"]["name"] for t in c.get("tools", ())]
    assert len(names) == len(set(names)) <= 3, c


def check_call(c, asked, call):
    """A call names an offered tool; its arguments have the right types and are copied from the request."""
    function = call["tool_calls"][0]["function"]
    [tool] = [t["function"] for t in c["tools"] if t["function"]["name"] == function["name"]]
    properties = tool["parameters"]["properties"]
    assert set(function["arguments"]) == set(properties), c
    for name, value in function["arguments"].items():
        assert type(value) is TYPES[properties[name]["type"]], c
        assert str(value).lower() in asked.lower(), (value, c)


def check_answer(asked, answer):
    """Works out again the answers that can be worked out; returns what was checked, or None."""
    if m := re.fullmatch(r"(\d+) ([+-]) (\d+) = (-?\d+)\.", answer):
        x, y, total = int(m[1]), int(m[3]), int(m[4])
        assert total == (x + y if m[2] == "+" else x - y) and 0 <= total <= 20, (asked, answer)
        assert sorted(numbers(asked)) == sorted([x, y]), (asked, answer)
        assert (m[2] == "-") == bool(re.search(r"-|minus|[Tt]ake|[Ss]ubtract", asked)), (asked, answer)
        return "sum"
    if "JSON" in asked and "one word" not in asked:
        pairs = re.findall(r"the (name|age|colour|animal|number) (\w+)", asked)
        assert json.loads(answer) == {k: int(v) if v.isdigit() else v for k, v in pairs}, (asked, answer)
        return "json"
    if m := re.search(r"(?:from|[Ss]tart at|Count:) (\d+) (?:(?:and count )?(?:down )?to) (\d+)[.?]", asked):
        x, y = int(m[1]), int(m[2])
        assert answer == ", ".join(str(n) for n in (range(x, y + 1) if x < y else range(x, y - 1, -1))), (asked, answer)
        assert ("down" in asked or "back" in asked) == (x > y), (asked, answer)
        return "range"
    if m := re.fullmatch(r"(\d+) comes (after|before) (\d+)\.", answer):
        assert int(m[1]) - int(m[3]) == (1 if m[2] == "after" else -1) and numbers(asked) == [int(m[3])], (asked, answer)
        assert ("before" in asked.lower()) == (m[2] == "before"), (asked, answer)
        return "neighbour"
    if m := re.fullmatch(r"(\d+) is (bigger|smaller) than (\d+)\.", answer):
        assert (int(m[1]) > int(m[3])) == (m[2] == "bigger") and sorted(re.findall(r"\d+", asked)) == sorted([m[1], m[3]]), (asked, answer)
        return "compare"
    if m := re.fullmatch(r"There (?:is|are) (one|two|three|four|five|six)\.", answer):
        things = re.search(r"(?:[:?\"] |^)((\w+)(?: \2)*)(?=[.?]|$)", asked)
        assert len(things[1].split()) == WORDS.index(m[1]), (asked, answer, things)
        return "how many"
    if re.search(r"capital|upper case|big letters", asked) and answer.isupper():
        assert re.search(rf"\b{answer.lower()}\b", asked), (asked, answer)
        return "capitals"
    if re.fullmatch(r"\w(-\w)+", answer):
        assert re.search(rf"\b{answer.replace('-', '')}\b", asked), (asked, answer)
        return "spell"
    if m := re.fullmatch(r"The (first|last) letter of (\w+) is (\w)\.", answer):
        assert m[2] in asked and m[1] in asked and m[3] == m[2][0 if m[1] == "first" else -1], (asked, answer)
        return "letter"
    if m := re.fullmatch(r"The (first|last) word is (\w+)\.", answer):
        said = asked.split(": ", 1)[1].rstrip(".").split()
        assert m[1] in asked and m[2] == said[0 if m[1] == "first" else -1], (asked, answer)
        return "word"
    if m := re.search(r"\b(two|three|four|five) times\.", asked):
        assert len(answer.split()) == WORDS.index(m[1]) and set(answer.split()) <= set(asked.split()), (asked, answer)
        return "times"
    if answer.startswith("- "):
        listed = answer[2:].split("\n- ")
        assert re.search(rf"{', '.join(listed[:-1])} and {listed[-1]}", asked), (asked, answer)
        return "bullets"
    return None


def load_questions():
    """The evaluation questions, after a look at their form."""
    questions = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()] if QUESTIONS.exists() else []
    if questions:
        assert len(questions) == 100 and len({q["id"] for q in questions}) == 100
    for q in questions:
        assert set(q) <= {"id", "kind", "messages", "tools", "check"} and q["kind"] in tasks.KINDS, q
        assert len(CHECKS & set(q["check"])) == 1 and set(q["check"]) <= CHECKS | {"excludes"}, q
        assert q["messages"][-1]["role"] in ("user", "tool"), q
    return questions


def plain(text):
    return " ".join(text.lower().split())


class HeldOut:
    """What must not occur, read from the questions alone."""

    def __init__(self, questions):
        self.wordings, self.ranges, self.json, self.calls, self.memory = set(), set(), [], [], set()
        self.sentences = set()
        for q in questions:
            asked = [m["content"] for m in q["messages"] if m["role"] == "user"]
            if q["kind"] == "story":
                self.sentences.update(s for m in q["messages"] for s in re.split(r"\n\n|: ", m["content"]) if s.count(".") > 2)
            elif q["kind"] == "memory":
                self.memory.add(q["check"]["contains"][0].split("|")[0])
            else:
                self.wordings.add(plain(asked[-1]))
            if q["kind"] == "counting" and re.search(r"from \d+ to \d+", asked[-1]):
                self.ranges.add(q["check"]["equals"])
            if "json" in q["check"]:
                self.json.append(q["check"]["json"])
            if "tool_call" in q["check"]:
                self.calls.append(q["check"]["tool_call"])

    def check(self, asked, answer, what):
        """One exchange of the training data."""
        assert plain(asked) not in self.wordings, asked
        if what == "range":
            assert answer not in self.ranges, (asked, answer)
        if what == "json":
            assert json.loads(answer) not in self.json, (asked, answer)
        assert not any(s in asked for s in self.sentences), asked
        if re.match(r"(Your (name|favourite|pet)|You live|You are \d+ years)", answer):
            assert not any(re.search(rf"\b{value}\b", answer) for value in self.memory), (asked, answer)


def check_stories(count, show):
    """Stories have 4 to 14 sentences, unlike each other; questions have one answer each, in words of the story."""
    rng, seen, asked = random.Random(11), set(), 0
    for n in range(count):
        text, questions = tasks.story(rng)
        sentences = len(re.findall(r"[.!?]+(?:\"|\s|$)", text))
        assert 4 <= sentences <= 14, (sentences, text)
        assert not WRONG_ARTICLE.search(text) and "{" not in text, text
        assert not re.search(r"[.!?] [a-z]", text) and text[0].isupper(), text
        seen.add(text)
        asked += len(questions)
        told = set(re.findall(r"\w+", text.lower()))
        assert len(questions) >= 5 and len({q for q, _ in questions}) == len(questions), text
        for question, answer in questions:
            assert question.endswith("?") and answer.endswith(".") and "{" not in question + answer, (question, answer)
            assert not WRONG_ARTICLE.search(question + " " + answer), (question, answer)
            missing = set(re.findall(r"\w+", answer.lower())) - told - GLUE
            assert not missing, (missing, text, question, answer)
        if show and n < show:
            print(text, *(f"  {q} -> {x}" for q, x in rng.sample(questions, 5)), "", sep="\n")
    assert len(seen) > 0.999 * count, len(seen)
    print(f"{count} stories, {len(seen)} different, {asked / count:.1f} questions each")


def check_conversations(count, questions, show):
    """All conversations, with the time they took."""
    held, kinds, checked = HeldOut(questions), collections.Counter(), collections.Counter()
    rng = random.Random(7)
    start = time.process_time()
    drawn = [tasks.conversation(rng) for _ in range(count)]
    took = time.process_time() - start
    for c in drawn:
        check_form(c)
        kinds[c["kind"]] += 1
        turns = [m for m in c["messages"] if m["role"] != "system"]
        for before, message in zip(turns, turns[1:]):
            if message.get("tool_calls"):
                check_call(c, before["content"], message)
                function = message["tool_calls"][0]["function"]
                assert {"name": function["name"], "arguments": function["arguments"]} not in held.calls, c
                checked["call"] += 1
                held.check(before["content"], "", None)
            elif before["role"] == "user":
                what = check_answer(before["content"], message["content"])
                checked[what or "form only"] += 1
                held.check(before["content"], message["content"], what)
    assert set(kinds) == set(tasks.KINDS), set(tasks.KINDS) - set(kinds)
    print(f"{count} conversations, {count / took:.0f} a second")
    print("kinds:", *(f"{k} {n}" for k, n in kinds.most_common()), sep="\n  ")
    print("answers worked out again:", *(f"{k} {n}" for k, n in checked.most_common()), sep="\n  ")
    for c in drawn[:show]:
        print(c["kind"], [t["function"]["name"] for t in c.get("tools", ())])
        for m in c["messages"]:
            print(f"  {m['role']}: {m['content'] or json.dumps(m['tool_calls'][0]['function'])}")


def check_seed():
    """The same seed gives the same data."""
    def draw(seed):
        rng = random.Random(seed)
        return json.dumps([tasks.conversation(rng) for _ in range(300)] + [tasks.story(rng) for _ in range(50)])
    assert draw(3) == draw(3) != draw(4)


def main():
    """Runs all checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--show", action="store_true", help="print some samples")
    show = 12 if parser.parse_args().show else 0
    questions = load_questions()
    check_seed()
    check_conversations(20_000, questions, show)
    check_stories(5_000, show)
    print(f"{len(questions)} evaluation questions held out: ok")


if __name__ == "__main__":
    main()
