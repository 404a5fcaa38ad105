"""How a context and a question become tokens: the model's own chat template, cut where the question begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.errors import UserInputError

_CONTEXT, _QUESTION = "\ue000context\ue001", "\ue000question\ue001"
_ANSWER, _NEXT = "\ue000answer\ue001", "\ue000next\ue001"


@dataclass(frozen=True)
class Prompt:
    """Text around a context and a question. With a chat template, one user message holds `context`, a blank line and the
    question; without one, context and question follow each other exactly as given.
    """

    before: str
    between: str
    after: str
    has_template: bool
    next_turn: str = "\n\n"

    @classmethod
    def of(cls, tokenizer: Any) -> Prompt:
        if not getattr(tokenizer, "chat_template", None):
            return cls("", "", "", has_template=False)

        def rendered(*contents: str, ask: bool) -> str:
            roles = ("user", "assistant", "user")
            messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))

        asking = f"{_CONTEXT}\n\n{_QUESTION}"
        before, found, rest = rendered(asking, ask=True).partition(_CONTEXT)
        between, asked, after = rest.partition(_QUESTION)
        if not found or not asked:
            raise ValueError(
                "the tokenizer's chat template drops the user's message; set a template that keeps it"
            )
        bos = tokenizer.bos_token
        before = before.removeprefix(bos) if bos else before
        turn = rendered(asking, _ANSWER, _NEXT, ask=False).partition(_ANSWER)[2].partition(_NEXT)[0]
        return cls(before, between, after, has_template=True, next_turn=turn)

    def question(self, question: str, answer_prefix: str) -> str:
        """Everything behind the context up to where the model goes on."""
        text = self.between + question + self.after
        if not answer_prefix:
            return text
        joint = "" if not self.has_template or text[-1:].isspace() else " "
        return text + joint + answer_prefix.rstrip()

    def turn(self, question: str, answer: str) -> str:
        """A question with its answer, up to where the user's next message begins."""
        text = self.question(question, "")
        return text + ("" if text[-1:].isspace() else " ") + answer + self.next_turn


def text_chunks(tokenizer: Any, text: Any, vocabulary: int) -> tuple[Iterator[Tensor], int | None]:
    """Ids of a context's text in chunks `[T]`, and how many there are where that is known.

    Args:
        text: a str, token ids (a sequence of int or an int tensor `[S]`), or an iterator of str.
        vocabulary: ids that the model knows.

    Raises:
        UserInputError: the text is empty or no text.
    """
    if isinstance(text, str):
        ids = _with_head(tokenizer, encode(tokenizer, text)) if text.strip() else torch.zeros(0)
        if not len(ids):
            raise UserInputError("the text is empty; give a text with at least one word")
        return iter([ids]), len(ids)
    if isinstance(text, Tensor) or (isinstance(text, list | tuple) and text and isinstance(text[0], int)):
        ids = torch.as_tensor(text).reshape(-1)
        if not len(ids) or ids.is_floating_point():
            raise UserInputError(
                f"got token ids of shape {tuple(ids.shape)} and type {ids.dtype}; give at least one integer id"
            )
        if not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise UserInputError(
                f"got token ids from {int(ids.min())} to {int(ids.max())}; this model has ids 0 to {vocabulary - 1}, "
                "so encode the text with its own tokenizer"
            )
        return iter([ids.long()]), len(ids)
    if isinstance(text, Iterable) and not isinstance(text, bytes):
        return _stream_chunks(tokenizer, text), None
    raise UserInputError(f"got a {type(text).__name__}; read takes a str, token ids, or an iterator of str")


def encode(tokenizer: Any, text: str) -> Tensor:
    """Ids `[n]` of a text without any special token."""
    if tokenizer is None:
        raise UserInputError("this model has no tokenizer; give token ids, or load it with tokenizer=...")
    if not isinstance(text, str):
        raise UserInputError(f"got a {type(text).__name__} where a text is needed; give a str")
    try:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    except TypeError as error:  # what the tokenizers library makes of half a character
        raise UserInputError(
            "the text holds characters that are not valid Unicode; decode it with errors='replace'"
        ) from error
    return torch.tensor(ids, dtype=torch.long)


def text_pieces(stream: Iterable[str]) -> Iterator[str]:
    """A stream in pieces that end at white space, so that tokens do not break where its own pieces did."""
    held = ""
    for piece in stream:
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


def _stream_chunks(tokenizer: Any, stream: Iterable[str]) -> Iterator[Tensor]:
    first = True
    for piece in text_pieces(stream):
        ids = encode(tokenizer, piece)
        yield _with_head(tokenizer, ids) if first else ids
        first = False
    if first:
        raise UserInputError("the stream held no text; give at least one word")


def _with_head(tokenizer: Any, ids: Tensor) -> Tensor:
    """A context's first ids: bos where the model wants one, then what its template puts before a user's text."""
    head = [torch.tensor([tokenizer.bos_token_id])] if _starts_with_bos(tokenizer) else []
    before = Prompt.of(tokenizer).before
    if before:
        head.append(encode(tokenizer, before))
    return torch.cat([*head, ids])


def _starts_with_bos(tokenizer: Any) -> bool:
    """Does the tokenizer put its bos before a text by itself, or does its chat template?"""
    if tokenizer.bos_token_id is None:
        return False
    if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return True
    if not getattr(tokenizer, "chat_template", None):
        return False
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    return text.startswith(tokenizer.bos_token)
