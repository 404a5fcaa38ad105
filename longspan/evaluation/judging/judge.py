"""Who judges: anything with a name and a reply to a prompt. Here: an OpenAI-compatible endpoint, or a model of longspan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from longspan.errors import UserInputError
from longspan.evaluation.exams import asked

if TYPE_CHECKING:
    from longspan.engine.model import SpanModel

__all__ = ["DEFAULT_WINDOW_TOKENS", "Judge", "LocalJudge", "open_judge", "room_words"]

DEFAULT_WINDOW_TOKENS = 8192

_WORDS_PER_TOKEN = 0.6
_PROMPT_AND_REPLY_TOKENS = 600


class Judge(Protocol):
    """A grader that reads text and writes text. Prompts ask for JSON; the reply may hold anything.

    A judge may also have `window_tokens`, the tokens that prompt and reply may have together.
    """

    @property
    def name(self) -> str:
        """Its name in results."""

    def reply(self, prompt: str, *, max_new_tokens: int) -> str:
        """The judge's text, of at most `max_new_tokens` tokens; ValueError when it cannot be had."""


@dataclass(frozen=True)
class LocalJudge:
    """A model that longspan runs here, greedy, under whatever spec it was loaded with.

    Args:
        model: what `longspan.load` gives.
    """

    model: SpanModel

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def window_tokens(self) -> int:
        return self.model.window_tokens

    def reply(self, prompt: str, *, max_new_tokens: int) -> str:
        """Read all but the prompt's last paragraph as the text, and ask that paragraph.

        With a chat template this is one user message that holds the prompt as it is.

        Raises:
            ValueError: the prompt has no blank line, or the engine refuses it.
        """
        text, blank, question = prompt.rstrip().rpartition("\n\n")
        if not blank or not text.strip():
            raise UserInputError(
                "the judge's prompt is one paragraph, allowed is a text and a question; "
                "put a blank line before the question"
            )
        context = self.model.read(text, progress=False)
        question = asked(self.model.tokenizer, question)
        return context.ask(question, max_new_tokens=max_new_tokens, sources=False).text


def open_judge(
    where: str, *, api_key_env: str = "OPENAI_API_KEY", timeout_seconds: float = 120.0, retries: int = 2
) -> Judge:
    """A judge from one word of text.

    Args:
        where: "http://host:port/v1#model" for an endpoint; "reference", a folder or a hub id for a model run here.
        api_key_env: environment variable that holds an endpoint's key.
        timeout_seconds: how long an endpoint may take over one reply.
        retries: further tries when an endpoint is busy.

    Raises:
        ValueError: no model behind the `#`, or no such model.
    """
    if not where.lower().startswith(("http://", "https://")):
        import longspan

        return LocalJudge(longspan.load(where))
    from longspan.evaluation.judging.endpoint import EndpointJudge

    base_url, _, model = where.partition("#")
    return EndpointJudge(
        base_url=base_url,
        model=model,
        api_key_env=api_key_env,
        timeout_seconds=timeout_seconds,
        retries=retries,
    )


def room_words(judge: Judge) -> int:
    """How many words of material fit into one prompt of this judge, beside the question and the reply.

    English prose has about 0.75 words a token; 0.6 leaves room for rarer words.
    """
    window = getattr(judge, "window_tokens", None) or DEFAULT_WINDOW_TOKENS
    return max(50, int((window - _PROMPT_AND_REPLY_TOKENS) * _WORDS_PER_TOKEN))
