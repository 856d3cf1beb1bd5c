"""The house is in order: the package that users get, its imports, its pins, its licence."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import sparsewright as sw

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "sparsewright"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of the licence's unmodified text."""

SPARSE_MODEL = """
import warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import sparsewright as sw
    from torch import nn
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    sw.prune(model, 0.9, allocate="erk")
    x = torch.randn(4, 64)
    fast = sw.deploy(model, x, seconds=0.02)
    again = sw.deploy(model, x, seconds=0.02)
    assert torch.allclose(fast(x), model(x), atol=1e-5)
    assert torch.allclose(again(x), model(x), atol=1e-5)
print(sw.__file__)
print(sum("compiled kernels" in str(w.message) for w in caught))
print(*(w.message for w in caught))
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def build_wheel(folder: Path, **environment: str) -> Path:
    """The wheel that `pip install .` would build, made outside of the clone's build/."""
    done = run(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
        *("-C", f"build-dir={folder / 'build'}", "-w", str(folder), "."),
        **environment,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed(wheel: Path) -> dict[str, str]:
    """Environment in which Python finds the unpacked wheel, and not the clone."""
    site = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return {"PYTHONPATH": f"{site}{os.pathsep}{sysconfig.get_path('purelib')}"}


def python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # -S: no .pth files, hence no editable installation of the clone.
    return run(sys.executable, "-S", "-W", "ignore::DeprecationWarning", "-c", code, **environment)


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_kernels(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"sparsewright/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert wanted - names == set()
    assert {"sparsewright/native.json", "sparsewright/py.typed"} <= names
    assert any(name.startswith("sparsewright/") and name.endswith(".so") for name in names)
    native = json.loads(zipfile.ZipFile(wheel).read("sparsewright/native.json"))
    assert native["native"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"SPARSEWRIGHT_NO_NATIVE": "1"}, "SPARSEWRIGHT_NO_NATIVE was set"),
        ({"CXX": "/nonexistent", "PATH": "/nonexistent"}, "no C++ compiler was found"),
    ],
    ids=["asked", "no-compiler"],
)
def test_package_works_without_compiled_kernels(
    environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    """It builds, runs a sparse model on the reference kernels, says so once, and knows why."""
    wheel = build_wheel(tmp_path, **environment)
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())
    place = installed(wheel)
    done = python(SPARSE_MODEL, place)
    assert done.returncode == 0, done.stderr
    file, times, _ = done.stdout.split("\n", 2)
    assert file.startswith(str(tmp_path))
    assert times == "1", done.stdout
    doctor = python("from sparsewright.cli import main; main(['doctor'])", place)
    assert reason in " ".join(doctor.stdout.split()), doctor.stdout + doctor.stderr


def test_import_is_light() -> None:
    """`import sparsewright` brings none of what only experiments and reports need."""
    code = "import sys, sparsewright; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(run(sys.executable, "-c", code).stdout.split())
    assert "sparsewright" in loaded
    heavy = {"sklearn", "plotly", "tensorboard", "onnx", "onnxruntime", "scipy", "jinja2"}
    assert loaded & heavy <= {"jinja2"}  # torch itself may load jinja2
    code = "import sys, sparsewright; print(*[m for m in sys.modules if 'sparsewright' in m])"
    ours = run(sys.executable, "-c", code).stdout.split()
    assert [m for m in ours if re.match(r"sparsewright\.(lab|report|cli)\b", m)] == []


FLOORS = {
    **dict.fromkeys(
        (
            "core",
            "registry",
            "errors",
            "library",
            "files",
            "topology",
            "weights",
            "sampling",
            "watch",
            "replicas",
            "facts",
            "arguments",
            "exchange",
            "freed",
            "switches",
            "kept",
            "keeping",
            "present",
        ),
        0,
    ),
    **dict.fromkeys(
        ("patterns", "scores", "calibration", "abilities", "allocate", "budget", "schedules"), 1
    ),
    **dict.fromkeys(("moments", "chains", "capture", "solvers", "norms"), 1),
    **dict.fromkeys(("layouts", "kernels", "initialise", "connectivity"), 1),
    "nn": 2,
    **dict.fromkeys(
        (
            "storage",
            "packed_storage",
            "moving",
            "ranking",
            "methods",
            "pack",
            "prune",
            "solving",
            "attach",
            "tickets",
            "masks",
            "sparsifier",
            "measure",
        ),
        3,
    ),
    **dict.fromkeys(
        (
            "exploration",
            "selection",
            "naming",
            "stages",
            "allocations",
            "summary",
            "optimizer_state",
            "sparse_state",
            "gradients",
            "steering",
        ),
        3,
    ),
    **dict.fromkeys(
        (
            "serve",
            "as_code",
            "fold",
            "fuse",
            "plan_cache",
            "plan_text",
            "calls",
            "held",
            "deploy",
            "deployed",
            "traced",
            "kept_trace",
            "fingerprint",
            "known_code",
            "disk_cache",
            "artifact",
            "plan",
            "graph",
            "operations",
            "rebuild",
            "signature",
            "declared",
            "program",
            "flat",
            "shared_calls",
            "pieces",
            "beside",
            "image_nodes",
            "image_units",
            "waves",
            "make",
            "samples",
            "swap",
            "pooling",
        ),
        4,
    ),
    "lab": 5,
    "report": 6,
    "lab.demo": 7,  # it ends in the report, as the command line does
    "cli": 7,
}
"""DESIGN's floors: a file imports from its own floor and those below."""


def floor(names: tuple[str, ...]) -> int:
    """Of a file or folder of the package: its own entry, or that of its top-level part."""
    own = ".".join(names[:2])
    assert own in FLOORS or names[0] in FLOORS, f"give {names[0]} a floor in this test"
    return FLOORS.get(own, FLOORS.get(names[0], 0))


def imported(path: Path) -> set[tuple[str, ...]]:
    """What a file imports of the package, as dotted names without the package's own."""
    parts = ("sparsewright", *path.relative_to(PACKAGE).with_suffix("").parts)
    out = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = parts[: -node.level] if node.level else ()
            module = (*base, *(node.module or "").split("."))
            names = [(*module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        clean = [tuple(p for p in name if p) for name in names]
        out |= {name[1:] for name in clean if len(name) > 1 and name[0] == "sparsewright"}
    return {name for name in out if any(PACKAGE.glob(f"{name[0]}*"))}


def test_files_import_only_from_floors_below() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).with_suffix("").parts
        if own[0] in ("__init__", "__main__"):
            continue
        wrong += [
            f"{'/'.join(own)}.py (floor {floor(own)}) imports {'.'.join(name)} ({floor(name)})"
            for name in sorted(imported(path))
            if floor(name) > floor(own)
        ]
    assert wrong == []


def test_every_import_is_declared() -> None:
    """What the package imports is the standard library, itself, or named in pyproject.toml."""
    project = PROJECT["project"]
    optional = [line for extra in ("lab", "bench") for line in extras()[extra]]
    declared = {canonical(Requirement(line).name) for line in [*project["dependencies"], *optional]}
    declared.add("markupsafe")  # a part of jinja2's interface
    owners = metadata.packages_distributions()
    unknown = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        for name in roots(path) - set(sys.stdlib_module_names) - {"sparsewright"}
        if not declared & {canonical(owner) for owner in owners.get(name, [])}
    }
    assert unknown == set()


def roots(path: Path) -> set[str]:
    """Names of the top-level packages that a file imports, its own aside."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    nodes = [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]
    out = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            out |= {alias.name.split(".")[0] for alias in node.names}
        elif node.level == 0 and node.module:
            out.add(node.module.split(".")[0])
    return out


def extras() -> dict[str, list[str]]:
    return PROJECT["project"]["optional-dependencies"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pairs}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = PROJECT["project"]
    lines = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    lines += [line for extra in extras().values() for line in extra]
    pinned = pins()
    for line in lines:
        wanted = Requirement(line)
        if canonical(wanted.name) == "sparsewright":
            continue
        version = pinned.get(canonical(wanted.name))
        assert version is not None, f"constraints.txt does not pin {wanted.name}"
        assert wanted.specifier.contains(version), f"{line} does not hold {version}"
    assert not any("+" in version for version in pinned.values())  # no build of one machine


def test_version_stands_in_the_changelog() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0] == sw.__version__


def test_licence_is_unmodified() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_readme_begins_with_what_and_how() -> None:
    first_screen = (ROOT / "README.md").read_text().split("\n")[:40]
    assert "make demo" in "\n".join(first_screen)
    assert "make test" in "\n".join(first_screen)


def test_make_lists_its_targets() -> None:
    done = run("make")
    assert done.returncode == 0
    assert {"demo", "test", "bench", "format", "clean"} <= set(done.stdout.split())


def test_ci_script_is_sound() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", str(script)).returncode == 0


def test_no_file_names_a_package_host() -> None:
    """Where packages come from is the user's own choice, made in pip's configuration."""
    hosts = re.compile("|".join(("py" + r"pi\.org", "python" + "hosted", "download." + "pytorch")))
    listed = run("git", "ls-files", "-z")
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    texts = {p: p.read_text(encoding="utf-8", errors="ignore") for p in paths if p.is_file()}
    assert [str(p) for p, text in texts.items() if hosts.search(text)] == []
