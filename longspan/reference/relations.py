"""Facts of countless kinds for training: relations put together from verbs, nouns, people and places.

The `facts` suite has a few dozen kinds of fact. A model trained on those alone knows them by heart and fails on a new
one (measured: 17% at 512 tokens), so training mixes in sentences whose relation is itself drawn at random (82%).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites._words import word_list
from longspan.evaluation.suites.facts import Fact, with_article

VERBS = (
    "admire,admired;attack,attacked;bake,baked;borrow,borrowed;bring,brought;build,built;burn,burned;bury,buried;buy,bought;"
    "carry,carried;carve,carved;catch,caught;choose,chose;clean,cleaned;collect,collected;cook,cooked;copy,copied;"
    "count,counted;cover,covered;crush,crushed;cut,cut;deliver,delivered;demand,demanded;design,designed;destroy,destroyed;"
    "discover,discovered;drag,dragged;draw,drew;drop,dropped;examine,examined;exchange,exchanged;explain,explained;"
    "fear,feared;feed,fed;fetch,fetched;find,found;fix,fixed;follow,followed;forget,forgot;gather,gathered;guard,guarded;"
    "hear,heard;hold,held;hunt,hunted;inherit,inherited;invent,invented;keep,kept;kick,kicked;know,knew;lend,lent;"
    "lift,lifted;lock,locked;lose,lost;love,loved;make,made;measure,measured;meet,met;mention,mentioned;mix,mixed;"
    "move,moved;need,needed;notice,noticed;offer,offered;open,opened;order,ordered;own,owned;pack,packed;paint,painted;"
    "pick,picked;plant,planted;polish,polished;praise,praised;prefer,preferred;prepare,prepared;produce,produced;"
    "promise,promised;protect,protected;pull,pulled;push,pushed;raise,raised;read,read;receive,received;refuse,refused;"
    "remove,removed;rent,rented;repair,repaired;replace,replaced;request,requested;rescue,rescued;save,saved;see,saw;"
    "sell,sold;send,sent;serve,served;sketch,sketched;smell,smelled;steal,stole;store,stored;study,studied;swallow,swallowed;"
    "take,took;taste,tasted;teach,taught;tear,tore;test,tested;throw,threw;touch,touched;trade,traded;translate,translated;"
    "use,used;visit,visited;want,wanted;warm,warmed;wash,washed;watch,watched;wear,wore;wrap,wrapped;write,wrote"
)
_PREPOSITIONS = ("behind", "beside", "near", "under", "above", "inside", "in front of", "next to", "outside")


@dataclass(frozen=True, kw_only=True)
class _Form:
    """Wording of one relation; every slot is filled anew for each fact."""

    statement: str
    question: str
    answer: str


def _form(text: str) -> _Form:
    statement, question, answer = (part.strip() for part in text.split("|"))
    return _Form(statement=statement, question=question, answer=answer)


FORMS = tuple(
    _form(line)
    for line in (
        "The {noun} of {who} is {value}. | What is the {noun} of {who}? | {value}",
        "The {noun} of {who} was {value}. | What was the {noun} of {who}? | {value}",
        "{who}'s {noun} is {value}. | What is {who}'s {noun}? | {value}",
        "{who} has a {noun} called {value}. | What is the {noun} of {who} called? | {value}",
        "As for {who}, the {noun} is {value}. | Which {noun} does {who} have? | {value}",
        "The {adj} {noun} of {who} is {value}. | What is the {adj} {noun} of {who}? | {value}",
        "The {noun} for the {noun2} is {value}. | What is the {noun} for the {noun2}? | {value}",
        "The {noun} {noun2} is {value}. | What is the {noun} {noun2}? | {value}",
        "The {noun} of {town} is {value}. | Tell me the {noun} of {town}. | {value}",
        "{who} {past} {what} {where}. | What did {who} {base} {where}? | {what}",
        "{who} {past} {what} {where}. | What did {who} {base}? | {what}",
        "{who} {past} {what} {where}. | Who {past} {what} {where}? | {who}",
        "{who} {past} {what} {where}. | Who {past} {what}? | {who}",
        "{who} {past} {what} {where}. | Where did {who} {base} {what}? | {where}",
        "{where}, {who} {past} {what}. | Where did {who} {base} {what}? | {where}",
        "{where}, {who} {past} {what}. | What did {who} {base} {where}? | {what}",
        "{who} {past} {what} for {who2}. | For whom did {who} {base} {what}? | {who2}",
        "{who} {past} {what} with {what2}. | With what did {who} {base} {what}? | {what2}",
        "{who} {past} {what} with {what2}. | What did {who} {base} with {what2}? | {what}",
        "{who} {past} {number} {plural} {where}. | How many {plural} did {who} {base} {where}? | {number}",
        "{who} {past} {number} {plural}. | How many {plural} did {who} {base}? | {number}",
        "{who} {past} {what} {when}. | When did {who} {base} {what}? | {when}",
        "{when}, {who} {past} {what}. | What did {who} {base} {when}? | {what}",
        "{when}, {who} {past} {what}. | When did {who} {base} {what}? | {when}",
        "{what} was {past} by {who}. | By whom was {what} {past}? | {who}",
        "{what} was {past} by {who} {where}. | Where was {what} {past}? | {where}",
        "{what} of {who} is {where}. | Where is {what} of {who}? | {where}",
        "{what} is {where}. | Where is {what}? | {where}",
        "{where} stands {what}. | What stands {where}? | {what}",
        "{where} there are {number} {plural}. | How many {plural} are there {where}? | {number}",
        "{who} is {job}. | What is {who}? | {job}",
        "{who} is afraid of {plural}. | What is {who} afraid of? | {plural}",
        "{who} is known for {plural}. | For what is {who} known? | {plural}",
        "{what} costs {number} {plural}. | How much does {what} cost? | {number} {plural}",
        "{what} of {who} is {number} {plural} long. | How long is {what} of {who}? | {number} {plural}",
        "{who} wanted to {base} {what}. | What did {who} want to {base}? | {what}",
        "{who} wanted to {base} {what}. | What did {who} want to do? | {base} {what}",
        "{who} always {past} {what} because of {what2}. | Why did {who} always {base} {what}? | because of {what2}",
        "The best {noun} in {town} is {value}. | What is the best {noun} in {town}? | {value}",
        "The {noun} which {who} {past} is {value}. | Which {noun} did {who} {base}? | {value}",
    )
)


def _person(rng: random.Random) -> str:
    first = rng.choice(lists.FIRST_NAMES)
    return first if rng.random() < 0.25 else f"{first} {rng.choice(lists.SURNAMES)}"


def _town(rng: random.Random) -> str:
    return rng.choice(lists.PLACE_HEADS) + rng.choice(lists.PLACE_TAILS)


def _noun(rng: random.Random) -> str:
    return rng.choice(lists.OBJECTS) if rng.random() < 0.3 else rng.choice(word_list("noun"))


def _adjective(rng: random.Random) -> str:
    return rng.choice(lists.ADJECTIVES if rng.random() < 0.5 else word_list("adjective"))


def _who(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return _person(rng)
    if kind < 0.7:
        return f"the {rng.choice(lists.ROLES)} of {_town(rng)}"
    if kind < 0.8:
        return f"the {rng.choice(lists.ROLES)}"
    return f"the {_adjective(rng)} {rng.choice(lists.ANIMALS)}"


def _what(rng: random.Random) -> str:
    article = rng.choice(("a", "the", "the"))
    return f"{article} {_noun(rng)}" if rng.random() < 0.4 else f"{article} {_adjective(rng)} {_noun(rng)}"


def _where(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return f"in {_town(rng)}"
    if kind < 0.6:
        return f"{rng.choice(_PREPOSITIONS)} the {rng.choice(lists.THINGS + lists.PLACES_INSIDE)}"
    if kind < 0.8:
        return f"at the {rng.choice(lists.THINGS)} of {_town(rng)}"
    return f"{rng.choice(_PREPOSITIONS)} the {_noun(rng)}"


def _when(rng: random.Random) -> str:
    return rng.choice(
        (
            f"on {rng.choice(lists.DAYS)}",
            f"in {rng.choice(lists.MONTHS)}",
            f"in {rng.randint(1200, 2030)}",
            f"at {rng.randint(2, 12)} o'clock",
            f"on the {rng.randint(4, 20)}th of {rng.choice(lists.MONTHS)}",
        )
    )


def _number(rng: random.Random) -> str:
    digits = rng.randint(1, 7)
    return str(rng.randint(max(2, 10 ** (digits - 1)), 10**digits - 1))


def _value(rng: random.Random) -> str:
    make: Callable[[random.Random], str] = rng.choice(
        (_number, _number, _person, _town, _noun, _what, _where_value)
    )
    return make(rng)


def _where_value(rng: random.Random) -> str:
    return f"{_adjective(rng)} {_noun(rng)}"


def _job(rng: random.Random) -> str:
    return f"a {rng.choice(lists.ROLES)}" if rng.random() < 0.6 else f"a {_noun(rng)}"


def _plural(rng: random.Random) -> str:
    word = _noun(rng)
    return word if word.endswith("s") else word + "s"


_SLOTS: dict[str, Callable[[random.Random], str]] = {
    "who": _who, "who2": _who, "what": _what, "what2": _what, "where": _where, "when": _when, "number": _number,
    "noun": _noun, "noun2": _noun, "adj": _adjective, "town": _town, "value": _value, "job": _job, "plural": _plural,
}  # fmt: skip


def draw_relations(count: int, rng: random.Random, *, same_form: bool) -> list[Fact]:
    """`count` facts with different questions. With `same_form` they share wording and verb, and differ in the rest."""
    verbs = [pair.split(",") for pair in VERBS.split(";")]
    form, (base, past) = rng.choice(FORMS), rng.choice(verbs)
    shared_noun = _noun(rng)
    facts: dict[str, Fact] = {}
    while len(facts) < count:
        if not same_form:
            form, (base, past) = rng.choice(FORMS), rng.choice(verbs)
        slots = {name: make(rng) for name, make in _SLOTS.items()} | {"base": base, "past": past}
        if same_form:
            slots["noun"] = shared_noun
        question = with_article(form.question.format(**slots))
        statement = with_article(form.statement.format(**slots))
        fact = Fact(
            statement=statement[0].upper() + statement[1:],
            question=question[0].upper() + question[1:],
            answer=with_article(form.answer.format(**slots)),
        )
        facts.setdefault(fact.question, fact)
    return list(facts.values())
