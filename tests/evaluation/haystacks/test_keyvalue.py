"""The haystack of needle lines."""

import random
import re

from longspan.evaluation.haystacks import count_tokens
from longspan.evaluation.haystacks.keyvalue import keyvalue_haystack
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer


def test_slices_are_whole_needle_lines_about_different_keys() -> None:
    haystack, tokenizer = keyvalue_haystack(), load_tokenizer(ASSETS)
    text = "".join(haystack.slice(3000, tokenizer, random.Random(3)))
    assert 2950 <= count_tokens(tokenizer, text) <= 3000
    lines = text.strip().split("\n")
    keys = [
        re.fullmatch(r"One of the special magic numbers for (\S+) is: \d{7}\.", line) for line in lines[:-1]
    ]
    assert all(keys) and len({match[1] for match in keys if match}) == len(keys) > 90
    assert keyvalue_haystack().sentences == haystack.sentences
