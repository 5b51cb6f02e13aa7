"""Synthetic training data for Pocket: `conversation(rng)`, `story(rng)` and `texts(rng)`, with a `random.Random`.

The same seed gives the same data. What the evaluation asks (models/pocket/questions.jsonl) never occurs; heldout.py
says exactly what that means.
"""

from . import chat, facts, formats, numeric, tools
from .heldout import held, held_story
from .stories import story

KINDS = {  # kind: weight
    "story": 30, "counting": 9, "sum": 14, "compare": 3, "opposite": 4, "colour": 4, "calendar": 4, "animal": 5, "fact": 4,
    "category": 5, "repeat": 3, "letters": 4, "word": 2, "json": 4, "list": 3, "word_form": 4, "short": 4,
    "memory": 7, "greeting": 2, "identity": 4, "unknown": 4, "tool": 17, "tool_unused": 5,
}
SINGLE = {  # kinds of one question and one answer
    "counting": numeric.counting, "sum": numeric.sums, "compare": numeric.compare, "opposite": facts.opposite, "colour": facts.colour,
    "calendar": facts.calendar, "animal": facts.animal, "fact": facts.fact, "category": facts.category, "repeat": formats.repeat,
    "letters": formats.letters, "word": formats.word_of, "json": formats.json_object, "list": formats.listing,
    "word_form": formats.word_form, "short": formats.short_answer, "greeting": chat.greeting, "identity": chat.identity, "unknown": chat.unknown,
}
_NAMES, _WEIGHTS = list(KINDS), list(KINDS.values())
_SINGLE_NAMES = list(SINGLE)
_SINGLE_WEIGHTS = [KINDS[kind] for kind in SINGLE]
EXTRA_TURN = 0.25  # how often one more question of any single kind follows
SYSTEM_TURN = 0.15
STORY_WAYS = ["{s}\n\n{q}", "{s}\n{q}", "Here is a story: {s}\n\n{q}", "Read this story: {s}\n\nQuestion: {q}", "{q}\n\n{s}", "Story: {s}\n\n{q}", "{s} {q}", "Read the story and answer.\n\n{s}\n\n{q}",
              "I have a question about this story: {s}\n\n{q}", "Listen: {s}\n\nNow tell me: {q}"]
STORY_ALONE = ["Here is a story: {s}", "Read this story: {s}", "Listen to this story: {s}", "I will ask you about this story: {s}", "This is my story: {s}", "{s}\n\nThat is the story.", "Please read this: {s}",
               "Please remember this story: {s}"]
STORY_READ = "Thank you for the story. What do you want to know?"


def _say(user, assistant):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def single(rng, kind):
    """One exchange of a single kind that is not held out."""
    while True:
        asked, answer, *key = SINGLE[kind](rng)
        if not held(asked, key[0] if key else None):
            return _say(asked, answer)


def _any_single(rng, avoid=()):
    while True:
        kind = rng.choices(_SINGLE_NAMES, _SINGLE_WEIGHTS)[0]
        if kind not in avoid:
            return single(rng, kind)


def _story(rng):
    """A story and one to three questions on it."""
    while True:
        text, questions = story(rng)
        if not held_story(text):
            break
    asked = rng.sample(questions, rng.choices([1, 2, 3], [5, 3, 2])[0])
    if rng.random() < 0.15:
        messages = _say(rng.choice(STORY_ALONE).format(s=text), STORY_READ)
    else:
        question, answer = asked.pop(0)
        messages = _say(rng.choice(STORY_WAYS).format(s=text, q=question), answer)
    for question, answer in asked:
        messages += _say(question, answer)
    if rng.random() < 0.1:
        messages += single(rng, "greeting")
    return messages


def _memory(rng):
    """The user says one or two things; up to two other exchanges; then the user asks for one or both."""
    while True:
        facts_said = [chat.remember(rng, slot) for slot in rng.sample(list(chat.MEMORY), rng.choice([1, 1, 1, 2]))]
        if not any(held(None, key) for *_, key in facts_said):
            break
    messages = [m for told, _, _ in facts_said for m in _say(*told)]
    for _ in range(rng.choice([0, 0, 1, 1, 2]) if len(facts_said) == 1 else rng.choice([0, 1])):
        messages += _any_single(rng)
    asked = rng.sample(facts_said, rng.randint(1, len(facts_said)))
    for _, question, _ in asked:
        messages += _say(*question)
    return messages


def _tool(rng):
    """One or two calls of offered tools, sometimes with an ordinary question before or after."""
    name = rng.choice(list(tools.POOL))
    offered = tools.offer(rng, name)
    messages = _call(rng, name)
    if rng.random() < 0.2:
        messages += _call(rng, rng.choice(offered)["function"]["name"])
    if rng.random() < 0.2:
        other = _any_single(rng, tools.clashes(offered))
        messages = other + messages if rng.random() < 0.5 else messages + other
    if rng.random() < 0.15 and messages[-2]["role"] == "tool":
        messages = messages[:-2]  # some end with the call itself
    return offered, messages


def _call(rng, name):
    while True:
        messages, key = tools.call(rng, name)
        if not held(messages[0]["content"], key):
            return messages


def conversation(rng):
    """One training conversation: `{"kind", "messages", "tools"?}`."""
    kind = rng.choices(_NAMES, _WEIGHTS)[0]
    offered = None
    if kind == "story":
        messages = _story(rng)
    elif kind == "memory":
        messages = _memory(rng)
    elif kind == "tool":
        offered, messages = _tool(rng)
    elif kind == "tool_unused":
        # no tool fits: words and sums are answered, nothing is called
        offered = tools.offer(rng)
        clashes = tools.clashes(offered)
        messages = single(rng, "sum") if rng.random() < 0.3 and "sum" not in clashes else _any_single(rng, clashes)
    else:
        messages = single(rng, kind)
        while rng.random() < EXTRA_TURN and len(messages) < 8:
            messages += single(rng, kind) if rng.random() < 0.3 else _any_single(rng)
    if rng.random() < SYSTEM_TURN:
        messages = [{"role": "system", "content": rng.choice(chat.SYSTEMS)}] + messages
    result = {"kind": kind, "messages": messages}
    if offered:
        result["tools"] = offered
    return result


def texts(rng):
    """Plain stories without end, for pretraining."""
    while True:
        text = story(rng)[0]
        if not held_story(text):
            yield text
