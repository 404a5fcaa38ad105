"""How a context and a question become tokens: the model's own chat template, cut where the question begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.errors import UserInputError

_CONTEXT, _QUESTION = "\ue000context\ue001", "\ue000question\ue001"


@dataclass(frozen=True)
class Prompt:
    """Text around a context and a question. With a chat template, one user message holds `context`, a blank line and the
    question; without one, context and question follow each other exactly as given.
    """

    before: str
    between: str
    after: str
    has_template: bool

    @classmethod
    def of(cls, tokenizer: Any) -> Prompt:
        if not getattr(tokenizer, "chat_template", None):
            return cls("", "", "", has_template=False)
        message = {"role": "user", "content": f"{_CONTEXT}\n\n{_QUESTION}"}
        text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        before, found, rest = text.partition(_CONTEXT)
        between, asked, after = rest.partition(_QUESTION)
        if not found or not asked:
            raise ValueError(
                "the tokenizer's chat template drops the user's message; set a template that keeps it"
            )
        bos = tokenizer.bos_token
        return cls(before.removeprefix(bos) if bos else before, between, after, has_template=True)

    def question(self, question: str, answer_prefix: str) -> str:
        """Everything behind the context up to where the model goes on."""
        text = self.between + question + self.after
        if not answer_prefix:
            return text
        joint = "" if not self.has_template or text[-1:].isspace() else " "
        return text + joint + answer_prefix.rstrip()


def encode(tokenizer: Any, text: str) -> Tensor:
    """Ids `[n]` of a text without any special token."""
    return torch.tensor(
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long
    )


def starts_with_bos(tokenizer: Any) -> bool:
    """Does the tokenizer put its bos before a text by itself, or does its chat template?"""
    if tokenizer.bos_token_id is None:
        return False
    if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return True
    if not getattr(tokenizer, "chat_template", None):
        return False
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    return text.startswith(tokenizer.bos_token)


def text_pieces(text: str | Iterable[str]) -> Iterator[str]:
    """A text or stream in pieces that end at white space, so that tokens do not break where pieces did."""
    if isinstance(text, str):
        yield text
        return
    held = ""
    for piece in text:
        if not isinstance(piece, str):
            raise UserInputError(
                f"got a {type(piece).__name__} in a stream of text; give str pieces, or token ids as one sequence of int"
            )
        held += piece
        cut = max(held.rfind(" "), held.rfind("\n"))
        if cut > 0:
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held
