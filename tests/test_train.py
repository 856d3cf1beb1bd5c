"""The training loop: what a run folder holds, and that stopping and resuming changes nothing."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsewright.core import Layer
from sparsewright.errors import (
    BudgetError,
    ConfigError,
    SparsityWarning,
    StateError,
    UnknownNameError,
)
from sparsewright.lab import train as train_module
from sparsewright.lab.config import PruneConfig, TrainConfig, from_mapping, read_settings
from sparsewright.lab.cost import step_cost
from sparsewright.lab.mask_diary import inputs_used, overlap
from sparsewright.lab.prune_run import prune_run
from sparsewright.lab.recipe import decay_groups, learning_rate
from sparsewright.lab.run_folder import RunFolder
from sparsewright.lab.train import Interrupted, train
from sparsewright.lab.trained import read_trained
from sparsewright.pack import pack
from sparsewright.patterns import as_pattern
from sparsewright.storage import MaskedStorage


def small(**changes: Any) -> TrainConfig:
    """A run of a second: 48 steps of a small MLP on digits."""
    base = {
        "widths": "64-64-32-10",
        "epochs": 4,
        "batch": 128,
        "threads": 1,
        "tensorboard": False,
        "lr": 0.5,
    }
    return TrainConfig(**{**base, **changes})


def sparse(**changes: Any) -> TrainConfig:
    return small(**{"method": "rigl", "sparsity": 0.8, "every": 5, **changes})


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    """A .jsonl file without its times."""
    read = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read]


def ended(run: Path) -> dict[str, Any]:
    summary = json.loads((run / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k != "seconds"}


def assert_same(a: Any, b: Any, place: str = "") -> None:
    """Equal to the bit, through dicts and lists of tensors and plain values."""
    assert type(a) is type(b), place
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    elif isinstance(a, dict):
        assert list(a) == list(b), place
        for key in a:
            assert_same(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{place}[{i}]")
    elif place != ".seconds":
        assert a == b, place


def stop_after(epoch: int) -> Any:
    def stop(line: dict[str, Any]) -> None:
        if line["epoch"] == epoch:
            raise KeyboardInterrupt

    return stop


def stop_before_checkpoint(epoch: int) -> Any:
    """A save_checkpoint that is stopped when the epoch's lines are written already."""
    save = RunFolder.save_checkpoint

    def stop(folder: RunFolder, state: dict[str, Any]) -> None:
        if state["epoch"] == epoch:
            raise KeyboardInterrupt
        save(folder, state)

    return stop


# --- what a run leaves --------------------------------------------------------------------------


def test_a_sparse_run_leaves_a_whole_folder(tmp_path: Path) -> None:
    config = sparse(name="first")
    run = train(config, tmp_path / "runs" / "a")
    assert from_mapping(read_settings(run / "config.json"), "config") == config
    made = json.loads((run / "environment.json").read_text())
    assert made["threads"] == 1
    assert made["command"].startswith(
        "sparsewright train --name first --widths 64-64-32-10 --method"
    )
    assert made["started"].endswith("+00:00")

    metrics = lines(run, "metrics.jsonl")
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4]
    assert [line["step"] for line in metrics] == [12, 24, 36, 48]
    assert metrics[-1]["test_accuracy"] > 0.5
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    assert all(0 <= line["train_accuracy"] <= 1 for line in metrics)

    masks = lines(run, "masks.jsonl")
    assert [line["step"] for line in masks] == [12, 24, 36, 48]
    assert list(masks[0]["layers"]) == ["fc1", "fc2", "head"]
    assert len(masks[0]["input_counts"]) == 64
    assert sum(masks[0]["input_counts"]) == masks[0]["layers"]["fc1"]["present"]
    first, last = masks[0]["layers"]["fc1"], masks[-1]["layers"]["fc1"]
    assert first["dropped"] == first["grown"] > 0
    assert last["grown"] == 0  # the updates end after three quarters of the run
    assert last["ever"] >= first["ever"] > 1 - first["sparsity"]
    assert last["overlap_first"] < 1

    summary = ended(run)
    assert summary["asked_sparsity"] == 0.8
    assert summary["test_accuracy"] == metrics[-1]["test_accuracy"]
    trained = read_trained(run)
    assert trained.epoch == 4
    weights = dict(trained.model.named_parameters())
    for row in summary["rows"]:
        weight = weights[f"{row['name']}.weight"]
        assert int((weight != 0).sum()) <= row["present"] < weight.numel()
        assert tuple(row["shape"]) == tuple(weight.shape)
    total = sum(row["total"] for row in summary["rows"])
    assert sum(row["present"] for row in summary["rows"]) == total - int(0.8 * total)
    assert not list(run.glob("*.part"))


def test_a_dense_run_counts_all_weights_as_left_dense(tmp_path: Path) -> None:
    run = train(small(epochs=1), tmp_path / "a")
    summary = ended(run)
    assert summary["rows"] == []
    assert summary["sparsity"] == summary["sparsity_of_all"] == 0
    assert [weight["name"] for weight in summary["left_dense"]] == ["fc1", "fc2", "head"]
    assert not (run / "masks.jsonl").exists()


def test_trained_model_gives_the_accuracy_of_the_run(tmp_path: Path) -> None:
    run = train(CASES["cnn"], tmp_path / "a")
    trained = read_trained(run)
    images, labels = trained.data.test
    accuracy = (trained.model(images).argmax(dim=1) == labels).float().mean().item()
    assert accuracy == pytest.approx(ended(run)["test_accuracy"], abs=1e-6)


# --- storages -----------------------------------------------------------------------------------


def test_a_packed_run_is_the_masked_run(tmp_path: Path) -> None:
    config = sparse(lr=0.1, weight_decay=0.1)
    masked = train(config, tmp_path / "masked")
    packed = train(replace(config, storage="packed"), tmp_path / "packed")
    assert lines(masked, "masks.jsonl") == lines(packed, "masks.jsonl")
    both = zip(lines(masked, "metrics.jsonl"), lines(packed, "metrics.jsonl"), strict=True)
    for a, b in both:  # sums in another order differ by 1e-7 each, over 48 steps
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
    assert ended(packed)["packed"] == ["fc1", "fc2", "head"]
    assert ended(masked) == ended(packed) | {"packed": []}
    state = RunFolder(packed).load_checkpoint()
    present = {row["name"]: row["present"] for row in ended(packed)["rows"]}
    assert {name: len(state["model"][f"{name}.weight"]) for name in present} == present
    models = [read_trained(run).model for run in (masked, packed)]
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a == 0, b == 0)
        assert torch.allclose(a, b, atol=1e-4)
    run = prune_run(packed, tmp_path / "pruned", PruneConfig(sparsity=0.95))
    assert RunFolder(run).config().storage == "masked"


def test_what_stays_whole_or_is_skipped_is_not_packed(tmp_path: Path) -> None:
    config = sparse(allocate="uniform", skip=("head",), epochs=1, storage="packed")
    run = train(config, tmp_path / "a")
    assert ended(run)["packed"] == ["fc2"]  # uniform leaves the first layer dense
    state = RunFolder(run).load_checkpoint()["model"]
    assert [name for name in state if name.endswith(".starts")] == ["fc2.starts"]
    assert read_trained(run).model.fc2.weight.shape == (32, 64)
    by_erk = train(
        sparse(widths="64-256-10", sparsity=0.5, epochs=1, storage="packed"), run, force=True
    )
    whole = [row["name"] for row in ended(by_erk)["rows"] if row["present"] == row["total"]]
    assert (whole, ended(by_erk)["packed"]) == (["head"], ["fc1"])


@pytest.mark.parametrize("storage", ["dense", "masked", "packed"])
def test_cost_counts_the_bytes_of_a_step(tmp_path: Path, storage: str) -> None:
    asked = small(optimizer="adamw", lr=0.01, epochs=1)
    if storage != "dense":
        asked = sparse(optimizer="adamw", lr=0.01, epochs=1, storage=storage)
    run = train(asked, tmp_path / "a")
    cost = json.loads((run / "cost.json").read_text())
    present = {row["name"]: row["present"] for row in ended(run)["rows"]}
    shapes = {"fc1": (64, 64), "fc2": (32, 64), "head": (10, 32)}
    assert [layer["name"] for layer in cost["layers"]] == list(shapes)
    for layer in cost["layers"]:
        out, inputs = shapes[layer["name"]]
        held = out + (present[layer["name"]] if storage == "packed" else out * inputs)
        whole = out + out * inputs
        assert layer["storage"] == storage
        for sizes, count in ((layer["bytes"], held), (layer["dense"], whole)):
            # AdamW: two moments, and a float32 step count for the weight and for the bias
            assert (sizes["values"], sizes["gradients"]) == (4 * count, 4 * count)
            assert sizes["optimizer"] == 8 * count + 8
        assert layer["dense"]["places"] == 0
        if storage == "packed":  # 2 bytes a column, 8 a row, and what kernels derive from them
            assert layer["bytes"]["places"] >= 2 * (held - out) + 8 * (out + 1)
        else:
            assert layer["bytes"]["places"] == (2 * out * inputs if storage == "masked" else 0)
        assert layer["forward_ms"] > 0
        assert layer["backward_ms"] > 0
    assert cost["low_ms"] <= cost["step_ms"] <= cost["high_ms"]
    parts = cost["optimizer_ms"] + cost["other_ms"]
    parts += sum(layer["forward_ms"] + layer["backward_ms"] for layer in cost["layers"])
    assert parts > 0
    assert cost["batch"] == 128


def test_measuring_leaves_no_hook_and_no_trace_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(model: torch.nn.Module, *rest: Any) -> Any:
        out = step_cost(model, *rest)
        seen.append([m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks])
        return out

    monkeypatch.setattr(train_module, "step_cost", watched)
    run = train(sparse(epochs=1, storage="packed"), tmp_path / "a")
    monkeypatch.setattr(train_module, "step_cost", lambda *_: {})
    bare = train(sparse(epochs=1, storage="packed"), tmp_path / "b")
    assert seen == [[]]
    assert_same(RunFolder(run).load_checkpoint(), RunFolder(bare).load_checkpoint())


# --- same again, stopped and resumed ------------------------------------------------------------


def test_the_seed_decides(tmp_path: Path) -> None:
    states = [
        RunFolder(train(sparse(seed=seed, epochs=2), tmp_path / name)).load_checkpoint()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert_same(states[0], states[1])
    assert not torch.equal(states[0]["model"]["fc1.weight"], states[2]["model"]["fc1.weight"])


CASES = {
    "dense": small(),
    "rigl": sparse(),
    "rigl 4:16 adamw": sparse(pattern="4:16", sparsity=0.75, optimizer="adamw", lr=0.01),
    "set augmented": sparse(method="set", augment=True),
    "gradual": sparse(method="gradual"),
    "static model": sparse(method="static", every=None, init="model"),
    "cnn": sparse(model="cnn", widths="8-16", epochs=3),
    "packed": sparse(storage="packed"),
    "packed gradual": sparse(method="gradual", storage="packed"),
    "packed 4:16 adamw": sparse(
        pattern="4:16", sparsity=0.75, optimizer="adamw", lr=0.01, storage="packed"
    ),
    "packed cnn": sparse(model="cnn", widths="8-16", epochs=3, storage="packed"),
    "packed set uniform": sparse(method="set", allocate="uniform", storage="packed"),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_resumed_is_bit_identical(config: TrainConfig, tmp_path: Path) -> None:
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Interrupted, match=rf"epoch 2 of {config.epochs} is kept"):
        train(config, tmp_path / "cut", on_epoch=stop_after(2))
    cut = train(config, tmp_path / "cut", resume=True)
    assert_same(RunFolder(whole).load_checkpoint(), RunFolder(cut).load_checkpoint())
    assert lines(whole, "metrics.jsonl") == lines(cut, "metrics.jsonl")
    assert ended(whole) == ended(cut)
    if config.method != "dense":
        assert lines(whole, "masks.jsonl") == lines(cut, "masks.jsonl")


def test_stopped_inside_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(sparse(), tmp_path / "whole")

    def stop(loss: torch.Tensor, epoch: int, step: int, lr: float) -> None:
        if step == 26:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "check_finite", stop)
        with pytest.raises(Interrupted, match="epoch 2 of 4 is kept"):
            train(sparse(), tmp_path / "cut")
    cut = train(sparse(), tmp_path / "cut", resume=True)
    assert_same(RunFolder(whole).load_checkpoint(), RunFolder(cut).load_checkpoint())
    assert lines(whole, "masks.jsonl") == lines(cut, "masks.jsonl")


def test_stopped_before_a_checkpoint_leaves_no_line_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(sparse(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", stop_before_checkpoint(3))
        with pytest.raises(Interrupted, match="epoch 2 of 4 is kept"):
            train(sparse(), tmp_path / "cut")
    assert len(lines(tmp_path / "cut", "metrics.jsonl")) == 3
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "st')  # and one that a crash cut short
    cut = train(sparse(), tmp_path / "cut", resume=True)
    assert lines(whole, "metrics.jsonl") == lines(cut, "metrics.jsonl")
    assert lines(whole, "masks.jsonl") == lines(cut, "masks.jsonl")


def test_stopped_before_the_first_epoch_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "check_finite", stop)
    with pytest.raises(Interrupted, match="before the first epoch ended"):
        train(small(), tmp_path / "a")
    with pytest.raises(StateError, match="no epoch of this run has ended"):
        train(small(), tmp_path / "a", resume=True)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    run = train(sparse(epochs=2), tmp_path / "a")
    before = ended(run), lines(run, "metrics.jsonl")
    train(sparse(epochs=2), run, resume=True)
    assert before == (ended(run), lines(run, "metrics.jsonl"))


def test_resume_keeps_the_settings(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(small(), tmp_path / "a", on_epoch=stop_after(1))
    with pytest.raises(StateError, match=r"lr is 0\.5 there, got 0\.1"):
        train(small(lr=0.1), tmp_path / "a", resume=True)
    with pytest.raises(ConfigError, match=r"a run is a folder with config\.json in it"):
        train(small(), tmp_path / "nothing", resume=True)


def test_threads_are_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    train(small(epochs=1, threads=1), tmp_path / "a")
    assert torch.get_num_threads() == before
    assert json.loads((tmp_path / "a" / "environment.json").read_text())["threads"] == 1


# --- folders ------------------------------------------------------------------------------------


def test_a_run_is_replaced_only_by_force(tmp_path: Path) -> None:
    run = train(sparse(epochs=1), tmp_path / "a")
    with pytest.raises(StateError, match="--resume goes on with it, --force replaces it"):
        train(small(epochs=1), run)
    (run / "notes.txt").write_text("mine")
    train(small(epochs=1), run, force=True)
    assert not (run / "masks.jsonl").exists()
    assert (run / "notes.txt").read_text() == "mine"
    assert len(lines(run, "metrics.jsonl")) == 1


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StateError, match="needs a folder of its own"):
        train(small(), tmp_path, force=force)
    with pytest.raises(StateError, match="a run is a folder; this is a file"):
        train(small(), tmp_path / "thesis.tex", force=force)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (sparse(pattern="3:32", on_misfit="error"), BudgetError, "nearest"),
        (sparse(method="rigle"), UnknownNameError, "did you mean 'rigl'"),
        (sparse(method="static"), ConfigError, "'static' has no option 'every'; it has: initial"),
        (sparse(method_options={"evry": 3}), ConfigError, "has no option 'evry'; it has: every"),
        (small(optimizer="lion"), UnknownNameError, "There are: adamw, sgd"),
        (sparse(init="fan-in"), UnknownNameError, "did you mean 'fan_in'"),
        (small(model="mpl"), UnknownNameError, "did you mean 'mlp'"),
        (sparse(storage="pakced"), UnknownNameError, "did you mean 'packed'"),
    ],
)
def test_what_cannot_be_trained_leaves_no_folder(
    config: TrainConfig, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train(config, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"the loss became (nan|inf) in epoch 1"):
        train(small(lr=1e20), tmp_path / "a")


def test_dead_layers_are_warned_of_once(tmp_path: Path) -> None:
    with pytest.warns(SparsityWarning) as caught:
        train(sparse(sparsity=0.99, allocate="uniform_all", epochs=1), tmp_path / "a")
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(set(messages)) > 0


def test_checkpoint_is_never_unpickled(tmp_path: Path) -> None:
    run = train(small(epochs=1), tmp_path / "a")

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "hacked"),)

    (run / "checkpoint.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(StateError, match="cannot be read as a checkpoint"):
        train(small(epochs=1), run, resume=True)
    assert not (tmp_path / "hacked").exists()


def test_curves_go_to_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", stop_before_checkpoint(3))
        with pytest.raises(Interrupted, match="epoch 2 of 4"):
            train(sparse(tensorboard=True), tmp_path / "a")
    run = train(sparse(tensorboard=True), tmp_path / "a", resume=True)
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    points = events.Scalars("test/accuracy")
    assert [point.step for point in points] == [1, 2, 3, 4]
    expected = [line["test_accuracy"] for line in lines(run, "metrics.jsonl")]
    assert [point.value for point in points] == pytest.approx(expected)


# --- parts --------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 10), st.floats(0, 5))
def test_learning_rate_rises_then_falls_to_nearly_nothing(
    per_epoch: int, epochs: int, warmup: float
) -> None:
    config = TrainConfig(lr=2.0, warmup=warmup)
    steps = per_epoch * epochs
    rates = [learning_rate(config, step, per_epoch, steps) for step in range(steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_biases_and_norms_do_not_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    decayed, free = decay_groups(model, 0.1)
    assert [p.dim() for p in decayed["params"]] == [4]
    assert [p.dim() for p in free["params"]] == [1, 1, 1]
    packed = pack(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.LayerNorm(3)))
    groups = decay_groups(packed, 0.1)
    assert [[len(p) for p in group["params"]] for group in groups] == [[15], [3, 3, 3]]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_overlap_and_inputs_by_hand() -> None:
    a, b = torch.tensor([0, 1, 4, 7]), torch.tensor([0, 2, 4, 7])
    assert overlap(a, b) == 3 / 5
    assert overlap(a[:0], b[:0]) == 1.0
    assert inputs_used(_masked(a, (2, 4))) == [2, 1, 0, 1]
    convolution = torch.tensor([4, 5, 6, 7, 21])  # (0, 1) whole, and one weight of (1, 2)
    assert inputs_used(_masked(convolution, (2, 3, 2, 2))) == [0, 4, 1]


def _masked(places: torch.Tensor, shape: tuple[int, ...]) -> Layer:
    pattern, weight = as_pattern("unstructured"), torch.nn.Parameter(torch.ones(shape))
    layer = Layer("w", MaskedStorage(weight, pattern), pattern, len(places), torch.Generator())
    layer.set_table(places)
    return layer


# --- configs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 or more; got 0"),
        ({"batch": -1}, "batch must be 1 or more"),
        ({"lr": float("nan")}, "lr must be 0 or more; got nan"),
        ({"momentum": 1.5}, r"momentum must be in \[0, 1\]; got 1.5"),
        ({"sparsity": 0.5}, "sparsity has no meaning for a dense run"),
        ({"storage": "packed"}, "storage has no meaning for a dense run; got 'packed'"),
        ({"method_options": {"every": 3}}, "method_options has no meaning for a dense run"),
        ({"epochs": "ten"}, "x: epochs must be int; got 'ten'"),
        ({"epochs": True}, "x: epochs must be int; got True"),
        ({"epochs": 1.5}, "x: epochs must be int; got 1.5"),
        ({"augment": 1}, "x: augment must be bool; got 1"),
        ({"skip": "head"}, "x: skip must be tuple; got 'head'"),
        ({"sparsity": "0.9"}, "x: sparsity must be float or nothing; got '0.9'"),
        ({"epoch": 3}, "x: no setting is called 'epoch'; did you mean 'epochs'? There are: name"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        from_mapping(values, "x")


def test_settings_take_json_and_toml_types() -> None:
    config = from_mapping({"lr": 1, "method": "set", "skip": ["a", "b*"]}, "x")
    assert config.lr == 1.0
    assert isinstance(config.lr, float)
    assert config.skip == ("a", "b*")
    assert from_mapping(config.to_dict(), "x") == config
    assert from_mapping(json.loads(json.dumps(config.to_dict())), "x") == config


def test_files_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('method = "rigl"\n[method_options]\nexclude_dropped = true\n')
    assert read_settings(path)["method_options"] == {"exclude_dropped": True}
    path.write_text("method = rigl")
    with pytest.raises(ConfigError, match=r"a\.toml: not TOML"):
        read_settings(path)
    with pytest.raises(ConfigError, match=r"b\.toml: cannot be read"):
        read_settings(tmp_path / "b.toml")
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(ConfigError, match="an object of settings; got list"):
        read_settings(tmp_path / "c.json")


# --- one shot -----------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["magnitude", "weight_gradient"])
def test_pruned_run_is_a_run(tmp_path: Path, score: str) -> None:
    dense = train(small(), tmp_path / "dense")
    asked = PruneConfig(pattern="2:4", score=score)
    run = prune_run(dense, tmp_path / "pruned", asked)
    config = json.loads((run / "config.json").read_text())
    assert (config["method"], config["score"], config["pattern"]) == ("one-shot", score, "2:4")
    assert config["pruned_from"] == str(dense)
    (line,) = lines(run, "metrics.jsonl")
    assert line["sparsity"] == 0.5
    assert ended(run)["test_accuracy"] == line["test_accuracy"]
    weights = dict(read_trained(run).model.named_parameters())
    groups = weights["fc2.weight"].reshape(-1, 4)
    assert ((groups != 0).sum(dim=1) == 2).all()
    assert (weights["fc1.weight"] != 0).all()  # uniform leaves the first layer dense
    before = dict(read_trained(dense).model.named_parameters())
    assert (before["fc2.weight"] != 0).all()
    with pytest.raises(StateError, match="--force replaces it"):
        prune_run(dense, run, asked)
    prune_run(dense, run, PruneConfig(sparsity=0.5), force=True)


def test_pruning_worse_weights_hurts_less(tmp_path: Path) -> None:
    dense = train(small(epochs=8), tmp_path / "dense")
    accuracy = {
        score: ended(prune_run(dense, tmp_path / score, PruneConfig(sparsity=0.6, score=score)))[
            "test_accuracy"
        ]
        for score in ("magnitude", "random")
    }
    assert accuracy["magnitude"] > accuracy["random"]
