"""The plots of the made-up stories: data only, read by stories.py.

A plot is a list of lines. A line is `(wordings, questions)`: one of the wordings is told, and every question
`(ways of asking, answer)` can then be asked. All wordings of a line state the facts its questions ask for.
A line whose first wording is the empty string may be left out, together with its questions.

`{word}` is a slot: a slot table of the plot (`SLOTS` names them), or one of the fields every story has:
name, kind, adj, he/him/his (capitals: He/His), hel (the helper at first mention), ref/Ref (the helper later
on), at ("in the garden"), col (a colour), sad, glad. `{a_x}` is slot x with "a" or "an" before it.
"""

SLOTS = {
    "toy": "ball doll kite drum boat book hat cup key whistle button ring bell spoon shell marble train ribbon blanket umbrella".split(),
    "fly": "kite ball balloon hat scarf ribbon feather".split(),
    "cake": ["apple cake", "plum pie", "honey cake", "nut bread", "berry pie", "egg pie", "carrot cake", "nut cake", "pear tart", "oat cake"],
    "missing": "flour sugar butter honey milk salt cream yeast".split(),
    "seed": ["sunflower", "apple tree", "rose", "bean", "pumpkin", "tomato", "carrot", "pear tree", "strawberry"],
    "fear": ["the dark", "the thunder", "the loud wind", "the deep water", "the big dog", "the old cellar"],
    "light": ["lamp", "candle", "torch", "blanket", "drum", "flute", "lantern", "pillow"],
    "food": "bread cheese apples nuts berries carrots soup cake corn fish rice pears".split(),
    "hungry": "mouse bird kitten puppy hedgehog duck squirrel cat dog goat".split(),
    "broken": "chair cart bench boat drum lamp gate clock table swing sled bucket".split(),
    "fixer": "string glue nails rope tape wood wire".split(),
    "skill": ["swim", "whistle", "ride a bike", "skate", "climb", "dance", "sing", "jump rope", "paint", "read", "bake", "juggle"],
    "days": ["two", "three", "four", "five", "six", "seven"],
    "gift": ["book", "drum", "kite", "flute", "puzzle", "scarf", "lamp", "clock", "sled", "boat", "pair of boots", "bike"],
    "box": ["box", "bag", "basket", "chest", "jar", "bucket"],
    "sign": ["a tall tree", "a red gate", "a small bridge", "a round stone", "an old mill", "a white house", "a big well"],
    "paint": ["house", "ship", "horse", "flower", "castle", "bird", "tree", "star", "elephant", "owl", "apple"],
    "rel": ["grandma", "grandpa", "mother", "father", "aunt", "uncle", "sister", "brother"],
    "ill": ["a cold", "a fever", "a cough", "a sore throat", "a bad tooth", "a sore foot"],
    "remedy": ["soup", "warm milk", "honey tea", "apple juice", "warm bread", "berry tea"],
    "treasure": ["coin", "stone", "shell", "crown", "ring", "pearl", "necklace", "bell"],
    "under": ["under a rock", "behind a bush", "inside a hollow log", "under a bench", "behind the old wall", "under a root"],
    "boatof": ["wood", "paper", "bark", "leaves", "straw", "cork"],
    "nose": ["carrot", "stick", "stone", "nut", "acorn", "orange", "onion"],
    "num": ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
    "pick": ["apples", "pears", "berries", "plums", "cherries", "flowers", "nuts", "mushrooms", "eggs", "shells"],
    "noise": ["knock", "squeak", "bump", "splash", "whistle", "rustle", "bang"],
    "pet": ["kitten", "puppy", "duckling", "lamb", "hamster", "chick", "rabbit", "owl", "hedgehog"],
    "fur": ["black", "white", "brown", "grey", "golden"],
    "petname": ["Fluff", "Spot", "Pepper", "Button", "Snow", "Biscuit", "Cloud", "Patch", "Muffin", "Peanut"],
    "song": ["song", "tune", "dance", "poem"],
    "instr": ["drum", "flute", "guitar", "trumpet", "violin", "horn", "accordion"],
    "job": ["wash the dishes", "sweep the floor", "feed the hens", "carry the wood", "water the plants", "fold the clothes", "clean the windows"],
    "reward": ["a sweet pear", "an apple", "a cookie", "a shiny coin", "a cup of cocoa", "a big hug", "an orange", "a slice of cake"],
}

FEEL = ["How did {name} feel then?", "How did {name} feel?", "What did {name} feel?"]
HELP = ["Who helped {name}?", "Who was the helper?", "Who came to help {name}?"]

LOST_TOY = [
    (["{name} had {a_col} {toy}, and {he} took it everywhere.", "{name}'s best thing was {a_col} {toy}.",
      "More than anything, {name} loved {his} {col} {toy}."],
     [(["What colour was the {toy}?", "What was the colour of {name}'s {toy}?"], "The {toy} was {col}."),
      (["What did {name} love?", "What was {name}'s best thing?"], "{name} loved the {col} {toy}.")]),
    (["One day the {toy} was gone.", "But one morning {he} could not find the {toy}.", "Then, one afternoon, the {toy} was lost."],
     [(["What did {name} lose?", "What was lost?", "What was gone?"], "{name} lost the {toy}.")]),
    (["{name} felt {sad}.", "That made {name} very {sad}.", "Now {name} was {sad}."],
     [(FEEL + ["How did {name} feel when the {toy} was gone?"], "{name} felt {sad}.")]),
    (["", "{He} looked under the bed and behind the door.", "{He} looked and looked, but it was not there."], []),
    (["{hel} came by and helped {him} look.", "Then {hel} helped {him} look.", "{hel} said, \"I will help you look.\""],
     [(HELP + ["Who helped {name} look?"], "{Ref} helped {name}.")]),
    (["Together they found the {toy} {at}.", "At last they saw the {toy} {at}.", "Soon they found it: the {toy} was {at}."],
     [(["Where was the {toy}?", "Where did they find the {toy}?", "Where was it in the end?"], "The {toy} was {at}."),
      (["What did they find?", "What did they find {at}?"], "They found the {toy}.")]),
    (["{name} was {glad} and said thank you.", "\"Thank you!\" said {name}, and {he} felt {glad}.", "{name} was so {glad} that {he} danced."],
     [(["How did {name} feel in the end?", "How did {name} feel at the end?"], "{name} felt {glad}.")]),
]

FOUND_THING = [
    (["One day {name} found {a_col} {toy} {at}.", "While {he} was playing {at}, {name} found {a_col} {toy}.", "{at_cap}, {name} saw {a_col} {toy} on the ground."],
     [(["What did {name} find?", "What did {he} find {at}?"], "{name} found {a_col} {toy}."),
      (["Where did {name} find the {toy}?", "Where was the {toy}?"], "The {toy} was {at}."),
      (["What colour was the {toy}?"], "The {toy} was {col}.")]),
    (["\"Whose {toy} is this?\" {he} asked.", "{He} wondered whose {toy} it was.", "{He} wanted to give it back."], []),
    (["Then {he} met {hel}, and {ref} was looking for the {toy}.", "Soon {hel} came along. The {toy} belonged to {ref}!", "It belonged to {hel}."],
     [(["Whose {toy} was it?", "Who had lost the {toy}?", "Who did the {toy} belong to?"], "It belonged to {ref}.")]),
    (["{name} gave the {toy} back at once.", "So {name} gave it back with a smile.", "{name} held it out and said, \"Here it is!\""], []),
    (["{Ref} gave {name} {reward} to say thank you.", "To say thank you, {ref} gave {name} {reward}."],
     [(["What did {name} get?", "What did {ref} give {name}?", "What did {name} get in the end?"], "{name} got {reward}.")]),
    (["", "{name} felt {glad}.", "{name} went home and felt {glad}."], [(FEEL, "{name} felt {glad}.")]),
]

STUCK = [
    (["{name} was playing with {a_col} {fly}.", "{name} had a new {fly}. It was {col}.", "{name} ran around with {his} {col} {fly}."],
     [(["What was {name} playing with?", "What did {name} play with?", "What did {name} have?"], "{name} had {a_col} {fly}."),
      (["What colour was the {fly}?", "What colour was {name}'s {fly}?"], "The {fly} was {col}.")]),
    (["The wind took the {fly}, and it got stuck in a tall tree.", "A strong wind blew, and the {fly} got stuck in a tree.", "Up went the {fly}, and it got stuck in a high tree."],
     [(["Where did the {fly} get stuck?", "Where was the {fly} stuck?"], "The {fly} got stuck in a tree."),
      (["What got stuck in the tree?", "What was stuck?"], "The {fly} got stuck.")]),
    (["{name} could not reach it and felt {sad}.", "{He} jumped, but {he} was too small. {name} felt {sad}."],
     [(FEEL + ["How did {name} feel when the {fly} was stuck?"], "{name} felt {sad}."),
      (["Why did {name} feel {sad}?", "Why was {name} {sad}?"], "Because the {fly} was stuck in a tree.")]),
    (["Then {hel} climbed up and brought it down.", "{hel} saw this and climbed up to get it.", "\"Wait,\" said {hel}, and climbed up the tree."],
     [(HELP + ["Who climbed the tree?", "Who climbed up?"], "{Ref} helped {name}.")]),
    (["Now the {fly} was free again.", "Soon the {fly} was back in {name}'s hands."], []),
    (["{name} was {glad}, and they played until evening.", "{name} felt {glad}, and they both laughed.", "They played together, and {name} was {glad}."],
     [(["How did {name} feel in the end?", "How did {name} feel at the end?"], "{name} felt {glad}.")]),
]

BAKING = [
    (["{name} wanted to bake {a_cake}.", "One morning {name} said, \"I will bake {a_cake}!\"", "{name} wished to make {a_cake} for {his} friends."],
     [(["What did {name} want to bake?", "What did {name} want to make?", "What did {name} bake?"], "{name} wanted to bake {a_cake}.")]),
    (["But there was no {missing} in the kitchen.", "{He} looked around, but the {missing} was all gone.", "Oh no! There was no {missing} left."],
     [(["What was not there?", "What was gone?", "What did {name} need?"], "There was no {missing}.")]),
    (["", "{name} felt {sad}.", "That made {name} {sad}."], [(FEEL, "{name} felt {sad}.")]),
    (["{hel} heard about it and brought some {missing}.", "So {he} asked {hel}, and {ref} had some {missing}.", "Then {hel} knocked at the door with some {missing}."],
     [(HELP + ["Who brought the {missing}?", "Who had some {missing}?"], "{Ref} helped {name}."),
      (["What did {ref} bring?", "What did {ref} have?"], "{Ref} had some {missing}.")]),
    (["They mixed and stirred, and soon it smelled very good.", "Together they worked, and the kitchen grew warm.", "They put it into the oven and waited."], []),
    (["They ate it {at}.", "When it was done, they ate it {at}.", "In the end they shared it {at}."],
     [(["Where did they eat?", "Where did they eat it?", "Where did they share it?"], "They ate {at}.")]),
    (["", "{name} felt {glad}.", "Everyone had some, and {name} felt {glad}."],
     [(["How did {name} feel in the end?"], "{name} felt {glad}.")]),
]

SEED = [
    (["{name} got a tiny seed from {hel}.", "{hel} gave {name} a tiny seed.", "One day {hel} came with a tiny seed for {name}."],
     [(["Who gave {name} the seed?", "Who gave {name} a seed?", "Who did {name} get the seed from?"], "{Ref} gave {name} the seed."),
      (["What did {name} get?", "What did {ref} give {name}?"], "{name} got a tiny seed.")]),
    (["{He} put it into the ground {at}.", "{name} planted it {at}.", "{At} there was a good place, and there {he} planted it."],
     [(["Where did {name} plant the seed?", "Where was the seed planted?", "Where did {he} plant it?"], "{name} planted it {at}.")]),
    (["Every day {he} gave it water.", "{He} watered it each morning.", "{name} gave it water and waited."], []),
    (["After {days} weeks, {a_seed} grew there.", "{days_cap} weeks later, {a_seed} came up.", "It took {days} weeks. Then {a_seed} was there."],
     [(["What grew there?", "What grew from the seed?", "What came up?"], "It was {a_seed}."),
      (["How many weeks did it take?", "How long did it take?"], "It took {days} weeks.")]),
    (["{name} felt {glad} and showed it to everyone.", "{name} was {glad} when {he} saw it.", "\"Look!\" called {name}, who was very {glad}."],
     [(FEEL, "{name} felt {glad}.")]),
]

RAIN = [
    (["{name} was on the way to {his} {rel}.", "{name} walked to see {his} {rel}.", "One day {name} wanted to visit {his} {rel}."],
     [(["Who did {name} want to see?", "Who did {name} want to visit?", "Where was {name} going?"], "{name} wanted to see {his} {rel}.")]),
    (["Suddenly it began to rain hard.", "Then dark clouds came, and it rained and rained.", "On the way, big drops of rain fell down."], []),
    (["{name} got wet and felt {sad}.", "Soon {he} was wet, and {name} felt {sad}."],
     [(FEEL, "{name} felt {sad}."), (["Why did {name} feel {sad}?", "Why was {name} {sad}?"], "Because {name} got wet.")]),
    (["But {hel} had {a_col} umbrella.", "Along came {hel} with {a_col} umbrella.", "Then {he} met {hel}, who had {a_col} umbrella."],
     [(HELP + ["Who had an umbrella?"], "{Ref} had an umbrella."), (["What colour was the umbrella?"], "The umbrella was {col}.")]),
    (["\"Come under it,\" said {ref}, and they walked on together.", "There was room for two, so they walked on together."], []),
    (["When they came to the house, there was warm {food} for both.", "In the house they got some warm {food}.", "{name}'s {rel} gave them both some {food}."],
     [(["What did they get?", "What did they eat?", "What was there for them?"], "They got some {food}.")]),
]

FEAR = [
    (["{name} was afraid of {fear}.", "There was one thing that scared {name}: {fear}.", "Most of all, {name} feared {fear}."],
     [(["What was {name} afraid of?", "What scared {name}?", "What did {name} fear?"], "{name} was afraid of {fear}.")]),
    (["One evening {he} hid {at} and did not move.", "One night {he} sat {at} and shook.", "So {he} hid {at} and closed {his} eyes."],
     [(["Where was {name}?", "Where did {name} hide?"], "{name} was {at}.")]),
    (["Then {hel} came with {a_light}.", "{hel} found {him} there and brought {a_light}.", "But {hel} came to {him} and brought {a_light}."],
     [(HELP + ["Who came to {name}?"], "{Ref} helped {name}."), (["What did {ref} bring?", "What did {ref} come with?"], "{Ref} brought {a_light}.")]),
    (["\"You are not alone,\" said {ref}.", "\"I am with you now,\" said {ref}.", "\"Take my hand,\" said {ref}."], []),
    (["{name} was not afraid any more. {He} felt {glad}.", "After that, {name} felt {glad}.", "Soon {name} felt {glad} and began to smile."],
     [(["How did {name} feel in the end?", "How did {name} feel at the end?"] + FEEL, "{name} felt {glad}.")]),
]

SHARE = [
    (["{name} and {other} both wanted the {col} {toy}.", "There was only one {col} {toy}, and {name} and {other} both wanted it."],
     [(["What did they both want?", "What did {name} and {other} want?"], "They both wanted the {col} {toy}."),
      (["Who wanted the {toy} too?", "Who else wanted the {toy}?"], "{other} wanted it too."),
      (["What colour was the {toy}?"], "The {toy} was {col}.")]),
    (["They pulled and shouted {at}.", "{At} they began to shout.", "They had a loud fight {at}."],
     [(["Where were they?", "Where did they fight?", "Where did they shout?"], "They were {at}.")]),
    (["{other} began to cry, and {name} felt {sad}.", "Then {other} cried. Now {name} felt {sad} too."],
     [(FEEL, "{name} felt {sad}."), (["Who cried?", "Who began to cry?"], "{other} cried.")]),
    (["{hel} said, \"Why not take turns?\"", "\"You can take turns,\" said {hel}."],
     [(HELP + ["Who had a good idea?", "Who told them to take turns?"], "{Ref} helped them.")]),
    (["So first {other} had the {toy}, and then {name}.", "{other} went first, and {name} went next."],
     [(["Who went first?", "Who had the {toy} first?"], "{other} went first.")]),
    (["It was much more fun that way, and {name} was {glad}.", "Sharing was easy, and {name} felt {glad}."],
     [(["How did {name} feel in the end?"], "{name} felt {glad}.")]),
]

HUNGRY = [
    (["{at_cap}, {name} saw a little {hungry}.", "One day {name} met a little {hungry} {at}.", "A little {hungry} sat {at}, and {name} saw it."],
     [(["What did {name} see?", "Who did {name} meet?", "Which animal did {name} see?"], "{name} saw a little {hungry}."),
      (["Where was the {hungry}?", "Where did {name} see the {hungry}?"], "The {hungry} was {at}.")]),
    (["It was thin and very hungry.", "It was so hungry that it could not run.", "\"I am so hungry,\" it said."],
     [(["Why did the {hungry} need help?", "What was wrong with the {hungry}?"], "The {hungry} was hungry.")]),
    (["{name} gave it some {food}.", "So {name} ran home and brought some {food}.", "{name} had some {food} and gave it all away."],
     [(["What did {name} give the {hungry}?", "What did the {hungry} eat?", "What did the {hungry} get?"], "The {hungry} got some {food}.")]),
    (["The {hungry} ate and ate, and then it was strong again.", "It ate everything and felt much better."], []),
    (["From then on, they were friends, and {name} named it {petname}.", "{name} called it {petname}, and they became friends.", "\"I will call you {petname},\" said {name}."],
     [(["What was the {hungry} called?", "What was the name of the {hungry}?", "What did {name} call it?"], "The {hungry} was called {petname}.")]),
    (["", "{name} felt {glad} all day.", "That evening {name} felt {glad}."], [(FEEL, "{name} felt {glad}.")]),
]

BROKEN = [
    (["{name} sat {at} and saw that the {broken} was broken.", "The old {broken} {at} was broken.", "One day the {broken} {at} broke with a loud crack."],
     [(["What was broken?", "What broke?"], "The {broken} was broken."), (["Where was the {broken}?", "Where was the broken {broken}?"], "The {broken} was {at}.")]),
    (["\"Oh dear,\" said {name}, who felt {sad}.", "{name} felt {sad}.", "That made {name} feel {sad}."],
     [(FEEL, "{name} felt {sad}."), (["Why did {name} feel {sad}?", "Why was {name} {sad}?"], "Because the {broken} was broken.")]),
    (["Then {hel} came with some {fixer}.", "{hel} had some {fixer} and knew what to do.", "But {hel} went and got some {fixer}."],
     [(HELP, "{Ref} helped {name}."), (["What did {ref} use?", "What did {ref} have?", "How did they fix the {broken}?"], "With some {fixer}.")]),
    (["They worked for {days} hours.", "It took them {days} hours."],
     [(["How long did they work?", "How many hours did it take?", "How long did it take?"], "It took {days} hours.")]),
    (["Then they painted the {broken} {col}.", "In the end they painted the {broken} {col}, and it looked new."],
     [(["What colour did they paint the {broken}?", "What colour was the {broken} in the end?", "Which colour did they paint it?"], "They painted it {col}.")]),
    (["", "{name} was {glad}.", "\"As good as new!\" said {name}, who felt {glad}."], [(["How did {name} feel in the end?"], "{name} felt {glad}.")]),
]

SKILL = [
    (["{name} wanted to learn to {skill}.", "More than anything, {name} wanted to {skill}.", "All the others could {skill}, but {name} could not."],
     [(["What did {name} want to learn?", "What did {name} want to do?", "What could {name} not do?"], "{name} wanted to {skill}.")]),
    (["At first it went wrong, and {name} felt {sad}.", "{He} tried once and failed. {name} felt {sad}.", "The first time was bad, and {name} felt {sad}."],
     [(["How did {name} feel at first?", "How did {name} feel when it went wrong?"], "{name} felt {sad}.")]),
    (["\"Try again,\" said {hel}.", "But {hel} said, \"I will show you how.\"", "Then {hel} showed {him} how to do it."],
     [(HELP + ["Who showed {name} how to do it?", "Who was the teacher?"], "{Ref} helped {name}.")]),
    (["They met every day {at}.", "Each day they trained {at}.", "{At} they trained again and again."],
     [(["Where did they train?", "Where did they meet?"], "They met {at}.")]),
    (["After {days} days, {name} could do it.", "It took {days} days, and then {name} could do it."],
     [(["How many days did it take?", "How long did it take?", "How long did {name} need?"], "It took {days} days.")]),
    (["{name} felt {glad}.", "Now {name} was {glad}.", "\"I can do it!\" called {name}, who felt {glad}."],
     [(["How did {name} feel in the end?", "How did {name} feel at the end?"], "{name} felt {glad}.")]),
]

BIRTHDAY = [
    (["It was {name}'s birthday.", "Today was a big day: it was {name}'s birthday.", "{name} woke up early, because it was {his} birthday."],
     [(["What day was it?", "Whose birthday was it?", "Who had a birthday?"], "It was {name}'s birthday.")]),
    (["{at_cap}, {he} found {a_col} {box}.", "A {col} {box} stood {at}.", "{He} saw {a_col} {box} {at}."],
     [(["Where was the {box}?", "Where did {name} see the {box}?"], "The {box} was {at}."), (["What colour was the {box}?"], "The {box} was {col}.")]),
    (["\"What is in the {box}?\" asked {name}.", "{name} did not know what was in it.", "{He} opened it slowly."], []),
    (["Inside was {a_gift}!", "In the {box} there was {a_gift}!", "It was {a_gift}!"],
     [(["What was in the {box}?", "What did {name} get?", "What was the gift?"], "It was {a_gift}.")]),
    (["The gift was from {hel}.", "{hel} had put it there.", "It came from {hel}, who stood there and smiled."],
     [(["Who was the gift from?", "Who gave {name} the gift?"], "The gift was from {ref}.")]),
    (["{name} felt {glad} and hugged {ref}.", "{name} was {glad}. They sang and ate cake.", "{name} felt {glad} the whole day."],
     [(FEEL, "{name} felt {glad}.")]),
]

LOST_WAY = [
    (["One day {name} walked too far and lost the way home.", "{name} ran after a butterfly and got lost.", "{name} went for a long walk and got lost."],
     [(["What happened to {name}?", "Why did {name} need help?"], "{name} got lost.")]),
    (["{He} sat down {at} and felt {sad}.", "Now {he} was alone {at}, and {name} felt {sad}."],
     [(["Where did {name} sit down?", "Where was {name}?"], "{name} was {at}."), (FEEL, "{name} felt {sad}.")]),
    (["", "It was getting dark.", "The sun was going down."], []),
    (["Then {hel} came along. \"I know the way,\" said {ref}.", "{hel} heard {him} and said, \"I can show you the way.\""],
     [(HELP + ["Who showed {name} the way?", "Who knew the way?"], "{Ref} helped {name}.")]),
    (["They went past {sign} and over a hill.", "\"We must go past {sign},\" said {ref}, and off they went."],
     [(["What did they go past?", "What did they pass on the way?"], "They went past {sign}.")]),
    (["At home, {name}'s {rel} was waiting at the door.", "Soon they were home, and {name}'s {rel} gave {him} a hug."],
     [(["Who was waiting at home?", "Who was at home?"], "{name}'s {rel} was at home.")]),
    (["", "{name} felt {glad}.", "Now {name} was {glad}."], [(["How did {name} feel in the end?"], "{name} felt {glad}.")]),
]

PICTURE = [
    (["{name} wanted to make a picture for {his} {rel}.", "{name} said, \"I will paint a picture for my {rel}.\""],
     [(["Who was the picture for?", "Who did {name} paint for?"], "The picture was for {name}'s {rel}.")]),
    (["{He} sat down {at} and took out the paint.", "{At} {he} found a good place to paint."],
     [(["Where did {name} paint?", "Where did {name} sit?"], "{name} painted {at}.")]),
    (["{He} painted {a_paint}.", "First {he} thought, and then {he} painted {a_paint}."],
     [(["What did {name} paint?", "What was in the picture?"], "{name} painted {a_paint}.")]),
    (["But the {col} paint was empty!", "Then there was no more {col} paint."],
     [(["Which colour was empty?", "What colour did {name} need?", "Which paint was empty?"], "The {col} paint was empty.")]),
    (["{hel} gave {him} some of it.", "Luckily, {hel} had some more.", "\"Take mine,\" said {hel}."],
     [(HELP, "{Ref} helped {name}.")]),
    (["The picture was a great gift, and {name} felt {glad}.", "{name}'s {rel} loved the picture, and {name} was {glad}."],
     [(FEEL, "{name} felt {glad}.")]),
]

RACE = [
    (["{name} and {other} had a race {at}.", "One day there was a race {at}. {name} ran, and {other} ran too."],
     [(["Where was the race?", "Where did they run?"], "The race was {at}."), (["Who ran against {name}?", "Who raced with {name}?"], "{other} did.")]),
    (["{other} was fast and laughed. \"You are too slow!\"", "\"I am much faster,\" said {other}."],
     [(["Who was fast?", "Who was faster at first?"], "{other} was fast.")]),
    (["But then {other} stopped to eat some {food}.", "Halfway, {other} sat down and ate some {food}."],
     [(["What did {other} eat?", "Why did {other} stop?"], "{other} stopped to eat some {food}.")]),
    (["{name} ran on and on and won the race.", "{name} did not stop and came in first."],
     [(["Who won?", "Who won the race?", "Who came in first?"], "{name} won the race.")]),
    (["{hel} gave {him} {a_col} ribbon.", "For that, {name} got {a_col} ribbon from {hel}."],
     [(["What did {name} get?", "What was the prize?"], "{name} got {a_col} ribbon."), (["What colour was the ribbon?"], "The ribbon was {col}."),
      (["Who gave {name} the ribbon?"], "{Ref} gave {name} the ribbon.")]),
    (["", "{name} felt {glad}.", "{name} was very {glad}."], [(FEEL, "{name} felt {glad}.")]),
]

ILL = [
    (["{other} was ill and had to stay in bed.", "One morning {other} did not come out to play. {other} was ill."],
     [(["Who was ill?", "Who was in bed?"], "{other} was ill.")]),
    (["{other} had {ill}.", "It was {ill}."], [(["What did {other} have?", "What was wrong with {other}?"], "{other} had {ill}.")]),
    (["{name} felt {sad} about it.", "{name} felt {sad} and wanted to help."], [(FEEL, "{name} felt {sad}.")]),
    (["So {he} made some {remedy} and took it along.", "{name} came with some {remedy}.", "{He} brought some {remedy} in {a_col} cup."],
     [(["What did {name} bring?", "What did {name} take along?"], "{name} brought some {remedy}."), (["Who helped {other}?", "Who came to help?"], "{name} helped {other}.")]),
    (["After {days} days, {other} was well again.", "{other} was well again {days} days later."],
     [(["How many days did it take?", "When was {other} well again?"], "After {days} days.")]),
    (["They played {at} and were {glad}.", "Then they met {at}, and both were {glad}."],
     [(["Where did they play?", "Where were they in the end?", "Where did they meet?"], "They were {at}."), (["How did they feel in the end?"], "They were {glad}.")]),
]

TREASURE = [
    (["{name} found an old map in {a_col} {box}.", "There was an old map in {a_col} {box}, and {name} found it."],
     [(["What did {name} find in the {box}?", "What was in the {box}?"], "There was an old map in the {box}."), (["Where was the map?"], "The map was in the {col} {box}."),
      (["What colour was the {box}?"], "The {box} was {col}.")]),
    (["{He} showed it to {hel}, and off they went.", "{He} asked {hel} to come along."],
     [(["Who came along?", "Who went with {name}?", "Who did {name} ask?"], "{Ref} came along.")]),
    (["The map showed the way to a place {at}.", "They walked and walked until they were {at}."],
     [(["Where did they go?", "Where did the map lead?"], "They went to a place {at}.")]),
    (["There, {under}, they found {a_treasure}.", "They looked around, and {under} there was {a_treasure}!"],
     [(["What did they find?", "What was the treasure?"], "They found {a_treasure}."), (["Where was the {treasure}?", "Where did they find the {treasure}?"], "The {treasure} was {under}.")]),
    (["{name} felt {glad}.", "\"We did it!\" said {name}, who was {glad}."], [(FEEL, "{name} felt {glad}.")]),
]

BOAT = [
    (["{name} made a little boat of {boatof}.", "With much care, {name} made a boat of {boatof}."],
     [(["What did {name} make?"], "{name} made a boat."), (["What was the boat made of?"], "The boat was made of {boatof}.")]),
    (["It had {a_col} sail.", "{He} gave it {a_col} sail."], [(["What colour was the sail?", "What colour was the boat's sail?"], "The sail was {col}.")]),
    (["{He} put it on the water, and it sailed away.", "Down at the stream, the water took the boat away."], []),
    (["{name} ran after it and felt {sad}.", "{name} could not catch it and felt {sad}."], [(FEEL, "{name} felt {sad}.")]),
    (["{hel} stood by the water and stopped the boat.", "But {hel} jumped into the water and got the boat."],
     [(HELP + ["Who stopped the boat?", "Who got the boat?"], "{Ref} helped {name}.")]),
    (["They named the boat {petname}.", "\"Let us call it {petname},\" said {ref}."], [(["What did they call the boat?", "What was the name of the boat?"], "The boat was called {petname}.")]),
]

SNOWMAN = [
    (["It had snowed all night.", "In the morning, everything was white with snow.", "The first snow had come."], []),
    (["{name} and {other} made a big snowman {at}.", "{At} {name} made a snowman with {other}."],
     [(["Where was the snowman?", "Where did they make the snowman?"], "The snowman was {at}."), (["Who made the snowman with {name}?", "Who was with {name}?"], "{other} was with {name}."),
      (["What did they make?"], "They made a snowman.")]),
    (["For the nose they took {a_nose}.", "Its nose was {a_nose}."], [(["What was the nose?", "What did they take for the nose?"], "The nose was {a_nose}.")]),
    (["It wore {a_col} hat.", "They gave it {a_col} hat.", "On its head was {a_col} hat."], [(["What colour was the hat of the snowman?", "What colour was the snowman's hat?"], "The hat was {col}.")]),
    (["Then {hel} gave them hot cocoa.", "Afterwards, {hel} brought hot cocoa for them."], [(["Who brought the cocoa?", "Who gave them cocoa?"], "{Ref} did."), (["What did {ref} bring?", "What did they drink?"], "It was hot cocoa.")]),
    (["{name} felt {glad}.", "They were cold, but {name} felt {glad}."], [(FEEL, "{name} felt {glad}.")]),
]

PICKING = [
    (["{name} went out to pick {pick}.", "One morning {name} took {a_col} basket and went to look for {pick}."],
     [(["What did {name} look for?", "What did {name} want to pick?", "What did {name} want?"], "{name} wanted to pick {pick}.")]),
    (["{at_cap}, {he} found {num} of them.", "{He} found {num} {pick} {at}."],
     [(["How many {pick} did {name} find?", "How many did {name} find?"], "{name} found {num} {pick}."), (["Where did {name} find the {pick}?", "Where were the {pick}?"], "The {pick} were {at}.")]),
    (["On the way home {he} met {hel}, who was hungry.", "Then {hel} came, and {ref} was very hungry.", "{hel} was there too, and {ref} had nothing."],
     [(["Who did {name} meet?", "Who came to {name}?"], "{name} met {ref}.")]),
    (["{name} gave away one of the {pick}.", "So {name} shared the {pick}."], [(["What did {name} share?", "What did {name} give away?"], "{name} shared the {pick}.")]),
    (["{Ref} said thank you, and {name} felt {glad}.", "It was good to share, and {name} felt {glad}."], [(FEEL, "{name} felt {glad}.")]),
]

NOISE = [
    (["In the night {name} heard a {noise}.", "It was late. Suddenly, {name} heard a {noise}."], [(["What did {name} hear?", "What did {name} hear in the night?"], "{name} heard a {noise}.")]),
    (["It came from {place}.", "The sound came from {place}."], [(["Where did it come from?", "Where did the {noise} come from?"], "It came from {place}.")]),
    (["{name} felt {sad}, so {he} woke {hel}.", "{name} felt {sad} and called {hel}."], [(FEEL, "{name} felt {sad}."), (["Who did {name} wake?", "Who did {name} call?", "Who came with {name}?"], "It was {ref}.")]),
    (["They went to look and found a small {fur} {pet}!", "With a lamp they went out, and there was a small {fur} {pet}!"],
     [(["What did they find?", "What made the {noise}?"], "It was a small {pet}."), (["What colour was the {pet}?"], "The {pet} was {fur}.")]),
    (["They named it {petname} and gave it some {food}.", "\"Hello, {petname},\" said {name}, and gave it some {food}."],
     [(["What was the {pet} called?", "What was the name of the {pet}?"], "The {pet} was called {petname}."), (["What did the {pet} eat?", "What did the {pet} get?"], "The {pet} got some {food}.")]),
]

MUSIC = [
    (["{name} played the {instr}.", "Every day, {name} played {his} {instr}."], [(["What did {name} play?", "Which instrument did {name} play?"], "{name} played the {instr}.")]),
    (["{He} wanted to play a new {song} {at}.", "There was a feast {at}, and {name} wanted to play a {song}."],
     [(["Where did {name} want to play?", "Where was it?"], "It was {at}.")]),
    (["But {he} was shy and felt {sad}.", "But so many were there! {name} felt {sad}."], [(["How did {name} feel at first?", "How did {name} feel before it began?"], "{name} felt {sad}.")]),
    (["{hel} stood next to {him} and sang along.", "Then {hel} said, \"I will stand next to you.\""], [(HELP + ["Who stood next to {name}?"], "{Ref} helped {name}.")]),
    (["All went well, and everyone clapped.", "It was beautiful, and everyone clapped."], []),
    (["{name} got {reward} and felt {glad}.", "{name} felt {glad}, and for all this {he} got {reward}."],
     [(["What did {name} get?"], "{name} got {reward}."), (["How did {name} feel in the end?"], "{name} felt {glad}.")]),
]

CHORE = [
    (["{name}'s {rel} had a lot to do.", "{name} saw that {his} {rel} was tired."], [(["Who was tired?", "Who had a lot to do?", "Who needed help?"], "It was {name}'s {rel}.")]),
    (["\"I will {job},\" said {name}.", "So {name} went to {job}.", "{name} wanted to {job}."], [(["What did {name} want to do?", "What did {name} do?"], "{name} wanted to {job}.")]),
    (["{hel} came too, and it took only {days} minutes.", "With {hel} it took only {days} minutes."],
     [(HELP, "{Ref} helped {name}."), (["How long did it take?", "How many minutes did it take?"], "It took {days} minutes.")]),
    (["Afterwards they rested {at}.", "When it was done, they sat down {at}."], [(["Where did they rest?", "Where did they sit?"], "They were {at}.")]),
    (["{name} got {reward}.", "For that, {name} got {reward}."], [(["What did {name} get?", "What was the reward?"], "{name} got {reward}.")]),
    (["{name} felt {glad}.", "It is good to help, and {name} felt {glad}."], [(FEEL, "{name} felt {glad}.")]),
]

PLOTS = [LOST_TOY, FOUND_THING, STUCK, BAKING, SEED, RAIN, FEAR, SHARE, HUNGRY, BROKEN, SKILL, BIRTHDAY, LOST_WAY,
         PICTURE, RACE, ILL, TREASURE, BOAT, SNOWMAN, PICKING, NOISE, MUSIC, CHORE]
