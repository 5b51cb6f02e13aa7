"""Facts from tables: opposites, colours, the calendar, animals, everyday things, categories.

Every function takes a `random.Random` and returns one exchange, `(question, answer)`.
"""

from .words import a, cap

OPPOSITES = [pair.split("/") for pair in """
hot/cold big/small tall/short up/down in/out left/right day/night black/white happy/sad fast/slow open/closed wet/dry
full/empty old/new hard/soft light/heavy high/low near/far good/bad loud/quiet clean/dirty early/late first/last
strong/weak thick/thin wide/narrow rich/poor young/old right/wrong yes/no on/off top/bottom front/back inside/outside
begin/end start/stop come/go give/take push/pull buy/sell win/lose find/lose love/hate laugh/cry sit/stand sleep/wake
ask/answer true/false same/different easy/difficult sweet/sour warm/cool long/short deep/shallow smooth/rough
sharp/blunt bright/dark brave/afraid kind/mean polite/rude friend/enemy summer/winter north/south east/west morning/evening
boy/girl man/woman king/queen brother/sister mother/father always/never all/none many/few more/less before/after
above/below over/under here/there with/without tight/loose straight/crooked safe/dangerous alive/dead awake/asleep
remember/forget arrive/leave fat/thin beautiful/ugly clever/stupid noisy/silent float/sink catch/throw lend/borrow
upstairs/downstairs add/subtract war/peace sunrise/sunset question/answer lock/unlock
""".split()]
ASK_OPPOSITE = {left: right for left, right in OPPOSITES}
ASK_OPPOSITE.update({right: left for left, right in reversed(OPPOSITES) if right not in ASK_OPPOSITE})
OPPOSITE_WAYS = ["What is the opposite of {w}?", "Tell me the opposite of {w}.", "What is the opposite of \"{w}\"?", "Opposite of {w}?",
                 "Give me the opposite of {w}.", "Which word is the opposite of {w}?", "Can you tell me the opposite of {w}?",
                 "I say {w}. What is the opposite?", "Name the opposite of {w}.", "{W} is the opposite of what?"]

THING_COLOURS = {"a banana": "yellow", "grass": "green", "snow": "white", "a tomato": "red", "a carrot": "orange", "the sky on a clear day": "blue",
                 "coal": "black", "chocolate": "brown", "a lemon": "yellow", "blood": "red", "milk": "white", "a frog": "green", "a fire engine": "red",
                 "a strawberry": "red", "a pumpkin": "orange", "the sun": "yellow", "a leaf in spring": "green", "a cucumber": "green",
                 "an elephant": "grey", "a crow": "black", "a swan": "white", "a pig": "pink", "a plum": "purple", "sugar": "white",
                 "a flamingo": "pink", "a pea": "green", "a cherry": "red", "salt": "white", "corn": "yellow", "a polar bear": "white",
                 "a ripe orange": "orange", "a mouse": "grey", "soil": "brown", "the sea": "blue", "the night sky": "black"}
MIXES = {("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple", ("black", "white"): "grey", ("red", "white"): "pink"}
COLOUR_WAYS = ["What colour is {t}?", "Which colour is {t}?", "Tell me the colour of {t}.", "What is the colour of {t}?", "What colour does {t} have?",
               "Do you know the colour of {t}?", "Can you tell me what colour {t} is?", "The colour of {t}, please."]
MIX_WAYS = ["What do you get when you mix {x} and {y}?", "What colour do {x} and {y} make?", "I mix {x} and {y}. Which colour is that?",
            "Mix {x} and {y}. What colour is it?", "Which colour do you get from {x} and {y}?", "What is {x} mixed with {y}?",
            "If you mix {x} with {y}, what do you get?", "What do {x} paint and {y} paint make?"]

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
SEASONS = "spring summer autumn winter".split()
NEXT_WAYS = ["What comes after {x}?", "Which {unit} comes after {x}?", "What {unit} comes after {x}?", "Which {unit} follows {x}?",
             "Tell me the {unit} after {x}.", "What is the {unit} after {x}?", "What is the next {unit} after {x}?", "After {x} comes which {unit}?"]
BEFORE_WAYS = ["What comes before {x}?", "Which {unit} comes before {x}?", "What {unit} comes before {x}?", "Tell me the {unit} before {x}.",
               "What is the {unit} before {x}?", "Which {unit} is right before {x}?", "Name the {unit} before {x}.", "Before {x} comes which {unit}?"]
CALENDAR = [
    (["How many days are in a week?", "How many days does a week have?", "A week has how many days?"], "A week has seven days."),
    (["How many months are in a year?", "How many months does a year have?", "A year has how many months?"], "A year has twelve months."),
    (["How many seasons are there?", "How many seasons does a year have?", "A year has how many seasons?"], "There are four seasons."),
    (["Name the four seasons.", "What are the seasons?", "Tell me the seasons.", "List the four seasons."], "Spring, summer, autumn and winter."),
    (["Name the days of the week.", "What are the days of the week?", "List the days of the week.", "Tell me all days of the week."],
     "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    (["Name the months of the year.", "List the months.", "What are the months of the year?"],
     "January, February, March, April, May, June, July, August, September, October, November and December."),
    (["What is the first day of the week?", "Which day is the first of the week?", "With which day does the week begin?"], "The first day of the week is Monday."),
    (["What is the last day of the week?", "Which day is the last of the week?"], "The last day of the week is Sunday."),
    (["What is the first month of the year?", "Which month is the first?", "With which month does the year begin?"], "The first month of the year is January."),
    (["What is the last month of the year?", "Which month is the last?", "With which month does the year end?"], "The last month of the year is December."),
    (["Which season is the coldest?", "What is the coldest season?", "When is it coldest?"], "Winter is the coldest season."),
    (["Which season is the warmest?", "What is the warmest season?", "When is it warmest?"], "Summer is the warmest season."),
    (["When do leaves fall from the trees?", "In which season do leaves fall?"], "Leaves fall in autumn."),
    (["When do flowers begin to grow?", "In which season do flowers begin to grow?"], "Flowers begin to grow in spring."),
    (["When does it snow?", "In which season does it snow?"], "It snows in winter."),
    (["How many hours does a day have?", "How many hours are in a day?"], "A day has twenty-four hours."),
]

SOUNDS = {"cat": "meow", "dog": "woof", "cow": "moo", "sheep": "baa", "duck": "quack", "pig": "oink", "horse": "neigh", "frog": "ribbit",
          "lion": "roar", "bee": "buzz", "mouse": "squeak", "rooster": "cock-a-doodle-doo", "owl": "hoot", "snake": "hiss", "donkey": "hee-haw",
          "wolf": "howl", "crow": "caw", "goose": "honk", "bird": "tweet", "chick": "cheep"}
YOUNG = {"cat": "kitten", "dog": "puppy", "cow": "calf", "sheep": "lamb", "duck": "duckling", "pig": "piglet", "horse": "foal", "frog": "tadpole",
         "lion": "cub", "bear": "cub", "goat": "kid", "hen": "chick", "goose": "gosling", "deer": "fawn", "swan": "cygnet", "kangaroo": "joey",
         "fox": "cub", "elephant": "calf", "owl": "owlet", "butterfly": "caterpillar"}
LEGS = {"cat": "four", "dog": "four", "cow": "four", "sheep": "four", "duck": "two", "pig": "four", "horse": "four", "frog": "four", "lion": "four",
        "bee": "six", "mouse": "four", "owl": "two", "snake": "no", "spider": "eight", "ant": "six", "fish": "no", "bird": "two", "beetle": "six",
        "worm": "no", "hen": "two", "elephant": "four", "butterfly": "six", "goat": "four", "penguin": "two", "fly": "six", "bear": "four"}
HOME = {"fish": "in the water", "bird": "in a nest", "bee": "in a hive", "cow": "on a farm", "fox": "in a den", "spider": "in a web", "horse": "in a stable",
        "lion": "in hot lands", "penguin": "in cold lands", "whale": "in the sea", "shark": "in the sea", "frog": "by a pond", "mole": "under the ground",
        "worm": "in the ground", "monkey": "in trees", "squirrel": "in trees", "rabbit": "in a burrow", "camel": "in the desert", "pig": "on a farm",
        "polar bear": "in cold lands", "owl": "in trees", "crab": "by the sea", "sheep": "on a farm", "dolphin": "in the sea", "hen": "on a farm"}
CAN = {"fly": ("bird bee owl butterfly crow eagle bat fly duck goose swan wasp parrot", "fish cat dog cow horse elephant snake penguin pig lion rabbit spider worm frog whale"),
       "swim": ("fish duck frog whale shark dolphin penguin swan otter crab turtle goose", "hen butterfly bee sparrow spider ant crow fly"),
       "climb trees": ("cat squirrel monkey bear", "fish cow whale duck horse sheep elephant pig"),
       "lay eggs": ("hen duck bird frog turtle snake goose crow owl", "cat dog cow horse sheep pig lion bear rabbit")}
ANIMAL_WAYS = {
    "sound": ["What sound does {x} make?", "What does {x} say?", "Which sound does {x} make?", "How does {x} sound?", "Tell me the sound of {x}.",
              "What noise does {x} make?", "Can you make the sound of {x}?", "What do you hear from {x}?"],
    "young": ["What is a baby {n} called?", "What is a young {n} called?", "What do you call a baby {n}?", "What do you call a young {n}?",
              "What is the young of {x} called?", "Tell me the name of a baby {n}.", "How do you call a baby {n}?", "A baby {n} is called what?"],
    "legs": ["How many legs does {x} have?", "How many legs has {x}?", "Tell me how many legs {x} has.", "Count the legs of {x}.", "{X} has how many legs?",
             "How many legs are there on {x}?", "Do you know how many legs {x} has?", "What number of legs does {x} have?"],
    "home": ["Where does {x} live?", "Where can you find {x}?", "Where is the home of {x}?", "Tell me where {x} lives.", "In what place does {x} live?",
             "Do you know where {x} lives?", "Where do you see {x}?", "What is the home of {x}?"],
    "can": ["Can {x} {v}?", "Is {x} able to {v}?", "Do you know if {x} can {v}?", "Tell me, can {x} {v}?", "Could {x} {v}?", "Can {x} {v}? Yes or no?",
            "Is it true that {x} can {v}?", "I wonder: can {x} {v}?"],
}

SIDES = {"triangle": "three", "square": "four", "rectangle": "four", "pentagon": "five", "hexagon": "six", "octagon": "eight", "circle": "no"}
USES = [  # (the thing's use, the thing, the sentence)
    ("cut paper with", "scissors", "You cut paper with scissors."), ("write with", "a pencil", "You write with a pencil."),
    ("eat soup with", "a spoon", "You eat soup with a spoon."), ("cut bread with", "a knife", "You cut bread with a knife."),
    ("sleep in", "a bed", "You sleep in a bed."), ("sit on", "a chair", "You sit on a chair."), ("open a door with", "a key", "You open a door with a key."),
    ("sweep the floor with", "a broom", "You sweep the floor with a broom."), ("brush your teeth with", "a toothbrush", "You brush your teeth with a toothbrush."),
    ("wash your hands with", "soap", "You wash your hands with soap."), ("dry your hands with", "a towel", "You dry your hands with a towel."),
    ("dig a hole with", "a shovel", "You dig a hole with a shovel."), ("hit a nail with", "a hammer", "You hit a nail with a hammer."),
    ("drink tea from", "a cup", "You drink tea from a cup."), ("wear on your feet", "shoes", "You wear shoes on your feet."),
    ("wear on your head", "a hat", "You wear a hat on your head."), ("wear on your hands", "gloves", "You wear gloves on your hands."),
    ("read", "a book", "You read a book."), ("use when it rains", "an umbrella", "You use an umbrella when it rains."),
    ("comb your hair with", "a comb", "You comb your hair with a comb."), ("paint with", "a brush", "You paint with a brush."),
    ("catch fish with", "a net", "You catch fish with a net."), ("look at to see the time", "a clock", "You look at a clock to see the time."),
    ("see with", "your eyes", "You see with your eyes."), ("hear with", "your ears", "You hear with your ears."), ("smell with", "your nose", "You smell with your nose."),
    ("taste with", "your tongue", "You taste with your tongue."), ("walk with", "your legs", "You walk with your legs."), ("bite with", "your teeth", "You bite with your teeth."),
    ("hold things with", "your hands", "You hold things with your hands."), ("think with", "your brain", "You think with your brain."),
    ("kick a ball with", "your foot", "You kick a ball with your foot."),
]
USE_WAYS = ["What do you {u}?", "What do we {u}?", "What can you {u}?", "What do people {u}?", "Tell me what you {u}.", "Tell me: what do you {u}?",
            "Do you know what people {u}?", "What is the thing that you {u}?"]
SIDE_WAYS = ["How many sides does {x} have?", "How many sides has {x}?", "{X} has how many sides?", "Tell me how many sides {x} has.", "Count the sides of {x}.",
             "Do you know how many sides {x} has?", "What number of sides does {x} have?", "How many sides are there in {x}?"]
PLAIN = [
    (["How many fingers does a hand have?", "How many fingers are on one hand?", "Count the fingers of one hand."], "A hand has five fingers."),
    (["How many eyes do people have?", "How many eyes do you see on a face?", "How many eyes has a person?"], "People have two eyes."),
    (["How many wheels does a bike have?", "How many wheels has a bike?", "A bike has how many wheels?"], "A bike has two wheels."),
    (["How many wheels does a car have?", "How many wheels has a car?", "A car has how many wheels?"], "A car has four wheels."),
    (["What is ice made of?", "What is ice?", "From what do you get ice?"], "Ice is frozen water."),
    (["Where does milk come from?", "Who gives us milk?", "Which animal gives us milk?"], "Milk comes from cows."),
    (["Where do eggs come from?", "Who gives us eggs?", "Which bird gives us eggs?"], "Eggs come from hens."),
    (["Who makes honey?", "Which animal makes honey?", "Where does honey come from?"], "Bees make honey."),
    (["What do plants need to grow?", "What does a plant need?", "What makes plants grow?"], "Plants need water and light."),
    (["Where does the sun rise?", "In which direction does the sun rise?"], "The sun rises in the east."),
    (["Where does the sun set?", "In which direction does the sun set?"], "The sun sets in the west."),
    (["What shines at night?", "What do you see in the sky at night?"], "The moon and the stars shine at night."),
    (["What shines in the day?", "What gives us light in the day?"], "The sun shines in the day."),
    (["What falls from clouds?", "What comes out of the clouds?"], "Rain falls from clouds."),
    (["What do cows eat?", "What does a cow eat?", "What food do cows like?"], "Cows eat grass."),
    (["What do rabbits eat?", "What does a rabbit eat?", "What food do rabbits like?"], "Rabbits eat carrots and grass."),
    (["What do monkeys eat?", "What does a monkey eat?", "What food do monkeys like?"], "Monkeys eat bananas."),
    (["What does a baker make?", "What do you buy from a baker?", "What is the work of a baker?"], "A baker makes bread."),
    (["Who helps sick people?", "Who makes sick people well?", "Who do you see when you are ill?"], "A doctor helps sick people."),
    (["Who puts out fires?", "Who do you call when there is a fire?", "Who stops a fire?"], "Firefighters put out fires."),
    (["Who teaches children?", "Who works in a school?", "Who helps you learn to read?"], "A teacher teaches children."),
    (["Where do you buy bread?", "Where can I get bread?", "Where do people buy bread?"], "You buy bread in a bakery."),
    (["Where do you find many books?", "Where can I borrow a book?", "Where do people borrow books?"], "You find many books in a library."),
    (["What is bread made of?", "What do you need to make bread?"], "Bread is made of flour and water."),
    (["What is a window made of?", "What are windows made of?"], "A window is made of glass."),
]

CATEGORIES = {
    "fruit": "apple banana pear plum cherry orange lemon peach grape mango".split(),
    "vegetable": "carrot potato onion cabbage pea bean cucumber leek".split(),
    "animal": "dog cat cow horse lion rabbit sheep mouse bear goat".split(),
    "bird": "crow owl eagle duck swan parrot robin goose".split(),
    "colour": "red blue green yellow black white brown pink".split(),
    "drink": "water milk tea juice coffee lemonade".split(),
    "toy": "doll ball kite puzzle teddy top".split(),
    "tool": "hammer saw shovel rake drill axe".split(),
    "flower": "rose tulip daisy lily sunflower violet".split(),
    "insect": "ant bee beetle fly wasp butterfly".split(),
    "shape": "circle square triangle rectangle star oval".split(),
    "vehicle": "car bus train truck boat bike".split(),
}
MASS = set("water milk tea juice coffee lemonade".split()) | set(CATEGORIES["colour"])
EITHER_WAYS = ["Is {x} {p} or {q}?", "What is {x}: {p} or {q}?", "Tell me: is {x} {p} or {q}?", "{X}: {p} or {q}?", "Would you call {x} {p} or {q}?",
               "Do you think {x} is {p} or {q}?", "Is {x} more like {p} or {q}?", "Which one is {x}, {p} or {q}?"]
IS_WAYS = ["Is {x} {p}?", "Tell me, is {x} {p}?", "Do you think {x} is {p}?", "Is it true that {x} is {p}?", "Would you call {x} {p}?", "Can you say that {x} is {p}?",
           "I wonder: is {x} {p}?", "Is {x} {p}, yes or no?"]
KIND_WAYS = ["What is {x}?", "What kind of thing is {x}?", "Tell me what {x} is.", "What sort of thing is {x}?", "Can you tell me what {x} is?", "Do you know what {x} is?",
             "What would you call {x}?", "Say what {x} is."]
NAME_WAYS = ["Name three {c}.", "Tell me three {c}.", "Give me three {c}.", "Can you name three {c}?", "What are three {c}?", "Say three {c}.",
             "Please name three {c}.", "Do you know three {c}?"]


def plural(noun):
    """The plural of a category's name."""
    return noun + "s"


def _member(word):
    return word if word in MASS else a(word)


def opposite(rng):
    """The opposite of a word."""
    word = rng.choice(list(ASK_OPPOSITE))
    asked = rng.choice(OPPOSITE_WAYS).format(w=word, W=cap(word))
    return asked, f"The opposite of {word} is {ASK_OPPOSITE[word]}."


def colour(rng):
    """The colour of a thing, or of a mix of two colours."""
    if rng.random() < 0.3:
        pair = rng.choice(list(MIXES))
        x, y = rng.sample(pair, 2)
        return rng.choice(MIX_WAYS).format(x=x, y=y), f"{cap(x)} and {y} make {MIXES[pair]}."
    thing = rng.choice(list(THING_COLOURS))
    return rng.choice(COLOUR_WAYS).format(t=thing), f"{cap(thing)} is {THING_COLOURS[thing]}."


def calendar(rng):
    """Days, months and seasons: the next, the previous, how many."""
    if rng.random() < 0.2:
        ways, answer = rng.choice(CALENDAR)
        return rng.choice(ways), answer
    unit, table = rng.choice([("day", DAYS), ("month", MONTHS), ("month", MONTHS), ("day", DAYS), ("season", SEASONS)])
    at = rng.randrange(len(table))
    if rng.random() < 0.55:
        return rng.choice(NEXT_WAYS).format(x=table[at], unit=unit), f"{cap(table[(at + 1) % len(table)])} comes after {table[at]}."
    return rng.choice(BEFORE_WAYS).format(x=table[at], unit=unit), f"{cap(table[at - 1])} comes before {table[at]}."


def animal(rng):
    """Sounds, young, legs, homes and what an animal can do."""
    what = rng.choice(["sound", "young", "legs", "home", "can"])
    way = rng.choice(ANIMAL_WAYS[what])
    if what == "can":
        verb = rng.choice(list(CAN))
        able = rng.random() < 0.5
        name = rng.choice(CAN[verb][0 if able else 1].split())
        x = a(name)
        answer = f"Yes, {x} can {verb}." if able else f"No, {x} cannot {verb}."
        return way.format(x=x, v=verb), answer
    table = {"sound": SOUNDS, "young": YOUNG, "legs": LEGS, "home": HOME}[what]
    name = rng.choice(list(table))
    x, value = a(name), table[name]
    answer = {"sound": f"{cap(x)} says {value}.", "young": f"A baby {name} is called {a(value)}.",
              "legs": f"{cap(x)} has {value} legs.", "home": f"{cap(x)} lives {value}."}[what]
    return way.format(x=x, X=cap(x), n=name), answer


def fact(rng):
    """What things are for, shapes' sides, and other simple facts."""
    pick = rng.random()
    if pick < 0.15:
        shape = rng.choice(list(SIDES))
        return rng.choice(SIDE_WAYS).format(x=a(shape), X=cap(a(shape))), f"{cap(a(shape))} has {SIDES[shape]} sides."
    if pick < 0.5:
        use, _, answer = rng.choice(USES)
        return rng.choice(USE_WAYS).format(u=use), answer
    ways, answer = rng.choice(PLAIN)
    return rng.choice(ways), answer


def category(rng):
    """What kind of thing something is, and things of a kind."""
    kind = rng.choice(list(CATEGORIES))
    word = rng.choice(CATEGORIES[kind])
    x = _member(word)
    pick = rng.random()
    if pick < 0.2:
        three = rng.sample(CATEGORIES[kind], 3)
        return rng.choice(NAME_WAYS).format(c=plural(kind)), cap(f"{_list(three)}.")
    if pick < 0.5:
        other = _unlike(rng, kind)
        p, q = (a(kind), a(other)) if rng.random() < 0.5 else (a(other), a(kind))
        return rng.choice(EITHER_WAYS).format(x=x, X=cap(x), p=p, q=q), f"{cap(x)} is {a(kind)}."
    if pick < 0.8:
        if rng.random() < 0.5:
            return rng.choice(IS_WAYS).format(x=x, p=a(kind)), f"Yes, {x} is {a(kind)}."
        other = _unlike(rng, kind)
        return rng.choice(IS_WAYS).format(x=x, p=a(other)), f"No, {x} is {a(kind)}."
    return rng.choice(KIND_WAYS).format(x=x), f"{cap(x)} is {a(kind)}."


def _list(words):
    return ", ".join(words[:-1]) + " and " + words[-1]


def _unlike(rng, kind):
    """Another category that a thing of this kind is certainly not in."""
    near = {"animal": ("bird", "insect"), "bird": ("animal",), "insect": ("animal",)}
    return rng.choice([c for c in CATEGORIES if c != kind and c not in near.get(kind, ())])
