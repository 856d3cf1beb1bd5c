"""The fuzz target guided by coverage: libFuzzer (atheris) keeps what reaches new code.

Needs atheris, which is no dependency of the project: `python tests/fuzz_guided.py CORPUS_FOLDER`,
and libFuzzer's own options. Runs until it is stopped or something breaks the rule.
"""

from __future__ import annotations

import sys


def main() -> None:
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["sparsewright"]):
        import fuzz_artifact as fuzz
    kinds, path = fuzz.layouts(), fuzz.evidence()

    def target(data: bytes) -> None:
        """The first byte is the layout, the others decide on the damage."""
        fuzz.one(data[1:], kinds[(data or b"\0")[0] % len(kinds)], path)

    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
