"""Short made-up stories with questions: `story(rng)`, from the plots of plots.py.

Every story has a hero, a setting, one plot, often a detail that has nothing to do with the plot, and a closing
line. Questions and answers are made of the same slots as the text, so an answer always follows from the story.
"""

import re

from . import plots
from .plots import PLOTS, SLOTS
from .words import COLOURS, a, cap

GIRLS = ("Anna Mia Lily Emma Sara Nora Lucy Ella Rosa Clara Ida Zoe Maya Ruby Amy Julia Eva Lena Hanna Kate Molly "
         "Grace Alice Nina Sophie Daisy Olga Vera Tara Leila").split()
BOYS = ("Tom Ben Max Leo Sam Jack Finn Paul Oscar Noah Tim Luke Adam Hugo Eli Peter Emil Jonas Omar David Felix "
        "Kofi Henry Oliver Ivan Mateo Ravi Theo Nick George").split()
PETS = "Pip Dot Coco Bobo Momo Tiki Lulu Fizz Bean Olly Tuck Rolo Zuzu Nib Poppy Hops Waddle Rusty Milo Bibi".split()
HERO_ANIMALS = "rabbit fox mouse bear cat dog duck frog hedgehog squirrel goat owl elephant otter penguin lamb turtle badger".split()
HERO_ADJ = "small kind brave clever shy young funny quiet happy curious gentle little busy friendly honest".split()
HELPER_ADJ = "old kind wise tall friendly big gentle clever strong young".split()
HELPER_KINDS = ("owl farmer fox bear baker sailor teacher squirrel rabbit miller badger gardener fisherman horse goose "
                "postman shepherd doctor crow beaver goat donkey woman man girl boy neighbour").split()
PLACES = [("in", "the garden"), ("in", "the forest"), ("by", "the river"), ("on", "the hill"), ("in", "the park"),
          ("on", "the beach"), ("in", "the barn"), ("by", "the lake"), ("in", "the kitchen"), ("under", "the big oak"),
          ("in", "the meadow"), ("by", "the pond"), ("at", "the farm"), ("behind", "the house"), ("near", "the bridge"),
          ("in", "the yard"), ("near", "the mill"), ("by", "the sea"), ("in", "the field"), ("behind", "the school"),
          ("in", "the village"), ("near", "the well"), ("by", "the fence"), ("in", "the valley")]
SAD = "sad worried upset unhappy lonely".split()
SCARED = "scared afraid nervous worried".split()
GLAD = "happy glad proud cheerful pleased thankful".split()
CLOTHES = "hat scarf coat cap bow jacket shirt belt vest".split()
WEATHER = ["It was a sunny day.", "It was a warm spring day.", "The sky was blue and clear.", "It was a cool autumn morning.",
           "The sun was shining.", "It was a warm summer day.", "It was a windy day.", "It was a cloudy morning.",
           "It was a grey and foggy day.", "It was early in the morning.", "It was a fine afternoon."]
WEATHER_ASK = {"sunny": "sunny", "warm": "warm", "cool": "cool", "windy": "windy", "cloudy": "cloudy", "foggy": "grey and foggy"}
OWN_WEATHER = {"RAIN", "SNOWMAN", "FEAR", "NOISE", "STUCK"}
INTROS = ["There was once {a_hero} called {name}.", "Once there was {a_hero}. {His} name was {name}.", "{name} was {a_hero}.",
          "Once upon a time there lived {a_hero} called {name}.", "This is the story of {name}, {a_hero}.",
          "Long ago, {a_hero} called {name} lived {home}.", "Let me tell you about {name}, {a_hero}."]
HOMES = ["in a small house", "near a wood", "in a little village", "at the end of a long road", "not far from here", "by the sea"]
DETAILS = ["{name} always wore {a_dcol} {cloth}.", "{He} had {a_dcol} {cloth} on.", "{His} {cloth} was {dcol}.",
           "Everyone knew {name} by {his} {dcol} {cloth}."]
CLOSINGS = ["That was a good day.", "And so the day came to a good end.", "That night {name} slept well.",
            "{name} never forgot that day.", "In the evening {he} told everyone about it.", "After that they were good friends.",
            "It was the best day of the year.", "Then it was time to go home.", "From that day on, {name} was always kind to others.",
            "When the stars came out, {name} was fast asleep.", "And that is the end of the story.", "They still talk about it today."]
PLOT_NAMES = {id(value): key for key, value in vars(plots).items() if any(value is plot for plot in PLOTS)}
GENERIC_FEEL = [r"How did (.+) feel then\?", r"How did (.+) feel\?", r"What did (.+) feel\?"]


def _fields(rng, plot):
    """The slots of one story: the hero, the helper, the place and one choice from each slot table."""
    f = {slot: rng.choice(table) for slot, table in SLOTS.items()}
    kind = rng.random()
    if kind < 0.35:
        name, he, hero = rng.choice(GIRLS), "she", "girl"
    elif kind < 0.7:
        name, he, hero = rng.choice(BOYS), "he", "boy"
    else:
        name, he, hero = rng.choice(PETS), rng.choice(["she", "he"]), rng.choice(HERO_ANIMALS)
    f.update(name=name, he=he, him="her" if he == "she" else "him", his="her" if he == "she" else "his",
             kind=hero, adj=rng.choice(HERO_ADJ), home=rng.choice(HOMES))
    f["hero"] = f["adj"] + " " + hero
    other = rng.choice([n for n in (GIRLS + BOYS if kind < 0.7 else PETS) if n not in (name, f["petname"])])
    f["other"] = other
    helper = rng.random()
    if helper < 0.5:
        kinds = [k for k in HELPER_KINDS if k not in (hero, f["hungry"], f["pet"])]
        what = rng.choice(kinds)
        f["hel"], f["ref"] = a(rng.choice(HELPER_ADJ) + " " + what), "the " + what
    else:
        friend = rng.choice([n for n in GIRLS + BOYS + PETS if n not in (name, other, f["petname"])])
        animal = rng.choice([k for k in HERO_ANIMALS if k not in (hero, f["hungry"], f["pet"])])
        f["hel"] = rng.choice([f"{friend} the {animal}", f"{f['his']} friend {friend}"]) if friend in PETS else f"{f['his']} friend {friend}"
        f["ref"] = friend
    where, place = rng.choice(PLACES)
    f["place"], f["at"] = place, f"{where} {place}"
    f["col"], f["dcol"] = rng.sample(COLOURS, 2)
    f["cloth"] = rng.choice([c for c in CLOTHES if c not in (f["toy"], f["fly"])])
    f["sad"] = rng.choice(SCARED if plot in ("NOISE", "FEAR", "MUSIC") else SAD)
    f["glad"] = rng.choice(GLAD)
    f["At"] = f["at_cap"] = cap(f["at"])
    f["days_cap"] = cap(f["days"])
    for key in ("he", "his", "ref"):
        f[cap(key)] = cap(f[key])
    for key in ("col", "dcol", "cake", "seed", "light", "gift", "paint", "treasure", "nose", "hero"):
        f["a_" + key] = a(f[key])
    return f


def _sentence(text):
    """Capital letters at the start and after a full stop (a helper at the start of a sentence is lower case)."""
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)


def _feelings(questions, text, name, sad, glad):
    """With two feelings in a story, 'How did X feel?' must say when."""
    both = re.search(rf"\b{sad}\b", text) and re.search(rf"\b{glad}\b", text)
    out = []
    for asked, answer in questions:
        if both and any(re.fullmatch(g, asked) for g in GENERIC_FEEL):
            asked = f"How did {name} feel at first?" if answer.endswith(f" {sad}.") else f"How did {name} feel in the end?"
        out.append((asked, answer))
    return out


def _yes_no(rng, f, questions):
    """Yes/no questions from the answers on colours, places, feelings and helpers; yes as often as no."""
    out = []
    for _, answer in questions:
        yes = rng.random() < 0.5
        lower = answer[0].lower() + answer[1:] if answer.startswith("The ") else answer
        if (m := re.fullmatch(r"The (\w+) was (\w+)\.", answer)) and m[2] in COLOURS:
            said = m[2] if yes else rng.choice([c for c in COLOURS if c != m[2]])
            asked = f"Was the {m[1]} {said}?"
        elif m := re.fullmatch(rf"The (\w+) was {f['at']}\.", answer):
            said = f["at"] if yes else rng.choice([f"{w} {p}" for w, p in PLACES if p != f["place"]])
            asked = f"Was the {m[1]} {said}?"
        elif m := re.fullmatch(r"(\w+) felt (\w+)\.", answer):
            if m[2] in SAD + SCARED:
                continue
            said = m[2] if yes else rng.choice(["angry", "sad", "bored", "tired", "scared"])
            asked = f"Did {m[1]} feel {said} in the end?"
        elif m := re.fullmatch(r"(.+) helped (\w+)\.", answer):
            said = m[1] if yes else rng.choice([n for n in GIRLS + BOYS if n not in (f["name"], m[1], f["other"])])
            said = said[0].lower() + said[1:] if said.startswith("The ") else said
            asked = f"Did {said} help {m[2]}?"
        else:
            continue
        out.append((asked, ("Yes, " if yes else "No, ") + lower))
    return out


def story(rng):
    """A story and all its questions: `(text, [(question, answer), ...])`."""
    plot = rng.choice(PLOTS)
    plot_name = PLOT_NAMES[id(plot)]
    f = _fields(rng, plot_name)
    name = f["name"]
    told, questions = [], []

    def tell(wordings, asked=()):
        wording = rng.choice(wordings)
        if not wording:
            return
        told.append(_sentence(wording.format_map(f)))
        for ways, answer in asked:
            answer = _sentence(answer.format_map(f))
            questions.extend((_sentence(w.format_map(f)), answer) for w in ways)

    tell(INTROS, [(["Who is the story about?", "Who is this story about?", "Who is the hero of the story?"], "The story is about {name}."),
                  (["Who was {name}?", "Who is {name}?"], "{name} was {a_hero}.")])
    if f["kind"] not in ("girl", "boy"):
        questions.append((f"What kind of animal was {name}?", f"{name} was {a(f['kind'])}."))
        questions.append((f"Which animal was {name}?", f"{name} was {a(f['kind'])}."))
    if rng.random() < 0.35:
        tell(DETAILS, [(["What colour was {name}'s {cloth}?", "What colour was the {cloth}?"], "The {cloth} was {dcol}."),
                       (["What did {name} wear?"], "{name} wore {a_dcol} {cloth}.")])
    if plot_name not in OWN_WEATHER and rng.random() < 0.4:
        line = rng.choice(WEATHER)
        told.append(line)
        for word, said in WEATHER_ASK.items():
            if word in line:
                questions.extend((q, f"It was {said}.") for q in ("What was the weather like?", "How was the weather?"))
    for wordings, asked in plot:
        tell(wordings, asked)
    if rng.random() < 0.6:
        tell(CLOSINGS)
    text = " ".join(told)
    questions = _feelings(questions, text, name, f["sad"], f["glad"])
    questions += _yes_no(rng, f, list(dict.fromkeys((answer, answer) for _, answer in questions)))
    answers = {}
    for asked, answer in questions:
        answers.setdefault(asked, set()).add(answer)
    unique = list(dict.fromkeys((q, ans) for q, ans in questions if len(answers[q]) == 1))
    return text, unique
