"""Splits: stateless, by patient, of the fractions asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.data.splits import PARTS, part_of, split_cases
from protos.plan import Split

patients = st.text(max_size=20)
seeds = st.integers(0, 2**32 - 1)


@given(st.lists(patients, unique=True), st.lists(patients, unique=True), seeds)
def test_adding_cases_never_moves_another(before, added, seed):
    split = Split(seed=seed)
    old = split_cases(before, lambda name: name, split)
    new = split_cases({*before, *added}, lambda name: name, split)
    for part in PARTS:
        assert set(old[part]) == set(new[part]) & set(before)


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.sampled_from("ABCDEF"), min_size=1), seeds)
def test_a_patient_is_never_split_and_no_case_is_lost(patient_of, seed):
    parts = split_cases(patient_of, patient_of.__getitem__, Split(seed=seed))
    assert sorted(name for cases in parts.values() for name in cases) == sorted(patient_of)
    where = [(patient_of[name], part) for part, cases in parts.items() for name in cases]
    assert len(set(where)) == len({patient for patient, _ in where})
    assert all(list(cases) == sorted(cases) for cases in parts.values())


@pytest.mark.parametrize(("train", "val", "test"), [(0.6, 0.15, 0.25), (0.5, 0.0, 0.5), (0.0, 0.3, 0.7)])
def test_fractions_are_approached(train, val, test):
    split = Split(train=train, val=val, test=test, seed=3)
    found = [part_of(f"patient {number}", split) for number in range(20_000)]
    for part, share in zip(PARTS, (train, val, test), strict=True):
        assert found.count(part) / len(found) == pytest.approx(share, abs=0.015)
        assert share > 0 or part not in found


def test_the_seed_changes_the_split_and_nothing_else_does():
    names = [f"case_{number:03d}" for number in range(200)]
    one, other = (split_cases(names, str, Split(seed=seed)) for seed in (0, 1))
    assert one != other
    assert split_cases(reversed(names), str, Split()) == one


def test_known_values_stay():
    """A changed formula would move test cases of every site into training."""
    found = [part_of(f"patient {number}", Split()) for number in range(12)]
    assert found == [
        "train",
        "train",
        "train",
        "train",
        "train",
        "test",
        "val",
        "train",
        "test",
        "train",
        "test",
        "val",
    ]


@given(st.lists(patients, unique=True))
def test_an_unseen_site_is_all_test(names):
    parts = split_cases(names, lambda name: name, Split(), unseen=True)
    assert parts == {"train": (), "val": (), "test": tuple(sorted(names))}


def test_enlarging_training_at_the_cost_of_validation_keeps_the_test_cases():
    names = [str(number) for number in range(300)]
    one = split_cases(names, str, Split(train=0.6, val=0.15, test=0.25))
    other = split_cases(names, str, Split(train=0.75, val=0.0, test=0.25))
    assert one["test"] == other["test"]


def test_a_patient_known_at_two_sites_is_in_one_part():
    slices = {"TCGA_CS_4941_19960909_14": "TCGA_CS_4941", "TCGA_CS_4941_19960909_16": "TCGA_CS_4941"}
    volumes = {"TCGA_CS_4941_19960909": "TCGA_CS_4941"}
    parts = [
        {part for part, cases in split_cases(site, site.__getitem__, Split()).items() if cases}
        for site in (slices, volumes)
    ]
    assert parts[0] == parts[1]
    assert len(parts[0]) == 1
