"""Words and small helpers all kinds share."""

COLOURS = "red blue green yellow white black brown pink purple orange grey golden silver".split()

NUMBER_WORDS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
                "sixteen seventeen eighteen nineteen twenty").split()


def a(noun):
    """The noun with its article: "a cat", "an owl"."""
    vowel = noun[0].lower() in "aeiou" and not noun.startswith(("uni", "use", "one"))
    return ("an " if vowel or noun.startswith(("honest", "hour")) else "a ") + noun


def cap(text):
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
