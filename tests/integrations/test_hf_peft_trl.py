"""LoRA models, TRL's SFTTrainer and transformers' Seq2SeqTrainer through the mixin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

import datasets
from integrations.hf_tiny import VOCABULARY, Items, Noted, arguments, bert, llama, train
from transformers import PreTrainedTokenizerFast, Seq2SeqTrainer, Seq2SeqTrainingArguments

import dataprune
from dataprune.integrations.huggingface import PrunedTrainerMixin

# peft 0.21 asks transformers 5.23 by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SIZE = 48


def emp() -> Any:
    return dataprune.emp(SIZE, keep=0.3125, epochs=4)


# -- LoRA --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "labels", "task", "targets"),
    [
        (bert, "class", "SEQ_CLS", ["query", "value"]),
        pytest.param(llama, "language", "CAUSAL_LM", ["q_proj", "v_proj"], marks=pytest.mark.slow),
    ],
)
def test_lora(build: Any, labels: str, task: str, targets: list[str], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    config = peft.LoraConfig(task_type=task, r=2, target_modules=targets, lora_dropout=0.1)
    data = Items(labels=labels)
    options = {"data": data, "folder": tmp_path, "save_strategy": "steps", "save_steps": 1}
    ours = train(model=peft.get_peft_model(build(), config), pruner=emp(), **options)
    assert [len(epoch) for epoch in ours.epochs()] == [48, 15, 15, 15] and ours._get_learning_rate() == 0.0
    resumed = train(
        model=peft.get_peft_model(build(), config), pruner=emp(), resume=str(tmp_path / "checkpoint-7"), **options
    )
    assert [ids for _, ids in resumed.seen] == [ids for _, ids in ours.seen[7:]]
    for weight, expected in zip(resumed.model.parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(weight, expected)
    # adapters begin at nothing: the first scores are those of the model without them
    still = {"learning_rate": 0.0, "max_steps": 6, "data": data}
    lora = train(model=peft.get_peft_model(build(), config), pruner=emp(), **still)
    plain = train(model=build(), pruner=emp(), **still)
    torch.testing.assert_close(lora.pruner.book.score, plain.pruner.book.score)


# -- TRL ---------------------------------------------------------------------------------------------------------------


def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{i}": i for i in range(VOCABULARY - 1)} | {"<eos>": VOCABULARY - 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w1")), eos_token="<eos>", pad_token="<eos>"
    )


def texts(items: Items) -> Any:
    """Token ids of several lengths; the first is the position."""
    ids = [row[: 2 + i % 5].tolist() for i, row in enumerate(items.ids)]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": ids})


def sft(kind: Any = None, pruner: Any = None, resume: Any = None, data: Any = None, **changes: Any) -> Any:
    trl = pytest.importorskip("trl", reason="needs trl")
    args = arguments(kind=trl.SFTConfig, **({"activation_checkpointing": False, "bf16": False} | changes))
    bases = (Noted, trl.SFTTrainer) if pruner is None else (Noted, PrunedTrainerMixin, trl.SFTTrainer)
    trainer = type("Sft", bases, {})(
        llama(), args, train_dataset=texts(Items()) if data is None else data, processing_class=tokenizer(),
        **({} if pruner is None else {"pruner": pruner}),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.slow
def test_sft_trains_the_plan_and_resumes(tmp_path: Path) -> None:
    options = {"folder": tmp_path, "save_strategy": "steps", "save_steps": 1}
    ours = sft(pruner=emp(), **options)
    assert [len(epoch) for epoch in ours.epochs()] == [48, 15, 15, 15]
    assert ours.state.global_step == 12 and ours._get_learning_rate() == 0.0
    assert ours.column("mean_token_accuracy")  # TRL's own metrics are still there
    resumed = sft(pruner=emp(), resume=str(tmp_path / "checkpoint-7"), **options)
    assert [ids for _, ids in resumed.seen] == [ids for _, ids in ours.seen[7:]]
    assert torch.equal(resumed.pruner.book.score, ours.pruner.book.score)


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_full_is_the_stock_sft(accumulate: int) -> None:
    options = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": accumulate}
    stock, ours = sft(**options), sft(pruner=dataprune.full(SIZE, epochs=4), **options)
    assert ours.column("loss") == stock.column("loss") and ours.column("grad_norm") == stock.column("grad_norm")


def test_scores_of_sft_are_those_of_the_logits() -> None:
    still = {"learning_rate": 0.0, "max_steps": 6}
    ours = sft(pruner=emp(), **still)
    model, items = llama(), Items()
    for i, text in enumerate(texts(items)):
        ids = torch.tensor([text["input_ids"]])
        logs = model(input_ids=ids).logits[0, :-1].double().log_softmax(dim=-1)
        loss = -logs.gather(1, ids[0, 1:, None]).mean().item()
        entropy = -(logs.exp() * logs).sum(dim=1).mean().item()
        assert ours.pruner.book.score[i].item() == pytest.approx(loss + 5 * entropy, rel=1e-4), i


def test_infobatch_with_sft() -> None:
    ours = sft(pruner=dataprune.infobatch(SIZE, keep=0.5, epochs=4))
    lengths = [len(epoch) for epoch in ours.epochs()]
    assert lengths[0] == SIZE and min(lengths) < SIZE
    assert ours._get_learning_rate() == pytest.approx(0.0, abs=1e-9)


def test_rows_that_join_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 rows for 8 samples: padding_free and packing .* switch them off"):
        sft(pruner=emp(), padding_free=True, max_length=None)
    with pytest.raises(ValueError, match=r"train_dataset has \d+ samples \(as the Trainer prepared it: packing"):
        sft(pruner=emp(), packing=True, max_length=12)


# -- Seq2SeqTrainer ----------------------------------------------------------------------------------------------------


def test_seq2seq() -> None:
    class Ours(Noted, PrunedTrainerMixin, Seq2SeqTrainer):
        pass

    trainer = Ours(
        bert(), arguments(kind=Seq2SeqTrainingArguments), train_dataset=Items(), pruner=emp(), eval_dataset=Items(8)
    )
    trainer.train()
    assert [len(epoch) for epoch in trainer.epochs()] == [48, 15, 15, 15]
