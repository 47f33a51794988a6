"""Who trains, who is validated on, who calibrates, who is tested: by subject, never by scan."""

from __future__ import annotations

from collections.abc import Sequence

from scanbridge.data.cohort import Cohort
from scanbridge.data.table import some
from scanbridge.errors import UserError, nearest


def choose_split(
    cohort: Cohort, *, test: Sequence[str | int], val: Sequence[str | int], calibration: Sequence[str | int]
) -> dict[str, tuple[str, ...]]:
    """Divide the subjects of a cohort; all visits of a subject fall on the same side.

    Parameters
    ----------
    cohort
        The cohort, whose split column names groups.
    test, val, calibration
        Subjects or groups, mixed as one likes. Who is in none of them trains.

    Returns
    -------
    dict
        ``"train"``, ``"val"``, ``"calibration"``, ``"test"`` to subjects in the order of the table.

    Raises
    ------
    UserError
        For an entry that is neither subject nor group, or both; for a subject chosen twice; when nobody trains.
    """
    subjects = list(dict.fromkeys(row.subject for row in cohort.rows))
    members: dict[str, set[str]] = {subject: {subject} for subject in subjects}
    for group in dict.fromkeys(row.group for row in cohort.rows if row.group is not None):
        named = {row.subject for row in cohort.rows if row.group == group}
        if members.get(group, named) != named:
            raise UserError(f"{cohort.path}: '{group}' names a subject and a group", "names that are different")
        members[group] = named
    chosen: dict[str, set[str]] = {}
    for part, entries in {"val": val, "calibration": calibration, "test": test}.items():
        unknown = [str(entry) for entry in entries if str(entry) not in members]
        if unknown:
            hint = nearest(unknown[0], members)
            raise UserError(f"split.{part}: '{unknown[0]}' is neither subject nor group of {cohort.path}", "", hint)
        chosen[part] = set().union(*(members[str(entry)] for entry in entries))
        for other in list(chosen)[:-1]:
            twice = sorted(chosen[part] & chosen[other])
            if twice:
                raise UserError(f"split.{part} and split.{other} share {some(twice)}", "each subject in one part alone")
    chosen["train"] = set(subjects).difference(*chosen.values())
    if not chosen["train"]:
        raise UserError(f"the split leaves no subject of {cohort.path} to train on", "at least one")
    return {p: tuple(s for s in subjects if s in chosen[p]) for p in ("train", "val", "calibration", "test")}
