"""The shipped model: its size, its prompt, what it can find."""

import pytest
import torch

from longspan.evaluation.haystacks.pydoc import pydoc_haystack
from longspan.evaluation.sample import make_sample, score
from longspan.evaluation.suites import facts, keyvalue
from longspan.reference import ASSETS, load_reference
from longspan.reference.export import load_exported


def test_assets_are_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) <= 24_000_000


def test_a_missing_model_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no model in"):
        load_exported(tmp_path)


def test_it_answers_from_unseen_text() -> None:
    model, tokenizer = load_reference()
    assert model.config.num_key_value_heads == 2 and model.lm_head.weight is model.model.embed_tokens.weight
    haystack, right = pydoc_haystack(), 0.0
    tasks = [("single", facts.TASKS["single"]), ("numbers", keyvalue.TASKS["keys8_numbers"])]
    for name, task in tasks:
        for seed in range(3):
            sample = make_sample(
                task,
                name=name,
                haystack=haystack,
                length_tokens=512,
                tokenizer=tokenizer,
                seed=2_000_000 + seed,
            )
            text = f"<bos>{sample.context}\n\n{sample.question}\nAnswer:"
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=16,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            right += score(tokenizer.decode(made[0, ids.shape[1] :]), sample)
    assert right >= 5
