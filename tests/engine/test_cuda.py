"""The same engine on a GPU: every method's example gives what the CPU gives; the reference model answers in bfloat16."""

from __future__ import annotations

import pytest
import torch

from longspan.card import all_cards
from longspan.engine.api import load
from tests.models import VOCAB, random_ids, random_model, word_tokenizer, words

pytestmark = pytest.mark.gpu
CARDS = all_cards()
FACT = "The harbour master of Brindlewick keeps a brass lantern in the cellar."
FILLER = "The sea was grey that morning, and nobody on the quay said much about it. "


def _answer_logits(device: str, spec: str) -> torch.Tensor:
    """No id comes twice: equal tokens have equal keys before rotation, and devices break such ties differently."""
    ids = torch.randperm(VOCAB - 10, generator=torch.Generator().manual_seed(2))[:309] + 10
    span = load(random_model().to(device), spec, tokenizer=word_tokenizer(), chunk_tokens=128)
    context = span.read(words(ids[:300]))
    branch = span.reader().open_question(context.run, ids[300:])
    logits = span.reader().advance(branch, ids[300:])
    assert logits is not None
    return logits[0].cpu()


@pytest.mark.parametrize("name", sorted(CARDS))
def test_every_method_gives_what_the_cpu_gives(name: str) -> None:
    card = CARDS[name]
    spec = card.identity if "devices" in card.tolerances else card.example
    torch.testing.assert_close(
        _answer_logits("cuda", spec), _answer_logits("cpu", spec), atol=2e-3, rtol=2e-3
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", ["dense", "ntk(factor=4) + minference", "tokenselect"])
def test_the_reference_model_answers(dtype: torch.dtype, spec: str) -> None:
    span = load("reference", spec, device="cuda", dtype=dtype)
    context = span.read(FILLER * 60 + FACT + " " + FILLER * 60)
    answer = context.ask("What does the harbour master of Brindlewick keep in the cellar?")
    assert "brass lantern" in answer.text
    assert FACT in answer.sources[0].text
    assert context.run.layers[0].slabs[0].keys.is_cuda and context.run.layers[0].slabs[0].keys.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_equal_stock(dtype: torch.dtype) -> None:
    model, ids = random_model(dtype=dtype).cuda(), random_ids(230).cuda()
    with torch.no_grad():
        stock = model(ids[None]).logits[0].float()
    span = load(model)
    ours = torch.cat([part for _, part in span.logits(ids, chunk_tokens=64)])
    assert (ours - stock).abs().max() < (1e-4 if dtype == torch.float32 else 3e-2) * stock.abs().max()
    span.detach()
