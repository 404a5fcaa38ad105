"""A judge behind an OpenAI-compatible endpoint: `POST {base_url}/chat/completions`, with the standard library only."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from longspan.errors import UserInputError
from longspan.evaluation.judging.judge import DEFAULT_WINDOW_TOKENS

__all__ = ["EndpointJudge"]

_PATH = "/chat/completions"
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")
_MAX_REPLY_BYTES = 8_000_000
_MAX_WAIT_SECONDS = 30.0
_SHOWN_CHARACTERS = 200


class _BusyError(Exception):
    """Worth another try: what happened, and how long the server asked to wait."""

    def __init__(self, what: str, wait_seconds: float | None = None) -> None:
        super().__init__(what)
        self.wait_seconds = wait_seconds


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Following a redirect would hand the key to whatever host it names."""

    def redirect_request(self, *arguments: Any, **settings: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class EndpointJudge:
    """A model that a server runs; temperature 0.

    The key is read from the environment at each request, sent only over https or to this machine, and never shown.

    Args:
        base_url: such as "http://127.0.0.1:8000/v1", where `/chat/completions` is.
        model: the model's name at that server.
        api_key_env: environment variable that holds the key; without one no key is sent.
        timeout_seconds: how long one try may take.
        retries: further tries when the server is busy, fails, or does not answer in time.
        wait_seconds: pause before the first further try, doubled each time; a server's Retry-After goes before.
        window_tokens: tokens that prompt and reply may have together.
        token_field: name of the limit in the request; "max_completion_tokens" for OpenAI's reasoning models.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    timeout_seconds: float = 120.0
    retries: int = 2
    wait_seconds: float = 0.5
    window_tokens: int = DEFAULT_WINDOW_TOKENS
    token_field: str = "max_tokens"

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base_url)
            clean = self.base_url.isprintable() and " " not in self.base_url
            usable = clean and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UserInputError(
                f"got base_url={self.base_url!r}, allowed is an http or https address; "
                "give one such as http://127.0.0.1:8000/v1"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserInputError(
                "base_url holds a user, a query or a fragment, allowed are host, port and path; "
                "put the key into the environment and name its variable with api_key_env"
            )
        if not self.model.strip():
            raise UserInputError(
                f"no model is named for {self.base_url}; write it behind a #, as in "
                "http://127.0.0.1:8000/v1#my-model"
            )
        if self.timeout_seconds <= 0 or self.retries < 0 or self.wait_seconds < 0 or self.window_tokens < 1:
            raise UserInputError(
                f"got timeout_seconds={self.timeout_seconds}, retries={self.retries}, "
                f"wait_seconds={self.wait_seconds}, window_tokens={self.window_tokens}; "
                "give a positive time and window, and 0 or more retries and pause"
            )
        if self.token_field not in _TOKEN_FIELDS:
            raise UserInputError(
                f"got token_field={self.token_field!r}; allowed are {' and '.join(_TOKEN_FIELDS)}"
            )

    @property
    def name(self) -> str:
        return self.model

    def reply(self, prompt: str, *, max_new_tokens: int) -> str:
        """The model's text; empty when it spent all its tokens on thinking.

        Raises:
            ValueError: the server refuses the connection or the request, stays busy, or answers in another format.
        """
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            self.token_field: max_new_tokens,
        }
        body = json.dumps(request).encode()
        wait, trouble = self.wait_seconds, ""
        for left in range(self.retries, -1, -1):
            try:
                return self._text(self._post(body))
            except _BusyError as busy:
                trouble = str(busy)
                if left:
                    time.sleep(
                        min(wait if busy.wait_seconds is None else busy.wait_seconds, _MAX_WAIT_SECONDS)
                    )
                    wait *= 2
        raise UserInputError(
            f"the judge at {self._address} gave no reply in {self.retries + 1} tries ({trouble}); "
            "try later, or raise timeout_seconds or retries"
        )

    @property
    def _address(self) -> str:
        return self.base_url.rstrip("/").removesuffix(_PATH) + _PATH

    def _key(self) -> str:
        """The key that this address may be sent, or ""."""
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        # http.client would show a key that is no header value in its error.
        if key and not (key.isascii() and key.isprintable()):
            raise UserInputError(
                f"the key in {self.api_key_env} holds characters that no key has; set the variable anew"
            )
        return key if self._may_send_key else ""

    @property
    def _may_send_key(self) -> bool:
        parts = urlsplit(self.base_url)
        if parts.scheme == "https" or parts.hostname == "localhost":
            return True
        try:
            return ipaddress.ip_address(parts.hostname or "").is_loopback
        except ValueError:
            return False

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = self._key()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._address, data=body, headers=headers, method="POST")
        try:
            with urllib.request.build_opener(_NoRedirect).open(
                request, timeout=self.timeout_seconds
            ) as answer:
                return self._read(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error, key) from error
        except TimeoutError as error:
            raise self._late() from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise self._late() from error
            if isinstance(error.reason, ConnectionResetError | BrokenPipeError):
                raise _BusyError("the connection broke") from error
            raise UserInputError(
                f"cannot reach the judge at {self._address} ({error.reason}); start its server, or correct "
                "the address"
            ) from error
        except (http.client.HTTPException, OSError) as error:
            raise _BusyError(f"the connection broke: {type(error).__name__}") from error

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        """The whole body; a server that drips it is late all the same."""
        end = time.monotonic() + self.timeout_seconds
        pieces, size = [], 0
        while piece := answer.read1(65_536):
            pieces.append(piece)
            size += len(piece)
            if size > _MAX_REPLY_BYTES:
                raise UserInputError(
                    f"the judge at {self._address} sent more than {_MAX_REPLY_BYTES:,} bytes; check that it "
                    "is a chat server"
                )
            if time.monotonic() > end:
                raise self._late()
        # read1 takes an early end for the end.
        if answer.length:
            raise _BusyError("the connection broke in the middle of the reply")
        return b"".join(pieces)

    def _late(self) -> _BusyError:
        return _BusyError(f"no answer in {self.timeout_seconds:g} s")

    def _refused(self, error: urllib.error.HTTPError, key: str) -> Exception:
        """What to raise for a status that is not 200."""
        try:
            sent = error.read(4096).decode("utf-8", "replace")
        except (http.client.HTTPException, OSError):
            sent = ""
        said = " ".join((sent.replace(key, "***") if key else sent).split())[:_SHOWN_CHARACTERS]
        shown = f"HTTP {error.code}: {said or error.reason}"
        if error.code in _BUSY:
            asked = error.headers.get("Retry-After") or ""
            return _BusyError(shown, float(asked) if asked.isdecimal() else None)
        hint = "check base_url, the model's name and the settings"
        if error.code in (401, 403):
            hint = f"set the key in {self.api_key_env or 'a variable named by api_key_env'}"
            if not self._may_send_key:
                hint = "use https, since no key is sent over plain http to another machine"
        return UserInputError(f"the judge at {self._address} refused the request ({shown}); {hint}")

    def _text(self, body: bytes) -> str:
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            start = body[:_SHOWN_CHARACTERS].decode("utf-8", "replace")
            raise UserInputError(
                f"the judge at {self._address} answered {start!r}, expected JSON with "
                "choices[0].message.content; check that base_url is an OpenAI-compatible server"
            ) from error
        if content is None:
            return ""
        if not isinstance(content, str):
            raise UserInputError(
                f"the judge at {self._address} sent a {type(content).__name__} as its message, expected "
                "text; use a server that answers in plain text"
            )
        return content
