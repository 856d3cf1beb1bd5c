"""The demo with its short setting: trains, deploys, checks, measures, reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sparsewright as sw
from sparsewright.lab.demo import BATCHES, DEPLOYED, RUNS, demo, state_bytes
from sparsewright.lab.deploy_run import SPARSE, example
from sparsewright.lab.trained import read_trained

pytest.importorskip("sklearn", reason="the demo's data are inside scikit-learn")
pytest.importorskip("plotly", reason="the report needs plotly")


@pytest.mark.slow
def test_the_demo_from_training_to_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = demo(tmp_path / "demo", short=True)
    shown = capsys.readouterr().out

    assert [result.run.name for result in results] == list(RUNS)
    page = tmp_path / "demo" / "report.html"
    text = page.read_text(encoding="utf-8")
    assert all(config.name in text for config in RUNS.values())
    assert str(page) in shown.replace("\n", "")
    assert (results[1].summary["asked_sparsity"], results[3].summary["sparsity"]) == (0.9, 0.90625)
    assert "masked and packed training ended at" in shown
    _, masked, packed, _ = results
    assert packed.summary["packed"]
    assert packed.summary["rows"] == masked.summary["rows"]
    assert state_bytes(packed.cost) < state_bytes(masked.cost) / 2
    assert f"{state_bytes(packed.cost):,}" in shown

    assert [r.run.name for r in results if r.deployed] == list(DEPLOYED)
    for result in (masked, results[3]):
        deployed = json.loads((result.run / "deploy.json").read_text())
        assert deployed == result.deployed
        assert deployed["outputs_equal"]
        assert list(deployed["batches"]) == [str(batch) for batch in BATCHES]
        assert deployed["bytes"]["artifact"] == (result.run / "model.safetensors").stat().st_size
        for measured in deployed["batches"].values():
            times = {row["way"]: row.get("median_ms") for row in measured["model"]}
            best = measured["best_dense"]
            dense = [t for way, t in times.items() if way != SPARSE and t is not None]
            assert times[best] == min(dense)
            assert measured["speedup"] == pytest.approx(times[best] / times[SPARSE])
            assert f"{times[SPARSE]:.4f}" in shown

    # The artifact alone gives the outputs of the masked model that was trained.
    trained = read_trained(results[-1].run)
    x = example(trained, 7)
    with torch.inference_mode():
        got = sw.load(results[-1].run / "model.safetensors")(x)
        torch.testing.assert_close(got, trained.model(x), rtol=1e-4, atol=1e-4)

    # A second time replaces the first.
    assert len((results[0].run / "metrics.jsonl").read_text().splitlines()) == 2
