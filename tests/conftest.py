"""What several test files share: one thread a process, and a small cohort with trained runs, made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: threads would fight over small networks


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people with FLAIR, T1w and a lesion; p4 is for the test. Not to be changed."""
    from small import brains

    return brains(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def run(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT2MRI run of 24 images. Not to be changed."""
    from small import done, scanbridge, training

    folder = tmp_path_factory.mktemp("runs") / "small"
    done(scanbridge(*training(cohort, folder)))
    return folder


@pytest.fixture(scope="session")
def regression(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regression run of 24 images. Not to be changed."""
    from small import done, scanbridge, training

    folder = tmp_path_factory.mktemp("runs") / "regression"
    done(scanbridge(*training(cohort, folder, config="regression-small.toml")))
    return folder
