"""Counting, small sums and comparing numbers.

Every function takes a `random.Random` and returns `(question, answer, key)`: the key names the exercise itself,
whatever its wording, so that an exercise can be held out.
"""

from .words import NUMBER_WORDS, cap

RANGE_WAYS = ["Count from {x} to {y}.", "Please count from {x} to {y}.", "Can you count from {x} to {y}?", "Count: {x} to {y}.", "Say the numbers from {x} to {y}.",
              "Write the numbers from {x} to {y}.", "I want to hear the numbers from {x} to {y}.", "Start at {x} and count to {y}."]
BACK_WAYS = ["Count down from {x} to {y}.", "Count backwards from {x} to {y}.", "Please count down from {x} to {y}.", "Can you count backwards from {x} to {y}?",
             "Count back from {x} to {y}.", "Say the numbers from {x} down to {y}.", "Start at {x} and count down to {y}.", "Write the numbers from {x} down to {y}."]
AFTER_WAYS = ["What number comes after {x}?", "Which number comes after {x}?", "What comes after {x}?", "What is the next number after {x}?", "Tell me the number after {x}.",
              "I am at {x}. What comes next?", "After {x} comes which number?", "When you count, what follows {x}?"]
BEFORE_WAYS = ["What number comes before {x}?", "Which number comes before {x}?", "What comes before {x}?", "What is the number before {x}?", "Tell me the number before {x}.",
               "Which number is right before {x}?", "Before {x} comes which number?", "When you count, what stands before {x}?"]
MANY_WAYS = ["How many {p} are here: {l}?", "Count the {p}: {l}.", "How many {p} do you see: {l}?", "How many times is the word \"{s}\" here: {l}?", "{l}. How many {p} is that?",
             "Look: {l}. How many {p} are there?", "How many {p}? {l}", "Please count the {p}: {l}"]
THINGS = "cat dog star ball apple bird tree car duck egg hat cup frog boat bell book cake key pig cow flower shoe moon stone bee".split()
DIGIT_PLUS = ["What is {x} + {y}?", "{x} + {y} = ?", "{x}+{y}", "How much is {x} + {y}?", "Calculate {x} + {y}.", "What is {x} plus {y}?", "Add {x} and {y}.",
              "Can you add {x} and {y}?", "Tell me what {x} + {y} is.", "What do you get for {x} plus {y}?", "What is the sum of {x} and {y}?"]
WORD_PLUS = ["What is {x} plus {y}?", "How much is {x} plus {y}?", "{X} plus {y} is what?", "Add {x} and {y}.", "What is the sum of {x} and {y}?", "Tell me {x} plus {y}.", "{X} plus {y}?",
             "Can you add {x} and {y}?", "What do {x} and {y} make?"]
DIGIT_MINUS = ["What is {x} - {y}?", "{x} - {y} = ?", "{x}-{y}", "How much is {x} - {y}?", "Calculate {x} - {y}.", "What is {x} minus {y}?", "Take {y} away from {x}.",
               "Subtract {y} from {x}.", "Tell me what {x} - {y} is.", "What do you get for {x} minus {y}?"]
WORD_MINUS = ["What is {x} minus {y}?", "How much is {x} minus {y}?", "{X} minus {y} is what?", "Take {y} away from {x}.", "Subtract {y} from {x}.", "Tell me {x} minus {y}.", "{X} minus {y}?",
              "Can you take {y} away from {x}?"]
BIGGER_WAYS = ["Which number is bigger, {x} or {y}?", "Which is bigger: {x} or {y}?", "What is more, {x} or {y}?", "Is {x} or {y} the bigger number?", "Tell me the bigger number: {x} or {y}.",
               "Which one is more: {x} or {y}?", "{x} or {y}: which is bigger?", "Which number is greater, {x} or {y}?"]
SMALLER_WAYS = ["Which number is smaller, {x} or {y}?", "Which is smaller: {x} or {y}?", "What is less, {x} or {y}?", "Is {x} or {y} the smaller number?", "Tell me the smaller number: {x} or {y}.",
                "Which one is less: {x} or {y}?", "{x} or {y}: which is smaller?"]


def counting(rng):
    """Count up or down, the number after or before, how many things."""
    pick = rng.random()
    if pick < 0.5:
        low = rng.randint(1, 20) if rng.random() < 0.8 else rng.randint(0, 90)
        x, y = low, low + rng.randint(2, 9)
        back = pick > 0.3
        if back:
            x, y = y, x
        numbers = range(x, y + (-1 if back else 1), -1 if back else 1)
        return rng.choice(BACK_WAYS if back else RANGE_WAYS).format(x=x, y=y), ", ".join(map(str, numbers)), ("range", x, y)
    if pick < 0.75:
        x = rng.randint(1, 30) if rng.random() < 0.6 else rng.randint(1, 99)
        if rng.random() < 0.5:
            return rng.choice(AFTER_WAYS).format(x=x), f"{x + 1} comes after {x}.", ("after", x)
        return rng.choice(BEFORE_WAYS).format(x=x), f"{x - 1} comes before {x}.", ("before", x)
    thing, many = rng.choice(THINGS), rng.randint(1, 6)
    return rng.choice(MANY_WAYS).format(p=thing + "s", s=thing, l=" ".join([thing] * many)), f"There {'is' if many == 1 else 'are'} {NUMBER_WORDS[many]}.", ("many", thing, many)


def sums(rng):
    """Add or subtract within 20, in digits or in words."""
    words = rng.random() < 0.3
    total = rng.randint(0, 20)
    part = rng.randint(0, total)
    minus = rng.random() < 0.45
    x, y = (total, part) if minus else (part, total - part)
    ways = (WORD_MINUS if words else DIGIT_MINUS) if minus else (WORD_PLUS if words else DIGIT_PLUS)
    show = (lambda n: NUMBER_WORDS[n]) if words else str
    asked = rng.choice(ways).format(x=show(x), y=show(y), X=cap(show(x)))
    return asked, f"{x} - {y} = {x - y}." if minus else f"{x} + {y} = {x + y}.", ("minus", x, y) if minus else ("plus", min(x, y), max(x, y))


def compare(rng):
    """Which of two numbers is bigger, or smaller."""
    top = rng.choice([10, 20, 100])
    x, y = rng.sample(range(top + 1), 2)
    if rng.random() < 0.7:
        return rng.choice(BIGGER_WAYS).format(x=x, y=y), f"{max(x, y)} is bigger than {min(x, y)}.", ("compare", min(x, y), max(x, y))
    return rng.choice(SMALLER_WAYS).format(x=x, y=y), f"{min(x, y)} is smaller than {max(x, y)}.", ("compare", min(x, y), max(x, y))
