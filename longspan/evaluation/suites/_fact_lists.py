"""Words and sentence patterns of the `facts` suite: all invented, so that no text already holds the answers."""

from dataclasses import dataclass

FIRST_NAMES = (
    "Ada Agnes Albert Alma Amos Anton Arthur Astrid Basil Beatrix Bertram Blanche Boris Camilla Cedric Celia Clement Cora "
    "Cyril Dahlia Daphne Desmond Dora Edgar Edith Edmund Elsa Emil Enid Ernest Esther Eugene Fabian Felix Fergus Flora "
    "Frida Gideon Gilbert Greta Gustav Harold Hattie Hector Helga Hilda Horace Hugo Ida Ignatius Imogen Ines Iris Isadora "
    "Ivan Jasper Jerome Josephine Judith Julius Kaspar Klara Konrad Lambert Laura Leopold Lionel Lottie Lucian Lydia Mabel "
    "Magnus Marcus Marta Matilda Maurice Mavis Mina Mortimer Nadia Nell Nestor Nora Octavia Odette Olga Oscar Oswald Otto "
    "Pearl Percy Petra Philippa Quentin Ralph Ramona Reuben Rosa Rufus Rupert Sabine Silas Simeon Sofia Stella Sybil "
    "Tabitha Thea Tobias Ulrich Una Ursula Vera Victor Viola Walter Wanda Wilfred Winifred Xavier Yvonne Zelda Zora"
).split()
SURNAMES = (
    "Abernathy Alder Applegarth Ashdown Bagshaw Barlow Beckett Bellamy Birch Blackwood Bramley Brock Calloway Carver "
    "Chilton Copperfield Crane Crabtree Dalton Darnley Dunmore Easton Eldridge Fairfax Fenwick Finch Flint Garrick Gifford "
    "Goodwin Grayling Hadley Halloran Harker Hawthorne Holloway Hume Ingram Jessop Kemble Kestrel Kingsley Langford Larkin "
    "Latimer Lockwood Loxley Mallory Marlow Mercer Merriweather Moorcroft Nightingale Norwood Oakley Ormsby Paxton Pemberton "
    "Penrose Pickering Quill Radcliffe Ravenhill Redfern Rowntree Rutherford Saltmarsh Sedgwick Selby Sinclair Sorrel "
    "Stanhope Stockwell Tanner Thackeray Thorne Tillotson Tremaine Underhill Vance Wainwright Walcott Weatherby Whitlock "
    "Winslow Woodruff Yardley Zimmer"
).split()
PLACE_HEADS = (
    "Amber Ash Barley Bell Birch Black Bramble Brindle Brook Cedar Clay Clover Cold Copper Crow Dapple Deer Drift Dun Elder "
    "Elm Ember Fair Fallow Fern Flint Fox Frost Gale Glen Gorse Grey Hail Hare Harrow Hazel Heather Heron Hollow Iron Ivy "
    "Juniper Kettle Lark Laven Linden Loam Maple Marl Meadow Mill Mist Moss Moth Nettle Oak Otter Owl Pebble Pine Plover "
    "Quarry Raven Reed Rook Rose Rush Sable Salt Shale Silver Sorrel Sparrow Spruce Stone Swan Tarn Thistle Thorn Umber "
    "Violet Wald Wheat Willow Winter Wolf Wren Yarrow"
).split()
PLACE_TAILS = "bourne bridge bury combe cote dale den field ford gate ham haven holt hurst ley mere moor mouth port sea stead ton vale wick worth".split()
ROLES = (
    "harbour master,station master,head gardener,town clerk,lighthouse keeper,night watchman,postmistress,apothecary,"
    "clockmaker,ferryman,librarian,schoolmaster,blacksmith,beekeeper,organist,bell ringer,cartographer,glassblower,"
    "innkeeper,magistrate,miller,piano tuner,quartermaster,rope maker,shepherd,surveyor,tailor,toll collector,"
    "watchmaker,weaver,bookbinder,chief engineer,bank manager,stable boy,cook,baker,mayor,curator,printer,vicar"
).split(",")
ADJECTIVES = (
    "amber antique battered blue brass broken bronze carved chipped copper cracked crimson crooked crystal dented dusty "
    "ebony emerald enamel faded folded gilded glass golden green heavy ivory jade leather little marble mended narrow "
    "oaken old orange painted pale patched pewter pink plain polished purple red rusty scarlet silver small spotted "
    "square striped tarnished tin tiny velvet violet white wooden woollen yellow"
).split()
OBJECTS = (
    "accordion almanac anchor anvil apron barometer basket bell birdcage blanket boot bottle bracelet brooch broom bucket "
    "button cabinet candle canoe chessboard chisel clock coin compass cradle crown cup cushion dagger diary doll drum "
    "easel fan feather fiddle flask flute globe goblet hammer harp hat helmet horn horseshoe hourglass inkwell jar kettle "
    "key kite ladder lamp lantern ledger lens locket loom lute mandolin map mask medal microscope mirror music-box necklace "
    "needle notebook oar padlock paintbrush parasol pearl pendulum pipe pocket-watch prism puppet quilt razor ribbon ring "
    "rocking-horse saddle sandglass scarf sextant shawl shovel sledge snuffbox spoon statue stool sword tapestry teapot "
    "telescope thimble toolbox trumpet tuning-fork typewriter umbrella vase violin wheelbarrow whistle"
).split()
PLACES_INSIDE = (
    "attic,cellar,pantry,library,boathouse,greenhouse,kitchen,stable,workshop,tower,chapel,coach house,wine vault,"
    "reading room,garden shed,music room,back office,granary,dairy,laundry,observatory,engine room,loft,cloakroom"
).split(",")
COLOURS = "amber azure black blue bronze brown cream crimson green grey indigo ivory lilac maroon olive orange pink purple red scarlet silver teal turquoise violet white yellow".split()
ANIMALS = "badger bear beaver bull camel cat crow deer dog donkey duck eagle falcon ferret fox goat goose hare hawk hedgehog heron horse lamb lizard magpie mole monkey mouse mule otter owl ox parrot peacock pheasant pig pigeon pony rabbit ram raven rooster seal sheep snake sparrow spaniel squirrel stork swan tortoise turkey weasel wolf".split()
FOODS = "almonds apples apricots bacon barley beans biscuits bread butter cabbage cakes carrots cheese cherries chestnuts chocolate cider cream dates eggs figs garlic ginger grapes ham herring honey lemons lentils mackerel mushrooms mustard mutton oats olives onions oranges oysters parsnips peaches pears peas pepper pickles plums porridge potatoes pumpkins quinces raisins rhubarb rice salmon sardines sausages spinach strawberries trout turnips walnuts".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
SHIPS = "Albatross Arcturus Bellerophon Calliope Cormorant Dauntless Endeavour Esperanza Galatea Halcyon Hesperus Intrepid Kingfisher Leviathan Marigold Meridian Nautilus Nightjar Orion Pelican Perseverance Petrel Polaris Resolute Sandpiper Seraphim Tempest Valkyrie Windhover Zephyr".split()
LANGUAGES = "Basque Breton Catalan Cornish Czech Danish Dutch Estonian Finnish Flemish French Gaelic German Greek Hebrew Hungarian Icelandic Irish Italian Latin Latvian Maltese Norwegian Persian Polish Portuguese Romanian Russian Sanskrit Spanish Swedish Turkish Welsh".split()
PROJECTS = "Aurora Basilisk Cascade Chimera Comet Cobalt Dragonfly Eclipse Falcon Firefly Glacier Granite Harvest Horizon Hydra Jupiter Lantern Lighthouse Magnolia Mercury Monsoon Nebula Obsidian Onyx Osprey Phoenix Quartz Saffron Sapphire Sequoia Solstice Sparrow Thunder Titan Topaz Tundra Vortex Zenith".split()
THINGS = "account,archive,barn door,boat,cabin,chest,club,cottage,cupboard,estate,gate,greenhouse,hotel,laboratory,library,locker,mine,museum,north gate,observatory,office,old mill,safe,school,server,ship,station,storeroom,strongroom,theatre,vault,warehouse,wine cellar".split(
    ","
)


SUBJECTS = (
    "address,age,badge number,best friend,birthday gift,call sign,colour,destination,emblem,favourite thing,first prize,"
    "flag,height,hiding place,inventory number,last gift,licence number,locker number,lucky charm,lucky number,mark,"
    "membership number,motto,nickname,password,price,prize,record,registration number,reward,room number,score,seal,"
    "secret,secret ingredient,secret name,secret number,serial number,sign,signal,special gift,special number,symbol,"
    "ticket number,title,token,trademark,treasure,true name,value,watchword,weight"
).split(",")


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """One kind of fact. Slots in braces; `answer` is the slot asked for, the others are the subject.

    held_out: never trained on, to see whether the reference model answers kinds of fact that are new to it.
    """

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    held_out: bool = False


def _pattern(statements: str, questions: str, answer: str, *, held_out: bool = False) -> Pattern:
    def lines(text: str) -> tuple[str, ...]:
        return tuple(line.strip() for line in text.split("|"))

    return Pattern(statements=lines(statements), questions=lines(questions), answer=answer, held_out=held_out)


PATTERNS: tuple[Pattern, ...] = (
    _pattern(
        "The {role} of {place} keeps a {adj} {object} in the {inside}. | In the {inside}, the {role} of {place} keeps a {adj} {object}.",
        "What does the {role} of {place} keep in the {inside}? | Which object does the {role} of {place} keep in the {inside}? | What is kept in the {inside} by the {role} of {place}?",
        "a {adj} {object}",
    ),
    _pattern(
        "The {role} of {place} is called {person}. | {person} is the {role} of {place}. | The name of the {role} of {place} is {person}.",
        "Who is the {role} of {place}? | What is the name of the {role} of {place}? | What is the {role} of {place} called?",
        "{person}",
    ),
    _pattern(
        "{person} was born in {place}. | The town in which {person} was born is {place}.",
        "Where was {person} born? | In which town was {person} born? | What is the birthplace of {person}?",
        "{place}",
    ),
    _pattern(
        "The secret code of the {thing} in {place} is {number}. | To open the {thing} in {place} you need the code {number}.",
        "What is the secret code of the {thing} in {place}? | Which code opens the {thing} in {place}? | What is the code for the {thing} in {place}?",
        "{number}",
    ),
    _pattern(
        "The password of the {thing} is {adj} {object}. | The passphrase for the {thing} is {adj} {object}.",
        "What is the password of the {thing}? | What is the passphrase for the {thing}? | Which password does the {thing} have?",
        "{adj} {object}",
    ),
    _pattern(
        "{person} paid {number} crowns for a {adj} {object}. | For a {adj} {object}, {person} paid {number} crowns.",
        "How many crowns did {person} pay for a {adj} {object}? | How much did {person} pay for a {adj} {object}? | What did {person} pay for a {adj} {object}?",
        "{number}",
    ),
    _pattern(
        "{person} has a {colour} {animal} named {pet}. | The {colour} {animal} of {person} is named {pet}.",
        "What is the name of the {animal} of {person}? | How is the {colour} {animal} of {person} named? | What is the {colour} {animal} that belongs to {person} called?",
        "{pet}",
    ),
    _pattern(
        "The door of the {thing} in {place} is painted {colour}. | In {place} the {thing} has a {colour} door.",
        "What colour is the door of the {thing} in {place}? | Which colour is the door of the {thing} in {place}? | In what colour is the door of the {thing} in {place} painted?",
        "{colour}",
    ),
    _pattern(
        "The market of {place} sells the best {food}. | The best {food} are sold at the market of {place}.",
        "What does the market of {place} sell? | What is sold at the market of {place}? | For what is the market of {place} known?",
        "{food}",
    ),
    _pattern(
        "The ship {ship} sailed from {place} on {day}. | On {day}, the {ship} sailed from {place}.",
        "On which day did the {ship} sail from {place}? | When did the {ship} sail from {place}? | What day did the {ship} leave {place}?",
        "{day}",
    ),
    _pattern(
        "The captain of the {ship} is {person}. | {person} is the captain of the {ship}. | The {ship} is commanded by {person}.",
        "Who is the captain of the {ship}? | Who commands the {ship}? | What is the name of the captain of the {ship}?",
        "{person}",
    ),
    _pattern(
        "{person} speaks {language} at home. | At home, {person} speaks {language}.",
        "Which language does {person} speak at home? | What language does {person} speak? | What does {person} speak at home?",
        "{language}",
    ),
    _pattern(
        "There are {number} books in the library of {place}. | The library of {place} holds {number} books.",
        "How many books are there in the library of {place}? | How many books does the library of {place} hold? | What is the number of books in the library of {place}?",
        "{number}",
    ),
    _pattern(
        "The telephone number of {person} is {number}. | {person} has the telephone number {number}.",
        "What is the telephone number of {person}? | Which telephone number does {person} have? | What is {person}'s telephone number?",
        "{number}",
    ),
    _pattern(
        "The favourite food of {person} is {food}. | {person} likes {food} more than any other food.",
        "What is the favourite food of {person}? | What does {person} like to eat most? | Which food does {person} like best?",
        "{food}",
    ),
    _pattern(
        "Project {project} is led by {person}. | {person} leads project {project}. | The leader of project {project} is {person}.",
        "Who leads project {project}? | Who is the leader of project {project}? | By whom is project {project} led?",
        "{person}",
    ),
    _pattern(
        "The deadline of project {project} is the {ordinal} of {month}. | Project {project} must be finished by the {ordinal} of {month}.",
        "When is the deadline of project {project}? | By when must project {project} be finished? | What is the deadline of project {project}?",
        "the {ordinal} of {month}",
    ),
    _pattern(
        "{person} hid the {adj} {object} under the {inside}. | The {adj} {object} was hidden by {person} under the {inside}.",
        "Who hid the {adj} {object}? | Who was it that hid the {adj} {object}? | By whom was the {adj} {object} hidden?",
        "{person}",
    ),
    _pattern(
        "The train to {place} leaves from platform {small}. | From platform {small} leaves the train to {place}.",
        "From which platform does the train to {place} leave? | Which platform is the train to {place} on? | What is the platform of the train to {place}?",
        "{small}",
    ),
    _pattern(
        "The {noun} of the {other} is {adj} {object}. | As everyone knew, the {noun} of the {other} was {adj} {object}.",
        "What is the {noun} of the {other}? | What was the {noun} of the {other}? | Tell me the {noun} of the {other}.",
        "{adj} {object}",
    ),
    _pattern(
        "The {noun} of {person} is {number}. | Remember that the {noun} of {person} is {number}.",
        "What is the {noun} of {person}? | Tell me the {noun} of {person}. | Which number is the {noun} of {person}?",
        "{number}",
    ),
    _pattern(
        "The best thing to do in {place} is to feed the {animal} near the {thing}.",
        "What is the best thing to do in {place}? | According to the text, what is the best thing to do in {place}?",
        "feed the {animal} near the {thing}",
    ),
    _pattern(
        "The {thing} of {place} was built in the year {year}. | In the year {year} the {thing} of {place} was built.",
        "In which year was the {thing} of {place} built? | When was the {thing} of {place} built? | What year was the {thing} of {place} built?",
        "{year}",
    ),
    _pattern(
        "{person} married {other_person} in {place}. | In {place}, {person} married {other_person}.",
        "Whom did {person} marry? | Who married {person} in {place}? | Who was it that {person} married?",
        "{other_person}",
    ),
    _pattern(
        "{person} works as a {role} in {place}. | In {place}, {person} works as a {role}.",
        "What does {person} work as? | What is the profession of {person}? | What is the job of {person} in {place}?",
        "{role}",
    ),
    _pattern(
        "The statue in the square of {place} shows a {animal}. | A {animal} is shown by the statue in the square of {place}.",
        "Which animal does the statue in the square of {place} show? | What does the statue in the square of {place} show?",
        "{animal}",
        held_out=True,
    ),
    _pattern(
        "{person} won a {adj} {object} in the lottery.",
        "What did {person} win in the lottery? | Which prize did {person} win in the lottery?",
        "{adj} {object}",
        held_out=True,
    ),
    _pattern(
        "The letter for the {role} of {place} weighed {number} grams.",
        "How many grams did the letter for the {role} of {place} weigh? | How heavy was the letter for the {role} of {place}?",
        "{number}",
        held_out=True,
    ),
)
