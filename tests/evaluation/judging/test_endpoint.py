"""The endpoint judge against a real HTTP server on this machine: what it sends, what it reads, what it refuses."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from longspan.evaluation.judging import EndpointJudge, LocalJudge, open_judge
from tests.evaluation.judging.fakes import Reply, chat_server, completion

KEY = "sk-not-a-real-key-0123456789"


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def judge(url: str, **settings: Any) -> EndpointJudge:
    return EndpointJudge(
        **{"base_url": url, "model": "m", "timeout_seconds": 5.0, "wait_seconds": 0.01, **settings}
    )


def test_a_request_is_a_chat_completion_at_temperature_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    with chat_server(Reply(completion("gut, \u00fcbrigens"))) as server:
        assert judge(server.url).reply("Is it so?", max_new_tokens=7) == "gut, \u00fcbrigens"
        judge(server.url + "/chat/completions", token_field="max_completion_tokens").reply(
            "x", max_new_tokens=9
        )
    (path, headers, body), (second_path, _, second_body) = server.requests
    assert path == second_path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    message = {"role": "user", "content": "Is it so?"}
    assert body == {"model": "m", "messages": [message], "temperature": 0, "max_tokens": 7}
    assert second_body["max_completion_tokens"] == 9 and "max_tokens" not in second_body


def test_without_a_key_none_is_sent_and_the_variable_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", KEY)
    with chat_server(Reply(completion("ok"))) as server:
        judge(server.url).reply("x", max_new_tokens=1)
        judge(server.url, api_key_env="OTHER_KEY").reply("x", max_new_tokens=1)
        judge(server.url, api_key_env="").reply("x", max_new_tokens=1)
    sent = [headers.get("authorization") for _, headers, _ in server.requests]
    assert sent == [None, f"Bearer {KEY}", None]


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://api.example.com/v1", True),
        ("http://127.0.0.1:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://192.0.2.7:8000/v1", False),
        ("http://localhost.example.com/v1", False),
    ],
)
def test_a_key_leaves_this_machine_over_https_only(
    monkeypatch: pytest.MonkeyPatch, url: str, sent: bool
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert judge(url)._key() == (KEY if sent else "")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    with chat_server(Reply(b"later", status, {"Retry-After": "0"}), Reply(completion("yes"))) as server:
        assert judge(server.url).reply("x", max_new_tokens=1) == "yes"
    assert len(server.requests) == 2


def test_a_server_that_stays_busy_is_named_after_all_tries() -> None:
    with (
        chat_server(Reply(b"overloaded", 503)) as server,
        pytest.raises(ValueError, match=r"no reply in 3 tries \(HTTP 503: overloaded\)"),
    ):
        judge(server.url, retries=2).reply("x", max_new_tokens=1)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "hint"),
    [(400, "check base_url"), (401, "set the key in OPENAI_API_KEY"), (404, "check base_url")],
)
def test_a_refused_request_is_one_sentence_without_the_key(
    monkeypatch: pytest.MonkeyPatch, status: int, hint: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    said = f'{{"error": "no such thing, your key is {KEY}"}}'.encode()
    with chat_server(Reply(said, status)) as server, pytest.raises(ValueError, match=hint) as error:
        judge(server.url).reply("x", max_new_tokens=1)
    assert f"HTTP {status}" in str(error.value) and "your key is ***" in str(error.value)
    assert KEY not in str(error.value) and "\n" not in str(error.value)
    assert len(server.requests) == 1


def test_redirects_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chat_server(Reply(completion("stolen"))) as other:
        away = {"Location": f"{other.url}/chat/completions"}
        with chat_server(Reply(b"", 302, away)) as server, pytest.raises(ValueError, match="HTTP 302"):
            judge(server.url).reply("x", max_new_tokens=1)
    assert other.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>",
        b"",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"text": "old"}]}',
        b"[" * 200_000,
        b'{"choices": [{"message": {"content": ["parts"]}}]}',
        b"\xff\xfe\x00",
    ],
)
def test_another_format_is_one_clear_error(body: bytes) -> None:
    with chat_server(Reply(body)) as server, pytest.raises(ValueError, match=r"expected (JSON|text)"):
        judge(server.url).reply("x", max_new_tokens=1)
    assert len(server.requests) == 1


def test_no_content_is_an_empty_reply() -> None:
    with chat_server(Reply(completion(None))) as server:
        assert judge(server.url).reply("x", max_new_tokens=1) == ""


def test_a_silent_server_times_out() -> None:
    begun = time.monotonic()
    with (
        chat_server(Reply(completion("late"), delay_seconds=20)) as server,
        pytest.raises(ValueError, match=r"in 2 tries \(no answer in 0.2 s\)"),
    ):
        judge(server.url, timeout_seconds=0.2, retries=1).reply("x", max_new_tokens=1)
    assert time.monotonic() - begun < 5


def test_a_cut_connection_is_tried_again() -> None:
    cut = Reply(b"{", headers={"Content-Length": "500"})
    with chat_server(cut, Reply(completion("whole"))) as server:
        assert judge(server.url).reply("x", max_new_tokens=1) == "whole"


def test_a_refused_connection_is_not_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(
        ValueError, match=rf"cannot reach the judge at http://127.0.0.1:{port}/v1/chat/completions"
    ):
        judge(f"http://127.0.0.1:{port}/v1", wait_seconds=60.0).reply("x", max_new_tokens=1)


def test_a_key_that_is_no_header_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two\nlines")
    with pytest.raises(ValueError, match="OPENAI_API_KEY holds characters") as error:
        judge("http://127.0.0.1:9/v1").reply("x", max_new_tokens=1)
    assert "sk-two" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "file:///etc/passwd"}, "allowed is an http or https address"),
        ({"base_url": "http://"}, "allowed is an http or https address"),
        ({"base_url": "http://host:99999/v1"}, "allowed is an http or https address"),
        ({"base_url": "http://ho st/v1"}, "allowed is an http or https address"),
        ({"base_url": "http://me:secret@host/v1"}, "holds a user"),
        ({"model": " "}, "no model is named"),
        ({"timeout_seconds": 0.0}, "positive time"),
        ({"retries": -1}, "0 or more retries"),
        ({"token_field": "limit"}, "max_completion_tokens"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        judge(**{"url": "http://host/v1", **settings})
    assert "secret" not in str(error.value)


def test_open_judge_tells_an_endpoint_from_a_model(tmp_path: Any) -> None:
    found = open_judge("http://127.0.0.1:8000/v1#org/model", api_key_env="K", timeout_seconds=3, retries=1)
    assert found == EndpointJudge(
        base_url="http://127.0.0.1:8000/v1", model="org/model", api_key_env="K", timeout_seconds=3, retries=1
    )
    assert found.name == "org/model"
    with pytest.raises(ValueError, match="no model is named"):
        open_judge("http://127.0.0.1:8000/v1")
    with pytest.raises(ValueError, match="not a model folder"):
        open_judge(str(tmp_path))


def test_a_local_judge_answers_from_the_prompt_it_was_given() -> None:
    found = open_judge("reference")
    assert isinstance(found, LocalJudge) and found.name == "reference" and found.window_tokens == 4096
    text = "The harbour master of Brindlewick keeps a brass lantern in the cellar. It was raining."
    question = "What does the harbour master of Brindlewick keep in the cellar?"
    reply = found.reply(f"{text}\n\n{question}", max_new_tokens=16)
    assert "brass lantern" in reply
    assert reply == found.model.read(text).ask(question, max_new_tokens=16).text
    with pytest.raises(ValueError, match="blank line"):
        found.reply(question, max_new_tokens=16)
