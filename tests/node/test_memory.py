"""A site's memory: training cases only, chosen once by the seed, copied whole, and not beyond the site's limit."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from node.data.splits import part_of
from protos.refusals import Refusal, RefusalCode
from tests.node.remembering import PLAN, Shelf, Site, refused


def training(names: tuple[str, ...]) -> set[str]:
    return {name for name in names if part_of(name, PLAN.split) == "train"}


def test_a_site_that_has_no_case_today_keeps_some_when_it_has(tmp_path: Path) -> None:
    """An archive may be out of reach for a while."""
    site = Site(tmp_path, Shelf(broken=frozenset(Shelf().names)))
    site.memory().keep(2, seed=7)
    assert "is missing" in refused(site.memory()).detail
    site.source = Shelf()
    site.memory().keep(2, seed=7)
    assert len(site.memory().samples()) == 2


def test_the_sites_own_limit_narrows_and_nothing_forbids_rehearsal(site: Site) -> None:
    site.memory("run-1", most=3).keep(5, seed=7)
    site.memory("run-2", most=3).keep(2, seed=7)
    assert [len(site.kept(run)) for run in ("run-1", "run-2")] == [3, 2]
    for forbidden in (
        lambda: site.memory("run-3", most=0).keep(5, seed=7),
        lambda: site.memory("run-1", most=0).samples(),
    ):
        with pytest.raises(Refusal, match=r"memory\.cases is 0") as caught:
            forbidden()
        assert caught.value.code == RefusalCode.POLICY
    assert not (site.home / "memory" / "run-3.json").exists()
    assert len(site.memory("run-1", most=1).samples()) == 3  # what is kept already, stays


@pytest.mark.parametrize("cases", [0, 1, 5, 400])
def test_only_training_cases_are_kept_and_not_too_many(site: Site, cases: int) -> None:
    site.memory().keep(cases, seed=7)
    own = training(site.source.names)
    assert len(own) > 5
    assert len(site.kept()) == len(set(site.kept())) == min(cases, len(own))
    assert set(site.kept()) <= own
    assert len(site.memory().samples()) == len(site.kept())


def test_a_whole_volume_is_one_case(tmp_path: Path) -> None:
    site = Site(tmp_path, Shelf(volumes=True))
    site.memory().keep(2, seed=7)
    assert len(site.memory().samples()) == 2 * 3  # slices


def test_the_samples_are_those_of_the_sites_own_cases(site: Site, restart: Callable[[], None]) -> None:
    site.memory().keep(400, seed=7)
    own, kept = site.data().samples("train"), site.memory().samples()
    order = sorted(range(len(kept)), key=lambda index: site.kept()[index])  # the site's are sorted by name
    for seeds in (None, list(range(len(kept)))):
        ours, theirs = kept.batch(order, seeds), own.batch(range(len(own)), seeds)
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.label, theirs.label)
    assert not torch.equal(kept.batch([0], [1]).image, kept.batch([0]).image)  # augmented as the plan says


def test_what_is_kept_is_never_chosen_anew(site: Site, restart: Callable[[], None]) -> None:
    site.memory().keep(3, seed=7)
    before = site.kept()
    site.memory().keep(9, seed=8)
    restart()
    site.memory().keep(3, seed=9)
    assert site.kept() == before


def test_the_seed_chooses(tmp_path: Path) -> None:
    sites = [Site(tmp_path / name) for name in "abc"]
    for site, seed in zip(sites, (7, 7, 8), strict=True):
        site.memory().keep(3, seed)
    same, again, other = (site.kept() for site in sites)
    assert same == again != other


def test_a_case_that_cannot_be_read_makes_room_and_moves_no_other(tmp_path: Path) -> None:
    whole = Site(tmp_path / "whole")
    whole.memory().keep(5, seed=7)
    lost = whole.kept()[2]
    poorer = Site(tmp_path / "poorer", Shelf(broken=frozenset({lost})))
    poorer.memory().keep(5, seed=7)
    assert len(poorer.kept()) == 5
    assert set(whole.kept()) - {lost} < set(poorer.kept())


def test_runs_do_not_see_each_others_memory_and_share_files(site: Site) -> None:
    site.memory("run-1").keep(400, seed=7)
    files = site.files
    assert "run-2.json is missing" in refused(site.memory("run-2")).detail
    site.memory("run-2").keep(2, seed=1)
    assert len(site.memory("run-2").samples()) == 2
    assert site.files == files


def test_the_memory_outlasts_the_sites_data_and_the_process(site: Site, restart: Callable[[], None]) -> None:
    site.memory().keep(4, seed=7)
    expected = site.memory().samples().batch(range(4), range(4))
    restart()
    site.source, opened = Shelf(broken=frozenset(site.source.names)), site.opened
    found = site.memory().samples().batch(range(4), range(4))
    assert torch.equal(found.image, expected.image)
    assert torch.equal(found.label, expected.label)
    assert site.opened == opened


def test_cases_are_decoded_once_and_not_per_round(site: Site) -> None:
    site.memory().keep(4, seed=7)
    first = site.memory().samples()
    assert site.memory().samples() is first


def test_the_store_is_the_owners_alone(site: Site) -> None:
    site.memory().keep(2, seed=7)
    paths = [site.home / "memory", *(site.home / "memory").rglob("*")]
    assert len(paths) == 1 + 1 + 2 + 1
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
