"""The planted faults of `mutate` can still be planted: `python tests/mutate.py` runs them against the laws."""

from __future__ import annotations

import pytest

from mutate import FAULTS, PACKAGE, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_has_one_place_and_a_file_of_laws(fault: Fault) -> None:
    text = (PACKAGE / fault.folder / f"{fault.file}.py").read_text(encoding="utf-8")
    assert text.count(fault.old) == 1
    assert (ROOT / "tests" / fault.folder / f"test_{fault.law}.py").is_file()
