"""Following an exact form: repeat, spell, list, capitals, JSON, bullet points, word forms, rhymes.

Every function takes a `random.Random` and returns `(question, answer, key)`; the key is None where the wording
itself is what can be held out.
"""

import json

from .facts import ASK_OPPOSITE, CATEGORIES, THING_COLOURS, plural
from .stories import BOYS, CLOTHES, GIRLS, HERO_ANIMALS, PETS
from .words import NUMBER_WORDS, a, cap

NAMES = GIRLS + BOYS + PETS
WORDS = sorted(set("""sun moon star tree house river stone bread water fire snow rain wind cloud bird fish horse apple table chair
book door window garden school friend paper pencil letter music night morning summer winter road bridge boat ship train
wheel king queen castle forest mountain island ocean beach sand shell flower grass leaf root seed farm cow sheep milk
butter cheese honey sugar salt spoon plate cup glass bottle box bag coat shoe hat glove scarf button ring bell drum flute
song dance story game ball kite doll lamp candle clock mirror picture brush paint wall roof floor kitchen bed pillow
blanket dream happy quick brave green yellow silver little jump run sing read write laugh smile""".split() + HERO_ANIMALS + CLOTHES))
SUBJECTS = "the cat,a dog,my sister,the old man,a little bird,our teacher,the baker,the girl,a boy,the king,my friend,the farmer,a mouse,the bear,his mother,the small fox".split(",")
VERBS = "sleeps,sings,runs,plays,waits,sits,jumps,eats,reads,laughs,hides,works,dances,walks,rests,smiles".split(",")
WHERE = ("in the garden,by the river,on the hill,under the tree,in the rain,at home,near the lake,in the sun,on the bridge,behind the house,"
         "in the snow,at night,by the fire,every morning,on Sunday,after school").split(",")
ADJECTIVES = "Snow is white.,Ice is cold.,The sun is hot.,Honey is sweet.,The sea is deep.,Birds can fly.,Fish can swim.,We like cake.,I love you.,Dogs run fast.".split(",")

REPEAT_WAYS = ["Repeat after me: {s}", "Say this: {s}", "Please repeat: {s}", "Repeat this: {s}", "Copy this sentence: {s}", "Say exactly this: {s}",
               "Write this down: {s}", "Say after me: {s}"]
TIMES_WAYS = ["Say {w} {n} times.", "Write {w} {n} times.", "Say the word {w} {n} times.", "Please say {w} {n} times.", "Repeat the word {w} {n} times.",
              "Can you say {w} {n} times?", "Write the word {w} {n} times.", "I want to hear {w} {n} times."]
CAPS_WAYS = ["Write '{w}' in capital letters.", "Write \"{w}\" in capital letters.", "Write the word {w} in capital letters.", "Put {w} in capital letters.",
             "Write {w} in big letters.", "Make {w} all capitals.", "Write {w} in upper case.", "How do you write {w} in capital letters?"]
SPELL_WAYS = ["Spell {w}.", "Spell the word {w}.", "How do you spell {w}?", "Please spell {w}.", "Can you spell {w}?", "Spell '{w}'.", "Give me the letters of {w}.",
              "Which letters are in {w}?"]
LETTER_WAYS = ["What is the {e} letter of {w}?", "What is the {e} letter of the word {w}?", "Which letter is the {e} one in {w}?", "Tell me the {e} letter of {w}.",
               "Give me the {e} letter of \"{w}\".", "What {e} letter does {w} have?", "Name the {e} letter of {w}.", "Which is the {e} letter in {w}?"]
WORD_WAYS = ["What is the {e} word of this sentence: {s}", "What is the {e} word here: {s}", "Tell me the {e} word of: {s}", "Give me the {e} word: {s}",
             "Which word is the {e} one: {s}", "Say the {e} word of this: {s}", "Find the {e} word: {s}", "Name the {e} word in this sentence: {s}"]
JSON_WAYS = ["Write a JSON object with {f}.", "Give me a JSON object with {f}.", "Make a JSON object with {f}.", "I need a JSON object with {f}.", "Answer with JSON: {f}.",
             "Please write JSON with {f}.", "Return a JSON object that has {f}.", "Put this into JSON: {f}."]
BULLET_WAYS = ["Make a list of {l} as bullet points.", "Write {l} as bullet points.", "Write {l} as a list.", "Put {l} into bullet points.", "Make bullet points: {l}.",
               "Turn this into a list: {l}.", "List these as bullet points: {l}.", "Show {l} as a bullet list."]
COMMA_WAYS = ["List three {c}, separated by commas.", "Write three {c}, with commas.", "Give me three {c}, separated by commas.", "Three {c}, with commas, please.",
              "Name three {c}, separated by commas.", "Write down three {c}, separated by commas.", "Make a list of three {c}, with commas.", "Show three {c}, separated by commas."]
ONE_WORD_WAYS = ["Answer with one word only: {q}", "Answer in one word: {q}", "One word only: {q}", "With one word: {q}", "Use only one word. {q}", "{q} Answer with one word.",
                 "{q} Only one word, please.", "Just one word: {q}"]
YES_NO_WAYS = ["Answer yes or no: {q}", "Yes or no: {q}", "{q} Answer yes or no.", "{q} Say only yes or no.", "Only yes or no: {q}", "Please answer yes or no: {q}",
               "Just yes or no: {q}", "{q} Yes or no?"]
PLURALS = dict(pair.split("/") for pair in """cat/cats dog/dogs tree/trees book/books apple/apples car/cars bird/birds box/boxes bus/buses dish/dishes fox/foxes
mouse/mice child/children man/men woman/women foot/feet tooth/teeth goose/geese sheep/sheep fish/fish leaf/leaves knife/knives wolf/wolves baby/babies
city/cities berry/berries lady/ladies story/stories tomato/tomatoes potato/potatoes boat/boats star/stars flower/flowers house/houses glass/glasses
brush/brushes peach/peaches shelf/shelves cherry/cherries puppy/puppies key/keys toy/toys day/days king/kings egg/eggs hat/hats""".split())
PLURAL_WAYS = ["What is the plural of {w}?", "Plural of {w}?", "Tell me the plural of {w}.", "Give me the plural of {w}.", "One {w}, two what?", "What do you say for more than one {w}?",
               "Which word is the plural of {w}?", "Write the plural of {w}."]
PASTS = dict(pair.split("/") for pair in """go/went see/saw eat/ate run/ran come/came give/gave take/took make/made sing/sang swim/swam write/wrote read/read
play/played walk/walked jump/jumped look/looked help/helped want/wanted sleep/slept fly/flew find/found say/said sit/sat stand/stood drink/drank
fall/fell know/knew grow/grew buy/bought bring/brought think/thought catch/caught teach/taught begin/began have/had do/did hear/heard tell/told
keep/kept lose/lost win/won ride/rode break/broke speak/spoke laugh/laughed smile/smiled paint/painted bake/baked open/opened""".split())
PAST_WAYS = ["What is the past tense of {w}?", "Past tense of {w}?", "Tell me the past tense of {w}.", "Give me the past tense of {w}.", "Today I {w}. What did I do yesterday? Yesterday I ...",
             "What is {w} in the past?", "Which word is the past of {w}?", "Write the past tense of {w}."]
RHYMES = [group.split() for group in ["cat hat mat bat rat", "dog log frog fog", "sun fun run bun", "tree bee sea key", "house mouse", "cake lake snake", "ball wall fall tall",
          "moon spoon soon", "star car far jar", "light night bright kite", "king ring sing wing", "boat goat coat", "fox box socks", "bear chair pear hair", "bed red head",
          "hen pen ten men", "rain train plane", "rose nose", "book hook cook look", "day play way say", "sand hand land", "bell well shell", "fish dish wish", "pig big wig dig",
          "nail tail snail", "sheep sleep deep", "snow go slow", "dark park bark", "sock rock clock", "duck truck luck"]]
RHYME_WAYS = ["What rhymes with {w}?", "Which word rhymes with {w}?", "Tell me a word that rhymes with {w}.", "Give me a rhyme for {w}.", "Find a rhyme for {w}.", "Name a word that rhymes with {w}.",
              "Do you know a rhyme for {w}?", "I need a word that rhymes with {w}."]
ORDINAL = {"first": 0, "last": -1}


def sentence(rng):
    """A plain sentence of a few words."""
    if rng.random() < 0.15:
        return rng.choice(ADJECTIVES)
    return cap(f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(WHERE)}.")


def repeat(rng):
    """Say a sentence again, or a word several times."""
    if rng.random() < 0.6:
        said = sentence(rng)
        return rng.choice(REPEAT_WAYS).format(s=said), said, ("repeat", said)
    word, many = rng.choice(["hello", "yes", "no", "please"] + WORDS), rng.randint(2, 5)
    return rng.choice(TIMES_WAYS).format(w=word, n=NUMBER_WORDS[many]), " ".join([word] * many), ("times", word, many)


def letters(rng):
    """Capital letters, spelling, first and last letter."""
    word = rng.choice(WORDS)
    pick = rng.random()
    if pick < 0.4:
        return rng.choice(CAPS_WAYS).format(w=word), word.upper(), ("capitals", word)
    if pick < 0.65:
        return rng.choice(SPELL_WAYS).format(w=word), "-".join(word), ("spell", word)
    end = rng.choice(["first", "last"])
    return rng.choice(LETTER_WAYS).format(w=word, e=end), f"The {end} letter of {word} is {word[ORDINAL[end]]}.", ("letter", word, end)


def word_of(rng):
    """The first or last word of a sentence."""
    said, end = sentence(rng), rng.choice(["first", "last"])
    word = said.rstrip(".").split()[ORDINAL[end]]
    return rng.choice(WORD_WAYS).format(s=said, e=end), f"The {end} word is {word}.", ("word", said, end)


def json_object(rng):
    """A JSON object with one to three given fields."""
    fields = {"name": rng.choice(NAMES)}
    second = rng.choice(["age", "colour", "animal", "number", None])
    if second:
        fields[second] = {"age": lambda: rng.randint(1, 99), "number": lambda: rng.randint(0, 100), "colour": lambda: rng.choice(CATEGORIES["colour"]),
                          "animal": lambda: rng.choice(HERO_ANIMALS)}[second]()
        if second == "age" and rng.random() < 0.3:
            fields["colour"] = rng.choice(CATEGORIES["colour"])
    if second in ("colour", "animal") and rng.random() < 0.25:
        del fields["name"]
    said = [f"the {key} {value}" for key, value in fields.items()]
    text = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    answer = json.dumps(fields)
    return rng.choice(JSON_WAYS).format(f=text), answer, ("json", answer)


def listing(rng):
    """Bullet points of given things, or three things of a kind with commas."""
    if rng.random() < 0.6:
        things = rng.sample(WORDS, rng.randint(2, 4))
        text = ", ".join(things[:-1]) + " and " + things[-1]
        return rng.choice(BULLET_WAYS).format(l=text), "\n".join("- " + t for t in things), ("bullets", " ".join(things))
    kind = rng.choice(list(CATEGORIES))
    return rng.choice(COMMA_WAYS).format(c=plural(kind)), ", ".join(rng.sample(CATEGORIES[kind], 3)), None


def word_form(rng):
    """Plurals, past tenses and rhymes, from tables."""
    pick = rng.random()
    if pick < 0.35:
        word = rng.choice(list(PLURALS))
        return rng.choice(PLURAL_WAYS).format(w=word), f"The plural of {word} is {PLURALS[word]}.", None
    if pick < 0.7:
        word = rng.choice(list(PASTS))
        return rng.choice(PAST_WAYS).format(w=word), f"The past tense of {word} is {PASTS[word]}.", None
    group = rng.choice(RHYMES)
    word = rng.choice(group)
    return rng.choice(RHYME_WAYS).format(w=word), f"{cap(group[(group.index(word) + 1) % len(group)])} rhymes with {word}.", None


def short_answer(rng):
    """Answer with one word, or with yes or no only."""
    pick = rng.random()
    if pick < 0.45:
        kind, other = rng.sample(list(CATEGORIES), 2)
        near = {"animal", "bird", "insect"}
        right = rng.random() < 0.5 or (kind in near and other in near)
        word = rng.choice(CATEGORIES[kind])
        x = word if kind in ("drink", "colour") else a(word)
        asked = f"Is {x} {a(kind if right else other)}?"
        return rng.choice(YES_NO_WAYS).format(q=asked), "Yes" if right else "No", None
    if pick < 0.7:
        thing = rng.choice(list(THING_COLOURS))
        return rng.choice(ONE_WORD_WAYS).format(q=f"What colour is {thing}?"), cap(THING_COLOURS[thing]), None
    if pick < 0.9:
        word = rng.choice(list(ASK_OPPOSITE))
        return rng.choice(ONE_WORD_WAYS).format(q=f"What is the opposite of {word}?"), cap(ASK_OPPOSITE[word]), None
    kind = rng.choice(list(CATEGORIES))
    word = rng.choice(CATEGORIES[kind])
    other = rng.choice([c for c in CATEGORIES if c != kind and not {c, kind} <= {"animal", "bird", "insect"}])
    p, q = rng.sample([kind, other], 2)
    x = word if kind in ("drink", "colour") else a(word)
    return rng.choice(ONE_WORD_WAYS).format(q=f"Is {x} {a(p)} or {a(q)}?"), cap(kind), None
