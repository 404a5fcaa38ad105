"""Reading, asking, saving and what happens with bad input, on random models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from longspan.engine.api import load, open_context
from longspan.engine.model import SpanModel
from longspan.engine.prompt import Prompt, text_pieces
from longspan.engine.reader import rechunk
from longspan.engine.sources import sentence_around
from longspan.engine.store import Slab, spare_tokens
from longspan.errors import UserInputError
from longspan.roles import LayerInfo, Selection, Steering, Step, Storage
from longspan.spec import Scope, ScopedMethod
from longspan.visit import Ranges, Visit
from tests.models import full_logits, random_ids, random_model, word_tokenizer, words


def make(spec: object = None, **settings: int) -> SpanModel:
    return load(random_model(), spec, tokenizer=word_tokenizer(), **settings)  # type: ignore[arg-type]


def test_greedy_answers_equal_stock_generate() -> None:
    model, tokenizer = random_model(), word_tokenizer()
    text, question = words(random_ids(150)), words(random_ids(9, seed=2))
    ids = tokenizer(f"{text} {question}", return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    span = load(model, tokenizer=tokenizer, chunk_tokens=64)
    answer = span.read(text).ask(question, max_new_tokens=12)
    assert list(answer.token_ids) == [int(i) for i in expected if i != tokenizer.eos_token_id]
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens) == (9, 150)
    assert set(answer.usage.seconds) == {"prefill", "decode"}


def test_kv_bytes_are_the_tensors_own() -> None:
    context = make().read(words(random_ids(700)))
    layers, heads, dim, slots = 2, 2, 16, 700 + spare_tokens(700)
    assert context.kv_bytes == layers * slots * (2 * heads * dim * 4 + 8)
    assert context.kept_tokens == 700 and context.num_tokens == 700


def test_asking_needs_no_copy_of_the_context() -> None:
    span = make()
    context = span.read(words(random_ids(700)))
    branch = context.run.fork()
    span.reader().advance(branch, random_ids(9))
    assert branch.layers[0].slabs[0].keys.data_ptr() == context.run.layers[0].slabs[0].keys.data_ptr()
    second = context.run.fork()
    span.reader().advance(second, random_ids(9, seed=1))
    assert second.layers[0].slabs[0].keys.data_ptr() != context.run.layers[0].slabs[0].keys.data_ptr()


def test_a_fork_that_copied_does_not_take_the_spare_room_from_another() -> None:
    """Of two open forks the second copies; when it ends, the room is still the first one's."""
    span = make()
    context, reader = span.read(words(random_ids(100))), span.reader()
    asks, token = [random_ids(9, seed=seed) for seed in (5, 6, 7)], torch.tensor([33])
    alone = []
    for ask in asks:
        branch = context.run.fork()
        reader.advance(branch, ask)
        alone.append(reader.advance(branch, token))
        branch.give_back(context.run)
    first, second = context.run.fork(), context.run.fork()
    reader.advance(first, asks[0])
    reader.advance(second, asks[1])
    second.give_back(context.run)
    third = context.run.fork()
    reader.advance(third, asks[2])
    torch.testing.assert_close(reader.advance(first, token), alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reader.advance(third, token), alone[2], atol=1e-5, rtol=1e-5)


def test_text_without_a_tokenizer_is_refused() -> None:
    span = load(random_model())
    for text in ("w3 w4", iter(["w3 w4 "])):
        with pytest.raises(UserInputError, match="this model has no tokenizer"):
            span.read(text)
    with pytest.raises(UserInputError, match="this model has no tokenizer"):
        span.read([3, 4]).read("w5")


def test_reading_on_gives_a_longer_context_and_leaves_the_first() -> None:
    span, first, rest = make(), words(random_ids(120)), words(random_ids(80, seed=1))
    short = span.read(first)
    before = short.ask("w5 w6", max_new_tokens=6).text
    longer, whole = short.read(" " + rest), span.read(f"{first} {rest}")
    assert longer.num_tokens == 200 and short.num_tokens == 120
    assert longer.ask("w5 w6", max_new_tokens=6).text == whole.ask("w5 w6", max_new_tokens=6).text
    assert short.ask("w5 w6", max_new_tokens=6).text == before


def test_sampling_follows_its_seed() -> None:
    context = make().read(words(random_ids(100)))
    drawn = [
        context.ask("w5", max_new_tokens=8, temperature=3.0, top_p=0.9, seed=seed).token_ids
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@dataclass(frozen=True, kw_only=True)
class Window(Selection):
    """Sink and window, for these tests."""

    window_tokens: int = 8

    def visit(self, step: Step) -> Visit:
        return Ranges(sink_tokens=1, window_tokens=self.window_tokens)


@dataclass(frozen=True, kw_only=True)
class KeepEven(Storage):
    """Keeps every other token after reading, and stores each kv head apart."""

    def split(self, layer: LayerInfo) -> tuple[tuple[int, ...], ...]:
        return tuple((head,) for head in range(layer.num_kv_heads))

    def compact(self, layer, store, state, *, event):  # noqa: ANN001, ANN201
        if event != "read":
            return None
        return torch.arange(store.heads[0], store.num_tokens, 2)[None, None]


@dataclass(frozen=True, kw_only=True)
class Forbid(Steering):
    """A bias that hides the second half of what is stored."""

    def bias(self, step: Step) -> torch.Tensor:
        S = step.store.num_tokens
        hidden = torch.arange(S) >= S // 2
        hidden[-step.num_new :] = False
        return torch.where(hidden, -1e9, 0.0)[None, None]


def test_heads_and_phase_scope_a_selection() -> None:
    ids = random_ids(90)
    scoped = ScopedMethod(Window(), Scope(layers=(1,), heads=(0,), phase="prefill"), "window")
    some, every, dense = make([scoped]), make([Window()]), make()
    logits = [full_logits(model, ids) for model in (some, every, dense)]
    assert (logits[0] - logits[2]).abs().max() > 1e-3 and (logits[0] - logits[1]).abs().max() > 1e-3
    run = some.read(ids).run
    assert run.plan.layers[0].selections == () and run.plan.layers[1].selections_for("decode") == ()


def test_heads_stored_apart_free_their_bytes() -> None:
    context = make([KeepEven()]).read(words(random_ids(401)))
    assert [slab.num_tokens for slab in context.run.layers[0].slabs] == [201, 200]
    assert context.kv_bytes < make().read(words(random_ids(401))).kv_bytes
    assert context.ask("w5 w7", max_new_tokens=4).usage.generated_tokens <= 4


def test_steering_bias_hides_keys() -> None:
    steered, dense = make([Forbid()]), make()
    ids = random_ids(100)
    difference = (
        (full_logits(steered, ids, chunk_tokens=25) - full_logits(dense, ids, chunk_tokens=25)).abs().amax(1)
    )
    assert difference[:50].max() < 1e-5 < 1e-3 < difference[50:].max()


def test_methods_that_claim_one_role_explain_themselves() -> None:
    with pytest.raises(
        ValueError, match="yarn and pi both express distance on layer 0, which only one method can"
    ):
        make("yarn(factor=2) + pi(factor=2)")
    with pytest.raises(ValueError, match="both choose the keys that a query visits"):
        make("minference + tokenselect(positions=stored)")
    with pytest.raises(ValueError, match="both decide how a text is read"):
        make("gemfilter + truncate(keep_tokens=50)")
    with pytest.raises(ValueError, match="cannot be scoped by heads or phase"):
        make("on(phase=prefill, snapkv(keep=0.5))")
    with pytest.raises(ValueError, match="got layer 9; .* has layers 0 to 1"):
        make("on(layers=9, snapkv(keep=0.5))")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        ("  \n", "the text is empty"),
        (torch.zeros(0, dtype=torch.long), "at least one integer id"),
        (torch.rand(4), "at least one integer id"),
        (b"bytes", "read takes a str"),
        (12, "read takes a str"),
        (iter([]), "the stream held no text"),
        (iter([3, 4]), "a stream of text"),
    ],
)
def test_bad_texts(text: object, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        make().read(text)  # type: ignore[arg-type]


def test_bad_questions_and_settings() -> None:
    context = make().read("w3 w4 w5")
    with pytest.raises(UserInputError, match="the question is empty"):
        context.ask(" ")
    with pytest.raises(UserInputError, match="max_new_tokens=0"):
        context.ask("w3", max_new_tokens=0)
    with pytest.raises(UserInputError, match="the question has 300 tokens"):
        context.ask(words(random_ids(300)))
    with pytest.raises(UserInputError, match="chunk_tokens=0"):
        make(chunk_tokens=0)


def test_a_tokenizer_without_eos_is_named() -> None:
    import copy

    tokenizer = copy.deepcopy(word_tokenizer())
    tokenizer.eos_token = None
    model = random_model()
    model.generation_config.eos_token_id = None
    with pytest.raises(UserInputError, match="has no eos token"):
        load(model, tokenizer=tokenizer).read("w3 w4").ask("w5")


def test_bad_models(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="is not a model folder"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    with pytest.raises(ValueError, match="is a BertForMaskedLM, not a causal language model"):
        load(tmp_path)


def test_a_folder_in_hugging_face_format_loads(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    text = words(random_ids(60))
    assert (
        load(tmp_path).read(text).ask("w9", max_new_tokens=5).text
        == make().read(text).ask("w9", max_new_tokens=5).text
    )


def test_saved_contexts_refuse_other_weights_specs_and_files(tmp_path: Path) -> None:
    context = make().read("w3 w4 w5")
    context.save(tmp_path / "a.span")
    with pytest.raises(UserInputError, match="was made under 'dense'"):
        open_context(tmp_path / "a.span", make("pi(factor=2)"))
    with pytest.raises(UserInputError, match="was made with other weights"):
        open_context(tmp_path / "a.span", load(random_model(seed=3), tokenizer=word_tokenizer()))
    (tmp_path / "b.span").write_bytes((tmp_path / "a.span").read_bytes()[:100])
    with pytest.raises(UserInputError, match="is not a saved context"):
        open_context(tmp_path / "b.span", make())
    with pytest.raises(UserInputError, match="there is no file"):
        open_context(tmp_path / "c.span", make())
    with pytest.raises(UserInputError, match="there is no folder"):
        context.save(tmp_path / "none" / "d.span")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.span", "b.span"]


def test_the_prompt_is_the_models_own_template() -> None:
    class Tokenizer:
        chat_template = "yes"
        bos_token = "<s>"

        def apply_chat_template(
            self, messages: list[dict[str, str]], add_generation_prompt: bool, **_: bool
        ) -> str:
            text = "<s>"
            for message in messages:
                text += f"[{message['role']}]{message['content'].strip()}[/{message['role']}]"
            return text + ("[assistant]" if add_generation_prompt else "")

    prompt = Prompt.of(Tokenizer())
    assert (prompt.before, prompt.between, prompt.after) == ("[user]", "\n\n", "[/user][assistant]")
    assert prompt.question("Who?", "It is ") == "\n\nWho?[/user][assistant] It is"
    assert prompt.turn("Who?", "It is Ann.") == "\n\nWho?[/user][assistant] It is Ann.[/assistant][user]"


def test_a_turn_is_kept_and_the_first_context_stays() -> None:
    context = make().read(words(random_ids(300)))
    before = context.ask("w5 w6", max_new_tokens=4).text
    later = context.with_turn("w5 w6", before)
    assert later.num_tokens > context.num_tokens + 4
    assert context.ask("w5 w6", max_new_tokens=4).text == before
    joined = make().read(f"{words(random_ids(300))} w5 w6 {before}")
    assert later.ask("w7", max_new_tokens=4).text == joined.ask("w7", max_new_tokens=4).text


def test_streams_break_at_white_space() -> None:
    assert list(text_pieces(iter(["ab c", "d e", "f"]))) == ["ab", " cd", " ef"]
    pieces = [torch.arange(5), torch.arange(5, 6), torch.arange(6, 17)]
    assert [len(chunk) for chunk in rechunk(pieces, 8)] == [8, 8, 1]
    assert torch.equal(torch.cat(list(rechunk(pieces, 8))), torch.arange(17))


def test_a_slab_grows_shrinks_and_forks() -> None:
    slab = Slab((0, 1))
    keys = torch.arange(20.0).view(1, 1, 10, 2).expand(1, 2, 10, 2)
    slab.append(keys, keys, torch.arange(10)[None], first=0, reserve_tokens=64)
    fork = slab.fork()
    fork.append(keys[:, :, :1], keys[:, :, :1], torch.tensor([[10]]), first=10)
    assert (slab.num_tokens, fork.num_tokens, fork.contiguous_from) == (10, 11, 0)
    slab.keep(torch.tensor([[[1, 3, 9], [0, 8, -1]]]))
    assert slab.positions.tolist() == [[[1, 3, 9], [0, 8, -1]]] and slab.capacity == 3
    assert slab.keys[0, 0, :, 0].tolist() == [2.0, 6.0, 18.0] and fork.keys[0, 0, :, 0].tolist()[:3] == [
        0.0,
        2.0,
        4.0,
    ]
    assert slab.contiguous_from is None


def test_a_source_is_the_sentence_around_a_token() -> None:
    tokenizer = word_tokenizer()
    text, start, stop = sentence_around(tokenizer, torch.tensor([5, 6, 7]), 1)
    assert (text, start, stop) == ("w5w6w7", 0, 3)


@pytest.mark.slow
def test_sources_are_found_where_selected_tokens_are_renumbered() -> None:
    """Under renumbered positions the evidence comes from what a step visited, not from keys far out of the window."""
    filler = "The sea was grey that morning, and nobody on the quay said much about it. "
    fact = "The harbour master of Brindlewick keeps a brass lantern in the cellar."
    context = load("reference", "tokenselect").read(filler * 250 + fact + " " + filler * 650, progress=False)
    assert context.num_tokens > 3 * 4096
    answer = context.ask("What does the harbour master of Brindlewick keep in the cellar?")
    assert "brass lantern" in answer.text
    assert fact in answer.sources[0].text
