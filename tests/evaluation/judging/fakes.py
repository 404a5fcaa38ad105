"""Judges without a model, and a server on this machine that speaks the chat completions format."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any


@dataclass
class ScriptedJudge:
    """Replies by a function of the prompt, and remembers what it was asked."""

    script: Callable[[str], str]
    name: str = "scripted"
    prompts: list[str] = field(default_factory=list)

    def reply(self, prompt: str, *, max_new_tokens: int) -> str:
        assert max_new_tokens > 0
        self.prompts.append(prompt)
        return self.script(prompt)


def always(reply: str) -> ScriptedJudge:
    return ScriptedJudge(lambda prompt: reply)


def coin(seed: int = 0) -> ScriptedJudge:
    rng = random.Random(seed)
    return ScriptedJudge(
        lambda prompt: json.dumps({"verdict": rng.choice(["correct", "wrong"])}), name="coin"
    )


def shown(prompt: str, label: str) -> str:
    """What stands in a block of a prompt."""
    found = re.search(rf"<{label}>\n(.*?)\n</{label}>", prompt, re.DOTALL)
    assert found is not None, prompt
    return found[1]


def completion(text: str | None) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@dataclass
class Reply:
    """One reply of the server. delay_seconds: it stays silent so long, or until it is closed."""

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0


@dataclass
class Server:
    """Where it listens, and what it was sent: path, headers (lower case) and body of each request."""

    url: str
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)


@contextmanager
def chat_server(*replies: Reply) -> Iterator[Server]:
    """Serve these replies in turn, the last one again and again, on a free port of the loopback interface."""
    closing = Event()
    queue = list(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.requests.append((self.path, headers, json.loads(sent)))
            reply = queue.pop(0) if len(queue) > 1 else queue[0]
            if reply.delay_seconds and closing.wait(reply.delay_seconds):
                return
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        server = Server(url=f"http://127.0.0.1:{listening.server_address[1]}/v1")
        thread = Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            closing.set()
            listening.shutdown()
            thread.join()
