"""Every recipe, by the table in `methods_under_test.py`, and against slow references written from the papers."""

from __future__ import annotations

import inspect
import io
import random
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from methods_under_test import CLASSES, EPOCHS, KEEP, ROWS, SIZE, Row, run, signals
from torch import Tensor

import dataprune
from dataprune import METHODS, Pruner

each = pytest.mark.parametrize("row", ROWS, ids=[row.label for row in ROWS])
each_exact = pytest.mark.parametrize("row", [row for row in ROWS if row.exact], ids=lambda row: row.label)
each_by_keep = pytest.mark.parametrize("row", [row for row in ROWS if not row.options], ids=lambda row: row.label)

COUNT = int(KEEP * SIZE + 0.5)


def reloaded(state: dict) -> dict:
    """A state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def train(pruner: Pruner, epoch: int) -> Tensor:
    """Record the whole selection of an epoch, in shuffled batches; returns the selection's index."""
    index = pruner.select(epoch).index
    order = index[torch.from_numpy(np.random.default_rng(epoch).permutation(len(index)))]
    for batch in [*order.split(8), *pruner.left_out(epoch, 8)]:
        pruner.update(batch, *signals(epoch, batch))
    return index


# -- the table -------------------------------------------------------------------------------------------------------


def test_table_has_a_row_for_every_method() -> None:
    assert {row.name for row in ROWS} == set(METHODS)


def test_methods_are_named_as_their_functions() -> None:
    assert all(recipe.__name__ == name for name, recipe in METHODS.items())


@each_by_keep
def test_documented_defaults(row: Row) -> None:
    parameters = inspect.signature(METHODS[row.name]).parameters
    assert parameters["warmup"].default == row.warmup
    assert parameters["anneal"].default == row.anneal
    for name, value in row.defaults:
        assert parameters[name].default == value
    positional = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == ["size"]
    assert parameters["seed"].default == 0
    assert parameters["epochs"].default is inspect.Parameter.empty
    pruner = row.build()
    assert pruner.every == row.every
    assert pruner.smoothing == row.smoothing


@pytest.mark.parametrize("name", ["memory", "infobatch", "static_random"])
def test_a_call_with_wrong_arguments_names_the_recipe(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}\(\): unknown argument 'epoch'; did you mean 'epochs'\?"):
        METHODS[name](SIZE, keep=0.5, epoch=3)
    with pytest.raises(TypeError, match="give epochs, how many epochs the run has"):
        METHODS[name](SIZE, keep=0.5)
    with pytest.raises(ValueError, match="epochs"):
        METHODS[name](SIZE, keep=0.5, epochs=0)


@each_by_keep
def test_epochs_are_full_in_warmup_and_annealing_and_pruned_between(row: Row) -> None:
    pruned = row.pruned()
    assert row.build().counts == [COUNT if epoch in pruned else SIZE for epoch in range(EPOCHS)]


def test_annealing_of_the_papers_starts_at_epoch_175_of_200() -> None:
    counts = dataprune.emp(1000, keep=0.3, epochs=200, anneal=0.125).counts
    assert counts == [1000] + [300] * 174 + [1000] * 25


@each
def test_warmup_and_anneal_are_arguments(row: Row) -> None:
    pruner = row.build(epochs=10, warmup=3, anneal=0.25)  # full from ceil(7.5)
    full = [count == SIZE for count in pruner.counts]
    assert full == ([True] * 3 + [False] * 5 + [True] * 2 if row.prunes else [True] * 10)


@each_exact
def test_every_epoch_has_exactly_its_planned_size(row: Row) -> None:
    pruner = row.build()
    sizes = pruner.epoch_sizes()
    assert [len(train(pruner, epoch)) for epoch in range(EPOCHS)] == sizes
    assert pruner.stats()["reached_keep"] == sizes[-1] / SIZE


@each_exact
@pytest.mark.parametrize("budget", [0.3, 0.4371, 0.9, 1.0])
def test_budget_is_the_share_of_a_full_run(row: Row, budget: float) -> None:
    size, epochs = 10_007, 40
    sizes = row.build(size, epochs=epochs, budget=budget).epoch_sizes()
    if not row.prunes:
        assert sizes == [size] * epochs
        return
    pruned = row.pruned(epochs)
    # the same whole number of samples in every pruned epoch: half a sample off in each, at most
    assert abs(sum(sizes) - budget * epochs * size) <= 0.5 * len(pruned) + 1e-6
    assert all(sizes[epoch] == size for epoch in range(epochs) if epoch not in pruned)
    assert len({sizes[epoch] for epoch in pruned}) == 1


def test_budget_of_the_calibration() -> None:
    # six full epochs of 24, one of them the first: keep (6 - 1) / 23 = 0.2174
    counts = dataprune.memory(20_000, budget=0.25, epochs=24).counts
    assert counts == [20_000] + [4348] * 23


@each
def test_training_a_toy_problem_lowers_the_loss(row: Row) -> None:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 2, (SIZE,), generator=generator)
    x = torch.randn(SIZE, 4, generator=generator) + 1.5 * (2 * y - 1).unsqueeze(1)
    model = torch.nn.Linear(4, 2)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = row.build(epochs=8)
    for epoch in range(8):
        for index in pruner.batches(epoch, 8):
            logits = model(x[index])
            loss = pruner.loss(index, F.cross_entropy(logits, y[index], reduction="none"), logits, y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for index in pruner.left_out(epoch, 8):
                logits = model(x[index])
                pruner.update(index, F.cross_entropy(logits, y[index], reduction="none"), logits, y[index])
    final = F.cross_entropy(model(x), y).item()
    assert final < 0.35  # from 0.693


@each
@pytest.mark.parametrize("drop_last", [True, False])
def test_resuming_at_any_instant_changes_nothing(row: Row, drop_last: bool) -> None:
    epochs = 12
    whole = run(row.build(epochs=epochs, seed=3), drop_last=drop_last)
    instants = random.Random(row.label).sample(range(len(whole) + 1), 5)
    # the first and last batch of an epoch are where it goes wrong
    borders = [i for i in range(1, len(whole)) if whole[i].epoch != whole[i - 1].epoch]
    for instant in {*instants, borders[0], borders[1] - 1, borders[4] + 1, len(whole)}:
        first = row.build(epochs=epochs, seed=3)
        assert run(first, stop=instant, drop_last=drop_last) == whole[:instant]
        second = row.build(epochs=epochs, seed=99)  # the seed comes with the state
        second.load_state_dict(reloaded(first.state_dict()))
        assert run(second, drop_last=drop_last) == whole[instant:], f"resumed after step {instant}"
        assert torch.equal(second.book.drawn, first.book.drawn) or second.selected != first.selected


@each
def test_saving_and_resuming_over_and_over_changes_nothing(row: Row) -> None:
    whole = run(row.build(epochs=6))
    pruner, steps = row.build(epochs=6), []
    while True:
        part = run(pruner, stop=3)
        steps += part
        if not part:
            break
        state = reloaded(pruner.state_dict())
        pruner = row.build(epochs=6)
        pruner.load_state_dict(state)
    assert steps == whole


@each
def test_same_seed_same_run_other_seed_another(row: Row) -> None:
    first = run(row.build(epochs=5, seed=1))
    assert run(row.build(epochs=5, seed=1)) == first
    assert run(row.build(epochs=5, seed=2)) != first


@each
def test_global_random_state_is_neither_read_nor_written(row: Row) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    before = torch.get_rng_state().clone(), np.random.get_state(), random.getstate()
    first = run(row.build(epochs=5))
    first_state = row.build(epochs=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(np.array_equal(after, earlier) for after, earlier in zip(np.random.get_state(), before[1], strict=True))
    assert random.getstate() == before[2]
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    assert run(row.build(epochs=5)) == first
    assert row.build(epochs=5).state_dict()["seed"] == first_state["seed"]


@pytest.mark.filterwarnings("ignore:.*none was recorded")
@each
def test_works_with_an_empty_book(row: Row) -> None:
    """Nobody records anything: every method still selects."""
    pruner = row.build()
    for epoch in range(EPOCHS):
        selection = pruner.select(epoch)
        index, weight = selection.index, selection.weight
        assert index.unique().numel() == len(index) == len(weight)
        assert len(index) == (pruner.counts[epoch] if row.exact else SIZE)  # soft pruning never drops the unseen
        assert torch.equal(weight, torch.ones(len(index)))


@each
def test_state_stays_under_sixteen_bytes_a_sample(row: Row) -> None:
    size = 4096
    pruner = row.build(size, epochs=4)
    for epoch in range(3):
        for index in [pruner.select(epoch).index, *pruner.left_out(epoch, size)]:
            pruner.update(index, torch.rand(len(index)), torch.randn(len(index), CLASSES), index % CLASSES)
    state = pruner.state_dict()
    total = sum(value.nbytes for value in state.values() if isinstance(value, Tensor))
    assert total < row.bytes * size
    # what is not saved as a tensor must not grow with the data
    assert all(value is None or isinstance(value, (bool, int, float, str, Tensor)) for value in state.values()), {
        key: type(value) for key, value in state.items()
    }


@each
def test_selection_is_made_anew_only_when_due(row: Row) -> None:
    pruner = row.build()
    selected = [set(train(pruner, epoch).tolist()) for epoch in range(EPOCHS)]
    for epoch in row.pruned()[1:]:
        due = (epoch - row.warmup) % row.every == 0
        assert due or selected[epoch] == selected[epoch - 1]
        if due and row.name in ("random", "rs2", "elfl", "infobatch"):
            assert selected[epoch] != selected[epoch - 1]


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in ROWS if row.prunes and not row.options], ids=lambda row: row.label)
@pytest.mark.parametrize("keep", [0, -0.1, 1.0001, float("nan"), "0.3", True])
def test_keep_outside_its_range(row: Row, keep: object) -> None:
    with pytest.raises(ValueError, match=r"keep.*\(0, 1\]"):
        row.build(keep=keep)


@pytest.mark.parametrize("row", [row for row in ROWS if row.prunes and not row.options], ids=lambda row: row.label)
def test_keep_and_budget_exclude_each_other(row: Row) -> None:
    recipe = METHODS[row.name]
    with pytest.raises(ValueError, match=r"keep.*budget"):
        recipe(SIZE, epochs=10)
    with pytest.raises(ValueError, match=r"keep.*budget"):
        recipe(SIZE, keep=0.3, budget=0.3, epochs=10)
    with pytest.raises(ValueError, match=r"budget.*\(0, 1\]"):
        recipe(SIZE, budget=1.5, epochs=10)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("emp", {"budget": 6 / 40, "epochs": 40, "anneal": 0.125}),  # the first full, and the last five
        ("emp", {"budget": 0.1, "epochs": 40, "anneal": 0.125}),
        ("loss", {"budget": 0.25, "epochs": 4}),
        ("loss", {"budget": 0.07, "epochs": 100, "warmup": 7}),
        ("rs2", {"budget": 0.5, "epochs": 10, "warmup": 10}),
    ],
)
def test_budget_used_up_by_full_epochs(name: str, options: dict) -> None:
    with pytest.raises(ValueError, match="used up"):
        METHODS[name](1000, **options)


@pytest.mark.parametrize("warmup", [-1, 0.5, True])
def test_warmup_is_a_number_of_epochs(warmup: object) -> None:
    with pytest.raises(ValueError, match="warmup"):
        dataprune.rs2(SIZE, keep=0.5, epochs=4, warmup=warmup)  # type: ignore[arg-type]


@pytest.mark.parametrize("anneal", [-0.1, 1.1])
def test_anneal_is_a_share(anneal: float) -> None:
    with pytest.raises(ValueError, match="anneal"):
        dataprune.rs2(SIZE, keep=0.5, epochs=4, anneal=anneal)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_short_runs_are_warned_of_their_full_first_epoch(epochs: int) -> None:
    with pytest.warns(UserWarning, match="warmup=0"):
        dataprune.loss(SIZE, keep=0.3, epochs=epochs)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
def test_short_runs_without_warmup_walk_through_unseen_samples(row: Row) -> None:
    pruner = row.build(epochs=3, warmup=0, anneal=0.0)  # and no warning
    seen: set[int] = set()
    for epoch in range(3):
        index = set(train(pruner, epoch).tolist())
        if row.exact and row.outputs:
            assert not seen & index
        seen |= index


def test_a_long_run_is_not_warned() -> None:
    dataprune.loss(SIZE, keep=0.3, epochs=4)


# -- against slow references -----------------------------------------------------------------------------------------


def entropy(logits: np.ndarray) -> float:
    z = logits.astype(np.float64)
    p = np.exp(z - z.max())
    p /= p.sum()
    return float(-sum(q * np.log(q) for q in p if q > 0))


def reference_scores(name: str, epoch: int, index: list[int]) -> dict[int, float]:
    losses, logits, _ = signals(epoch, torch.tensor(index))
    scores = {}
    for row, sample in enumerate(index):
        loss, memory = float(losses[row]), entropy(logits[row].numpy())
        scores[sample] = {"emp": loss + 5 * memory, "emp_reverse": loss + 5 * memory, "memory": memory}.get(name, loss)
    return scores


@pytest.mark.parametrize("name", ["loss", "emp", "emp_reverse", "memory"])
def test_greedy_methods_keep_the_highest_latest_scores(name: str) -> None:
    """Algorithm 1 of the EMP paper: only trained samples get a new score; the others keep their last."""
    pruner = METHODS[name](SIZE, keep=KEEP, epochs=EPOCHS, anneal=0.125)
    scores: dict[int, float] = {}
    for epoch in range(EPOCHS):
        if epoch == 0 or epoch >= 21:
            expected = set(range(SIZE))
        else:
            ranked = sorted(scores, key=scores.__getitem__, reverse=name != "emp_reverse")
            expected = set(ranked[:COUNT])
        index = train(pruner, epoch)
        assert set(index.tolist()) == expected, f"epoch {epoch}"
        scores.update(reference_scores(name, epoch, index.tolist()))


def test_emp_beta_weighs_the_memory_term() -> None:
    for beta in (0.0, 1.0, 20.0):
        pruner = dataprune.emp(SIZE, keep=KEEP, epochs=EPOCHS, beta=beta)
        train(pruner, 0)
        losses, logits, _ = signals(0, torch.arange(SIZE))
        scores = [float(losses[i]) + beta * entropy(logits[i].numpy()) for i in range(SIZE)]
        expected = set(np.argsort(scores)[::-1][:COUNT].tolist())
        assert set(pruner.select(1).index.tolist()) == expected


def test_epsilon_greedy_keeps_the_highest_smoothed_loss_and_some_of_the_rest() -> None:
    size, epochs, count, greedy = 200, 40, 60, 54  # keep 0.3, epsilon 0.1
    pruner = dataprune.epsilon_greedy(size, keep=0.3, epochs=epochs)
    smoothed: dict[int, float] = {}
    before: set[int] = set()
    explored: Counter[int] = Counter()
    for epoch in range(epochs):
        index = set(train(pruner, epoch).tolist())
        if epoch == 0:
            assert len(index) == size
        elif (epoch - 1) % 10 == 0:
            assert len(index) == count
            best = set(sorted(smoothed, key=smoothed.__getitem__, reverse=True)[:greedy])
            assert best <= index
            explored.update(index - best)
        else:
            assert index == before
        before = index
        for sample, loss in reference_scores("loss", epoch, sorted(index)).items():
            smoothed[sample] = loss if sample not in smoothed else 0.2 * smoothed[sample] + 0.8 * loss
    assert sum(explored.values()) == 4 * 6
    wanted = torch.tensor([smoothed[i] for i in range(size)])
    torch.testing.assert_close(pruner.state_dict()["score"], wanted, rtol=1e-5, atol=1e-6)


def test_epsilon_greedy_explores_the_rest_uniformly() -> None:
    size, count = 40, 20
    hits = np.zeros(size)
    trials = 400
    for seed in range(trials):
        pruner = dataprune.epsilon_greedy(size, keep=0.5, epochs=4, epsilon=0.5, seed=seed)
        index = pruner.select(0).index
        pruner.update(index, index.float() + 1)
        selected = pruner.select(1).index
        assert len(selected) == count
        assert set(range(30, 40)) <= set(selected.tolist())  # the ten highest
        hits[selected.numpy()] += 1
    rest = hits[:30] / trials
    assert abs(rest.mean() - 1 / 3) < 1e-12
    assert np.abs(rest - 1 / 3).max() < 5 * np.sqrt(2 / 9 / trials)


def test_ucb_keeps_the_highest_mean_plus_variance() -> None:
    """v <- (1-a) v + a (L - u)^2 with the old u, then u <- (1-a) u + a L; the first L as it is; every ten epochs."""
    size, epochs, count, alpha, c = 200, 45, 60, 0.8, 1.0
    pruner = dataprune.ucb(size, keep=0.3, epochs=epochs)
    mean: dict[int, float] = {}
    variance = dict.fromkeys(range(size), 0.0)
    before: set[int] = set()
    for epoch in range(epochs):
        index = set(train(pruner, epoch).tolist())
        if epoch == 0:
            assert len(index) == size
        elif (epoch - 1) % 10 == 0:
            bound = {i: mean[i] + c * variance[i] for i in range(size)}
            assert index == set(sorted(bound, key=bound.__getitem__, reverse=True)[:count]), f"epoch {epoch}"
        else:
            assert index == before
        before = index
        for sample, loss in reference_scores("loss", epoch, sorted(index)).items():
            if sample in mean:
                variance[sample] = (1 - alpha) * variance[sample] + alpha * (loss - mean[sample]) ** 2
                mean[sample] = (1 - alpha) * mean[sample] + alpha * loss
            else:
                mean[sample] = loss
    state = pruner.state_dict()
    assert torch.allclose(state["score"], torch.tensor([mean[i] for i in range(size)]), rtol=1e-4)
    assert torch.allclose(state["variance"], torch.tensor([variance[i] for i in range(size)]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"prune_probability": 0.5}, {"prune_probability": 0.3}, {"keep": 0.7}, {"keep": 0.1}]
)
def test_infobatch_prunes_below_the_mean_and_reweights(options: dict) -> None:
    pruner = dataprune.infobatch(SIZE, epochs=EPOCHS, anneal=0.125, **options)
    scores: dict[int, float] = {}
    for epoch in range(EPOCHS):
        selection = pruner.select(epoch)
        index, weight = selection.index, selection.weight
        index = train(pruner, epoch)
        if epoch == 0 or epoch >= 21:
            assert len(index) == SIZE
            assert torch.equal(weight, torch.ones(SIZE))  # no stale weights in annealing
        else:
            mean = float(np.mean([scores[i] for i in range(SIZE)]))
            low = {i for i in range(SIZE) if scores[i] < mean}
            kept = set(index.tolist())
            assert kept >= set(range(SIZE)) - low  # only low samples are dropped
            wanted = int(options.get("keep", 0) * SIZE + 0.5)
            r = options.get("prune_probability", min((SIZE - wanted) / len(low), 0.9))
            survivors = len(kept & low)
            assert abs(survivors - (1 - r) * len(low)) < 1
            if "keep" in options and r < 0.9:
                assert len(kept) == wanted
            assert len(kept) >= wanted
            for sample, factor in zip(index.tolist(), weight.tolist(), strict=True):
                assert factor == pytest.approx(1 / (1 - r) if sample in low else 1, rel=1e-5)
            assert weight.max() <= 10 * (1 + 1e-6)
        assert pruner.stats()["reached_keep"] == len(index) / SIZE
        scores.update(reference_scores("loss", epoch, index.tolist()))


def test_infobatch_reports_a_budget_it_cannot_reach() -> None:
    pruner = dataprune.infobatch(SIZE, keep=0.05, epochs=EPOCHS)
    train(pruner, 0)
    pruner.select(1)
    assert pruner.stats()["reached_keep"] > 0.05
    assert pruner.epoch_sizes() == [SIZE] * EPOCHS  # an upper bound


def test_infobatch_takes_one_of_its_three_parameters() -> None:
    with pytest.raises(ValueError, match="prune_probability"):
        dataprune.infobatch(SIZE, keep=0.5, prune_probability=0.5, epochs=10)
    with pytest.raises(ValueError, match="prune_probability"):
        dataprune.infobatch(SIZE, prune_probability=1.0, epochs=10)


@pytest.mark.parametrize("name", ["rs2", "elfl"])
@pytest.mark.parametrize("keep", [0.3, 0.07, 0.61])
def test_rs2_goes_through_one_permutation_after_another(name: str, keep: float) -> None:
    """Each pass covers all samples before any is drawn again, the tail of a pass included."""
    pruner = METHODS[name](SIZE, keep=keep, epochs=60)
    draws = np.zeros(SIZE, dtype=int)
    first: list[int] = []
    for epoch in range(60):
        index = train(pruner, epoch).numpy()
        least = draws.min()
        due = np.flatnonzero(draws == least)
        if len(due) <= len(index):
            assert set(due) <= set(index.tolist())  # what is left of the pass comes first
        else:
            assert set(index.tolist()) <= set(due.tolist())
        draws[index] += 1
        assert draws.max() - draws.min() <= 1
        first += index.tolist() if len(first) < SIZE else []
    assert torch.equal(pruner.book.drawn, torch.from_numpy(draws).int())
    assert set(first) == set(range(SIZE))


def test_rs2_shuffles_its_first_pass_and_draws_new_permutations() -> None:
    pruner = dataprune.rs2(100, keep=0.5, epochs=8)
    halves = [frozenset(pruner.select(epoch).index.tolist()) for epoch in range(8)]
    assert halves[0] != frozenset(range(50))
    assert all(halves[i] | halves[i + 1] == frozenset(range(100)) for i in range(0, 8, 2))
    assert len({halves[0], halves[2], halves[4], halves[6]}) == 4


def test_static_random_takes_a_number_of_samples() -> None:
    for count in (2, 7, SIZE - 1, SIZE):
        assert dataprune.static_random(SIZE, keep=count, epochs=EPOCHS).epoch_sizes() == [count] * EPOCHS
    same = [dataprune.static_random(SIZE, keep=keep, epochs=2).select(0).index.tolist() for keep in (10, 10 / SIZE)]
    assert same[0] == same[1]
    with pytest.raises(ValueError, match=f"asks for {SIZE + 1} samples, there are {SIZE}"):
        dataprune.static_random(SIZE, keep=SIZE + 1, epochs=2)


@pytest.mark.parametrize("name", sorted(set(dataprune.METHODS) - {"static_random"}))
def test_dynamic_methods_say_how_to_keep_a_number_of_samples(name: str) -> None:
    with pytest.raises(ValueError, match=r"keep is the fraction .*; for 500 samples write keep=500/len\(dataset\)"):
        dataprune.METHODS[name](1000, keep=500, epochs=4)


def test_static_random_draws_one_subset_once() -> None:
    pruner = dataprune.static_random(SIZE, keep=KEEP, epochs=EPOCHS)
    selected = [tuple(train(pruner, epoch).tolist()) for epoch in range(EPOCHS)]
    assert len(set(selected)) == 1
    assert pruner.stats()["draws"] == [SIZE - COUNT, COUNT]
    assert selected[0] != tuple(range(COUNT))


def test_random_draws_a_new_subset_every_epoch() -> None:
    pruner = dataprune.random(1000, keep=0.3, epochs=40)
    draws = np.zeros(1000)
    selected = set()
    for epoch in range(40):
        index = pruner.select(epoch).index
        selected.add(tuple(index.tolist()))
        draws[index.numpy()] += 1
    assert len(selected) == 40
    # binomial(40, 0.3): mean 12, variance 8.4
    assert abs(draws.var() - 8.4) < 2
    assert draws.mean() == 12


def test_balance_gives_every_class_its_share() -> None:
    labels = torch.arange(SIZE) % 3  # 33, 32, 32
    for name in ("loss", "emp", "emp_reverse", "memory", "ucb"):
        pruner = METHODS[name](SIZE, keep=30 / SIZE, epochs=EPOCHS, balance=labels)
        train(pruner, 0)
        index = pruner.select(1).index
        assert torch.bincount(labels[index]).tolist() == [10, 10, 10], name


def test_balance_keeps_the_highest_of_each_class() -> None:
    labels = torch.arange(SIZE) % 2
    pruner = dataprune.loss(SIZE, keep=20 / SIZE, epochs=EPOCHS, balance=labels)
    train(pruner, 0)
    scores = reference_scores("loss", 0, list(range(SIZE)))
    expected = set()
    for label in (0, 1):
        members = [i for i in range(SIZE) if i % 2 == label]
        expected |= set(sorted(members, key=scores.__getitem__, reverse=True)[:10])
    assert set(pruner.select(1).index.tolist()) == expected
