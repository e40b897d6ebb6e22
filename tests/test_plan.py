"""Which states a pruner loads: those of a pruner with the same arguments, each of which is named where it differs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from methods_under_test import ROWS, Row, run, signals
from torch import Tensor

import dataprune
from dataprune import CheckpointError, Key, Pruner, ScoreBook, Selection, criteria, policies, schedules

SIZE, EPOCHS = 60, 6
LABELS = torch.arange(SIZE) % 3


def named(method: str, **options: Any) -> Callable[[], Pruner]:
    return lambda: dataprune.METHODS[method](SIZE, **{"keep": 0.5, "epochs": EPOCHS} | options)


def composed(
    criterion: Any = criteria.loss, policy: Any = None, schedule: Any = None, **options: Any
) -> Callable[[], Pruner]:
    policy = policies.top_k() if policy is None else policy
    schedule = schedules.window(0.5, 1, EPOCHS) if schedule is None else schedule
    return lambda: Pruner(SIZE, criterion, policy, schedule, epochs=EPOCHS, **options)


def times(factor: float) -> Any:
    """A closure: every factor has the same name."""
    return lambda losses, outputs, targets: factor * losses


def first(share: float) -> Any:
    def policy(book: ScoreBook, count: int, key: Key) -> Selection:
        order = book.score.argsort(descending=share > 0)
        return Selection.of(order[:count].sort().values)

    return policy


def falling(last: float) -> Any:
    return lambda epoch: 1.0 if epoch == 0 else last


DIFFERENT = {
    "beta": (named("emp", beta=1.0), named("emp", beta=5.0), ["beta", "1.0", "5.0"]),
    "beta of views": (
        named("emp_contrastive", beta=1.0),
        named("emp_contrastive", beta=2.0),
        ["beta", "1.0", "2.0"],
    ),
    "c": (named("ucb", c=1.0), named("ucb", c=9.0), ["c is ", "1.0", "9.0"]),
    "epsilon": (named("epsilon_greedy", epsilon=0.1), named("epsilon_greedy", epsilon=0.2), ["epsilon", "0.1", "0.2"]),
    "every": (named("ucb", every=10), named("ucb", every=2), ["every", "10", "2"]),
    "smoothing": (named("ucb", smoothing=0.8), named("ucb", smoothing=0.5), ["smoothing", "0.8", "0.5"]),
    "probability": (
        named("infobatch", keep=None, prune_probability=0.5),
        named("infobatch", keep=None, prune_probability=0.4),
        ["prune_probability", "0.5", "0.4"],
    ),
    "balance": (named("loss", balance=LABELS), named("loss"), ["balance", "absent"]),
    "other classes": (named("loss", balance=LABELS), named("loss", balance=LABELS.flip(0)), ["balance"]),
    "keep": (named("emp", keep=0.3), named("emp", keep=0.4), ["keep", "0.3", "0.4"]),
    "warmup": (named("emp", warmup=1), named("emp", warmup=2), ["warmup", "1", "2"]),
    "anneal": (named("emp"), named("emp", anneal=0.5), ["anneal", "6", "3"]),
    "method": (named("emp"), named("memory"), ["criterion", "loss_plus_entropy", "entropy"]),
    "policy": (named("emp"), named("emp_reverse"), ["policy", "top_k", "bottom_k"]),
    "own criterion": (composed(times(1.0)), composed(times(3.0)), ["criterion gives"]),
    "own policy": (composed(policy=first(1.0)), composed(policy=first(-1.0)), ["policy gives"]),
    "own schedule": (composed(schedule=falling(0.5)), composed(schedule=falling(0.4)), ["counts", "30", "24"]),
    "coreset": (
        lambda: dataprune.methods.fixed(SIZE, selection=Selection.of(torch.arange(20)), epochs=EPOCHS),
        lambda: dataprune.methods.fixed(SIZE, selection=Selection.of(torch.arange(20) + 1), epochs=EPOCHS),
        ["selection"],
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_state_of_other_arguments_is_refused_and_they_are_named(name: str) -> None:
    original, altered, words = DIFFERENT[name]
    for saved, loading in ((original, altered), (altered, original)):
        with pytest.raises(CheckpointError) as raised:
            loading().load_state_dict(saved().state_dict())
        for word in words:
            assert word in str(raised.value)


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_state_of_the_same_arguments_is_loaded(name: str) -> None:
    for build in DIFFERENT[name][:2]:
        build().load_state_dict(build().state_dict())


def test_schedules_that_keep_the_same_are_the_same() -> None:
    state = composed(schedule=schedules.window(0.5, 1, EPOCHS))().state_dict()
    composed(schedule=falling(0.5))().load_state_dict(state)


def test_states_of_schema_1_are_refused_by_name() -> None:
    state = named("emp")().state_dict()
    with pytest.raises(CheckpointError, match="schema 1, this version reads schema 2"):
        named("emp")().load_state_dict(state | {"schema": 1})


def test_inspecting_a_custom_criterion_leaves_the_global_generator() -> None:
    def noisy(losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        return losses + torch.rand(len(losses))

    before = torch.get_rng_state()
    pruner = composed(noisy)()
    pruner.load_state_dict(pruner.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_criterion_that_reads_other_outputs_is_known_by_its_name() -> None:
    def boxes(losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        return losses + outputs["boxes"].sum(1)

    composed(boxes)().load_state_dict(composed(boxes)().state_dict())


def test_a_run_goes_on_for_more_epochs_but_not_for_fewer() -> None:
    for name, options in {
        "rs2": {},
        "emp": {"anneal": 0.25},
        "loss": {"keep": None, "budget": 0.6},
        "static_random": {},
    }.items():
        longer, shorter = named(name, epochs=8, **options), named(name, epochs=4, **options)
        longer().load_state_dict(shorter().state_dict())
        with pytest.raises(CheckpointError, match="epochs is 8 in the state and 4 here"):
            shorter().load_state_dict(longer().state_dict())
    with pytest.raises(CheckpointError, match=r"beta is 5\.0 in the state and 2\.0 here"):
        named("emp", epochs=8, beta=2.0)().load_state_dict(named("emp", epochs=4)().state_dict())
    selection = Selection.of(range(20))
    fixed = [dataprune.methods.fixed(SIZE, selection=selection, epochs=epochs) for epochs in (4, 6)]
    fixed[1].load_state_dict(fixed[0].state_dict())


# -- what a pruner is ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*the loop left the epoch early")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
def test_a_pickled_pruner_goes_on_as_the_first(row: Row) -> None:
    options = dict(row.options)
    if not {"keep", "prune_probability"} & set(options):
        options["keep"] = 0.3
    pruner = dataprune.METHODS[row.name](SIZE, epochs=EPOCHS, **options)
    copied = pickle.loads(pickle.dumps(pruner))
    assert repr(copied) == repr(pruner)
    copied.load_state_dict(pruner.state_dict())
    if not row.pair:
        begun = row.build(SIZE, epochs=EPOCHS)
        run(begun, stop=5)
        assert run(pickle.loads(pickle.dumps(begun))) == run(begun)


def test_the_repr_of_a_pruner_names_its_parts() -> None:
    text = repr(dataprune.emp(100, keep=0.3, epochs=10, beta=2.0))
    assert text == (
        "Pruner(100, loss_plus_entropy(beta=2.0, distribution=None), top_k(balance=None), "
        "window(keep=0.3, start=1, stop=10), epochs=10, smoothing=1.0, every=1, seed=0)"
    )
    assert "\n" not in repr(dataprune.loss(SIZE, keep=0.5, epochs=3, warmup=0, balance=LABELS))
    assert len(repr(dataprune.loss(SIZE, keep=0.5, epochs=3, warmup=0, balance=LABELS))) < 200


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
def test_methods_declare_what_they_read(row: Row) -> None:
    reads = row.build().reads if row.options else dataprune.methods.reads(row.name)
    if row.outputs:
        assert reads == ("features" if row.pair else "classes" if row.classes else "probabilities")
    else:  # a method that reads nothing keeps the same samples whatever the losses are
        pruners = [row.build(SIZE, epochs=10) for _ in range(2)]
        for number, pruner in enumerate(pruners):
            for epoch in range(8):
                for index in [pruner.select(epoch).index, *pruner.left_out(epoch, SIZE)]:
                    pruner.update(index, signals(epoch, index, seed=number)[0])
        same = torch.equal(pruners[0].select(8).index, pruners[1].select(8).index)
        assert reads == ("nothing" if same else "losses")


def test_an_unknown_method_reads_nothing_known() -> None:
    with pytest.raises(dataprune.UsageError, match="did you mean 'emp'"):
        dataprune.methods.reads("epm")


def test_help_documents_every_argument() -> None:
    import inspect

    for name, recipe in dataprune.METHODS.items():
        text = inspect.getdoc(recipe) or ""
        for argument in inspect.signature(recipe).parameters:
            assert f"    {argument}: " in text, (name, argument)


def test_a_weight_is_looked_up_for_a_batch() -> None:
    selection = Selection(torch.tensor([3, 7, 9]), torch.tensor([1.0, 2.0, 0.5]))
    pruner = dataprune.methods.fixed(10, selection=selection, epochs=2)
    pruner.select(0)
    assert pruner.weighted
    assert pruner.weight(torch.tensor([9, 3, 7])).tolist() == [0.5, 1.0, 2.0]
    assert pruner.weight(torch.tensor([7], dtype=torch.uint8)).tolist() == [2.0]
    plain = dataprune.rs2(10, keep=0.5, epochs=2)
    plain.select(0)
    assert not plain.weighted
    assert plain.weight(torch.tensor([4, 1])).tolist() == [1.0, 1.0]


# -- the key ---------------------------------------------------------------------------------------------------------


def test_a_key_hashes_a_position_alike_in_any_order_and_part() -> None:
    key = Key(seed=3, epoch=5)
    whole = key.hash(torch.arange(1000))
    assert torch.equal(key.hash(torch.tensor([999, 0, 17])), whole[[999, 0, 17]])
    assert len(set(whole.tolist())) == 1000
    for other in (Key(4, 5), Key(3, 6)):
        assert not (other.hash(torch.arange(1000)) == whole).any()
    assert not (key.hash(torch.arange(1000), draw=1) == whole).any()


@pytest.mark.parametrize("policy", [policies.uniform(), policies.least_drawn(), policies.top_k()])
def test_ties_go_to_the_highest_hashes(policy: policies.Policy) -> None:
    size, count, key = 5000, 1234, Key(seed=2, epoch=9)
    hashes = key.hash(torch.arange(size)).tolist()
    highest = sorted(range(size), key=lambda position: hashes[position] % (1 << 64), reverse=True)[:count]
    assert policy(ScoreBook(size), count, key).index.tolist() == sorted(highest)
