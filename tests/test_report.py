"""The report without a browser: figures come from the files, names are text, faults are named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from report_runs import edit, make_run

from sparsewright.errors import ConfigError
from sparsewright.report import write_report
from sparsewright.report.charts import heat_maps, latency
from sparsewright.report.load import load_run
from sparsewright.report.page import TEMPLATES
from sparsewright.report.run import Timed
from sparsewright.report.words import NOTHING, THIN, TIMES, verdict


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A dense run and a sparse one; not to be changed (copy by `runs`)."""
    folder = tmp_path_factory.mktemp("made")
    make_run(folder / "dense", sparsity=None)
    make_run(folder / "set-90")
    return folder


@pytest.fixture
def runs(made, tmp_path) -> Path:
    """Both runs, to be changed at will."""
    for run in ("dense", "set-90"):
        (tmp_path / run).mkdir()
        for file in (made / run).iterdir():
            (tmp_path / run / file.name).write_bytes(file.read_bytes())
    return tmp_path


def words_of(page: Path) -> str:
    """The page's text, without its scripts, style and tags."""
    text = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", page.read_text())
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", text))).replace(THIN, " ")


def figures_of(page: Path) -> list[dict]:
    found = re.search(
        r'(?s)<script type="application/json" id="figures">(.*?)</script>', page.read_text()
    )
    return json.loads(found[1])


# -- what it says ----------------------------------------------------------------------------------


def test_verdict_is_computed_from_the_files(runs):
    edit(runs / "dense/summary.json", test_accuracy=0.975)
    rows = [
        {
            "name": "0",
            "shape": [10, 10],
            "pattern": "2:4",
            "total": 100,
            "present": 5,
            "dead_outputs": 0,
        }
    ]
    left = [{"name": "4", "total": 25, "reason": "skipped"}]
    edit(runs / "set-90/summary.json", rows=rows, left_dense=left, test_accuracy=0.972)
    deploy = json.loads((runs / "set-90/deploy.json").read_text())
    deploy["batches"]["1"]["speedup"] = 4.123
    deploy["batches"]["64"]["speedup"] = 0.9
    deploy["bytes"] = {"dense_fp32": 890, "artifact": 100, "checkpoint": 2000}
    edit(runs / "set-90/deploy.json", **deploy)
    page = write_report([runs / "dense", runs / "set-90"], runs / "report.html")
    # 95 of 125 weights are absent: 76 %
    assert (
        "76 % of the weights are gone; accuracy 97.2 % against 97.5 % dense; "
        "4.12x the speed of the best dense way at batch 1 and 0.90x (slower) at batch 64; "
        "8.90x smaller on disk."
    ) in words_of(page).replace(TIMES, "x")


def test_verdict_leaves_out_what_was_not_measured(runs):
    (runs / "set-90/deploy.json").unlink()
    run = load_run(runs / "set-90")
    said = verdict(run, [run]).replace(THIN, " ")
    assert re.fullmatch(r"[\d.]+ % of the weights are gone; accuracy [\d.]+ %\.", said)


def test_verdict_names_a_dense_run_of_another_length_and_no_other_task(runs):
    edit(runs / "set-90/config.json", epochs=2)
    lines = (runs / "set-90/metrics.jsonl").read_text().splitlines(keepends=True)
    (runs / "set-90/metrics.jsonl").write_text("".join(lines[:2]))
    sparse, dense = load_run(runs / "set-90"), load_run(runs / "dense")
    assert "dense (trained for 3 epochs, not 2)" in verdict(sparse, [dense, sparse])
    also = replace(dense, name="as long", epochs=dense.epochs[:2])
    also = replace(also, ended=replace(dense.ended, test_accuracy=0.125))
    assert "against 12.5 % dense" in verdict(sparse, [dense, sparse, also]).replace(THIN, " ")
    edit(runs / "dense/config.json", data="mnist")
    assert "against" not in verdict(sparse, [load_run(runs / "dense"), sparse])


def test_unequal_outputs_are_shouted(runs):
    edit(runs / "set-90/deploy.json", outputs_equal=False)
    page = words_of(write_report([runs / "set-90"], runs / "report.html"))
    assert "deployed outputs are NOT equal" in page
    assert "Outputs do NOT equal" in page


def test_every_dense_way_kernel_and_refusal_is_told(made, tmp_path):
    page = words_of(write_report([made / "set-90"], tmp_path / "report.html"))
    batch = load_run(made / "set-90").deployment.batches[0]
    for way in batch.ways:
        assert way.name in page
        assert (way.refused or "") in page
    for layer in batch.layers:
        for candidate in layer.candidates:
            assert f"{candidate.name} refused: {candidate.refused}" in page or not candidate.refused
    assert page.count("best dense") >= len(batch.ways) - 2
    (left,) = load_run(made / "set-90").ended.left_dense
    assert f"{left.name} ({left.total} weights): {left.reason}" in page
    environment = json.loads((made / "set-90/environment.json").read_text())
    for said in ("command", "commit", "cpu", "torch", "threads"):
        assert str(environment[said] or "") in page


def test_charts_hold_the_numbers_of_the_run(made, tmp_path):
    page = write_report([made / "set-90"], tmp_path / "report.html")
    run = load_run(made / "set-90")
    accuracy, _, layers, moves, overlap, ever, heat, *_ = figures_of(page)
    assert accuracy["data"][1]["y"] == [100 * e.test_accuracy for e in run.epochs]
    assert layers["data"][0]["x"] == [*(100 * r.sparsity for r in run.ended.rows), 0]
    grown, dropped = moves["data"]
    total = run.masks[-1].total
    assert grown["y"][1] == pytest.approx(100 * run.masks[1].count("grown") / total)
    assert dropped["y"] == [-y for y in grown["y"]]
    assert overlap["data"][0]["y"] == [100 * e.mean("overlap_first") for e in run.masks]
    assert ever["data"][0]["y"] == sorted(ever["data"][0]["y"])
    assert sum(map(sum, heat["data"][1]["z"])) == run.masks[-1].layers["fc1"].present


@pytest.mark.parametrize(("slowest", "axis"), [(1.95, None), (2.1, "log")])
def test_times_far_apart_stand_on_a_log_axis(made, slowest, axis):
    ways = (Timed("sparsewright", 0.1, 0.1, 0.1), Timed("eager", slowest, 1.0, 3.0))
    run = load_run(made / "set-90")
    batch = replace(run.deployment.batches[0], ways=ways)
    figure = latency(run, 0, batch).figure
    assert figure.layout.xaxis.type == axis
    assert ("log" in figure.layout.xaxis.title.text) == (axis == "log")
    assert figure.data[0].error_x.array[0] == pytest.approx(3.0 - slowest)


@pytest.mark.parametrize(
    ("inputs", "side"), [(64, 8), (784, 28), (3 * 32 * 32, 32), (65, None), (3, None)]
)
def test_heat_map_where_inputs_are_a_square_image(runs, inputs, side):
    count_inputs(runs, [1] * (inputs - 1) + [0])
    chart = heat_maps(load_run(runs / "set-90"))
    found = len(chart.figure.data[0].z) if chart else None
    assert found == side
    if side and inputs == 3 * side * side:
        assert chart.figure.data[0].z[0][0] == 3  # summed over the colour channels


def test_no_heat_map_of_a_layer_that_misses_nothing(runs):
    count_inputs(runs, [5] * 64)
    assert heat_maps(load_run(runs / "set-90")) is None


def count_inputs(runs, counts):
    path = runs / "set-90/masks.jsonl"
    lines = [json.loads(line) | {"input_counts": counts} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_cost_of_a_step_is_drawn_and_told(runs):
    part = {"values": 4000, "gradients": 4000, "optimizer": 8000, "places": 0}
    packed = {"values": 400_000, "gradients": 400_000, "optimizer": 800_000, "places": 200_000}
    dense = {"values": 4_000_000, "gradients": 4_000_000, "optimizer": 8_000_000, "places": 0}
    times = {"forward_ms": 1.0, "backward_ms": 2.0}
    small = [
        {"name": f"n{i}", "kind": "B", "storage": "dense", "bytes": part, "dense": part, **times}
        for i in range(13)
    ]
    big = {"name": "fc", "kind": "P", "storage": "packed", "bytes": packed, "dense": dense}
    layers = [*small, big | {"forward_ms": 30.0, "backward_ms": 50.0}]
    whole = {"batch": 128, "threads": 2, "step_ms": 130.0, "low_ms": 125.0, "high_ms": 140.0}
    cost = whole | {"optimizer_ms": 7.0, "other_ms": 5.0, "layers": layers}
    (runs / "set-90/cost.json").write_text(json.dumps(cost))
    (runs / "dense/cost.json").unlink()
    page = write_report([runs / "dense", runs / "set-90"], runs / "report.html")
    text = words_of(page).replace(NOTHING, "-").replace(TIMES, "x")
    # 13 x 16 kB + 1.8 MB held; 13 x 16 kB + 16 MB if dense
    for said in ("training state - 2.01 MB", "training state if dense - 16.2 MB", "8.07x"):
        assert said in text
    for said in ("a step - 130 ms", "range - 125-140 ms", "forward - 43.0 ms", "backward - 76.0"):
        assert said in text
    sizes, spent = (
        next(f for f in figures_of(page) if f["layout"]["xaxis"]["title"]["text"].startswith(unit))
        for unit in ("bytes of training", "time in a step")
    )
    assert [bar["name"] for bar in sizes["data"][:4]] == list(part)
    values = sizes["data"][0]
    assert values["y"] == [*(f"n{i}" for i in range(11)), "fc", "(2 smaller)"]
    assert values["x"] == pytest.approx([*([0.004] * 11), 0.4, 0.008])
    assert sizes["data"][4]["x"] == pytest.approx([*([0.016] * 11), 16.0, 0.032])
    assert spent["data"][1]["x"] == pytest.approx([*([2.0] * 11), 50.0, 4.0, 0, 0])
    assert spent["data"][2]["x"][-2:] == [7.0, 5.0]
    ends = [figure["layout"]["xaxis"]["range"][1] for figure in (sizes, spent)]
    assert ends == pytest.approx([1.04 * 16.0, 1.04 * 80.0])


def test_accuracy_stands_against_seconds_where_runs_are_compared(runs):
    for run, took in (("dense", 2.0), ("set-90", 0.5)):
        path = runs / run / "metrics.jsonl"
        lines = [json.loads(line) | {"seconds": took} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report([runs / "dense", runs / "set-90"], runs / "report.html")
    (chart,) = (f for f in figures_of(page) if "seconds" in f["layout"]["xaxis"]["title"]["text"])
    assert [line["x"] for line in chart["data"]] == [[2.0, 4.0, 6.0], [0.5, 1.0, 1.5]]
    accuracy = [epoch.test_accuracy for epoch in load_run(runs / "dense").epochs]
    assert chart["data"][0]["y"] == [100 * a for a in accuracy]
    alone = write_report([runs / "dense"], runs / "report.html")
    assert "Accuracy for time" not in words_of(alone)


# -- parts that are missing ------------------------------------------------------------------------


def test_a_dense_run_alone_says_how_to_get_masks(made, tmp_path):
    page = words_of(write_report([made / "dense"], tmp_path / "report.html"))
    assert "All weights are present (dense)" in page
    assert "No masks were recorded" in page
    assert "No layer was made sparse" in page


def test_a_run_that_has_only_begun_still_gives_a_page(runs):
    names = ("metrics", "masks"), ("summary", "cost", "deploy", "environment")
    for name in (*(f"{n}.jsonl" for n in names[0]), *(f"{n}.json" for n in names[1])):
        (runs / "set-90" / name).unlink()
    page = words_of(write_report([runs / "set-90"], runs / "report.html"))
    assert "no epoch has ended" in page
    assert "Nothing to tell yet" in page
    assert "All weights are present" not in page
    assert "Not deployed yet" in page
    assert "No cost was measured" in page
    assert "sparsewright deploy" in page
    assert "--resume" in page


def test_a_last_line_cut_off_is_left_out_and_noted(runs):
    path = runs / "set-90/metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    run = load_run(runs / "set-90")
    assert len(run.epochs) == 2
    assert run.notes == ("metrics.jsonl, line 3 is cut off (the run stopped): left out",)
    assert "line 3 is cut off" in words_of(write_report([runs / "set-90"], runs / "report.html"))


def test_a_diverged_run_still_draws(runs):
    path = runs / "set-90/metrics.jsonl"
    lines = [
        json.loads(line) | {"test_loss": float("nan")} for line in path.read_text().splitlines()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report([runs / "set-90"], runs / "report.html")
    assert figures_of(page)[1]["data"][1]["y"] == [None] * 3


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", None, r"config\.json: a run needs this file; the folder has: checkpoint"),
        ("config.json", '{"name":\n 1,,}', r"config\.json, line 2: not JSON"),
        ("config.json", "[1]", r"config\.json: needs an object"),
        ("metrics.jsonl", '{"epoch": 1}\n', r"metrics\.jsonl, line 1: needs 'step'; it has: epoch"),
        ("metrics.jsonl", '{}}\n{"epoch": 1}\n', r"metrics\.jsonl, line 1: not JSON"),
        ("masks.jsonl", "7\n", r"masks\.jsonl, line 1: needs 'layers'; it has: 7"),
        ("masks.jsonl", '{"layers": {"fc": {}}}\n', r"line 1, layer 'fc': needs 'present'"),
        ("summary.json", '{"rows": [{}]}', r"summary\.json, row 0: needs 'name'"),
        ("summary.json", '{"rows": 3}', r"summary\.json: 'rows' must be list; got 3"),
        ("cost.json", '{"layers": [{}]}', r"cost\.json, layer None: needs 'bytes'"),
        ("cost.json", '{"layers": []}', r"cost\.json: needs 'batch'; it has: layers"),
        (
            "cost.json",
            '{"layers": [{"name": "a", "bytes": {"values": "x"}}]}',
            r"layer 'a', bytes: 'values' has the wrong type",
        ),
        ("deploy.json", '{"threads": "two"}', r"deploy\.json: needs 'batches'"),
        (
            "deploy.json",
            '{"batches": {}, "threads": "two"}',
            r"'threads' must be a number; got 'two'",
        ),
        (
            "deploy.json",
            '{"batches": {"x": {}}, "threads": 2}',
            r"batch x: a batch size must be a whole",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_line(runs, file, text, message):
    path = runs / "set-90" / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        write_report([runs / "set-90"], runs / "report.html")
    assert not (runs / "report.html").exists()


def test_no_run_and_no_folder_and_no_file_to_write_are_errors(runs):
    with pytest.raises(ConfigError, match="needs one run folder or more; got none"):
        write_report([], runs / "report.html")
    with pytest.raises(ConfigError, match=r"nowhere: a run is a folder"):
        write_report([runs / "nowhere"], runs / "report.html")
    with pytest.raises(
        ConfigError, match=r"a report is one file, e\.g\. .*report\.html; got a folder"
    ):
        write_report([runs / "dense"], runs)


# -- the page --------------------------------------------------------------------------------------


EVIL = "</script><script>alert(1)</script>\"'>&{{ 1 }}"


def spoil(value):
    """Every string of a JSON value with markup at its end."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, list):
        return [spoil(item) for item in value]
    if isinstance(value, dict):
        return {key: spoil(item) for key, item in value.items()}
    return value


def test_text_from_files_is_escaped_everywhere(runs):
    for name in ("config", "environment", "deploy", "summary", "cost"):
        name += ".json"
        path = runs / "set-90" / name
        path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    out = write_report([runs / "set-90"], runs / "report.html")
    page = out.read_text()
    assert "<script>alert" not in page
    assert "<script>alert" not in json.dumps(figures_of(out))  # plotly reads tags in its labels
    assert page.count("<script") == page.count("</script>") == 3
    assert page.count("&lt;script&gt;alert(1)") > 50


def test_page_is_self_contained_and_written_whole(made, tmp_path):
    out = write_report([made / "dense", made / "set-90"], tmp_path / "new" / "report.html")
    page = re.sub(r"(?s)<script>.*?</script>", "", out.read_text())
    assert not re.search(r"""(?:src|href)=["'](?!#|data:,)""", page)
    assert "@import" not in page
    assert "url(" not in page
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    assert len(re.findall(r"<h1", page)) == 1
    labels = re.findall(r'role="img" aria-label="([^"]*)"', page)
    assert len(labels) == len(figures_of(out))
    assert all(len(label) > 20 for label in labels)
    for figure in figures_of(out):
        axes = [v for k, v in figure["layout"].items() if re.match(r"[xy]axis", k)]
        assert any(axis.get("title", {}).get("text") for axis in axes)


COLOURS = re.compile(r"--([\w-]+): (#[0-9a-f]{6})")


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme):
    style = (TEMPLATES / "page.css").read_text()
    colours = dict(COLOURS.findall(re.findall(r":root \{(.*?)\n *\}", style, re.DOTALL)[scheme]))
    for text in ("text", "muted", "link"):
        for ground in ("ground", "card"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for ground in ("note", "ours"):
        assert contrast(colours["text"], colours[ground]) >= 4.5, ground
    marks = *(f"run-{run}" for run in range(6)), *(f"part-{part}" for part in range(4)), "dense"
    for mark in marks:
        assert contrast(colours[mark], colours["card"]) >= 3.0, mark


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two #rrggbb colours, 1 to 21."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
