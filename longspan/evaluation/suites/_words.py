"""Word lists for suites: the ones RULER uses, from the `wonderwords` package."""

from functools import lru_cache
from importlib import resources
from importlib.util import find_spec


@lru_cache(maxsize=3)
def word_list(kind: str) -> tuple[str, ...]:
    """Single lower-case words of one kind: "noun", "adjective" or "verb".

    Raises:
        ValueError: `wonderwords` is not installed.
    """
    if find_spec("wonderwords") is None:
        raise ValueError(
            "this suite needs the word lists of `wonderwords`; run `pip install longspan[bench]`"
        )
    text = (resources.files("wonderwords") / "assets" / f"{kind}list.txt").read_text(encoding="utf-8")
    words = {word.strip().lower() for word in text.splitlines()}
    return tuple(sorted(word for word in words if word.isascii() and word.isalpha()))
