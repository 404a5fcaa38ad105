"""What stands in the text, and what it lets one know: pairs tied by common knowledge only, no word in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["KINDS", "Kind", "Tie"]


@dataclass(frozen=True, kw_only=True)
class Tie:
    """told: what a needle says of a person. meant: what the question asks for. meant_far: the same, one step further on."""

    told: str
    meant: str
    meant_far: str = ""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of association.

    Attributes:
        ties: its pairs; no two mean the same.
        person_first, person_last: sentences with slots "name" and "told", the name before what is told, and after it.
        question, question_far: with a slot "meant"; the second for ties that go one step further.
    """

    ties: Sequence[Tie]
    person_first: Sequence[str]
    person_last: Sequence[str]
    question: str
    question_far: str = ""


def _ties(text: str) -> tuple[Tie, ...]:
    rows = [[part.strip() for part in row.split("=")] for row in text.split(";") if row.strip()]
    return tuple(Tie(told=row[0], meant=row[1], meant_far=row[2] if len(row) > 2 else "") for row in rows)


LANDMARKS = Kind(
    ties=_ties(
        "the Louvre=Paris=France;the Colosseum=Rome=Italy;the Sagrada Família=Barcelona=Spain;"
        "the Brandenburg Gate=Berlin=Germany;the Kremlin=Moscow=Russia;the Parthenon=Athens=Greece;"
        "Hagia Sophia=Istanbul=Turkey;the Taj Mahal=Agra=India;Alcatraz=San Francisco=the United States;"
        "Tower Bridge=London=England;the Rijksmuseum=Amsterdam=the Netherlands;the Hofburg=Vienna=Austria;"
        "Hradčany Castle=Prague=Czechia;the Atomium=Brussels=Belgium;Sugarloaf Mountain=Rio de Janeiro=Brazil;"
        "Robben Island=Cape Town=South Africa;the Petronas Towers=Kuala Lumpur=Malaysia;Tiananmen Square=Beijing=China;"
        "the Golden Pavilion=Kyoto=Japan;Wawel Castle=Kraków=Poland;the Little Mermaid=Copenhagen=Denmark;"
        "the CN Tower=Toronto=Canada;the Burj Khalifa=Dubai=the United Arab Emirates;the Great Sphinx=Giza=Egypt;"
        "Belém Tower=Lisbon=Portugal;the Vasa Museum=Stockholm=Sweden;the Holmenkollen ski jump=Oslo=Norway;"
        "the Matthias Church=Budapest=Hungary;the Ha'penny Bridge=Dublin=Ireland;the Jet d'Eau=Geneva=Switzerland;"
        "Hallgrímskirkja=Reykjavík=Iceland;the Kelvingrove museum=Glasgow=Scotland"
    ),
    person_first=(
        "{name}'s bedroom window looks straight at {told}.",
        "Every morning {name} walks the dog as far as {told} before work.",
        "{name} complains that the crowds around {told} make it hard to reach the front door.",
    ),
    person_last=(
        "One sees {told} from the balcony on which {name} waters the geraniums.",
        "The shadow of {told} falls on the roof under which {name} sleeps.",
        "Only a narrow street lies between {told} and the flat of {name}.",
    ),
    question="Which of the people mentioned lives in {meant}?",
    question_far="Which of the people mentioned has a home in {meant}?",
)
TOOLS = Kind(
    ties=_ties(
        "the stethoscope=physician;the trowel and the spirit level=bricklayer;the gavel=judge;the baton and the score=conductor;"
        "the awl and the leather soles=shoemaker;the anvil and the tongs=blacksmith;the smoker and the honeycombs=beekeeper;"
        "the chalk and the school register=teacher;the cleaver and the sausages=butcher;the hair dryer and the curlers=barber;"
        "the drill and the tray of fillings=dentist;the hoses and the breathing mask=firefighter;the kiln and the wet clay=potter;"
        "the loom and the shuttle=weaver;the trawl nets=fisherman;the star charts=astronomer;the easel and the palette=painter;"
        "the dough and the oven gloves=baker;the collar and the pulpit notes=priest;the scythe and the hay=farmer;"
        "the handcuffs and the whistle=police officer;the scissors and the tape measure=tailor;"
        "the pipe wrench and the washers=plumber;the planes and the dovetail saw=carpenter"
    ),
    person_first=(
        "{name} forgot {told} in the van this morning.",
        "It is said that {name} can find {told} even in the dark.",
        "{name} dusted {told} and sighed.",
    ),
    person_last=(
        "Nobody may borrow {told} without asking {name}.",
        "In the corner lay {told}, just as {name} had left everything.",
        "Somebody moved {told}, and at once {name} noticed.",
    ),
    question="Which of the people mentioned is a {meant} by trade?",
)
LANGUAGES = Kind(
    ties=_ties(
        "muito obrigado=Portuguese;merci beaucoup=French;danke schön=German;grazie mille=Italian;tack så mycket=Swedish;"
        "kiitos paljon=Finnish;bolshoye spasibo=Russian;arigatō gozaimasu=Japanese;dziękuję bardzo=Polish;efcharistó polý=Greek;"
        "çok teşekkür ederim=Turkish;köszönöm szépen=Hungarian;diolch yn fawr=Welsh;shukran jazīlan=Arabic;"
        "dank je wel=Dutch;go raibh maith agat=Irish;takk fyrir=Icelandic;xièxie nǐ=Chinese;mulțumesc frumos=Romanian;"
        "muchas gracias=Spanish;děkuji mnohokrát=Czech;asante sana=Swahili;terima kasih=Malay;todah rabah=Hebrew"
    ),
    person_first=(
        "When the guests left, {name} called “{told}” after them from the doorstep.",
        "{name} bowed a little and whispered “{told}” to the old lady.",
    ),
    person_last=(
        "The words “{told}” were all that one heard of {name} at the counter.",
        "With a loud “{told}” the parcel was taken from the postman by {name}.",
    ),
    question="Which of the people mentioned speaks {meant}?",
)
HABITS = Kind(
    ties=_ties(
        "swells up after one bite of marzipan=is allergic to nuts;"
        "cannot tell ripe tomatoes from unripe ones except by touch=is colour-blind;"
        "pushes the cheese, the eggs and the ham to the edge of the plate=is a vegan;"
        "takes the stairs to the ninth floor rather than step into the lift=is afraid of narrow spaces;"
        "never goes near the railing of the balcony=is afraid of heights;"
        "smears the ink with the fist at every line and can use no ordinary scissors=is left-handed;"
        "counts the cracks in the ceiling at three o'clock every night=suffers from insomnia;"
        "needs a cushion at the wheel to look over it=is of small build;"
        "pricks a finger before every meal and notes the number=has diabetes;"
        "has to stoop under every lintel in the house=is very tall;"
        "blows out the candles on the twenty-ninth of February only=was born in a leap year;"
        "watches mouths instead of eyes in every conversation=is deaf;"
        "clutches a paper bag during every ferry crossing=gets seasick;"
        "has cramps all night after a bowl of ice cream=cannot digest lactose;"
        "pours the wine into the flower pot when nobody looks=is a teetotaller;"
        "signs with a cross and has all letters recited by the clerk=is illiterate;"
        "has worn black ever since the husband was buried=is a widow;"
        "crosses the street whenever a poodle comes along=is afraid of dogs;"
        "sneezes in the hay from May to July=has a pollen allergy;"
        "puts the same sum on a horse every Saturday and pawns the watch on Monday=is a gambler"
    ),
    person_first=("They say that {name} {told}.", "As everybody in the street could see, {name} {told}."),
    person_last=(
        "The one who {told} answers to the name of {name}.",
        "If somebody {told}, then that is {name}.",
    ),
    question="Which of the people mentioned {meant}?",
)
KINDS = {"landmarks": LANDMARKS, "tools": TOOLS, "languages": LANGUAGES, "habits": HABITS}
