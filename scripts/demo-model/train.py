#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes stele's demo model: a 1.2 million parameter Llama that tells very short stories.

The training text comes from the story world below (no outside text), the tokenizer is trained on
that text, and the result is an ordinary Hugging Face checkpoint in `checkpoint/` beside this file.

    python3 -m venv /tmp/demo-venv
    /tmp/demo-venv/bin/pip install torch==2.15.0 transformers==5.24.0 tokenizers==0.23.3 \\
        safetensors==0.8.0 numpy==2.4.6
    nice /tmp/demo-venv/bin/python scripts/demo-model/train.py             # about half an hour
    nice /tmp/demo-venv/bin/python scripts/demo-model/golden.py            # reference values

    train.py --stories 10      print ten stories of the world and stop
    train.py --sample          print greedy continuations by the finished checkpoint and stop

Everything is seeded. The text and the tokenizer come out the same everywhere; the weights do so
only on the same processor with the same number of threads, since torch sums in another order
elsewhere.
"""

import argparse
import json
import math
import random
import re
import time
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "checkpoint"
SEED = 20240229

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The classic spelling of a Llama config, written as is to config.json.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 352,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 1024,
}

# ---------------------------------------------------------------------------------------------
# The story world: who lives there, what they own and where they go.
# ---------------------------------------------------------------------------------------------

PRONOUNS = {"m": ("he", "him", "his", "boy"), "f": ("she", "her", "her", "girl")}

GIRLS = "Anna Mia Lily Sara Emma Nora Ida Rosa".split()
BOYS = "Tom Ben Max Paul Leo Jack Oscar Felix".split()
RARE_GIRLS = """Alice Lucy Mary Clara Julia Sophie Hannah Laura Marie Eva Ella Maria Ruth Jane Kate
    Helen Lena Nina Amy Zoe""".split()
RARE_BOYS = """Peter John Bob David Daniel George Henry Simon Martin Robert Lukas Sam Adam James
    Noah Hugo Otto Karl Finn Theo""".split()

# Animals: sex and home.
ANIMALS = {
    "fox": ("m", "in the forest"),
    "hen": ("f", "on a farm"),
    "bear": ("m", "in a cave near the forest"),
    "mouse": ("f", "under the floor of an old house"),
    "rabbit": ("m", "in a hole under a hill"),
    "owl": ("f", "in a tall tree"),
    "frog": ("m", "by a quiet pond"),
    "cat": ("f", "in a house by the river"),
    "dog": ("m", "on a farm"),
    "duck": ("f", "by a quiet pond"),
    "hedgehog": ("m", "in the garden"),
    "squirrel": ("f", "in a tall tree"),
    "wolf": ("m", "in the forest"),
    "goat": ("f", "on a green hill"),
    "turtle": ("m", "by the river"),
    "bird": ("f", "in a nest in the forest"),
    "lion": ("m", "under a big tree"),
    "cow": ("f", "on a farm"),
    "horse": ("m", "on a farm"),
    "crow": ("f", "in a tall tree"),
    "pig": ("m", "on a farm"),
    "snail": ("f", "in the garden"),
    "donkey": ("m", "in an old barn"),
    "bee": ("f", "in the meadow"),
    "elephant": ("m", "by the river"),
    "swan": ("f", "by a quiet pond"),
}

FOLK = {
    "king": ("m", "in a big castle"),
    "queen": ("f", "in a big castle"),
    "prince": ("m", "in a white castle"),
    "princess": ("f", "in a white castle"),
    "giant": ("m", "on a high mountain"),
    "witch": ("f", "in a small house in the forest"),
    "dragon": ("m", "in a dark cave"),
    "farmer": ("m", "on a small farm"),
    "baker": ("f", "above a little shop"),
    "fisherman": ("m", "in a hut by the sea"),
    "girl": ("f", "in a little village"),
    "boy": ("m", "in a little village"),
    "woman": ("f", "in a house near the forest"),
    "man": ("m", "in a house near the forest"),
    "teacher": ("f", "in a big town by the sea"),
    "wizard": ("m", "in an old tower"),
}

CHILD_HOMES = [
    "in a small house by the river",
    "in a little village",
    "in a house near the forest",
    "in a big town by the sea",
    "on a farm",
]
# By the sex of the child, as everybody is of another sex than the hero.
ELDERS = {"f": ["grandfather", "father", "uncle"], "m": ["grandmother", "mother", "aunt"]}
NATURES = ["little", "young", "clever", "kind", "small", "brave", "lazy", "shy"]

COLORS = ["red", "blue", "green", "yellow", "white", "brown", "orange", "black"]
TOYS = ["ball", "hat", "book", "scarf", "drum", "cup", "bell", "basket", "boat", "lamp", "flute"]
FOODS = ["bread", "cheese", "apples", "cake", "berries", "honey", "nuts", "pancakes", "pears"]
FRUITS = ["apples", "pears", "nuts", "plums", "carrots", "eggs", "flowers", "stones"]
SPOTS_INSIDE = [
    "under the table",
    "under the bed",
    "behind the door",
    "in the kitchen",
    "on the chair",
    "in the big box",
    "behind the clock",
]
SPOTS_OUTSIDE = [
    "in the tall grass",
    "behind the old tree",
    "under a bush",
    "by the gate",
    "near the well",
    "behind the barn",
    "under the bridge",
]
PLACES = {
    "garden": "in the garden",
    "forest": "in the forest",
    "river": "by the river",
    "hill": "on the hill",
    "pond": "by the pond",
    "meadow": "in the meadow",
    "beach": "on the beach",
    "park": "in the park",
}
SKILLS = ["swim", "sing", "dance", "ride a horse", "play the flute", "climb", "paint", "read"]
GIFTS = ["hat", "scarf", "book", "lamp", "flute", "cup", "bell"]
PLANTS = ["seed", "bean"]
ORCHARD = ["apples", "pears", "plums", "cherries"]
DREAMS = ["a white horse", "the sea", "a big castle", "a flying boat", "a garden full of cake"]
NUMBERS = "zero one two three four five six seven eight nine ten".split()

# Openings by the kind of day a plot asks for: adverbials that lead into the plot's first sentence,
# and whole sentences that stand before it.
WHEN = {
    "any": (
        "One day|One morning|In the morning|One afternoon|On Sunday|On Monday|In the afternoon"
        "|On a warm day|On Friday|After school|Early in the morning",
        "It was a sunny morning.|The sun was shining.|It was a beautiful day.|It was a warm day."
        "|The sky was blue.|It was a quiet afternoon.|The birds were singing.",
    ),
    "night": (
        "One night|In the night|Late in the evening|In the evening|On a dark night",
        "It was night.|It was a dark night.|The moon was shining.|It was a quiet evening."
        "|The stars were shining.",
    ),
    "winter": (
        "One winter day|In winter|On a cold morning|One cold day|In the winter",
        "It was winter.|It was a cold day.|Snow was falling.|It was very cold."
        "|The snow was deep and white.",
    ),
    "spring": (
        "In spring|One spring day|One day in spring|In the spring",
        "It was spring.|Winter was over.|It was a warm day in spring.|The snow was gone.",
    ),
    "autumn": (
        "In autumn|One autumn day|In the autumn|On a cool day in autumn",
        "It was autumn.|The leaves were red and yellow.|It was a cool day in autumn.",
    ),
    "rain": (
        "On a gray day|One gray morning|On a cool day",
        "It was a gray morning.|There were dark clouds in the sky.|The sky was gray.",
    ),
    "indoors": (
        "On a rainy day|One rainy afternoon",
        "It was raining.|It was raining all day.|It was a rainy day.|Rain was falling.",
    ),
    "wind": (
        "On a windy day|One windy day|One windy morning",
        "It was a windy day.|The wind was strong.|The wind was blowing.",
    ),
}

# ---------------------------------------------------------------------------------------------
# Plots. A head line `= name | kinds of hero | kinds of day`, with `| kinds of friend` where not any
# will do, then beats with an empty line between them. A beat is a list of alternatives, the
# likeliest first; `-` is silence. The first beat begins with the hero, so that an adverbial can
# stand before it. Slots are drawn at first use (class Story). Whoever else is in the story is of
# the other sex than the hero, so that it is clear who he and she are.
# ---------------------------------------------------------------------------------------------

PLOTS = """
= lost | child animal folk | any

{hero} lost {his} {toy}.
{hero} could not find {his} {toy}.
{hero} wanted to play, but {his} {toy} was gone.

{he} looked {spot1}, but it was not there.
{he} looked {spot1} and {spot2}, but it was not there.
First {he} looked {spot1}. Then {he} looked {spot2}.
{he} looked everywhere, but {he} could not find it.

{hero} asked {friend}, "Have you seen my {toy.noun}?"
{friend} came to help {him}.
{he} asked {friend} for help.

"Yes," said {friend}. "It is {spot3}."
At last, {friend} found the {toy.noun} {spot3}.
{friend} looked {spot3}, and there it was!

{hero} was very happy and thanked {friend}.
{hero} laughed and gave {friend} a big hug.
"Thank you!" said {hero}. "You are a good friend."

= lost alone | child | any

{hero} lost {his} {toy} and was very sad.
{hero} was sad because {he} had lost {his} {toy}.

{he} looked {spot1}, but the {toy.noun} was not there.
{he} looked {spot1} and {spot2}, but the {toy.noun} was not there.

Then {he} looked {spot3}. There was the {toy.noun}!
At last, {he} looked {spot3}, and there was the {toy.noun}!
"Did you look {spot3}?" asked {elder}. {hero} ran to look, and there was the {toy.noun}!

{he} was so happy that {he} danced.
{hero} smiled and held it tight.
"I will never lose it again," said {hero}.

= share | child animal folk | any spring autumn

{hero} was eating some {food} {place.at}.
{hero} sat {place.at} and ate some {food}.
{hero} had some {food} for lunch.
{hero} took some {food} and went to the {place}.

Then {friend} came along. {friend.he} was very hungry.
{friend} came by and looked hungry.
{he} saw {friend}, who had nothing to eat.

"Would you like some {food}?" asked {hero}.
{hero} gave {friend} half of the {food}.
"Let us share the {food}," said {hero}.

They sat down and ate together.
They ate the {food} together, and it was very good.

The next day, {friend} brought some {food2} for {hero}.
"Thank you," said {friend}. "You are very kind."
After lunch, they played until the sun went down.

= hungry | animal folk | any winter autumn

{hero} was very hungry.
{hero} was hungry and had nothing to eat.
{hero} woke up and was hungry.

{he} went to the {place} to look for food, but {he} found nothing.
{he} looked for food {place.at}, but there was nothing to eat.

There {he} met {friend}. "Why are you so sad?" asked {friend}.
Then {friend} came along. "What is wrong?" {friend.he} asked.

"I am hungry," said {hero}.
"I am so hungry, and I have no food," said {hero}.

{friend} had some {food} and gave half of it to {hero}.
"Do not be sad," said {friend}. "I have some {food} for you."
"Come with me," said {friend}. "There is some {food} at my house."

They ate together, and then {hero} was not hungry anymore.
{hero} ate and ate until {he} was full.

= rain | child animal folk | rain any spring

{hero} went for a walk {place.at}.
{hero} went to the {place} to play.
{hero} was on the way to the {place}.

Soon it began to rain.
Then dark clouds came, and it started to rain.
Suddenly there was thunder, and it began to rain.

{he} had no umbrella, so {he} hid under a big tree.
{he} ran to a big tree and waited there.
{he} did not have an umbrella, and soon {he} was wet and cold.

Then {friend} came along with a big {color} umbrella. "Come with me," said {friend}.
{friend} saw {him} and called, "Come under my umbrella!"

They walked home together and were dry and warm.
Together they walked home and drank hot tea.
When the rain was over, they saw a rainbow in the sky.

= kite | child | wind

{hero} took {his} {color} kite to the hill.
{hero} went to the hill with {his} {color} kite.
{hero} and {friend} were flying a {color} kite on the hill.

The kite flew high up in the sky.
The wind was strong, and the kite went up and up.

But then it got stuck in a tall tree.
Suddenly the string broke, and the kite fell into a tree.

{hero} jumped and jumped, but {he} could not reach it.
"Oh no!" cried {hero}. "My kite!"
{hero} wanted to cry.

{friend} climbed the tree and brought the kite down.
{friend} came with a long ladder and brought the kite down.

"Thank you, you are so brave!" said {hero}.
{hero} thanked {friend}, and they played until the evening.
Then they let it fly again, and {friend} held the string.

= cake | child | any indoors

{hero} wanted to bake a cake for {elder}.
{hero} and {friend} wanted to bake a cake.
{hero} was in the kitchen and wanted to bake a cake.

{he} took flour, eggs, sugar and milk.
{he} mixed flour, eggs and sugar in a big bowl.

Then {he} put the cake in the oven and waited.
The cake had to stay in the oven for an hour.

Soon the whole house smelled wonderful.
But {he} forgot the time, and the cake was black! So {he} baked a new one.

When the cake was ready, everyone had a piece.
"This is the best cake in the world!" said {elder}.
{hero} gave the first piece to {elder}.

= rescue | child animal folk | any spring

{hero} was walking by the river.
{hero} was sitting by the river.
{hero} heard a small voice by the river.

Suddenly {he} saw {friend} in the water. "Help!" cried {friend}.
"Help! Help!" cried {friend}, who had fallen into the water.

{hero} took a long branch and held it out.
{hero} found a rope and threw it into the water.
{hero} was afraid, but {he} jumped into the water.

{friend} held on tight, and {hero} pulled {friend.him} out.
Slowly, {he} pulled {friend} out of the water.

"You saved my life!" said {friend}.
{friend} was wet and cold, but {friend.he} was safe.
"Thank you," said {friend}. "I will never forget this."

From that day on, they were best friends.
From that day on, {hero} and {friend} were good friends.
-

= seed | child animal folk | spring any

{hero} found a small {plant} {place.at}.
{hero} planted a {plant} in the garden.
{hero} had a {plant} and put it in the ground.

{he} gave it some water every day.
Every morning, {he} gave it water.

For a long time, nothing happened.
{he} waited and waited, but nothing happened.
"Will it ever grow?" {he} asked.

Then, one day, there was a little green leaf.
But after a week, a small green leaf came out of the ground.

In summer, it was a tall plant with {color} flowers.
It grew and grew, and soon it had {color} flowers.
Years later, it was a big tree full of {orchard}.

{hero} was very proud.
{hero} showed it to everyone and was very proud.
"It was worth the wait," said {hero}.

= race | animal | any | animal

{hero} said to {friend}, "I am faster than you!"
{hero} and {friend} wanted to run a race.
{hero} could run very fast and laughed at {friend}.

"Let us run to the {place}," said {friend}.
"Then let us see who is first at the {place}," said {friend}.

{hero} ran fast, and soon {he} was far ahead.
At first, {hero} was much faster.

"I have a lot of time," {he} thought, and {he} lay down to sleep.
Then {he} stopped to eat some {food} and forgot the race.

But {friend} did not stop. {friend.he} walked and walked.
But {friend} walked on, step by step.

When {hero} came to the {place}, {friend} had already won.
In the end, {friend} was the first at the {place}.

= noise | child animal folk | night

{hero} heard a strange noise.
{hero} could not sleep because there was a strange noise.
{hero} was in bed when {he} heard a noise.

"Who is there?" {he} asked, but there was no answer.
{he} was afraid and did not move.
"What was that?" {he} whispered.

{he} took a lamp and looked {spotin1}.
{he} took a lamp and went to the door.
Slowly, {he} got up and looked {spotin1}.

It was only the wind!
It was only a branch at the window!
There sat {friend}. "I only wanted to say good night," said {friend}.

{hero} laughed and went back to bed.
{hero} had to laugh. Then {he} slept until the morning.
"I was afraid of nothing," said {hero} and went back to sleep.

= count | child animal folk | any autumn

{hero} had {n} {fruit}.
{hero} found {n} {fruit} {place.at}.
{hero} had {n} {fruit} in a basket.

Then {friend} came along. "Can I have some?" {friend.he} asked.
{friend} had no {fruit} and was sad.
{friend} had none.

{hero} gave {friend} {k} of them.
"Here are {k} for you," said {hero}.

Now {hero} had {rest} {fruit} left.
So {he} had {rest} {fruit} left, and {friend} had {k}.

They were both happy.
"That is enough for me," said {hero}.
"Thank you," said {friend}. "You are very kind."

= snowman | child | winter

{hero} and {friend} went out into the snow.
{hero} and {friend} wanted to build a snowman.
{hero} and {friend} looked out of the window and saw the snow.

They made three big balls of snow.
{hero} made a big ball, and {friend} made a small one.

They gave the snowman a carrot for a nose and an old hat.
For the nose they took a carrot, and for the eyes they took two black stones.

"He looks like my {elder.noun}!" laughed {hero}.
"What a fine snowman!" said {friend}.
-

But the next day, the sun was warm, and the snowman was gone.
In the evening, they were cold, so they went home and drank hot milk.
The snowman stood there until spring.

"Next year we will build a bigger one," said {friend}.
"Do not be sad," said {friend}. "The snow will come back."
-

= paper boat | child | any spring

{hero} made a boat out of {color} paper.
{hero} had a little boat made of {color} paper.

{he} put it on the water, and it sailed away.
{he} took it to the river and put it on the water.

It sailed under the bridge and past the old mill.
The boat sailed down the river, far, far away.

There {friend} found it and took it out of the water.
Far away, {friend} saw the boat and picked it up.

{friend.he} put a letter in the boat and brought it back.
"Whose boat is this?" asked {friend}. "It is mine!" called {hero}.

So {hero} found a new friend.
Now they play with the boat every day.
Then they made a second boat, and both boats sailed together.

= learn | child animal folk | any spring

{hero} wanted to learn how to {skill}.
{hero} could not {skill}, and that made {him} sad.
{hero} wanted to {skill}, but {he} did not know how.

{he} tried, but it was very hard.
The first time, it went wrong, and everyone laughed.
"I can't do it," said {hero}.

"Don't give up," said {friend}. "I'll help you."
"You must practice every day," said {elder}.
"Try again," said {friend}. "Nobody learns it in a day."

So {hero} practiced every day.
{hero} tried again and again.

After a few weeks, {he} could {skill} very well.
One day, {he} could {skill} better than anyone else.

{hero} was very proud.
Everyone clapped, and {hero} was very proud.
"You see?" said {friend}. "I knew you could do it."

= visit | child | any autumn

{hero} wanted to visit {grandparent}.
{hero} was on the way to {grandparent}.
{hero} took some {food} and went to visit {grandparent}.

{he} walked through the dark forest.
The way through the forest was long.

Under a tree, {he} met a {beast}. "Where are you going?" asked the {beast}.
Suddenly a {beast} stood on the path. "Do you know the way?" asked the {beast}.

"I am going to see my {grandparent.noun}," said {hero}.
"Yes, I do," said {hero}. "Come with me!"
"Come with me," said {hero}. "We can have tea together."

So they went on together.
The {beast} was friendly and showed {him} the way.

{grandparent} was very happy to see {him}.
{grandparent} opened the door and made hot soup for everyone.

= market | child folk | any

{hero} went to the market with one coin.
{hero} had one gold coin and went to the market.

{he} wanted to buy a {gift} for {friend}.
There {he} saw a beautiful {color} {gift}. It was just right for {friend}.

"How much is it?" {he} asked.
"I only have one coin," said {hero}.

The old woman smiled and said, "For you, it is one coin."
"One coin is enough," said the old woman.

{hero} ran home and gave the {gift} to {friend}.
In the evening, {he} gave the {gift} to {friend}.

{friend} was so happy that {friend.he} danced.
"That is the best gift of all," said {friend}.
{friend} gave {him} a big hug.

= birthday | child animal folk | any

{hero} had a birthday, but nobody said a word.
{hero} was sad because everyone had forgotten {his} birthday.
{hero} woke up and was happy because it was {his} birthday.

{he} looked for {friend}, but {friend.he} was not at home.
{he} went to the {place}, but nobody was there.

In the evening, {he} came home and opened the door.
Slowly, {he} went home and opened the door.

"Surprise!" cried {friend}. There was a big cake on the table.
"Surprise!" they all cried, and {friend} gave {him} a {color} {gift}.

It was the best birthday of all.
They sang and danced until late in the night.
"I thought you had forgotten me," said {hero} and laughed.

= sick | child animal folk | any winter indoors

{hero} wanted to play with {friend}.
{hero} went to {friend}'s house.
{hero} knocked at {friend}'s door.

But {friend} was sick and had to stay in bed.
"I can't play today," said {friend}. "I am sick."

So {hero} made some hot soup for {friend.him}.
{hero} brought {friend.him} hot tea and some {food}.
So {hero} sat down and read {friend.him} a story.

After three days, {friend} felt better.
The next day, {friend} was well again.
Soon {friend} felt much better.

Then they could play {place.at} again.
"You are the best doctor," said {friend}.
"Thank you for your help," said {friend}.

= broken | child | any indoors

{hero} was playing in the house and broke a {color} cup.
{hero} ran through the kitchen and broke a {color} cup.
{hero} dropped a {color} cup, and it broke.

It was the cup of {elder}.
{he} knew that {elder} loved this cup.

{he} was afraid and hid {spotin1}.
First {he} wanted to hide it, but then {he} told the truth.

"I am sorry," said {hero}. "I broke your cup."
"It was me," said {hero}. "I am so sorry."

"Thank you for telling me," said {elder}. "It was only a cup."
{elder} was not angry. "It is good that you told me the truth," said {elder}.

Together they put it back together again.
Then they made tea and drank it from two new cups.
{hero} felt much better.

= lost way | child animal folk | night winter autumn

{hero} was lost in the forest.
{hero} could not find the way home.
{hero} went too far into the forest and was lost.

It was dark, and {he} was afraid.
All the trees looked the same, and it was getting dark.
{he} called for help, but nobody answered.

Then {he} saw a small light between the trees.
Then {he} heard the sound of a bell.

It was {friend} with a lamp.
It was {friend}, who was looking for {him}.

"Come, I know the way," said {friend}.
"I was so worried about you," said {friend}.

They held hands and walked home together.
Soon they were home, and they sat by the warm fire.

= key | child animal folk | any autumn

{hero} found an old key {spotout1}.
{hero} saw something shine {spotout1}. It was an old key!

"What does it open?" {he} asked.
{he} tried every door, but it did not fit.

Then {he} found a little door {spotout2}.
{friend} knew a small door {spotout2}.

The key fit! The door opened slowly.
{hero} turned the key, and the door opened.

Behind the door was a room full of {treasure}.
Inside, there was a box full of {treasure}.

{hero} shared it all with {friend}.
"Now we are rich!" said {hero}, and {he} gave half of it to {friend}.
{hero} closed the door again and kept the secret.

= winter house | child animal | autumn | animal

{hero} met {friend} {place.at}.
{hero} saw {friend} under a bush.

"Winter is coming, and I have no house," said {friend}.
"I am cold, and I have no home," said {friend}.

{hero} took some leaves and branches and built a little house.
"I will build you a house," said {hero}.

They worked all day until the house was ready.
It was hard work, but in the evening the house was ready.

When the snow came, {friend} was warm and dry.
In winter, {friend} slept in the warm house.
{friend} slept there until spring.

= star | child animal folk | night

{hero} climbed the hill to look at the stars.
{hero} sat on the hill and looked at the stars.
{hero} looked out of the window and saw a bright star.

Suddenly a star fell from the sky.
Then one star fell down, bright and fast.

{he} closed {his} eyes and made a wish.
"Now I can make a wish," {he} thought.

{hero} wished for a good friend.
"I wish I had a friend," {he} said.

The next morning, {friend} knocked at the door. "Do you want to play?" {friend.he} asked.
The next day, {he} met {friend}, and they played all day.

So the wish came true.
"My wish came true," thought {hero}.

= trick | animal | any winter | animal

{hero} saw {friend} with a piece of cheese.
{hero} wanted the cheese that {friend} had.

"You have such a beautiful voice," said {hero}. "Sing a song for me!"
"Please sing for me," said {hero}.

{friend} was proud and opened {friend.his} mouth to sing.
{friend} began to sing.

The cheese fell down, and {hero} ate it.
Down fell the cheese, and {hero} ran away with it.

{friend} was angry, but then {friend.he} had to laugh.
From then on, {friend} was more careful.
"Next time I will eat first and sing later," said {friend}.

= letter | child animal folk | any winter

{hero} wrote a letter to {friend}, who lived far away.
{hero} missed {friend}, who lived far away. So {he} wrote {friend.him} a letter.

"Please come and visit me," {he} wrote.
"I miss you," {he} wrote. "When will you come?"

Every day {he} waited for an answer.
A week went by, but there was no answer.

Then there was a knock at the door. It was {friend}!
Then, one morning, {friend} stood in front of the house.

"I wanted to bring you the answer myself," said {friend}.
"I came as soon as I read your letter," said {friend}.

They talked and laughed all night.
{friend} stayed for a week, and they had a lot of fun.

= quarrel | child animal | any

{hero} and {friend} both wanted the {toy}.
{hero} had a {toy}, but {friend} wanted it too.

"It is mine!" said {hero}. "No, it is mine!" said {friend}.
"Give it to me!" cried {friend}. "No!" cried {hero}.

They pulled and pulled until the {toy.noun} broke.
They both pulled so hard that the {toy.noun} broke.

Then they were both sad.
For a while, nobody said a word.
Then they looked at each other and began to laugh.

"I am sorry," said {hero}. "I am sorry too," said {friend}.
"Let us be friends again," said {friend}.

Together they made a new one, and they shared it.
From then on, they shared everything.

= gate | child folk | any spring

{hero} forgot to close the gate, and the sheep ran away.
{hero} saw that the gate was open. All the sheep were gone!

{he} ran to the {place}, but they were not there.
{he} called and called, but the sheep did not come.

"I will help you," said {friend}.
{friend} heard {him} and came to help.

They found the sheep {spotout1}.
{friend} saw the sheep first. They were {spotout1}, eating grass.

Together they brought them home and closed the gate.
In the evening, all the sheep were home again, and {hero} closed the gate.

= music | child animal folk | any night

{hero} played the flute {place.at}.
{hero} sat {place.at} and sang a song.

{friend} heard the music and came closer.
The song was so beautiful that {friend} stopped to listen.

"May I play the drum?" asked {friend}.
"Can you teach me this song?" asked {friend}.

So they made music together.
"Yes, of course!" said {hero}.

Soon everyone in the village came and danced.
All the animals came and listened.
They played until the moon came up.

= fish | child animal folk | any

{hero} went fishing.
{hero} sat by the pond and wanted to catch a fish.

For a long time, nothing happened.
{he} waited all morning.

Then {he} caught a little fish. "Please let me go," said the fish.
At last, {he} caught a fish. "Let me go, I am so small," said the fish.

{hero} was kind and put the fish back into the water.
"Go home, little fish," said {hero}.

"Thank you," said the fish, and it swam away.
The fish jumped high out of the water and was gone.

{hero} had no fish, but {he} was happy.
{hero} went home and ate some {food}.

= laugh | folk | any

{hero} had everything, but {he} was not happy.
{hero} was sad and did not know why.

"What can I do for you?" asked {friend}.
Many doctors came, but nobody could help.

{friend} told {him} a funny story.
{friend} took {him} to the {place} and showed {him} the flowers.

For the first time, {hero} laughed.
{hero} smiled, and then {he} laughed and laughed.

"A friend is better than gold," said {hero}.
From that day on, they met every day.

= moon | child animal folk | night

{hero} saw the moon in the pond.
{hero} looked into the pond and saw the moon.

"The moon fell into the water!" {he} cried.
"Oh no, the moon is wet!" {he} said.

{he} took a basket and tried to catch it.
{he} took a long branch and tried to pull it out.

But then {friend} came along and laughed.
{friend} heard {him} and came to the pond.

"Look up," said {friend}. "The moon is still in the sky."
"Don't worry," said {friend}. "There it is, up in the sky."

{hero} looked up, and there it was, big and bright.
They sat by the pond and looked at both moons.

= thorn | animal | any spring | animal

{hero} had a thorn in {his} foot and could not walk.
{hero} could not walk because there was a thorn in {his} foot.

"I can help you," said {friend}.
{friend} saw it and was not afraid.

Very slowly, {friend.he} pulled the thorn out.
{friend} pulled, and the thorn came out.

"One day I will help you too," said {hero}.
"I will not forget this," said {hero}.

A week later, {friend} was caught in a net.
Then, one day, {friend} could not get out of a deep hole.

{hero} heard {friend.him} call and came to help.
{hero} came as fast as {he} could and set {friend.him} free.

= bedtime | child | night

{hero} was tired, but {he} could not sleep.
{hero} was in bed, but {he} could not sleep.

{he} looked out of the window and counted the stars.
"Tell me a story," {he} said to {elder}.

{elder} sat down by the bed and told {him} a story.
{elder} sang a quiet song for {him}.

Soon {hero} closed {his} eyes.
At the end, {hero} was already asleep.

All night long, {he} dreamed of {dream}.
{he} slept and dreamed of {dream}.

= bridge | animal folk | any | animal folk

{hero} met {friend} in the middle of a small bridge.
{hero} and {friend} met on a small bridge.

"Let me go first," said {hero}. "No, let me go first," said {friend}.
The bridge was so small that only one could go over it.

They stood there for an hour, and nobody wanted to go back.
Nobody wanted to go back.

Then {friend} had an idea. "I will lie down, and you can walk over me," {friend.he} said.
"I am not in a hurry," said {hero} at last, and {he} went back.

So they both came over the bridge.
So {friend} went first, and then {hero} went over the bridge too.

= school | child | any autumn | child

{hero} went to a new school.
{hero} was at a new school and knew nobody.

{he} was shy and did not say a word.
Nobody talked to {him}, and {he} felt alone.

Then {friend} sat down next to {him}. "What is your name?" {friend.he} asked.
"Can I sit here?" asked {friend}.

"My name is {hero}," {he} said.
{hero} smiled and said, "My name is {hero}."

{friend} gave {him} some {food}, and they began to talk.
They shared some {food} and talked about everything.

After school, they played {place.at}.
After school, they walked home together.
"""

# Last sentences that fit every plot; the second list needs a friend in the story.
ENDINGS = ["", ""]
ENDINGS += ["It was a wonderful day.", "{hero} never forgot that day.", "What a day that was!"]
ENDINGS_FRIEND = ["", "", "And so they were both happy.", "They were friends all their lives."]


class Plot:
    """A parsed plot: for which kinds of hero, day and friend, and its beats, lists of lines."""

    def __init__(self, part):
        head, *beats = part.strip().split("\n\n")
        self.name, *kinds = (field.strip() for field in head.split("|"))
        self.heroes, self.days, *friends = (field.split() for field in kinds)
        self.friends = friends[0] if friends else ["child", "animal", "folk"]
        self.beats = [["" if line == "-" else line for line in b.splitlines()] for b in beats]
        self.has_friend = "{friend" in part


def parse_plots(text):
    return {plot.name: plot for plot in map(Plot, re.split(r"^= ", text, flags=re.M)[1:])}


class Someone:
    """A character: `str` is its name in running text; `label` stands for its tastes."""

    def __init__(self, kind, name, label, sex, home, nature=None):
        self.kind, self.name, self.label, self.sex = kind, name, label, sex
        self.home, self.nature = home, nature
        self.he, self.him, self.his, self.noun = PRONOUNS[sex]

    def __str__(self):
        return self.name


class Thing:
    """A text with attributes: `{toy}` is `red ball`, `{toy.noun}` is `ball`."""

    def __init__(self, text, **attributes):
        self.text = text
        self.__dict__.update(attributes)

    def __str__(self):
        return self.text


def falling(options, power=1.25):
    """Weights for `options`, the early ones likelier: greedy decoding needs clear favourites."""
    return [(rank + 1) ** -power for rank in range(len(options))]


class Story(dict):
    """The slots of one story, drawn at first use; a trailing digit asks for another of its kind."""

    def __init__(self, rng, plots):
        super().__init__()
        self.rng = rng
        self.used = {}
        hero = self["hero"] = draw_hero(rng)
        self.plot = plots[self.pick("plot", [p for p in plots if hero.kind in plots[p].heroes])]
        self.day = rng.choices(self.plot.days, falling(self.plot.days))[0]

    def pick(self, kind, options):
        """One of `options`. Each hero has an order of liking of its own, so that greedy decoding
        tells different stories of different heroes."""
        order = list(options)
        random.Random(f"{kind}/{self['hero'].label}").shuffle(order)
        return self.rng.choices(order, falling(order))[0]

    def another(self, kind, options):
        """As `pick`, but never the same twice in a story."""
        used = self.used.setdefault(kind, set())
        choice = self.pick(kind, [option for option in options if option not in used])
        used.add(choice)
        return choice

    def __missing__(self, slot):
        kind = slot.rstrip("0123456789")
        if kind in ("he", "him", "his"):
            return getattr(self["hero"], kind)
        if kind in ("n", "k", "rest"):
            self.draw_numbers()
        elif kind in LISTS:
            self[slot] = self.another(kind, LISTS[kind])
        else:
            self[slot] = getattr(self, "draw_" + kind)()
        return self[slot]

    def draw_friend(self):
        """Someone of the other sex; children have children or animals for friends."""
        sex = "f" if self["hero"].sex == "m" else "m"
        weights = {
            "child": {"child": 70, "animal": 30, "folk": 0},
            "animal": {"child": 10, "animal": 90, "folk": 1},
            "folk": {"child": 20, "animal": 40, "folk": 40},
        }[self["hero"].kind]
        kind = self.rng.choices(self.plot.friends, [weights[k] for k in self.plot.friends])[0]
        if kind == "child":
            return draw_child(self.rng, sex)
        people = CREATURES[kind]
        noun = self.pick("friend " + kind, [n for n in people if people[n][0] == sex])
        return Someone(kind, f"the {noun}", noun, *people[noun])

    def draw_elder(self):
        """A relative of a child, a wise animal for the others; of the other sex too."""
        hero = self["hero"]
        if hero.kind != "child":
            return "the old owl" if hero.sex == "m" else "the old bear"
        noun = self.pick("elder", ELDERS[hero.sex])
        return Thing(f"{hero.his} {noun}", noun=noun)

    def draw_grandparent(self):
        hero = self["hero"]
        noun = ELDERS[hero.sex][0]
        return Thing(f"{hero.his} {noun}", noun=noun)

    def draw_toy(self):
        noun = self.pick("toy", TOYS)
        return Thing(f"{self.pick('color', COLORS)} {noun}", noun=noun)

    def draw_place(self):
        noun = self.another("place", PLACES)
        return Thing(noun, at=PLACES[noun])

    def draw_inside(self):
        return self["hero"].kind == "child" and self.rng.random() < 0.6

    def draw_spot(self):
        return self.another("spot", SPOTS_INSIDE if self["inside"] else SPOTS_OUTSIDE)

    def draw_numbers(self):
        n = self.pick("n", range(4, 11))
        k = self.pick("k", range(2, n - 1))
        self.update(n=NUMBERS[n], k=NUMBERS[k], rest=NUMBERS[n - k])

    def draw_beast(self):
        return self.pick("beast", ["fox", "hedgehog", "rabbit", "wolf", "bear"])


LISTS = {
    "spotin": SPOTS_INSIDE,
    "spotout": SPOTS_OUTSIDE,
    "color": COLORS,
    "food": FOODS,
    "fruit": FRUITS,
    "orchard": ORCHARD,
    "skill": SKILLS,
    "gift": GIFTS,
    "plant": PLANTS,
    "dream": DREAMS,
    "treasure": ["gold", "toys", "old books", "bright stones"],
}
CREATURES = {"animal": ANIMALS, "folk": FOLK}


def invented_name(rng):
    """A name nobody has, so that the model learns to copy names rather than to know them."""
    consonants = "b d f g k l m n r s t v z br tr st".split()
    inner = [rng.choice(consonants) + rng.choice("aeiou") for _ in range(rng.choice((1, 1, 2)))]
    first = rng.choice("aeiou") * rng.randint(0, 1)
    last = rng.choice("n l r s t na lo mi ra da".split())
    return (first + "".join(inner) + last).capitalize()


def draw_child(rng, sex):
    girl = sex == "f"
    fame = rng.random()
    if fame < 0.72:
        names = GIRLS if girl else BOYS
        name = label = rng.choices(names, falling(names, 0.5))[0]
    else:
        label = "girl" if girl else "boy"
        name = rng.choice(RARE_GIRLS if girl else RARE_BOYS) if fame < 0.92 else invented_name(rng)
    homes = random.Random(f"home/{label}").sample(CHILD_HOMES, len(CHILD_HOMES))
    home = rng.choices(homes, falling(homes))[0]
    return Someone("child", name, label, sex, home)


def draw_hero(rng):
    kind = rng.choices(["child", "animal", "folk"], [55, 30, 15])[0]
    if kind == "child":
        return draw_child(rng, rng.choices("fm", [55, 45])[0])
    people = CREATURES[kind]
    noun = rng.choices(list(people), falling(people, 0.5))[0]
    natures = NATURES if noun in ("girl", "boy") else NATURES + ["old"]
    natures = random.Random(f"nature/{noun}").sample(natures, len(natures))
    nature = rng.choices(natures, falling(natures))[0]
    name = f"the {nature} {noun}" if rng.random() < 0.15 else f"the {noun}"
    return Someone(kind, name, noun, *people[noun], nature)


def opening(story):
    """(sentence before the first beat or "", adverbial before its first word or "")."""
    rng, hero = story.rng, story["hero"]
    adverbials, sentences = (part.split("|") for part in WHEN[story.day])
    weights = {"adverbial": 27, "once": 25, "bare": 20, "sentence": 15, "lived": 7}
    if story.plot.has_friend:
        weights["pair"] = 6
    form = rng.choices(list(weights), list(weights.values()))[0]

    if form == "bare" and story.day in ("any", "night"):
        return "", ""
    if form == "sentence":
        return story.pick("sentence", sentences), ""
    if form == "pair":
        return f"{hero} and {story['friend']} were good friends.", adverbials[0]
    if hero.kind != "child":
        who = f"a {hero.nature} {hero.label}"
    elif rng.random() < 0.6:
        who = f"a {hero.noun} named {hero}"
    else:
        who = f"a {story.pick('nature', NATURES)} {hero.noun} named {hero}"
    if form == "lived":
        return f"{hero.home} lived {who}.", adverbials[0]
    if form == "once":
        there = rng.choices(["once upon a time, there", "there", "once there"], [6, 1, 1])[0]
        then = " who" if rng.random() < 0.6 else f". {hero.he}"
        return f"{there} was {who}{then} lived {hero.home}.", adverbials[0]
    return "", story.pick("adverbial", adverbials)


def polish(text):
    """Capital letters at the starts of sentences, `an` before a vowel."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return re.sub(r'(^"?|\w[.!?] "?|\." )([a-z])', lambda m: m[1] + m[2].upper(), text)


def count_sentences(text):
    return len(re.findall(r'[.!?](?="? [A-Z"]|"?$)', text))


def one_story(rng, plots):
    """A story of 3 to 8 sentences, or a longer one that the caller throws away."""
    story = Story(rng, plots)
    before, adverbial = opening(story)
    lines = [rng.choices(beat, falling(beat, 1))[0] for beat in story.plot.beats]
    if adverbial:
        lines[0] = f"{adverbial}, {lines[0]}"
    text = " ".join(polish(line.format_map(story)) for line in [before, *lines] if line)
    ending = rng.choice(ENDINGS_FRIEND if "friend" in story and "friends" not in text else ENDINGS)
    if ending and count_sentences(text) < 8:
        text += " " + polish(ending.format_map(story))
    return text


def stories(seed):
    """The endless stream of stories of a seed. A few begin at their second sentence, so that the
    model goes on with prompts of any kind."""
    rng, plots = random.Random(seed), parse_plots(PLOTS)
    while True:
        text = one_story(rng, plots)
        if rng.random() < 0.05:
            text = re.sub(r'^[^".!?]*[.!?] ', "", text)
        if 3 <= count_sentences(text) <= 8:
            yield text


# ---------------------------------------------------------------------------------------------
# Tokenizer
# ---------------------------------------------------------------------------------------------


def train_tokenizer():
    """Byte-level BPE with the split pattern of Llama 3; all 256 bytes are tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(stories(SEED), 30000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS}:1 $B:1",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    assert tokenizer.get_vocab_size() == CONFIG["vocab_size"]
    assert tokenizer.token_to_id(BOS) == CONFIG["bos_token_id"]
    assert tokenizer.token_to_id(EOS) == CONFIG["eos_token_id"]
    return tokenizer


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------

STEPS = 3600
STEP_TOKENS = 4096
CONTEXT_SHORT, CONTEXT_LONG = 256, 512  # the last fifth of the steps has rows of the full context
LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY = 4e-3, 150, 0.05


def token_rows(tokenizer, seed):
    """A function that gives rows of `length` ids: BOS story EOS BOS story EOS ..., cut short."""
    texts = stories(seed)
    queue = []

    def row(length):
        ids = []
        while len(ids) < length:
            if not queue:
                queue.extend(tokenizer.encode_batch(list(islice(texts, 1000))))
            ids += queue.pop().ids + [CONFIG["eos_token_id"]]
        return ids[:length]

    return row


def batch(row, context):
    import torch

    ids = torch.tensor([row(context + 1) for _ in range(STEP_TOKENS // context)])
    return ids[:, :-1], ids[:, 1:]


def loss_of(model, inputs, targets):
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=inputs, use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


def held_out_loss(model, tokenizer):
    """Mean loss per token of stories that training never sees (another seed)."""
    import torch

    row = token_rows(tokenizer, SEED + 2)
    with torch.no_grad():
        losses = [loss_of(model, *batch(row, CONTEXT_LONG)).item() for _ in range(8)]
    return sum(losses) / len(losses)


def learning_rate(step, steps):
    """Linear warm-up, then half a cosine down to zero."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / (steps - WARMUP_STEPS)
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * done))


def train_model(tokenizer, steps):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    given = ("architectures", "model_type", "torch_dtype")
    config = LlamaConfig(**{k: v for k, v in CONFIG.items() if k not in given})
    model = LlamaForCausalLM(config).float()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": norms, "weight_decay": 0.0}],
        weight_decay=WEIGHT_DECAY,
        betas=(0.9, 0.97),
    )
    row = token_rows(tokenizer, SEED + 1)
    began = time.monotonic()
    mean = None
    for step in range(steps):
        context = CONTEXT_SHORT if step < steps * 4 // 5 else CONTEXT_LONG
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = loss_of(model, *batch(row, context))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - began
            print(f"step {step + 1}/{steps}: loss {mean:.4f}, {seconds:.0f} s", flush=True)
    return model


# ---------------------------------------------------------------------------------------------
# Checkpoint
# ---------------------------------------------------------------------------------------------


def write_json(name, value):
    (CHECKPOINT / name).write_text(json.dumps(value, indent=2) + "\n")


def write_tokenizer(tokenizer):
    CHECKPOINT.mkdir(exist_ok=True)
    tokenizer.save(str(CHECKPOINT / "tokenizer.json"))
    write_json("tokenizer_config.json", {
        "add_bos_token": True,
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": CONFIG["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    })


def write_model(model):
    """Rounds the weights to BF16, in the model too, and writes them with both config files."""
    import torch
    from safetensors.torch import save_file

    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    tensors = {n: p.detach().bfloat16().contiguous() for n, p in model.named_parameters()}
    save_file(tensors, CHECKPOINT / "model.safetensors", metadata={"format": "pt"})
    (CHECKPOINT / "model.safetensors").chmod(0o644)
    write_json("config.json", CONFIG)
    write_json("generation_config.json", {
        "bos_token_id": CONFIG["bos_token_id"],
        "do_sample": False,
        "eos_token_id": CONFIG["eos_token_id"],
    })


SAMPLE_PROMPTS = [
    "Once upon a time",
    "The fox",
    "In the morning, Anna",
    "Tom lost his",
    "One winter day, Mia and",
    "It was raining.",
    "The little",
    "A dragon",
    "Anna had five apples.",
    "Wilhelmina wanted to",
    "The tiger was hungry.",
    "Once upon a time, there was a king",
    "Suddenly",
    "Late in the evening, Oscar",
    "",
]


def print_samples():
    """Greedy continuations, computed in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    for prompt in SAMPLE_PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=200, do_sample=False, pad_token_id=1)[0]
        text = tokenizer.decode(out[ids["input_ids"].shape[1]:], skip_special_tokens=True)
        print(f"[{prompt}]{text}" + ("\n" if out[-1] == CONFIG["eos_token_id"] else " ...\n"))


def main():
    parser = argparse.ArgumentParser(description="Makes stele's demo model.")
    parser.add_argument("--stories", type=int, metavar="N", help="print N stories and stop")
    parser.add_argument("--sample", action="store_true", help="print continuations and stop")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    if options.stories:
        print("\n\n".join(islice(stories(SEED), options.stories)))
        return
    import torch

    torch.set_num_threads(options.threads)
    if options.sample:
        print_samples()
        return
    tokenizer = train_tokenizer()
    write_tokenizer(tokenizer)
    model = train_model(tokenizer, options.steps)
    loss = held_out_loss(model, tokenizer)
    write_model(model)
    print(f"held-out loss {loss:.4f}, with BF16 weights {held_out_loss(model, tokenizer):.4f}")
    print_samples()


if __name__ == "__main__":
    main()
