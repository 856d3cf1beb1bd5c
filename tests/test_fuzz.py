"""The short form of the fuzz target: the same few hundred damaged and forged files every time."""

from __future__ import annotations

import collections
import logging
from pathlib import Path

import fuzz_artifact as fuzz
import pytest
from damage import FORGED, RAW, Choices, Damaged, Forgery, damaged

import sparsewright as sw
from sparsewright.errors import ArtifactError

FILES = 300

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")


def test_damaged_and_forged_files_are_refused_or_right(tmp_path: Path) -> None:
    outcomes: dict[str, set[str]] = collections.defaultdict(set)
    kinds = fuzz.layouts()
    for seed in range(FILES):
        layout = kinds[seed % len(kinds)]
        try:
            kind, outcome = fuzz.one(fuzz.decisions_of(seed), layout, tmp_path / "file")
        except Exception as error:
            error.add_note(f"layout {layout}, seed {seed}: {tmp_path / 'file'}")
            raise
        outcomes[kind].add(outcome)
    assert set(outcomes) == {*RAW, *FORGED}
    assert all("refused" in found for found in outcomes.values())
    assert sum("ran" in found for found in outcomes.values()) > len(FORGED) // 2


@pytest.mark.parametrize("layout", fuzz.layouts())
def test_without_damage_it_loads_and_equals_itself(layout: str, tmp_path: Path) -> None:
    """So that a refusal above is the damage's doing."""
    valid = fuzz.valid(layout)
    linear = [e for e in valid.document["layers"] if e["name"] != "body.0"]  # a convolution
    assert {entry["layout"] for entry in linear} == {layout.partition(" ")[0]}
    whole = Damaged("none", valid.data, honest=True)
    assert fuzz.check(whole, valid, tmp_path / "file") == "ran"


def test_another_model_under_right_digests_of_the_wrong_file_is_a_finding(tmp_path: Path) -> None:
    valid = fuzz.valid("csr")
    forgery = Forgery(valid)
    forgery.put("scale", bytes(len(forgery.tensors["scale"])))  # all zero
    with pytest.raises(AssertionError, match="another model"):
        fuzz.check(Damaged("none", forgery.file(), honest=True), valid, tmp_path / "file")


def test_the_same_decisions_give_the_same_file() -> None:
    valid = fuzz.valid("csr")
    for seed in range(40):
        data = fuzz.decisions_of(seed)
        assert damaged(valid, data) == damaged(valid, data)
    assert damaged(valid, b"").data == b""  # the first kind is a cut, at the first place


def test_choices_reach_every_number_and_end_in_the_first() -> None:
    choices = Choices(bytes(range(20)))
    assert [choices.below(256) for _ in range(12)] == [*range(0, 20, 2), 0, 0]
    assert max(Choices(b"\xff\xff").below(2**20) for _ in range(1)) > 2**19


# --- what the fuzz target found -------------------------------------------------------------


def refusal(forgery: Forgery, path: Path) -> str:
    path.write_bytes(forgery.file())
    with pytest.raises(ArtifactError) as caught:
        sw.load(path)
    return str(caught.value)


def test_more_rows_than_onednn_can_reorder_for(tmp_path: Path) -> None:
    """Its RuntimeError used to come through."""
    if "dense" not in fuzz.layouts() or fuzz.KERNELS["dense.onednn"].refuses():
        pytest.skip("no oneDNN")
    forgery = Forgery(fuzz.valid("dense"))
    linear = next(e for e in forgery.document["layers"] if "rows" in e["meta"])
    linear["meta"]["rows"] = 2**31 - 1
    assert "oneDNN cannot reorder it for the input named" in refusal(forgery, tmp_path / "file")


def test_a_wrong_graph_is_an_error_and_no_page_of_torch_s_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    forgery = Forgery(fuzz.valid("csr"))
    nodes = forgery.document["graph"]["nodes"]
    x = forgery.document["graph"]["inputs"][0]["name"]
    next(n for n in nodes if n["op"] == "aten.mul.Tensor")["args"][0] = {"node": x}
    assert "cannot run on its inputs" in refusal(forgery, tmp_path / "file")
    # pytest 9.2 hears what torch tells its own tracing logger too, at DEBUG, once a process
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_beyond_float64_is_none(number: str, tmp_path: Path) -> None:
    """It used to load as infinity, which then could not be saved."""
    forgery = Forgery(fuzz.valid("csr"))
    forgery.document["provenance"]["loss"] = 0.5
    forgery.text = lambda text: text.replace('"loss": 0.5', f'"loss": {number}')
    assert f"no number beyond float64: {number}" in refusal(forgery, tmp_path / "file")
