"""Tables of parts, and the texts of errors."""

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from sparsewright import errors
from sparsewright.errors import DataError, SparsewrightError, UnknownNameError
from sparsewright.registry import Table


def folder(tmp_path, monkeypatch, **files):
    """A package of these files on the import path; yields its name."""
    name = f"parts_{tmp_path.name}"
    package = tmp_path / name
    package.mkdir()
    head = "from sparsewright.registry import Table\nTABLE = Table('thing', __name__)\n"
    (package / "__init__.py").write_text(head)
    for file, text in files.items():
        (package / f"{file}.py").write_text("from . import TABLE\n" + text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def table_of(name):
    __import__(name)
    return sys.modules[name].TABLE


def test_a_file_in_the_folder_is_a_part(tmp_path, monkeypatch):
    name = folder(
        tmp_path, monkeypatch, b="TABLE.register('two')(2)\n", a="TABLE.register('one')(1)\n"
    )
    table = table_of(name)
    assert f"{name}.a" not in sys.modules  # nothing is imported before somebody asks
    assert table["two"] == 2
    assert list(table) == table.names() == ["one", "two"]
    assert table.items() == [("one", 1), ("two", 2)]
    assert "one" in table
    assert "three" not in table


def test_a_file_that_breaks_breaks_every_time(tmp_path, monkeypatch):
    table = table_of(folder(tmp_path, monkeypatch, broken="raise RuntimeError('inside')\n"))
    for _ in range(2):  # the second time must not show a table with a part missing
        with pytest.raises(RuntimeError, match="inside"):
            table.names()


def test_a_taken_name_is_refused():
    table = Table("thing")
    table.register("one")(1)
    with pytest.raises(ValueError, match="a thing called 'one' is registered already"):
        table.register("one")(2)
    assert table["one"] == 1


def test_an_unknown_name_lists_what_exists():
    table = Table("thing")
    table.register("magnitude")(1)
    table.register("random")(2)
    with pytest.raises(UnknownNameError) as caught:
        table["magnitud"]
    assert str(caught.value) == (
        "no thing is called 'magnitud'; did you mean 'magnitude'? There are: magnitude, random"
    )
    with pytest.raises(UnknownNameError) as caught:
        table["xyz"]
    assert str(caught.value) == "no thing is called 'xyz'. There are: magnitude, random"


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def test_every_error_is_ours_and_one_of_pythons():
    ours = [kind for kind in KINDS if issubclass(kind, Exception)]
    assert UnknownNameError in ours
    for kind in set(ours) - {SparsewrightError, errors.SparsityWarning}:
        assert issubclass(kind, SparsewrightError)
        assert issubclass(kind, (ValueError, KeyError, RuntimeError, FileNotFoundError))


def test_a_missing_data_set_reads_as_its_sentence():
    assert str(DataError("put the files into /data")) == "put the files into /data"


def test_threads_that_ask_at_once_see_the_whole_table(tmp_path, monkeypatch):
    folder = tmp_path / "slow_parts"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from sparsewright.registry import Table\nTABLE = Table('part', __name__)\n"
    )
    for name in ("a", "b", "c"):
        (folder / f"{name}.py").write_text(
            f"import time\nfrom . import TABLE\ntime.sleep(0.05)\nTABLE.register({name!r})(1)\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    table = importlib.import_module("slow_parts").TABLE
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: table.names(), range(4))) == [["a", "b", "c"]] * 4
