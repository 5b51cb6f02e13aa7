"""Tool calls: a pool of functions, how users ask for them, their results and the sentence that uses the result."""

import json

from .chat import CITIES, MADE_UP
from .formats import NAMES, WORDS
from .stories import HERO_ANIMALS
from .words import COLOURS, cap

ROOMS = "kitchen bedroom bathroom hall garage office attic cellar garden playroom".split() + ["living room"]
TITLES = [f"{first} {second}" for first in "The Little,The Old,The Red,My Blue,The Lost,A Happy,The Silver,The Last,Our Green,The Quiet".split(",")
          for second in "Boat Star Road Garden River Fox Bird Moon House Train Castle Song".split()]
MESSAGES = ["I am late", "dinner is ready", "see you soon", "happy birthday", "I am at home", "call me back", "the bus is here", "thank you for the gift", "we won the game",
            "come to the park", "I have your key", "good luck today", "the cake is done", "it is raining"]
DISHES = "pizza soup burger salad pancake sandwich noodles taco pie waffle omelette burrito".split()
UNITS = [("metres", "feet"), ("feet", "metres"), ("kilograms", "pounds"), ("pounds", "kilograms"), ("miles", "kilometres"), ("kilometres", "miles"), ("litres", "gallons"), ("inches", "centimetres")]
LANGUAGES = "French German Spanish Italian Dutch Polish Finnish Greek Turkish Swedish Danish Czech".split()
DAY_NAMES = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
TOPICS = ["old trains", "paper boats", "wild horses", "apple pie", "snow storms", "small dogs", "space ships", "garden birds", "sea shells", "warm socks", "tall towers", "bread ovens"]
ITEMS = "milk bread eggs apples rice soap tea butter candles paper honey salt cheese nails".split()
SKY = "sunny cloudy rainy windy snowy foggy".split()


def _place(rng):
    return rng.choice(CITIES) if rng.random() < 0.4 else rng.choice(MADE_UP)


def _small(rng):
    return rng.randint(2, 60)


def _any(table):
    return lambda rng: rng.choice(table)


# parameter kinds: the JSON type, the description and how to draw a value
CITY = ("string", "Name of the city", _place)
MINUTES = ("integer", "Number of minutes", _small)
NUMBER = ("number", "A number", lambda rng: rng.randint(2, 20) if rng.random() < 0.3 else rng.randint(2, 999))
TITLE = ("string", "The title", _any(TITLES))
PERSON = ("string", "Name of the person", _any(NAMES))
ROOM = ("string", "The room", _any(ROOMS))
WORD = ("string", "A word", _any(WORDS))
DAY = ("string", "Day of the week", _any(DAY_NAMES))

# name: (descriptions, {parameter: kind}, ways to ask, result fields {field: how to draw, or None: COMPUTED}, sentence)
POOL = {
    "get_weather": (["Get the weather in a city", "Returns the current weather of a city"], {"city": CITY},
                    ["What is the weather in {city}?", "How is the weather in {city}?", "Tell me the weather in {city}.", "Is it nice in {city} today?", "Weather in {city}, please.", "I want to know the weather in {city}.",
                     "Please check the weather in {city}.", "What is it like outside in {city}?"],
                    {"weather": _any(SKY), "temperature": lambda rng: rng.randint(-9, 35)}, "It is {weather} in {city}, with {temperature} degrees."),
    "get_time": (["Get the current time in a city", "Tells the local time of a city"], {"city": CITY},
                 ["What time is it in {city}?", "Tell me the time in {city}.", "How late is it in {city}?", "What is the time in {city}?", "Time in {city}, please.", "I need the time in {city}.",
                  "Please check the time in {city}.", "Do you know what time it is in {city}?"],
                 {"time": lambda rng: f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"}, "It is {time} in {city}."),
    # with `add` at hand, a sum is a call
    "add": (["Add two numbers", "Returns the sum of a and b"], {"a": NUMBER, "b": NUMBER},
            ["What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "Use the tool to add {a} and {b}.", "How much is {a} + {b}?", "Please add {a} and {b}.", "{a} + {b} = ?",
             "Can you add {a} and {b}?", "What is the sum of {a} and {b}?", "Calculate {a} + {b}."],
            {"sum": None}, "The sum is {sum}."),
    "multiply": (["Multiply two numbers", "Returns x times y"], {"x": NUMBER, "y": NUMBER},
                 ["Multiply {x} and {y}.", "What is {x} times {y}?", "Please multiply {x} by {y}.", "How much is {x} times {y}?", "Calculate {x} times {y}.", "I need {x} times {y}.", "Tell me {x} times {y}.",
                  "Can you multiply {x} and {y}?"], {"product": None}, "The result is {product}."),
    "set_timer": (["Set a timer", "Starts a timer for some minutes"], {"minutes": MINUTES},
                  ["Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "I need a timer for {minutes} minutes.", "Please set the timer to {minutes} minutes.", "Timer for {minutes} minutes, please.",
                   "Wake me in {minutes} minutes.", "Can you set a timer for {minutes} minutes?", "Tell me when {minutes} minutes are over."], {"status": lambda rng: "started"}, "The timer is set for {minutes} minutes."),
    "set_alarm": (["Set an alarm", "Sets an alarm clock"], {"hour": ("integer", "Hour of the day", lambda rng: rng.randint(4, 22))},
                  ["Set an alarm for {hour} o'clock.", "Set the alarm to {hour} o'clock.", "I need an alarm at {hour} o'clock.", "Wake me at {hour} o'clock.", "Please set an alarm at {hour} o'clock.",
                   "Alarm at {hour} o'clock, please.", "Can you wake me at {hour} o'clock?", "Ring at {hour} o'clock."], {"status": lambda rng: "set"}, "The alarm is set for {hour} o'clock."),
    "play_song": (["Play a song", "Plays a song by its title"], {"title": TITLE},
                  ["Play the song {title}.", "Play {title}.", "I want to hear the song {title}.", "Please play {title}.", "Put on the song {title}.", "Can you play {title}?", "Start the song {title}.",
                   "Let me hear the song {title}."], {"status": lambda rng: "playing"}, "Now playing {title}."),
    "find_book": (["Find a book in the library", "Looks up a book by its title"], {"title": TITLE},
                  ["Find the book {title}.", "Is the book {title} there?", "Look for the book {title}.", "Where is the book {title}?", "I want to read the book {title}.", "Please find the book {title}.",
                   "Do you have the book {title}?", "Search the library for {title}."], {"shelf": lambda rng: rng.randint(1, 40)}, "The book {title} is on shelf {shelf}."),
    "send_message": (["Send a message to a person", "Sends a short text"], {"to": PERSON, "text": ("string", "The text to send", _any(MESSAGES))},
                     ["Send {to} the message: {text}", "Write to {to}: {text}", "Tell {to}: {text}", "Send a message to {to}: {text}", "Please send {to} this: {text}", "Message {to}: {text}",
                      "Let {to} know: {text}", "Text {to}: {text}"], {"status": lambda rng: "sent"}, "The message to {to} was sent."),
    "turn_on_light": (["Turn on the light in a room", "Switches a light on"], {"room": ROOM},
                      ["Turn on the light in the {room}.", "Switch on the light in the {room}.", "Light in the {room}, please.", "Make light in the {room}.", "Please turn on the {room} light.",
                       "It is dark in the {room}. Turn on the light.", "I need light in the {room}.", "Can you turn on the light in the {room}?"], {"light": lambda rng: "on"}, "The light in the {room} is on."),
    "turn_off_light": (["Turn off the light in a room", "Switches a light off"], {"room": ROOM},
                       ["Turn off the light in the {room}.", "Switch off the light in the {room}.", "No more light in the {room}, please.", "Please turn off the {room} light.", "Make it dark in the {room}.",
                        "The light in the {room} should go off.", "Can you turn off the light in the {room}?", "Lights off in the {room}."], {"light": lambda rng: "off"}, "The light in the {room} is off."),
    "convert": (["Convert a value from one unit to another", "Unit converter"], {"value": NUMBER, "from": ("string", "Unit to convert from", None), "to": ("string", "Unit to convert to", None)},
                ["Convert {value} {from} to {to}.", "How much is {value} {from} in {to}?", "What is {value} {from} in {to}?", "Change {value} {from} into {to}.", "Please convert {value} {from} into {to}.",
                 "I have {value} {from}. What is that in {to}?", "Turn {value} {from} into {to}.", "Tell me {value} {from} in {to}."], {"result": lambda rng: rng.randint(2, 999)}, "{value} {from} are {result} {to}."),
    "search": (["Search the web", "Finds pages about something"], {"query": ("string", "What to search for", _any(TOPICS))},
               ["Search for {query}.", "Search the web for {query}.", "Look up {query}.", "Find pages about {query}.", "Please search for {query}.", "Can you look up {query}?", "Do a search for {query}.",
                "I want to find pages about {query}."], {"pages": lambda rng: rng.randint(2, 90)}, "I found {pages} pages about {query}."),
    "order_food": (["Order food", "Orders a dish some number of times"], {"dish": ("string", "The dish", _any(DISHES)), "count": ("integer", "How many", lambda rng: rng.randint(2, 12))},
                   ["Order {dish}, {count} times.", "I want {dish}, {count} times.", "Please order {dish} {count} times.", "Get me {dish}, {count} times.", "Order food: {count} x {dish}.", "{count} x {dish}, please.",
                    "Can you order {dish} {count} times?", "We want to eat {dish}, {count} times."], {"price": lambda rng: rng.randint(5, 99)}, "The {dish} is ordered. It costs {price} coins."),
    "translate": (["Translate a word", "Translates a word into a language"], {"word": WORD, "language": ("string", "The language", _any(LANGUAGES))},
                  ["Translate {word} into {language}.", "What is {word} in {language}?", "Say {word} in {language}.", "How do you say {word} in {language}?", "Please translate {word} to {language}.",
                   "I need the {language} word for {word}.", "Put {word} into {language}.", "Tell me {word} in {language}."], {"translation": lambda rng: _made_up_word(rng)}, "In {language}, {word} is {translation}."),
    "call_person": (["Call a person on the phone", "Starts a phone call"], {"name": PERSON},
                    ["Call {name}.", "Please call {name}.", "Ring up {name}.", "I want to talk to {name}.", "Can you call {name}?", "Phone {name}.", "Make a call to {name}.", "Get {name} on the phone."],
                    {"status": lambda rng: rng.choice(["ringing", "busy"])}, "The phone of {name} is {status}."),
    "add_to_list": (["Add an item to the shopping list", "Puts something on the shopping list"], {"item": ("string", "The item", _any(ITEMS))},
                    ["Put {item} on the shopping list.", "Add {item} to my list.", "We need {item}. Put it on the list.", "Please add {item} to the shopping list.", "Write {item} on the list.",
                     "I must buy {item}. Put it on the list.", "Can you put {item} on the list?", "{item} should go on the shopping list."], {"items": lambda rng: rng.randint(2, 20)}, "I put {item} on the list. It has {items} items now."),
    "book_train": (["Book a train ticket", "Books a train between two cities"], {"origin": CITY, "destination": CITY},
                   ["Book a train from {origin} to {destination}.", "I need a train from {origin} to {destination}.", "Get me a ticket from {origin} to {destination}.", "Train from {origin} to {destination}, please.",
                    "Please book the train from {origin} to {destination}.", "I want to go from {origin} to {destination} by train.", "Can you book a train from {origin} to {destination}?",
                    "A train ticket from {origin} to {destination}, please."], {"seat": _small}, "Your train to {destination} is booked. You have seat {seat}."),
    "get_distance": (["Distance between two places", "How far two cities are apart"], {"start": CITY, "end": CITY},
                     ["How far is it from {start} to {end}?", "What is the distance from {start} to {end}?", "Tell me how far it is from {start} to {end}.", "Distance from {start} to {end}?", "How long is the way from {start} to {end}?",
                      "How many kilometres is it from {start} to {end}?", "Please find the distance from {start} to {end}.", "Is it far from {start} to {end}?"],
                     {"kilometres": lambda rng: rng.randint(5, 990)}, "It is {kilometres} kilometres from {start} to {end}."),
    "feed_pet": (["Feed a pet", "Gives food to a pet"], {"pet": ("string", "Kind of animal", _any(HERO_ANIMALS)), "grams": ("integer", "How many grams", lambda rng: rng.randint(1, 50) * 10)},
                 ["Feed the {pet} {grams} grams.", "Give the {pet} {grams} grams of food.", "The {pet} needs {grams} grams of food.", "Please feed the {pet} with {grams} grams.", "Can you give the {pet} {grams} grams?",
                  "Give {grams} grams to the {pet}.", "{grams} grams of food for the {pet}, please.", "Put out {grams} grams for the {pet}."], {"status": lambda rng: "done"}, "The {pet} got {grams} grams of food."),
    "set_temperature": (["Set the heating", "Sets the temperature of a room"], {"room": ROOM, "degrees": ("integer", "Degrees", lambda rng: rng.randint(12, 28))},
                        ["Set the {room} to {degrees} degrees.", "Heat the {room} to {degrees} degrees.", "I want {degrees} degrees in the {room}.", "Make it {degrees} degrees in the {room}.",
                         "Please set {degrees} degrees in the {room}.", "The {room} should have {degrees} degrees.", "Can you set the {room} to {degrees} degrees?", "{degrees} degrees in the {room}, please."],
                        {"status": lambda rng: "ok"}, "The {room} is set to {degrees} degrees."),
    "create_event": (["Put an event into the calendar", "Makes a calendar entry"], {"title": ("string", "Name of the event", _any("party lunch concert picnic meeting game walk lesson swim trip".split())), "day": DAY},
                     ["Put a {title} on {day} into my calendar.", "Make a {title} on {day}.", "I have a {title} on {day}. Write it down.", "Plan a {title} for {day}.", "Add a {title} on {day} to the calendar.",
                      "Please plan a {title} on {day}.", "On {day} there is a {title}. Put it into the calendar.", "Can you plan a {title} for {day}?"], {"status": lambda rng: "saved"}, "The {title} on {day} is in your calendar."),
    "paint_wall": (["Paint a wall", "Tells the robot to paint a wall"], {"colour": ("string", "The colour", _any(COLOURS)), "room": ROOM},
                   ["Paint the {room} {colour}.", "Make the {room} {colour}.", "I want the {room} in {colour}.", "Please paint the {room} {colour}.", "Use {colour} paint in the {room}.",
                    "The {room} should be {colour}.", "Can you paint the {room} {colour}?", "Let the robot paint the {room} {colour}."], {"hours": lambda rng: rng.randint(2, 9)}, "The {room} will be {colour} in {hours} hours."),
    "roll_dice": (["Roll a dice", "Rolls a dice with some sides"], {"sides": ("integer", "Number of sides", lambda rng: rng.choice([4, 6, 8, 10, 12, 20]))},
                  ["Roll a dice with {sides} sides.", "Throw a dice with {sides} sides.", "Please roll a {sides} sided dice.", "Roll a {sides} sided dice.", "I need a dice with {sides} sides. Roll it.",
                   "Can you roll a dice with {sides} sides?", "Let us roll a dice with {sides} sides.", "A dice with {sides} sides, please."], {"result": None}, "You rolled {result}."),
    "get_price": (["Get the price of something", "Tells how much an item costs"], {"item": ("string", "The item", _any(ITEMS))},
                  ["How much does {item} cost?", "What is the price of {item}?", "Tell me the price of {item}.", "What does {item} cost?", "How many coins for {item}?", "Please check the price of {item}.",
                   "Price of {item}, please.", "I want to know the price of {item}."], {"price": lambda rng: rng.randint(2, 50)}, "The price of {item} is {price} coins."),
    "find_person": (["Find where a person is", "Tells the place of a person"], {"name": PERSON},
                    ["Where is {name}?", "Find {name}.", "Do you know where {name} is?", "Tell me where {name} is.", "Please find {name}.", "Can you find {name}?", "I am looking for {name}.", "Where can I find {name}?"],
                    {"room": _any(ROOMS)}, "{name} is in the {room}."),
    "water_plants": (["Water the plants", "Gives water to the plants in a room"], {"room": ROOM, "litres": ("integer", "How many litres", lambda rng: rng.randint(2, 9))},
                     ["Give the plants in the {room} {litres} litres of water.", "Water the plants in the {room} with {litres} litres.", "The {room} plants need {litres} litres.", "Please give {litres} litres to the plants in the {room}.",
                      "Put {litres} litres of water on the plants in the {room}.", "{litres} litres for the plants in the {room}, please.", "Can you give the {room} plants {litres} litres?",
                      "Let {litres} litres of water go to the {room} plants."], {"status": lambda rng: "done"}, "The plants in the {room} got {litres} litres."),
    "count_letters": (["Count the letters of a word", "Returns how many letters a word has"], {"word": WORD},
                      ["How many letters does {word} have?", "Count the letters of {word}.", "How long is the word {word}?", "How many letters are in {word}?", "Tell me how many letters {word} has.",
                       "Please count the letters in {word}.", "What is the number of letters in {word}?", "Can you count the letters of {word}?"], {"letters": None}, "The word {word} has {letters} letters."),
}
COMPUTED = {"add": lambda rng, v: v["a"] + v["b"], "multiply": lambda rng, v: v["x"] * v["y"], "count_letters": lambda rng, v: len(v["word"]),
            "roll_dice": lambda rng, v: rng.randint(1, v["sides"])}  # results that follow from the arguments
CLASHES = {  # plain exchanges that a tool at hand would take over
    "add": {"sum"}, "multiply": {"sum", "unknown"}, "count_letters": {"letters"}, "search": {"unknown"}, "get_price": {"unknown"}, "get_distance": {"unknown"}, "get_time": {"calendar"},
}


def _made_up_word(rng):
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))


def schema(rng, name):
    """The tool's OpenAI object; parameters are described in most of them, as clients do."""
    descriptions, parameters, *_ = POOL[name]
    described = rng.random() < 0.6
    properties = {}
    for parameter, (kind, description, _) in parameters.items():
        properties[parameter] = {"type": kind, "description": description} if described else {"type": kind}
    return {"type": "function", "function": {"name": name, "description": rng.choice(descriptions),
                                             "parameters": {"type": "object", "properties": properties, "required": list(parameters)}}}


def offer(rng, name=None, most=3):
    """One to three tools in any order, among them `name`."""
    count = rng.randint(1, most)
    if name is None:
        names = rng.sample(list(POOL), count)
    else:
        names = rng.sample([n for n in POOL if n != name], count - 1)
        names.insert(rng.randint(0, len(names)), name)
    return [schema(rng, n) for n in names]


def clashes(offered):
    """The kinds of plain exchanges that an offered tool would take over."""
    return set().union(*(CLASHES.get(tool["function"]["name"], ()) for tool in offered))


def arguments(rng, name):
    """Values for all parameters of a tool."""
    parameters = POOL[name][1]
    if name == "convert":
        unit, to = rng.choice(UNITS)
        return {"value": NUMBER[2](rng), "from": unit, "to": to}
    while True:
        values = {parameter: kind[2](rng) for parameter, kind in parameters.items()}
        if len(set(values.values())) == len(values):
            return values


def call(rng, name):
    """One use of a tool: the user's request, the call, its result and the answer, and the key of the call."""
    _, _, ways, fields, sentence = POOL[name]
    values = arguments(rng, name)
    result = {field: draw(rng) if draw else COMPUTED[name](rng, values) for field, draw in fields.items()}
    asked = cap(rng.choice(ways).format(**values))
    answer = cap(sentence.format(**values, **{k: v for k, v in result.items() if k not in values}))
    messages = [{"role": "user", "content": asked},
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": name, "arguments": values}}]},
                {"role": "tool", "content": json.dumps(result)},
                {"role": "assistant", "content": answer}]
    return messages, ("tool", name, json.dumps(values, sort_keys=True))
