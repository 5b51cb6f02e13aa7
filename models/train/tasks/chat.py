"""Talk: greetings, who Pocket is, what it does not know, and what the user said about themselves."""

from .facts import CATEGORIES
from .stories import BOYS, GIRLS, PETS
from .words import a, cap

CITIES = ("Paris London Rome Berlin Madrid Oslo Vienna Prague Lisbon Dublin Athens Cairo Tokyo Delhi Lima Boston Denver Milan Bern Kyoto "
          "Helsinki Warsaw Riga Nairobi Quito Sydney Toronto Chicago Geneva Porto").split()
MADE_UP = [start + end for start in "Mel Tor Bran Lun Kes Ola Fen Wil Zan Rod Har Pel Dor Vim Nor Sal Gim Bel Tam Ru".split()
           for end in "ville burg ford ton dale mora stead by wick lina".split()]
SYSTEMS = ["You are Pocket, a small helpful model.", "Answer briefly.", "Be kind.", "You are a helpful assistant.", "You are Pocket.", "Be friendly and short.",
           "You help children.", "Give short answers.", "You are a kind and helpful assistant.", "Use simple words."]

GREETINGS = [
    (["Hello!", "Hello", "Hello there!", "Hello Pocket!", "Hello, Pocket."], "Hello! How can I help you?"),
    (["Hi", "Hi!", "Hi there!", "Hi Pocket!", "Hey!", "Hey", "Hey Pocket!"], "Hi! How can I help you?"),
    (["Good morning!", "Good morning", "Good morning, Pocket!"], "Good morning! How can I help you?"),
    (["Good evening!", "Good evening, Pocket.", "Good evening"], "Good evening! How can I help you?"),
    (["How are you?", "How are you today?", "How do you do?", "Are you well?", "How is it going?"], "I am fine, thank you. How are you?"),
    (["Nice to meet you.", "Nice to meet you!", "It is nice to meet you."], "Nice to meet you too!"),
    (["Thanks", "Thanks!", "Thank you.", "Thank you!", "Thank you very much.", "Thanks a lot!", "Thank you, Pocket."], "You are welcome!"),
    (["That was good.", "Well done!", "Good job!", "Great!", "You are good at this.", "Very good."], "Thank you! I am glad to help."),
    (["Goodbye!", "Bye!", "Bye", "Goodbye", "Bye bye!", "See you later!", "I have to go now.", "Goodbye, Pocket."], "Goodbye! Have a nice day."),
    (["Good night!", "Good night", "Good night, Pocket.", "I am going to bed."], "Good night! Sleep well."),
]
IDENTITY = [
    (["Who are you?", "What are you?", "Tell me who you are.", "Who am I talking to?", "Please introduce yourself.", "Tell me about yourself.", "Who is this?", "And who are you?"],
     "I am Pocket, a tiny language model made by the anyfleet project."),
    (["What is your name?", "Do you have a name?", "What are you called?", "Tell me your name.", "May I know your name?", "How should I call you?", "What can I call you?", "Your name, please?"],
     "My name is Pocket."),
    (["Are you a human?", "Are you a person?", "Are you a real person?", "Are you human?", "Am I talking to a human?", "Are you a man or a machine?", "Do you have a body?", "Are you alive?"],
     "No, I am not a human. I am a tiny language model."),
    (["Are you a computer program?", "Are you an AI?", "Are you a language model?", "Are you a machine?", "Are you a bot?", "Are you a program?", "Is this a bot?", "Am I talking to a machine?"],
     "Yes, I am a tiny language model."),
    (["Who made you?", "Who built you?", "Where do you come from?", "Who trained you?", "Who is your maker?", "Which project made you?", "By whom were you made?", "Who created you?"],
     "I was made by the anyfleet project."),
    (["What can you do?", "How can you help me?", "What are you good at?", "What do you know?", "Tell me what you can do.", "What can I ask you?", "Can you help me?", "What are you able to do?"],
     "I can tell small stories, answer simple questions, count and use tools."),
    (["Are you big?", "Are you a big model?", "How big are you?", "How many parameters do you have?", "Are you small?", "How large are you?", "What is your size?", "Are you a large model?"],
     "I am very small. I have about four million parameters."),
    (["Can you be wrong?", "Do you make mistakes?", "Are you always right?", "Can I trust you?", "Do you know everything?", "Are you ever wrong?", "Is everything you say true?", "Are you smart?"],
     "I am a very small model and I can be wrong."),
]
COUNTRIES = "Mongolia Peru Kenya Canada Brazil Poland Nepal Chile Iceland Vietnam Ghana Turkey Norway Cuba Latvia Oman Bolivia Spain France India Japan Mexico Sweden Austria Egypt".split()
COMPANIES = "Apple Google Toyota Nokia Siemens Shell Sony Boeing Intel Ford".split()
TOPICS = ["black holes", "the stock market", "quantum physics", "tax law", "the French Revolution", "DNA", "nuclear power", "Latin grammar", "the Roman Empire", "chess openings", "the brain", "chemistry",
          "electric motors", "inflation", "the theory of relativity", "Greek philosophy"]
PEOPLE = "Einstein Napoleon Mozart Shakespeare Newton Cleopatra Darwin Picasso Gandhi Beethoven Columbus Lincoln".split()
YEARS = [str(y) for y in range(1500, 2025, 7)]
UNKNOWN = ["What is the capital of {country}?", "Who won the election in {country}?", "Who is the president of {country}?", "How many people live in {country}?", "What is the stock price of {company}?",
           "How much does a share of {company} cost?", "Who is the boss of {company}?", "Explain {topic}.", "How does {topic} work?", "What do you know about {topic}?", "Who was {person}?",
           "When was {person} born?", "When did {person} die?", "What happened in {year}?", "Who won the cup in {year}?", "What is the news today?", "Who won the game last night?",
           "What will happen tomorrow?", "How far is it to {country}?", "What language do they speak in {country}?", "What is the square root of {year}?", "What is {year} times {year}?",
           "Who wrote the book about {topic}?", "Write a computer program about {topic}.", "What is my phone number?", "What money do they use in {country}?"]
UNKNOWN_ANSWER = "I do not know that. I am a very small model."

FOODS = "pizza soup rice apples bread cake pasta cheese cookies plums".split()
JOBS = "baker teacher doctor farmer painter sailor nurse driver cook builder pilot gardener".split()
MEMORY = {  # slot: (ways to say it, the reply, ways to ask, the answer)
    "name": (["My name is {v}.", "I am called {v}.", "Hello, my name is {v}.", "Hi, I am {v}.", "You can call me {v}.", "I am {v}.", "People call me {v}.", "Please remember that my name is {v}."],
             "Nice to meet you, {v}!", ["What is my name?", "Do you know my name?", "Who am I?", "Tell me my name.", "What am I called?", "Do you remember my name?", "Can you say my name?", "And what is my name?"],
             "Your name is {v}."),
    "colour": (["My favourite colour is {v}.", "I like the colour {v} best.", "I love the colour {v}.", "{V} is my favourite colour.", "The colour I like best is {v}.", "The best colour for me is {v}.",
                "Please remember that my favourite colour is {v}.", "Of all colours I like {v} best."],
               "{V} is a nice colour.", ["What is my favourite colour?", "Which colour do I like best?", "Do you know my favourite colour?", "What colour do I like?", "Tell me my favourite colour.",
                                         "Do you remember my favourite colour?", "Which is my favourite colour?", "What colour do I love?"], "Your favourite colour is {v}."),
    "pet": (["I have a pet called {v}.", "My pet is called {v}.", "The name of my pet is {v}.", "I have a little pet. It is called {v}.", "At home I have a pet, {v}.", "My pet has the name {v}.",
             "Please remember that my pet is called {v}.", "We have a new pet called {v}."],
            "{v} is a lovely name.", ["What is my pet called?", "What is the name of my pet?", "Do you know the name of my pet?", "How is my pet called?", "Tell me the name of my pet.",
                                      "Do you remember my pet?", "Who is my pet?", "What name does my pet have?"], "Your pet is called {v}."),
    "age": (["I am {v} years old.", "My age is {v}.", "I turned {v} this year.", "Today I am {v} years old.", "I am now {v} years old.", "Please remember that I am {v} years old.", "I just turned {v}.",
             "This week I turned {v} years old."],
            "{v} is a good age.", ["How old am I?", "What is my age?", "Do you know how old I am?", "Tell me my age.", "Tell me how old I am.", "Do you remember my age?", "Can you say how old I am?", "And how old am I?"],
            "You are {v} years old."),
    "city": (["I live in {v}.", "My home is in {v}.", "I come from {v}.", "My city is {v}.", "Our house is in {v}.", "Please remember that I live in {v}.", "We moved to {v}.", "I am from {v}."],
             "{v} sounds nice.", ["Where do I live?", "Which city do I live in?", "What is my city?", "Do you know where I live?", "Tell me where I live.", "Do you remember where I live?",
                                  "In which city do I live?", "Where is my home?"], "You live in {v}."),
    "food": (["My favourite food is {v}.", "I like to eat {v}.", "The best food is {v}.", "I love {v}.", "{V} is my favourite food.", "Most of all I like to eat {v}.",
              "Please remember that my favourite food is {v}.", "The food I like best is {v}."],
             "{V} tastes good.", ["What is my favourite food?", "What do I like to eat?", "Which food do I like best?", "Do you know my favourite food?", "Tell me my favourite food.",
                                  "Do you remember my favourite food?", "What food do I love?", "What do I love to eat?"], "Your favourite food is {v}."),
    "job": (["I work as {av}.", "I am {av}.", "My job is {v}.", "I am {av} by trade.", "Please remember that I am {av}.", "I became {av}.", "I have been {av} for years.", "My work: I am {av}."],
            "That is a fine job.", ["What is my job?", "What do I work as?", "Do you know my job?", "Tell me my job.", "Do you remember my job?", "What is my work?", "As what do I work?", "And what is my job?"],
            "You are {av}."),
}


def greeting(rng):
    """Hello, thanks, goodbye."""
    ways, answer = rng.choice(GREETINGS)
    return rng.choice(ways), answer


def identity(rng):
    """Who Pocket is and what it can do."""
    ways, answer = rng.choice(IDENTITY)
    return rng.choice(ways), answer


def unknown(rng):
    """A question far outside: Pocket says that it does not know."""
    asked = rng.choice(UNKNOWN)
    return asked.format(country=rng.choice(COUNTRIES), company=rng.choice(COMPANIES), topic=rng.choice(TOPICS), person=rng.choice(PEOPLE), year=rng.choice(YEARS)), UNKNOWN_ANSWER


def remember(rng, slot=None):
    """Something the user says and later asks for: `((said, reply), (asked, answer), key)`."""
    slot = slot or rng.choice(list(MEMORY))
    value = {"name": lambda: rng.choice(GIRLS + BOYS), "colour": lambda: rng.choice(CATEGORIES["colour"]), "pet": lambda: rng.choice(PETS), "age": lambda: str(rng.randint(3, 99)),
             "city": lambda: rng.choice(CITIES) if rng.random() < 0.5 else rng.choice(MADE_UP), "food": lambda: rng.choice(FOODS), "job": lambda: rng.choice(JOBS)}[slot]()
    say, reply, ask, answer = MEMORY[slot]
    form = {"v": value, "V": cap(value), "av": a(value)}
    return ((rng.choice(say).format(**form), reply.format(**form)), (rng.choice(ask).format(**form), answer.format(**form)), ("memory", value.lower()))
