"""Eighty intents of a service desk, each an action on a thing, and a grammar that words them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from longspan.evaluation.suites import _fact_lists as lists

__all__ = ["INTENTS", "THINGS", "endless", "utterance"]

THINGS: dict[str, tuple[str, ...]] = {
    "library_card": ("library card", "reader's pass", "borrower's card"),
    "parcel": ("parcel", "package", "box that was posted"),
    "train_ticket": ("train ticket", "rail ticket", "ticket for the train"),
    "hotel_room": ("hotel room", "room at the hotel", "double room"),
    "gym_membership": ("gym membership", "fitness pass", "membership of the gym"),
    "phone_contract": ("phone contract", "mobile plan", "contract for the mobile"),
    "rental_car": ("rental car", "hired car", "car from the rental"),
    "concert_seat": ("concert seat", "seat for the concert", "place in the concert hall"),
    "dentist_visit": ("dentist appointment", "visit to the dentist", "dental check-up"),
    "newspaper": ("newspaper subscription", "daily paper", "subscription to the newspaper"),
    "language_course": ("language course", "evening class in Spanish", "Spanish lessons"),
    "storage_unit": ("storage unit", "rented lock-up", "lock-up for furniture"),
    "garden_plot": ("garden plot", "allotment", "plot in the gardens"),
    "internet_line": ("internet line", "broadband connection", "home internet"),
    "insurance": ("travel insurance", "insurance for the trip", "trip cover"),
    "parking_permit": ("parking permit", "permit for the car park", "resident's parking pass"),
}
ACTIONS: dict[str, tuple[str, ...]] = {
    "cancel": (
        "please cancel the {thing}",
        "I no longer want the {thing}",
        "how do I get out of the {thing}",
        "take the {thing} off my account",
        "I need to give up the {thing}",
        "can the {thing} still be called off",
    ),
    "price": (
        "how much does the {thing} cost",
        "what will I pay for the {thing}",
        "is there a cheaper rate for the {thing}",
        "tell me the price of the {thing}",
        "what do you charge for the {thing}",
        "does the {thing} get dearer",
    ),
    "move": (
        "can I shift the {thing} to another date",
        "I want a later start for the {thing}",
        "please put the {thing} forward by a week",
        "is it possible to change the day of the {thing}",
        "the date of the {thing} does not suit me any more",
        "let me have the {thing} at a different time",
    ),
    "trouble": (
        "something is wrong with the {thing}",
        "I have a complaint about the {thing}",
        "the {thing} is not what I was promised",
        "who puts it right when the {thing} has a fault",
        "the {thing} has been a nuisance since the start",
        "there is a problem with the {thing}",
    ),
    "transfer": (
        "can somebody else take over the {thing}",
        "I would like the {thing} in another name",
        "please make over the {thing} to my neighbour",
        "may I pass the {thing} on to a friend",
        "put the {thing} under my sister's name",
        "who signs when the {thing} changes hands",
    ),
}
FRAMES = (
    "{core}?",
    "Hello, {core}?",
    "{core}, I am {name} from {place}?",
    "It is about {day}: {core}?",
    "{name} here, {core}?",
    "I wrote on {day} already, {core}?",
    "I live in {place} and {core}?",
    "One question from {place}: {core}?",
    "{core}, and could you reply by {day}?",
    "Before {day} I have to know, {core}?",
)
QUESTIONS = ("how", "what", "is", "does", "can", "who", "may")
INTENTS = tuple(f"{action}_{thing}" for thing in THINGS for action in ACTIONS)


def utterance(intent: str, rng: random.Random) -> str:
    """One customer's sentence with this intent."""
    action, thing = intent.split("_", 1)
    core = rng.choice(ACTIONS[action]).format(thing=rng.choice(THINGS[thing]))
    text = rng.choice(FRAMES).format(
        core=core,
        name=f"{rng.choice(lists.FIRST_NAMES)} {rng.choice(lists.SURNAMES)}",
        place=rng.choice(lists.PLACE_HEADS) + rng.choice(lists.PLACE_TAILS),
        day=rng.choice(lists.DAYS),
    )
    asks = core.split()[0] in QUESTIONS or "could you" in text
    return text[0].upper() + (text[1:] if asks else text[1:-1] + ".")


def endless(intent: str, rng: random.Random, known: set[str]) -> Iterator[str]:
    """Sentences of this intent that are not among `known`, which they join."""
    while True:
        text = utterance(intent, rng)
        if text.lower() not in known:
            known.add(text.lower())
            yield text
