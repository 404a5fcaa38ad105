"""A writer of short pieces: a form, a topic and a style give texts without end, put together from sentences with gaps."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from longspan.evaluation.suites import _fact_lists as words

__all__ = ["Wish", "draw_wish", "write"]

FORMS = (
    "blog post",
    "diary entry",
    "email",
    "essay",
    "letter",
    "poem",
    "riddle",
    "short story",
    "song",
    "speech",
    "tweet",
)
TOPICS = (
    "bees,bridges,carnivals,clocks,comets,coral reefs,deserts,dragons,earthquakes,fireworks,forgotten languages,glaciers,"
    "harbours,islands,kites,labyrinths,lighthouses,lost suitcases,magnets,markets,migrating birds,mirrors,mountain railways,"
    "mushrooms,night trains,old maps,orchards,puppets,rainstorms,robots,rivers,sailing ships,shadows,snowflakes,soups,"
    "staircases,submarines,teapots,thunderstorms,tortoises,treehouses,umbrellas,volcanoes,whales,windmills,winter mornings"
).split(",")
STYLES = {
    "archaic": ("Verily", "Hearken", "Forsooth", "Prithee", "Lo"),
    "breathless": ("Just imagine", "And then", "Quick", "Oh", "Wait"),
    "casual": ("Well", "Honestly", "You know", "Anyway", "So"),
    "formal": ("Furthermore", "It should be noted", "Accordingly", "In due course", "With respect"),
    "gloomy": ("Alas", "As ever", "Sadly", "Too late", "In the dark"),
    "humorous": ("No joke", "Believe it or not", "To nobody's surprise", "As the cook says", "Cue the drums"),
    "lyrical": ("Softly", "In silver light", "Between two breaths", "Far off", "At dusk"),
    "scientific": (
        "On average",
        "In a first trial",
        "By measurement",
        "Under controlled conditions",
        "Statistically",
    ),
    "stern": ("Mark this", "Make no mistake", "Once and for all", "Listen", "Without exception"),
    "whispered": ("Hush", "Between us", "Come closer", "Not a word", "Quietly"),
}
SENTENCES = (
    "the {adj} {object} in the {inside} belongs to nobody but {topic}",
    "{person} of {place} counted {number} {topic_of} before breakfast",
    "no {animal} has ever understood {topic} as the {role} does",
    "give me {food} and {topic}, and I ask for no {object}",
    "where {topic} begin, the {colour} {object} ends",
    "there were {number} reasons to love {topic}, and {person} forgot them all by {day}",
    "a {animal} and a {animal} once argued about {topic} until {month}",
    "the {role} traded {number} {adj} boxes for a book on {topic}",
    "in {place} they paint {topic} {colour} and call it a holiday",
    "what the {object} is to a {role}, {topic} are to {person}",
    "my grandmother kept {food} beside a {adj} {object} and spoke of {topic}",
    "every {day} the road from {place} to {place} smells of {food}",
    "I dreamt that {topic} had come to the {inside} with a {colour} {object}",
    "nobody in {place} can spell {topic} without help from the {role}",
    "the {adj} truth is that {person} prefers {food}",
    "you will find {topic} under {number} pounds of {food}",
    "even the {animal} by the {inside} door turned {colour} that {day}",
    "ask {person}: {number} years of {topic} leave their mark on a {object}",
    "since {month} the {role} has slept beside a {adj} {object}",
    "the ship {ship} carried {food}, a {animal} and all we know about {topic}",
    "someone wrote {topic} on the wall of the {inside} in {colour} chalk",
    "between {place} and the sea lie {number} miles of {topic}",
    "hold the {object} to the light and {topic} appear, {colour} and {adj}",
    "it took {person} one {adj} {object} to change the mind of the {role}",
    "they say a {animal} guards the {object} of {place}",
    "on {day} we shall eat {food} and think of {topic}",
    "{number} doors lead out of the {inside}, and behind each are {topic}",
    "the {role} and the {role} both claim that {person} invented {topic}",
    "there is {language} poetry about {topic}, and all of it mentions {food}",
    "a {colour} {animal} never asks twice for {food}",
)  # fmt: skip
ENDINGS = (
    "so much for {topic}",
    "that is all that {person} would tell",
    "and the {object} is still in {place}",
    "tomorrow, more about {food}",
    "remember the {animal}",
    "the rest is known to the {role} alone",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be written."""

    form: str
    topic: str
    style: str

    def __str__(self) -> str:
        """As part of a request."""
        article = "an" if self.style[0] in "aeiou" else "a"
        return f"{self.form} about {self.topic} in {article} {self.style} style"


def draw_wish(rng: random.Random) -> Wish:
    """Any form, topic and style."""
    return Wish(form=rng.choice(FORMS), topic=rng.choice(TOPICS), style=rng.choice(tuple(STYLES)))


def write(wish: Wish, rng: random.Random) -> str:
    """One piece, of 30 to 90 words, of several lines in most forms."""
    size = 2 if wish.form in ("tweet", "riddle") else rng.randint(3, 5)
    said = [_fill(pattern, wish, rng) for pattern in rng.sample(SENTENCES, size)]
    for place in rng.sample(range(size), (size + 1) // 2):
        said[place] = f"{rng.choice(STYLES[wish.style])}, {said[place]}"
    said.append(_fill(rng.choice(ENDINGS), wish, rng))
    said = [_sentence(text) for text in said]
    return _shape(wish, said, rng)


def _shape(wish: Wish, said: Sequence[str], rng: random.Random) -> str:
    prose, reader = " ".join(said), f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.SURNAMES)}"
    place = rng.choice(words.PLACE_HEADS) + rng.choice(words.PLACE_TAILS)
    title = f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.OBJECTS)}".capitalize()
    if wish.form in ("poem", "song"):
        return f"{title}\n" + "\n".join(said)
    if wish.form == "riddle":
        return f"{prose} What am I, {reader}?"
    if wish.form == "tweet":
        return f"{prose} #{place} #{title.replace(' ', '').replace('-', '')}"
    if wish.form in ("letter", "email"):
        head = f"Subject: {title}\n" if wish.form == "email" else f"{place}, {rng.choice(words.DAYS)}\n"
        return f"{head}Dear {reader},\n{prose}\nYours, {rng.choice(words.FIRST_NAMES)}"
    if wish.form == "diary entry":
        return f"{rng.choice(words.DAYS)}, {place}. {prose}"
    if wish.form == "speech":
        return f"Citizens of {place}! {prose} Thank you, {reader}."
    return f"{title}\n{prose}"


def _fill(pattern: str, wish: Wish, rng: random.Random) -> str:
    def value(match: re.Match[str]) -> str:
        slot = match[1]
        if slot in ("topic", "topic_of"):
            return wish.topic if slot == "topic" else f"stories of {wish.topic}"
        if slot == "person":
            return f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.SURNAMES)}"
        if slot == "place":
            return rng.choice(words.PLACE_HEADS) + rng.choice(words.PLACE_TAILS)
        if slot == "number":
            return str(rng.randint(3, 999))
        return rng.choice(_LISTS[slot])

    text = re.sub(r"\{(\w+)\}", value, pattern)
    return re.sub(r"\b(a) (?=[aeio])", r"\1n ", text)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


_LISTS: dict[str, Sequence[str]] = {
    "adj": words.ADJECTIVES, "animal": words.ANIMALS, "colour": words.COLOURS, "day": words.DAYS, "food": words.FOODS,
    "inside": words.PLACES_INSIDE, "language": words.LANGUAGES, "month": words.MONTHS, "object": words.OBJECTS,
    "role": words.ROLES, "ship": words.SHIPS,
}  # fmt: skip
