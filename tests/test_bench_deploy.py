"""`sparsewright bench deploy`: processes of their own, what is read of them, and the page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsewright import disk_cache
from sparsewright.cli import main
from sparsewright.errors import ConfigError, StateError
from sparsewright.lab import bench_deploy, deploy_child
from sparsewright.lab.bench_page import page_text
from sparsewright.lab.child import ask
from sparsewright.lab.deploy_child import Asked, measure


def test_two_deploys_of_one_model_are_timed() -> None:
    asked = Asked("mlp", "unstructured", 0.9, 1, torch.get_num_threads(), 0)
    found = measure(asked)
    assert found.layers == 3
    assert min(found.deploy_s, found.again_s) > 0


def test_a_process_reads_what_an_earlier_one_kept(tmp_path: Path) -> None:
    asked = asdict(Asked("mlp", "unstructured", 0.9, 1, 1, 0.001))
    kept = []
    for _ in range(2):
        found = ask("deploy_child", asked, 1, "mlp", {"SPARSEWRIGHT_CACHE": str(tmp_path)})
        assert found["layers"] == 3
        assert found["cpu_s"] > 0
        kept.append({p.name: p.read_bytes() for p in (tmp_path / "plans").iterdir()})
    assert kept[0] == kept[1] != {}
    assert disk_cache.folder() != tmp_path / "plans"  # the environment is the child's alone


def test_a_process_that_fails_says_why() -> None:
    asked = asdict(Asked("nothing", "unstructured", 0.9, 1, 1, 0))
    with pytest.raises(StateError, match=r"deploying nothing: .*no model of the bench is called"):
        ask("deploy_child", asked, 1, "deploying nothing")


def child(tmp: list[dict[str, Any]], times: list[float]) -> Any:
    """A stand-in for `ask` that notes its tasks; the times that its deploys take, in turn."""

    def found(module: str, task: Any, threads: int, about: str, environment: Any) -> dict[str, Any]:
        assert module == deploy_child.__name__.rpartition(".")[2]
        tmp.append({**task, **environment})
        second = times.pop(0)
        return asdict(deploy_child.Found(second, 2 * second, 0.25, 54, 53))

    return found


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []
    times = [20.0, 3.0, 2.0, 2.5, 9.0, 0.75, 0.5, 1.0]
    monkeypatch.setattr(bench_deploy, "ask", child(asked, times))
    words = "bench deploy --model resnet50 mlp --threads 1 --rounds 3 --sparsity 0.95 --out"
    assert main([*words.split(), str(tmp_path)]) == 0
    assert [one["model"] for one in asked] == ["resnet50"] * 4 + ["mlp"] * 4
    assert {(one["sparsity"], one["batch"], one["seconds"]) for one in asked} == {(0.95, 1, 0.3)}
    caches = [one["SPARSEWRIGHT_CACHE"] for one in asked]
    assert len(set(caches[:4])) == 1  # one cache for all processes of a model, another for the next
    assert set(caches[:4]).isdisjoint(caches[4:])
    assert not any(Path(cache).exists() for cache in caches)
    printed = capsys.readouterr().out
    assert "target missed: resnet50, batch 1, 1 thread: the second deploy takes 2.50 s" in printed
    assert "target met: mlp, batch 1, 1 thread: the second deploy takes 0.75 s" in printed
    (written,) = tmp_path.glob("deploy-*.json")
    text = page_text([json.loads(written.read_text())], [])
    assert "## Deploying on " in text
    row = "| resnet50 | unstructured 95 % | 1 | 1 | 53 of 54 | 20.00 | 2.50 | 2.00 | 3.00 | 5.00 |"
    assert f"{row} 0.25 |" in text
    assert "- Target met: mlp" in text


def test_a_pattern_that_no_model_holds() -> None:
    settings = bench_deploy.Settings(threads=[1])
    with pytest.raises(ConfigError, match="no cell holds its pattern"):
        bench_deploy.run_deploy(["mlp"], ["block:1000x1000"], [0.9], [1], settings, None)
