"""Near-copies of training images are counted as such, and what a site's images share is not taken for memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from node.copies import COPIES, FLOOR, PAIRS, count_copies, make_pairs
from node.data.samples import SiteSamples
from node.data.site import SiteData
from node.settings import SiteSettings
from protos.plan import PhantomSite, Plan
from strategies.data import Batch
from strategies.randomness import Seeds

SEEDS = Seeds(5, 1, "north")


def hospital(home: Path, appearance: int = 1, cases: int = 80, seed: int = 0, size: int = 32) -> SiteData:
    plan = Plan.model_validate(
        {
            "task": {"size": (size, size), "classes": ("background", "organ")},
            "strategy": {"name": "finetune"},
            "sites": ("north",),
            "split": {"train": 0.6, "val": 0.4, "test": 0},
        }
    )
    phantom = PhantomSite(task="organ", appearance=appearance, cases=cases, size=size, seed=seed)
    return SiteData(SiteSettings(name="north", home=home, phantom=phantom), plan)


def whole(samples: SiteSamples) -> Batch:
    return samples.batch(range(len(samples)))


@pytest.fixture(params=[0, 2, 3])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> SiteData:
    return hospital(tmp_path, request.param)


@dataclass
class Toy:
    """A generator whose images `paint` makes of a mask [1, *size] and a seed; notes what it is asked for."""

    paint: Callable[[Tensor, int], Tensor]
    sites: frozenset[str] = frozenset({"north"})
    asked: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def __call__(self, site: str, label: Tensor, seeds: Sequence[int]) -> Tensor:
        assert label.dtype == torch.int64
        assert len(label) == len(seeds)
        self.asked.append((site, tuple(seeds)))
        return torch.stack([self.paint(mask, seed) for mask, seed in zip(label, seeds, strict=True)])


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nearest(cases: Batch, mask: Tensor) -> int:
    return int((cases.label == mask).flatten(1).double().mean(1).argmax())


def class_means(cases: Batch, mask: Tensor) -> Tensor:
    """The mask, every class in its mean grey level."""
    channels = cases.image.movedim(1, 0)
    image = torch.zeros(len(channels), *mask.shape[1:])
    for number in (0, 1):
        image[:, mask[0] == number] = channels[:, cases.label[:, 0] == number].mean(1, keepdim=True)
    return image


def texture(cases: Batch, index: int) -> Tensor:
    """What an image has beside its class means."""
    image, label = cases.image[index].clone(), cases.label[index, 0]
    for number in label.unique():
        image[:, label == number] -= image[:, label == number].mean(1, keepdim=True)
    return image


def copier(cases: Batch) -> Toy:
    return Toy(lambda mask, seed: cases.image[nearest(cases, mask)])


def forgetful(cases: Batch) -> Toy:
    """Knows the classes' grey levels and how rough an image is, and no case."""
    return Toy(lambda mask, seed: class_means(cases, mask) + 0.5 * torch.randn(mask.shape, generator=draws(seed)))


def typical(cases: Batch) -> Toy:
    """Knows besides what the site's images have in common."""
    shared = torch.stack([texture(cases, index) for index in range(len(cases.image))]).mean(0)
    return Toy(
        lambda mask, seed: class_means(cases, mask) + shared + 0.2 * torch.randn(mask.shape, generator=draws(seed))
    )


def honest(cases: Batch, others: Batch) -> Toy:
    """Invents patients: the images of some that the site has never seen, fitted to the mask."""

    def paint(mask: Tensor, seed: int) -> Tensor:
        return class_means(cases, mask) + texture(others, seed % len(others.image))

    return Toy(paint)


def counted(toy: Toy, site: SiteData) -> dict[str, float]:
    found = count_copies(toy, site.samples("train"), site.samples("val"), SEEDS)
    assert all(COPIES[name].holds(value) for name, value in found.items())
    return found


def test_a_generator_that_learnt_its_images_by_heart_makes_nothing_but_copies(site: SiteData) -> None:
    found = counted(copier(whole(site.samples("train"))), site)
    assert found["copies"] == 1
    assert found["copy_similarity"] == pytest.approx(1)
    assert found["held_out_similarity"] < 0.5


def test_generators_that_remember_no_case_make_no_copies(site: SiteData, tmp_path: Path) -> None:
    cases = whole(site.samples("train"))
    for toy in (forgetful(cases), typical(cases)):
        found = counted(toy, site)
        assert found["copies"] == 0
        assert abs(found["copy_similarity"] - found["held_out_similarity"]) < 0.1
        assert found["copy_similarity"] < 0.3


@pytest.mark.parametrize("appearance", range(4))
def test_an_honest_generator_is_not_blamed(tmp_path: Path, appearance: int) -> None:
    site = hospital(tmp_path, appearance)
    others = whole(hospital(tmp_path, appearance, seed=1).samples("train"))
    found = counted(honest(whole(site.samples("train")), others), site)
    assert found["copies"] <= 0.05
    assert abs(found["copy_similarity"]) < 0.25


@pytest.mark.parametrize("name", ["histology", "fluo_256x256"])
def test_real_microscopes_too(shared_data: Path, tmp_path: Path, name: str) -> None:
    folder = shared_data / "nuclei" / name
    if not folder.is_dir():
        pytest.skip(f"needs the nuclei: looked in {folder}")
    task = {"channels": 3, "size": (64, 64), "classes": ("background", "nucleus")}
    plan = Plan.model_validate({"task": task, "strategy": {"name": "finetune"}, "sites": (name,)})
    site = SiteData(SiteSettings(name=name, home=tmp_path, data=folder), plan)
    every = whole(site.samples("train"))
    half = len(every.image) // 2
    cases, others = Batch(every.image[:half], every.label[:half]), Batch(every.image[half:], every.label[half:])
    train = SiteSamples(site.samples("train")._samples[:half], plan.task)
    for toy, share in ((copier(cases), 1), (forgetful(cases), 0), (honest(cases, others), 0)):
        assert count_copies(replace(toy, sites=frozenset({name})), train, site.samples("val"), SEEDS)["copies"] == share


def noisy(image: Tensor, seed: int) -> Tensor:
    return image + 0.3 * torch.randn(image.shape, generator=draws(seed))


def blurred(image: Tensor, seed: int) -> Tensor:
    return functional.avg_pool2d(image[None], 3, 1, 1)[0]


def of_low_contrast(image: Tensor, seed: int) -> Tensor:
    return 0.3 * image - 2


@pytest.mark.parametrize("spoil", [noisy, blurred, of_low_contrast])
def test_copies_are_seen_through_what_spoils_them(tmp_path: Path, spoil: Callable[[Tensor, int], Tensor]) -> None:
    site = hospital(tmp_path)
    cases = whole(site.samples("train"))
    by_heart = copier(cases)
    found = counted(Toy(lambda mask, seed: spoil(by_heart.paint(mask, seed), seed)), site)
    assert found["copies"] > 0.9


def test_the_share_is_that_of_the_cases_known_by_heart(tmp_path: Path) -> None:
    site = hospital(tmp_path)
    cases = whole(site.samples("train"))
    by_heart, made_up = copier(cases), forgetful(cases)
    toy = Toy(lambda mask, seed: (by_heart if nearest(cases, mask) % 2 else made_up).paint(mask, seed))
    chosen = make_pairs(toy, site.samples("train"), SEEDS, "copies", PAIRS)
    known = sum(nearest(cases, mask) % 2 for mask in chosen.label) / len(chosen.label)
    assert 0 < known < 1
    assert counted(toy, site)["copies"] == known


def test_what_is_as_similar_to_cases_never_learnt_is_no_copy(tmp_path: Path) -> None:
    """Then it is the mask, and not memory, that fixes the image."""
    site = hospital(tmp_path)
    train, val = whole(site.samples("train")), whole(site.samples("val"))
    both = Batch(torch.cat([train.image, val.image]), torch.cat([train.label, val.label]))
    found = counted(Toy(lambda mask, seed: noisy(both.image[nearest(both, mask)], seed)), site)
    assert min(found["copy_similarity"], found["held_out_similarity"]) > FLOOR
    assert found["copies"] < 0.2


def test_without_validation_cases_the_floor_decides_alone(tmp_path: Path) -> None:
    site = hospital(tmp_path)
    train, none = site.samples("train"), SiteSamples([], site.samples("train")._task)
    for toy, share in ((copier(whole(train)), 1), (forgetful(whole(train)), 0)):
        found = count_copies(toy, train, none, SEEDS)
        assert found["copies"] == share
        assert "held_out_similarity" not in found


@pytest.mark.parametrize("cases", [1, 2])
def test_one_case_or_two_are_enough_to_see_copies(tmp_path: Path, cases: int) -> None:
    train = hospital(tmp_path).samples("train")
    few = SiteSamples(train._samples[:cases], train._task)
    none = SiteSamples([], train._task)
    assert count_copies(copier(whole(few)), few, none, SEEDS)["copies"] == 1
    assert count_copies(forgetful(whole(train)), few, none, SEEDS)["copies"] == 0


def test_equal_seeds_give_equal_figures_and_others_other_pairs(tmp_path: Path) -> None:
    site = hospital(tmp_path)
    cases = whole(site.samples("train"))
    assert counted(forgetful(cases), site) == counted(forgetful(cases), site)
    one, other = (
        make_pairs(forgetful(cases), site.samples("train"), seeds, "copies", PAIRS)
        for seeds in (SEEDS, SEEDS.at_stop(2))
    )
    assert not torch.equal(one.real, other.real)


def test_replays_are_of_the_site_alone_few_and_in_small_batches(tmp_path: Path) -> None:
    site = hospital(tmp_path, cases=100)
    toy = forgetful(whole(site.samples("train")))
    counted(toy, site)
    assert {name for name, _ in toy.asked} == {"north"}
    assert [len(seeds) for _, seeds in toy.asked] == [16] * 4
    assert len({seed for _, seeds in toy.asked for seed in seeds}) == 2 * PAIRS


def test_real_images_are_as_they_are(tmp_path: Path) -> None:
    """Neither augmented nor cropped: a copy of an augmented image would be found by chance alone."""
    site = hospital(tmp_path, cases=10)
    cases = whole(site.samples("train"))
    pairs = make_pairs(copier(cases), site.samples("train"), SEEDS, "copies", PAIRS)
    assert len(pairs.real) == len(cases.image)
    assert all(any(torch.equal(image, other) for other in cases.image) for image in pairs.real)
    assert torch.equal(pairs.real, pairs.replay)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_end_the_visit(tmp_path: Path, value: float) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        counted(Toy(lambda mask, seed: torch.full(mask.shape, value)), hospital(tmp_path, cases=10))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_figures_stay_within_their_bounds_at_any_scale(tmp_path: Path, size: float) -> None:
    site = hospital(tmp_path, cases=10)
    by_heart = copier(whole(site.samples("train")))
    assert counted(Toy(lambda mask, seed: size * by_heart.paint(mask, seed)), site)["copies"] in (0, 1)


def test_flat_images_are_no_copies(tmp_path: Path) -> None:
    found = counted(Toy(lambda mask, seed: torch.ones(mask.shape)), hospital(tmp_path, cases=10))
    assert found["copies"] == 0
    assert found["copy_similarity"] == pytest.approx(0, abs=1e-6)
