"""What the people of the `longbio` suite are like, and how it is said: all invented."""

HOBBIES = (
    "archery astronomy beekeeping birdwatching bookbinding bowling calligraphy candle-making canoeing caving cheese-making "
    "climbing cricket crochet croquet cycling embroidery falconry fencing fishing flower-arranging foraging fossil-hunting "
    "gardening glassblowing hiking ice-skating juggling kayaking kite-flying knitting lacemaking leatherwork marquetry "
    "metal-detecting model-railways mosaic-making mushroom-picking origami orienteering painting papermaking philately "
    "pottery puppetry quilting rowing sailing sculpting silversmithing snorkelling soap-making spinning stargazing surfing "
    "table-tennis topiary trampolining watchmaking weaving whittling wood-turning wrestling yoga"
).split()
MAJORS = (
    "accounting,agronomy,anthropology,archaeology,architecture,art history,brewing science,botany,chemistry,civil engineering,"
    "classics,comparative literature,computing,criminology,dentistry,ecology,economics,egyptology,film studies,forestry,"
    "genetics,geography,geology,horticulture,hydrology,journalism,jurisprudence,linguistics,logistics,marine biology,"
    "mathematics,medicine,metallurgy,meteorology,microbiology,musicology,nursing,oceanography,optics,palaeontology,"
    "pharmacology,philosophy,physics,political science,psychology,sociology,statistics,surveying,theology,toxicology,"
    "urban planning,zoology"
).split(",")

NOUNS = {
    "birthdate": "birthday",
    "age": "age",
    "birthplace": "birthplace",
    "hobby": "hobby",
    "university": "university",
    "major": "major",
    "work_city": "town of work",
}

STANDARD = {
    "age": "The age of {name} is {value}.",
    "birthdate": "The birthday of {name} is {value}.",
    "birthplace": "The birthplace of {name} is {value}.",
    "hobby": "The hobby of {name} is {value}.",
    "university": "The university of {name} was {value}.",
    "major": "The major of {name} was {value}.",
    "work_city": "The town where {name} worked was {value}.",
}

QUESTIONS = {
    "birthdate": "What is the birthday of {name}?",
    "birthplace": "In which town was {name} born?",
    "hobby": "What is the hobby of {name}?",
    "university": "At which university did {name} study?",
    "major": "What was the major of {name}?",
    "work_city": "In which town did {name} work?",
}

PREFIXES = {
    "birthdate": "The birthday of {name} is",
    "birthplace": "{name} was born in",
    "hobby": "The hobby of {name} is",
    "university": "The university of {name} was",
    "major": "The major of {name} was",
    "work_city": "The town where {name} worked was",
}

PARAPHRASES: dict[str, tuple[str, ...]] = {
    "birthdate": (
        "{name} first saw the light of day on {value}.",
        "The parents of {name} welcomed their child on {value}.",
        "Every year {name} celebrates the memory of {value}, the first day of a long life.",
        "On {value}, {name} came into the world.",
        "The register of births lists {name} under {value}.",
    ),
    "birthplace": (
        "{name} spent the very first days of life in {value}.",
        "The cradle of {name} stood in {value}.",
        "{value} is where the life of {name} began.",
        "{name} is a native of {value}.",
        "A midwife in {value} helped to bring {name} into the world.",
    ),
    "hobby": (
        "{name} spends most weekends on {value}.",
        "Nothing delights {name} after a day of work as much as {value}.",
        "For {name}, there is no better way to pass the time than {value}.",
        "Friends of {name} hear about little else than {value}.",
        "{value} is what {name} does for pleasure.",
    ),
    "university": (
        "{name} earned a degree from {value}.",
        "{value} counts {name} among its graduates.",
        "The diploma on the wall of {name} was issued by {value}.",
        "It was {value} that awarded a degree to {name}.",
        "{name} sat the final examinations at {value}.",
    ),
    "major": (
        "As a student, {name} specialised in {value}.",
        "{name} chose {value} as a field of study.",
        "The degree that {name} holds is in {value}.",
        "The lectures that {name} went to were mostly on {value}.",
        "{name} wrote a final thesis in the field of {value}.",
    ),
    "work_city": (
        "{name} built a career in {value}.",
        "The office of {name} stood in {value}.",
        "{name} made a living in {value}.",
        "For many years, the employer of {name} was to be found in {value}.",
        "{value} is where {name} went to work each morning.",
    ),
}

FIRST_PERSON: dict[str, tuple[str, ...]] = {
    "birthdate": (
        "I first saw the light of day on {value}.",
        "My parents welcomed me on {value}.",
        "Every year I celebrate the memory of {value}, the first day of my life.",
        "On {value}, I came into the world.",
        "The register of births lists me under {value}.",
    ),
    "birthplace": (
        "I spent the very first days of my life in {value}.",
        "My cradle stood in {value}.",
        "{value} is where my life began.",
        "I am a native of {value}.",
        "A midwife in {value} helped to bring me into the world.",
    ),
    "hobby": (
        "I spend most weekends on {value}.",
        "Nothing delights me after a day of work as much as {value}.",
        "For me, there is no better way to pass the time than {value}.",
        "My friends hear about little else than {value}.",
        "{value} is what I do for pleasure.",
    ),
    "university": (
        "I earned my degree from {value}.",
        "{value} counts me among its graduates.",
        "The diploma on my wall was issued by {value}.",
        "It was {value} that awarded me my degree.",
        "I sat my final examinations at {value}.",
    ),
    "major": (
        "As a student, I specialised in {value}.",
        "I chose {value} as my field of study.",
        "The degree that I hold is in {value}.",
        "The lectures that I went to were mostly on {value}.",
        "I wrote my final thesis in the field of {value}.",
    ),
    "work_city": (
        "I built my career in {value}.",
        "My office stood in {value}.",
        "I made my living in {value}.",
        "For many years, my employer was to be found in {value}.",
        "{value} is where I went to work each morning.",
    ),
}
