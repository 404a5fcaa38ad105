"""What BABILong's 20 tasks tell the model before the text: the rule, solved examples and the form of the answer, in own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PROMPTS", "TaskPrompt"]

NO_MORE = "Write nothing else."
PLACE = f"Answer with one word, the place. {NO_MORE}"
YES_NO = f"Answer with one word, yes or no. {NO_MORE}"
LAST_PLACE = "Somebody is at the place last gone to."
CARRIED = "A thing moves with whoever carries it, and stays where it is put down."


@dataclass(frozen=True, kw_only=True)
class TaskPrompt:
    """Rule of a task, two examples (facts, question, answer), and the form of the answer."""

    about: str
    rule: str
    examples: tuple[tuple[str, str, str], ...]
    form: str

    def text(self) -> str:
        """All that stands before the context."""
        solved = "\n".join(
            f"<example>\n{facts} {question}\nAnswer: {answer}\n</example>"
            for facts, question, answer in self.examples
        )
        return (
            f"The text below hides facts about {self.about}. Answer the question from those facts alone. {self.rule}\n\n"
            f"{solved}\n\n{self.form}"
        )  # fmt: skip


def _prompt(about: str, rule: str, form: str, *examples: tuple[str, str, str]) -> TaskPrompt:
    return TaskPrompt(about=about, rule=rule, form=form, examples=examples)


PROMPTS: Mapping[str, TaskPrompt] = {
    "qa1": _prompt(
        "where people are", LAST_PLACE, PLACE,
        ("Nadia walked to the attic. Omar went to the shed. Nadia went to the porch.", "Where is Nadia?", "porch"),
        ("Omar moved to the cellar. Nadia went to the shed.", "Where is Omar?", "cellar"),
    ),
    "qa2": _prompt(
        "people, places and things", CARRIED, PLACE,
        ("Nadia went to the attic. Nadia took the lamp. Nadia went to the porch.", "Where is the lamp?", "porch"),
        ("Omar got the rope. Omar went to the shed. Omar dropped the rope. Omar went to the cellar.", "Where is the rope?", "shed"),
    ),
    "qa3": _prompt(
        "people, places and things", CARRIED, PLACE,
        ("Nadia went to the attic. Nadia took the lamp. Nadia went to the porch. Nadia went to the shed.",
         "Where was the lamp before the shed?", "porch"),
        ("Omar got the rope. Omar went to the cellar. Omar went to the attic.", "Where was the rope before the attic?", "cellar"),
    ),
    "qa4": _prompt(
        "how places lie to each other", "Each fact can be read both ways.", PLACE,
        ("The attic is north of the shed. The porch is south of the shed.", "What is north of the shed?", "attic"),
        ("The cellar is east of the porch. The shed is east of the cellar.", "What is the cellar east of?", "porch"),
    ),
    "qa5": _prompt(
        "who gives what to whom", "Where something was given more than once, the last time counts.",
        f"Answer with one word, a name or a thing. {NO_MORE}",
        ("Nadia took the lamp. Nadia gave the lamp to Omar.", "Who received the lamp?", "Omar"),
        ("Omar handed the rope to Iris.", "What did Omar give to Iris?", "rope"),
    ),
    "qa6": _prompt(
        "where people are", LAST_PLACE, YES_NO,
        ("Nadia went to the attic. Nadia went to the porch.", "Is Nadia in the porch?", "yes"),
        ("Omar moved to the cellar. Omar went to the shed.", "Is Omar in the cellar?", "no"),
    ),
    "qa7": _prompt(
        "what people pick up, put down and hand over", "Count what somebody has in the end.",
        f"Answer with one word, none, one, two or three. {NO_MORE}",
        ("Nadia took the lamp. Nadia got the rope. Nadia dropped the lamp.", "How many objects is Nadia carrying?", "one"),
        ("Omar got the jug. Omar left the jug.", "How many objects is Omar carrying?", "none"),
    ),
    "qa8": _prompt(
        "what people pick up, put down and hand over", "Only what somebody has in the end counts.",
        f"Answer with the things alone, joined by commas, or with nothing. {NO_MORE}",
        ("Nadia took the lamp. Nadia got the rope.", "What is Nadia carrying?", "lamp,rope"),
        ("Omar got the jug. Omar left the jug.", "What is Omar carrying?", "nothing"),
    ),
    "qa9": _prompt(
        "where people are and are not", LAST_PLACE, YES_NO,
        ("Nadia is in the attic. Nadia is no longer in the attic.", "Is Nadia in the attic?", "no"),
        ("Omar went to the shed.", "Is Omar in the shed?", "yes"),
    ),
    "qa10": _prompt(
        "where people are or may be", "A fact with `either` leaves two places open.",
        f"Answer with one word, yes, no or maybe. {NO_MORE}",
        ("Nadia is either in the attic or the shed.", "Is Nadia in the attic?", "maybe"),
        ("Omar is in the cellar.", "Is Omar in the porch?", "no"),
    ),
    "qa11": _prompt(
        "where people are", f"{LAST_PLACE} `He` or `she` is the person named just before.", PLACE,
        ("Nadia went to the attic. After that she went to the porch.", "Where is Nadia?", "porch"),
        ("Omar moved to the cellar. Then he went to the shed.", "Where is Omar?", "shed"),
    ),
    "qa12": _prompt(
        "where people are, two at a time", LAST_PLACE, PLACE,
        ("Nadia and Omar went to the attic. Omar and Iris went to the porch.", "Where is Nadia?", "attic"),
        ("Nadia and Iris moved to the cellar.", "Where is Iris?", "cellar"),
    ),
    "qa13": _prompt(
        "where people are, two at a time", f"{LAST_PLACE} `They` are the two named just before.", PLACE,
        ("Nadia and Omar went to the attic. Then they went to the porch.", "Where is Omar?", "porch"),
        ("Iris and Omar moved to the cellar. Afterwards they went to the shed.", "Where is Iris?", "shed"),
    ),
    "qa14": _prompt(
        "where people were at which time of day", "Order them by time: yesterday, this morning, this afternoon, this evening.", PLACE,
        ("This morning Nadia went to the attic. Yesterday Nadia went to the porch.", "Where was Nadia before the attic?", "porch"),
        ("Omar went to the shed this evening. This afternoon Omar went to the cellar.", "Where was Omar before the shed?", "cellar"),
    ),
    "qa15": _prompt(
        "animals, their names and what they fear", "A named animal fears what its kind fears.",
        f"Answer with one word, the kind of animal. {NO_MORE}",
        ("Owls are afraid of foxes. Pim is an owl.", "What is pim afraid of?", "fox"),
        ("Foxes are afraid of bears. Tula is a fox.", "What is tula afraid of?", "bear"),
    ),
    "qa16": _prompt(
        "animals, their names and colours", "Animals of one kind have one colour.",
        f"Answer with one word, the colour. {NO_MORE}",
        ("Pim is an owl. Pim is brown. Tula is an owl.", "What color is Tula?", "brown"),
        ("Sol is a fox. Sol is red. Ned is a fox.", "What color is Ned?", "red"),
    ),
    "qa17": _prompt(
        "where shapes lie to each other", "Go from shape to shape.", YES_NO,
        ("The star is above the cross. The ring is to the right of the star.", "Is the ring above the cross?", "yes"),
        ("The star is to the left of the cross.", "Is the star to the right of the cross?", "no"),
    ),
    "qa18": _prompt(
        "the sizes of things", "What fits inside a thing is smaller than it.", YES_NO,
        ("The purse fits inside the crate. The ring fits inside the purse.", "Does the ring fit in the crate?", "yes"),
        ("The crate is bigger than the purse.", "Is the purse bigger than the crate?", "no"),
    ),
    "qa19": _prompt(
        "how places lie to each other", "Find a way of two steps.",
        f"Answer with two of the letters n, s, e and w, joined by a comma. {NO_MORE}",
        ("The attic is north of the shed. The porch is east of the attic.", "How do you go from the shed to the porch?", "n,e"),
        ("The cellar is south of the porch. The shed is south of the cellar.", "How do you go from the porch to the shed?", "s,s"),
    ),
    "qa20": _prompt(
        "how people feel and where they go", "Who is hungry goes to the kitchen, who is tired to the bedroom.",
        f"Answer with one word, a place or a feeling. {NO_MORE}",
        ("Nadia is tired.", "Where will nadia go?", "bedroom"),
        ("Omar is hungry. Omar went to the kitchen.", "Why did omar go to the kitchen?", "hungry"),
    ),
}  # fmt: skip
