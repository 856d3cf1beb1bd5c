"""Times are taken in turn and summed up by order statistics; every dense way equals eager."""

import builtins
import itertools
import subprocess
import time

import pytest
import torch
from torch import nn

from sparsewright.errors import KernelError
from sparsewright.measure import dense, environment, timing
from sparsewright.measure.chain import chain
from sparsewright.measure.roofline import _rate


def test_percentiles_by_hand():
    # Ten places between eleven samples: the 10th percentile is the second, the 90th the tenth.
    assert timing.summarise([float(i) for i in range(10, -1, -1)]) == timing.Timing(
        5.0, 1.0, 9.0, 11
    )
    assert timing.summarise([2.0]) == timing.Timing(2.0, 2.0, 2.0, 1)
    # A single interruption moves no figure but the upper end.
    assert timing.summarise([1.0] * 10 + [1e9]).median == 1.0


def test_every_round_runs_every_candidate_and_starts_with_another(monkeypatch):
    order = []
    monkeypatch.setattr(timing, "_repeats", lambda call: 1)
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = timing.interleave(calls, seconds=0, min_rounds=3)
    assert "".join(k for k, _ in itertools.groupby(order)) == "abcbcacab"
    assert len(order) == 3 * 3 * 2  # one untimed call before each timed one
    assert {t.rounds for t in times.values()} == {3}


def test_repeats_make_a_sample_longer_than_the_clock_needs(monkeypatch):
    ticks = itertools.count(step=1e-6)  # every look at the clock, and so every run, takes 1 us
    now = 0.0

    def call():
        nonlocal now
        now += 1e-6

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now + 0 * next(ticks))
    assert timing._repeats(call) * 1e-6 >= timing.SAMPLE


def test_a_call_with_its_own_clock_is_timed_by_it(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE", 0)

    class Elsewhere:
        asked = 0

        def __call__(self):
            pass

        def seconds(self, repeats):
            self.asked += repeats
            return 0.25 * repeats

    elsewhere = Elsewhere()
    times = timing.interleave({"there": elsewhere}, seconds=0, min_rounds=2)
    assert times["there"] == timing.Timing(0.25, 0.25, 0.25, 2)
    assert elsewhere.asked == 5  # once to find the repeats, then a warm and a timed call per round


def test_hopeless_candidates_are_timed_for_some_rounds_only(monkeypatch):
    monkeypatch.setattr(timing, "_repeats", lambda call: 1)
    monkeypatch.setattr(timing, "_sample", lambda call, repeats: call())
    calls = {"fast": lambda: 1.0, "near": lambda: 4.0, "far": lambda: 4.1}
    times = timing.interleave(calls, seconds=0, min_rounds=6, hopeless=4.0)
    assert {name: t.rounds for name, t in times.items()} == {"fast": 6, "near": 6, "far": 3}
    times = timing.interleave(calls, seconds=0, min_rounds=6)
    assert {t.rounds for t in times.values()} == {6}


def test_no_candidates_and_wrong_settings():
    assert timing.interleave({}, seconds=0) == {}
    with pytest.raises(ValueError, match="min_rounds >= 1; got 1 and 0"):
        timing.interleave({}, seconds=1, min_rounds=0)


def test_environment_names_the_machine(tmp_path):
    here = environment.environment()
    assert here["torch"] == torch.__version__
    assert here["threads"] == torch.get_num_threads()
    assert here["cores"] >= 1
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n")
    assert environment.cpu_name(info) == "Some CPU @ 3 GHz"


def test_commit_of_a_checkout_and_of_none(tmp_path):
    assert environment.commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    clean = environment.commit(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert environment.commit(tmp_path) == clean + "+"


@pytest.fixture(scope="module")
def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10, bias=False)
    ).eval()


@pytest.fixture(scope="module")
def ways(mlp):
    return dense.dense_ways(mlp, torch.randn(3, 1, 8, 8))


def test_every_dense_way_serves_a_plain_mlp_or_says_why(ways):
    assert set(ways) == set(dense.WAYS.names())
    refused = {name: run for name, run in ways.items() if isinstance(run, str)}
    runs = {name: run for name, run in ways.items() if not isinstance(run, str)}
    assert set(refused) >= {"torch.compile"}
    assert {"eager", "onednn prepacked"} <= set(runs)
    for run in runs.values():
        assert tuple(run().shape) == (3, 10)
    for name, reason in refused.items():
        assert name == "torch.compile" or "not installed" in reason or "OpenBLAS" in reason


def test_numpy_refuses_what_is_not_a_chain(mlp):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return x + self.fc(x)

    x = torch.randn(2, 8)
    assert "not that of the last module" in chain(Residual(), x)
    hidden = nn.Sequential(Residual(), nn.Linear(8, 2))
    assert "does not follow" in chain(hidden, x)
    assert "is a Conv2d" in chain(nn.Sequential(nn.Conv2d(1, 1, 1)), torch.ones(1, 1, 2, 2))
    assert len(chain(mlp, torch.randn(2, 1, 8, 8))) == 3


def test_a_way_that_disagrees_with_eager_raises(mlp, monkeypatch):
    monkeypatch.setitem(dense.WAYS._parts, "eager twice", lambda model, x: lambda: 2 * model(x))
    with pytest.raises(KernelError, match="'eager twice' must equal eager"):
        dense.dense_ways(mlp, torch.randn(3, 1, 8, 8))


def test_missing_packages_are_refusals_with_their_names(mlp, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] in ("onnxruntime", "onnx", "threadpoolctl"):
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    x = torch.randn(3, 1, 8, 8)
    assert "onnx is not installed" in dense._onnxruntime(mlp, x)
    assert "threadpoolctl is not installed" in dense._openblas(mlp, x)


def test_the_model_is_not_changed():
    model = nn.Sequential(nn.Linear(4, 4)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    dense.dense_ways(model, torch.ones(1, 4))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_exports_make_no_noise(mlp, capfd):
    pytest.importorskip("onnxscript", reason="the ONNX way needs it")
    dense.export_onnx(mlp, torch.randn(3, 1, 8, 8))
    out, err = capfd.readouterr()
    assert out + err == ""


def test_a_rate_is_not_that_of_threads_that_start():
    stalls = iter([0.005] * 10)

    def work(rounds):
        time.sleep(next(stalls, 0.0) + rounds * 1e-5)
        return rounds

    assert _rate(work, seconds=0.0) > 5000  # a stalled call does 1 in 5 ms: 200


def test_a_rate_is_not_that_of_stalls_that_happen_to_grow():
    stalls = iter([0.004] * 3 + [0.008] * 3 + [0.004] * 20)

    def work(rounds):
        time.sleep(next(stalls, 0.0) + rounds * 1e-5)
        return rounds

    assert _rate(work, seconds=0.0) > 5000


@pytest.mark.parametrize(
    ("named", "count"),
    [("1", 1), (" 3,2", 3), ("", None), ("0", None), ("all", None), ("-2", None)],
)
def test_the_environment_names_the_threads(monkeypatch, named, count) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    with environment.threads(0):
        assert torch.get_num_threads() == (count or environment.cores())
    with environment.threads(2):
        assert torch.get_num_threads() == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    with environment.threads(0):
        assert torch.get_num_threads() == environment.cores()
