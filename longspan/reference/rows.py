"""Training rows in token space: book text, and conversations about needles hidden in it.

Everything is put together from token ids. Words carry their leading space, so the pieces join at the same tokens that
the joined text would give. A row holds bos, the context, then `\\n\\n{question}\\nAnswer:`, ` {answer}`, eos for each
turn, and more book text to its end.
"""

import random
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from longspan.evaluation.haystacks.noise import NOISE
from longspan.evaluation.task import Puzzle, Room
from longspan.reference.config import RecipeConfig
from longspan.reference.joints import Joints, Prose
from longspan.reference.mix import Episode, draw_episode
from longspan.reference.shards import TokenText

MAX_DRAWS = 20


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Where an answer stands in its row: tokens [start, end), eos included; turn counts from 0."""

    kind: str
    turn: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """tokens: uint16 [T]. weights: uint8 [T], the loss weight of predicting each token."""

    tokens: np.ndarray
    weights: np.ndarray
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class _Needle:
    """A text to hide; with `line` on a line of its own."""

    text: str
    line: bool


class RowMaker:
    """Makes rows of any length from tokenised text. Nothing is kept between rows, so one seed gives one row."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, books: TokenText, python: TokenText, config: RecipeConfig
    ) -> None:
        self.config = config
        self.encoder = tokenizer.backend_tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.joints = Joints(tokenizer)
        self.books, self.python = (self.joints.prose(text.tokens) for text in (books, python))
        noise = np.array(self._encode("\n".join([NOISE] * 600)), dtype=np.uint16)
        self.noise = self.joints.prose(noise)
        self._counts: dict[str, int] = {}

    def _encode(self, text: str) -> list[int]:
        return self.encoder.encode(text, add_special_tokens=False).ids if text else []

    def _count(self, text: str) -> int:
        known = self._counts.get(text)
        if known is None:
            known = len(self._encode(text))
            if len(text) < 40 and len(self._counts) < 100_000:
                self._counts[text] = known
        return known

    def make(self, rng: random.Random, length: int) -> Row:
        """One row of `length` tokens: a conversation with probability `task_share`, otherwise plain text."""
        if rng.random() < self.config.task_share:
            for _ in range(MAX_DRAWS):
                try:
                    row = self._task_row(rng, length)
                except ValueError:  # a puzzle that says that this room is too small for it
                    continue
                if row is not None:
                    return row
        tokens = np.empty(length, dtype=np.uint16)
        tokens[0] = self.bos
        source = self.python if rng.random() < self.config.python_share else self.books
        tokens[1:] = self._slice(source, rng, length - 1)
        weights = np.ones(length, dtype=np.uint8)
        weights[0] = 0
        return Row(tokens=tokens, weights=weights, answers=())

    @staticmethod
    def _slice(source: Prose, rng: random.Random, length: int) -> np.ndarray:
        start = rng.randrange(max(1, len(source.tokens) - length))
        return np.resize(source.tokens[start : start + length], length)

    def _task_row(self, rng: random.Random, length: int) -> Row | None:
        used = (
            length - rng.randrange(max(2, length // 32))
            if rng.random() < 0.6
            else rng.randint(length // 2, length)
        )
        episode = draw_episode(rng, Room(tokens=used - 16, count=self._count))
        if not episode.puzzles:
            return self._quote_row(rng, length, used)
        context = self._context(episode, rng, used)
        if context is None:
            return None
        turns = self._encode_turns(list(episode.puzzles), rng, context.ready)
        return self._finish(episode.kind, context.tokens, context.weights, turns, rng, length)

    def _encode_turns(
        self, puzzles: list[Puzzle], rng: random.Random, ready: bool
    ) -> list[tuple[list[int], list[int]]]:
        if not ready:
            rng.shuffle(puzzles)
        return [self._turn(puzzle) for puzzle in puzzles]

    def _turn(self, puzzle: Puzzle) -> tuple[list[int], list[int]]:
        asked = self._encode(f"\n\n{puzzle.question}\nAnswer:")
        asked += self._encode(f" {puzzle.answer_prefix}" if puzzle.answer_prefix else "")
        return asked, [*self._encode(f" {puzzle.answer}"), self.eos]

    def _context(self, episode: Episode, rng: random.Random, used: int) -> "_Context | None":
        """bos and the whole context; None when the needles do not fit."""
        puzzles = episode.puzzles
        talk = sum(sum(map(len, self._turn(puzzle))) for puzzle in puzzles)
        if puzzles[0].context is not None:
            tokens = np.array([self.bos, *self._encode(puzzles[0].context)], dtype=np.uint16)
            if len(tokens) + talk > used + 12:
                return None
            return _Context(tokens=tokens, weights=np.zeros(len(tokens), dtype=np.uint8), ready=True)
        head = next((puzzle.preamble for puzzle in puzzles if puzzle.preamble), "")
        lead = self._encode(head + "\n") if head else []
        if rng.random() < 0.12:
            lead = self._encode(rng.choice(puzzles).question + "\n\n") + lead
        groups = [
            ([_Needle(text=text, line=puzzle.style == "line") for text in puzzle.needles], puzzle.ordered)
            for puzzle in puzzles
        ]
        needed = sum(self._count(f" {needle.text}\n") + 1 for group, _ in groups for needle in group)
        room = used - 1 - len(lead) - talk - needed
        if room < 24:
            return None
        body, breaks, plain = self._body(episode, rng, room)
        tokens, weights = self._insert(body, breaks, groups, rng, text_weight=0 if plain else 1)
        start = [self.bos, *lead]
        return _Context(
            tokens=np.concatenate([np.array(start, dtype=np.uint16), tokens]),
            weights=np.concatenate([np.zeros(len(start), dtype=np.uint8), weights]),
            ready=False,
        )

    def _body(self, episode: Episode, rng: random.Random, room: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Haystack tokens, the places where a needle may go, and whether the text is filler (no loss on it)."""
        if episode.haystack == "lines":
            ids = np.array(self._encode("\n\n".join(episode.filler))[:room], dtype=np.uint16)
            return ids, np.flatnonzero(self.joints.newline[ids]), True
        source = self.noise if episode.haystack == "noise" else self.books
        if episode.haystack == "text" and rng.random() < 0.08:
            source = self.python
        start = rng.randrange(max(1, len(source.tokens) - room - 300))
        ahead = np.flatnonzero(source.breaks[start : start + 300])
        start += int(ahead[0]) if len(ahead) else 0
        body = source.tokens[start : start + room].copy()
        breaks = np.flatnonzero(source.breaks[start : start + len(body)])
        return body, breaks, source is self.noise

    def _insert(
        self,
        body: np.ndarray,
        breaks: np.ndarray,
        groups: list[tuple[list[_Needle], bool]],
        rng: random.Random,
        *,
        text_weight: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Needles at sentence ends of the body, before its first sentence too, joined as `assemble` joins them."""
        places = np.unique(np.concatenate([[0], breaks, [len(body)]])).tolist()
        at: dict[int, list[_Needle]] = {0: []}
        for group, ordered in groups:
            chosen = [rng.choice(places) for _ in group]
            for needle, place in zip(group, sorted(chosen) if ordered else chosen, strict=True):
                at.setdefault(place, []).append(needle)
        tokens: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        fresh = True
        starts = sorted(at)
        for place, following in zip(starts, [*starts[1:], len(body)], strict=True):
            for needle in at[place]:
                lead = "" if fresh else "\n" if needle.line else " "
                ids = self._encode(lead + needle.text + ("\n" if needle.line else ""))
                tokens.append(np.array(ids, dtype=np.uint16))
                weights.append(np.zeros(len(ids), dtype=np.uint8))
                fresh = needle.line
            part = body[place:following]
            if fresh and len(part):
                part = self.joints.without_lead(part)
            tokens.append(part)
            weights.append(np.full(len(part), text_weight, dtype=np.uint8))
            fresh = fresh and not len(part)
        joined, loss = np.concatenate(tokens), np.concatenate(weights)
        while len(joined) and self.joints.newline[joined[-1]]:
            joined, loss = joined[:-1], loss[:-1]
        return joined, loss

    def _quote_row(self, rng: random.Random, length: int, used: int) -> Row | None:
        """The text's own sentence, continued from its first words."""
        episode = Episode(kind="quote", puzzles=(), haystack="text")
        body, breaks, _ = self._body(episode, rng, used - 80)
        spans = [
            (int(first), int(last))
            for first, last in zip(breaks, breaks[1:], strict=False)
            if 14 <= last - first <= 40 and self.joints.stripped[body[first]] >= 0
        ]
        if not spans:
            return None
        first, last = rng.choice(spans)
        seen = rng.randint(5, 8)
        ask = rng.choice(
            ("How does the sentence go on that begins with:", "Continue the sentence from the text:")
        )
        asked = [
            *self._encode(f"\n\n{ask}"),
            *map(int, body[first : first + seen]),
            *self._encode("\nAnswer:"),
        ]
        reply = [*map(int, body[first + seen : last]), self.eos]
        context = np.concatenate([np.array([self.bos], dtype=np.uint16), self.joints.without_lead(body)])
        weights = np.ones(len(context), dtype=np.uint8)
        weights[0] = 0
        return self._finish("quote", context, weights, [(asked, reply)], rng, length, weight=2)

    def _finish(
        self,
        kind: str,
        context: np.ndarray,
        context_weights: np.ndarray,
        turns: list[tuple[list[int], list[int]]],
        rng: random.Random,
        length: int,
        weight: int | None = None,
    ) -> Row | None:
        size = len(context) + sum(len(asked) + len(reply) for asked, reply in turns)
        if size > length:
            return None
        tokens = np.empty(length, dtype=np.uint16)
        weights = np.zeros(length, dtype=np.uint8)
        tokens[: len(context)] = context
        weights[: len(context)] = context_weights
        position, answers = len(context), []
        for turn, (asked, reply) in enumerate(turns):
            start = position + len(asked)
            tokens[position:start] = asked
            position = start + len(reply)
            tokens[start:position] = reply
            weights[start:position] = self.config.answer_weight if weight is None else weight
            answers.append(Answer(kind=kind, turn=turn, start=start, end=position))
        tail = [*self._encode("\n\n"), *map(int, self._slice(self.books, rng, length))][: length - position]
        tokens[position:] = tail
        weights[position:] = 1
        weights[position : position + 2] = 0
        return Row(tokens=tokens, weights=weights, answers=tuple(answers))


@dataclass(frozen=True, kw_only=True)
class _Context:
    tokens: np.ndarray
    weights: np.ndarray
    ready: bool
