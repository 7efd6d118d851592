"""Published splits: a table says who trains and who tests; what it leaves open or contradicts is left out and said."""

import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from node.data.check import run_scenario_check
from node.data.examination import examine
from node.data.excerpt import Excerpt, read_excerpt
from node.data.layouts import FolderSource
from node.data.site import EmptySite, SiteData
from node.data.splits import PARTS
from node.phantoms import write_phantoms
from node.settings import SiteSettings
from protos.plan import GroupByPattern, GroupByTable, PartsByTable, PhantomSite, Plan, Split, StrategyChoice, Task

TASK = Task(size=(16, 16), classes=("background", "organ"))
TABLE = PartsByTable(csv="parts.csv")
PAIRED = GroupByPattern(pattern=r"case-0(.)")  # ten cases are one patient
WORDS = {0: "train", 1: "val", 2: "test"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    write_phantoms(PhantomSite(task="organ", cases=12, size=16), TASK, folder)
    return folder


@pytest.fixture
def folder(images, tmp_path):
    """A site of twelve cases, of which every third trains, validates, tests."""
    for kind in ("images", "labels"):
        (tmp_path / "site" / kind).mkdir(parents=True)
        for path in (images / kind).iterdir():
            (tmp_path / "site" / kind / path.name).hardlink_to(path)
    write_table(tmp_path / "site", {f"case-{n:03d}": WORDS[n % 3] for n in range(12)})
    return tmp_path / "site"


def write_table(folder, parts, header="case,part"):
    (folder / "parts.csv").write_text("\n".join([header, *(f"{case},{part}" for case, part in parts.items())]) + "\n")


def settings_of(folder):
    return SiteSettings(name="here", home=folder.parent / "home", data=folder)


def source_of(folder, **split):
    return FolderSource(settings_of(folder), TASK, Split(table=TABLE, **split))


def data_of(folder, split, unseen=False):
    plan = Plan(task=TASK, strategy=StrategyChoice(name="finetune"), sites=("here",))
    return SiteData(settings_of(folder), plan.model_copy(update={"split": split}), unseen)  # without validation


def problems(source):
    for problem in source.problems:
        assert problem.spoils
        assert problem.sentence.endswith(".")
        assert "\n" not in problem.sentence
    return [problem.sentence for problem in source.problems]


def checked(folder, unseen=False, **split):
    console = Console(file=io.StringIO(), width=100)
    excerpt = Excerpt(task=TASK, split=Split(table=TABLE, **split), labels=None, unseen=unseen)
    status = run_scenario_check(folder, excerpt, console=console)
    return status, console.file.getvalue()


@given(said=st.lists(st.sampled_from(PARTS), min_size=12, max_size=12), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_table_alone_decides(folder, said, seed):
    """Whatever fractions and seed would say: the plan refuses them beside a table, the node does not look at them."""
    write_table(folder, {f"case-{number:03d}": part for number, part in enumerate(said)})
    plain = Split(table=TABLE)
    for split in (plain, plain.model_copy(update={"seed": seed, "train": 0.0, "val": 0.0, "test": 1.0})):
        data = data_of(folder, split)
        assert data.counts() == {part: said.count(part) for part in PARTS}
        source = FolderSource(settings_of(folder), TASK, split)
        assert [source.part(name) for name in source.names] == said
        assert not source.problems


def test_trained_and_scored_are_the_cases_of_the_table(folder):
    data = data_of(folder, Split(table=TABLE))
    assert [scan.name for scan in data.training_scans(str.encode)] == [f"case-{n:03d}" for n in range(0, 12, 3)]
    assert [case.name for case in data.scored_cases()] == [f"case-{n:03d}" for n in range(2, 12, 3)]


def test_check_shows_the_parts_of_the_run(folder):
    status, text = checked(folder)
    assert status == 0, text
    assert [line.split() for line in text.splitlines()][1:4] == [[part, "4", "4"] for part in PARTS]


def test_columns_have_the_names_that_the_plan_says_and_files_are_cases_too(folder):
    write_table(folder, {f"case-{n:03d}.png": WORDS[n % 3] for n in range(12)}, header="file,split")
    table = PartsByTable(csv="parts.csv", column="split", case="file")
    assert data_of(folder, Split(table=table)).counts() == {"train": 4, "val": 4, "test": 4}


@pytest.mark.parametrize("word", ["Train", "training", "0", "train;"])
def test_an_unknown_part_leaves_the_case_out(folder, word):
    write_table(folder, {f"case-{n:03d}": word if n == 5 else "train" for n in range(12)})
    source = source_of(folder)
    assert "case-005" not in source.names
    assert len(source.names) == 11
    expected = f"case-005 is left out: parts.csv gives it the part {word!r}; write train, val or test."
    assert problems(source) == [expected]
    assert expected in " ".join(checked(folder)[1].split())


@pytest.mark.parametrize("row", [{}, {"case-005": ""}])
def test_a_case_without_a_part_is_left_out(folder, row):
    write_table(folder, {f"case-{n:03d}": "train" for n in range(12) if n != 5} | row)
    source = source_of(folder)
    assert len(source.names) == 11
    assert problems(source) == ["case-005 is left out: parts.csv gives no part for it; add a row."]


def test_a_case_with_two_parts_is_left_out_rather_than_guessed(folder):
    with (folder / "parts.csv").open("a") as file:
        file.write("case-000,test\n")
    source = source_of(folder)
    assert "case-000" not in source.names
    assert problems(source)[0] == "parts.csv gives case-000 two parts; keep the right row."


@pytest.mark.parametrize("by", ["pattern", "table"])
def test_a_patient_in_two_parts_is_left_out_whole(folder, by):
    """Cases 000 to 009 are patient 0, the others patient 1, who alone is told one part."""
    group = PAIRED
    if by == "table":
        rows = "".join(f"case-{n:03d},{n // 10},{WORDS[n % 3] if n < 10 else 'test'}\n" for n in range(12))
        (folder / "parts.csv").write_text("case,who,part\n" + rows)
        group = GroupByTable(csv="parts.csv", column="who")
    else:
        write_table(folder, {f"case-{n:03d}": WORDS[n % 3] if n < 10 else "test" for n in range(12)})
    source = source_of(folder, group=group)
    assert source.names == ("case-010", "case-011")
    assert problems(source) == [
        "parts.csv puts patient 0 into test and train and val, so all cases of this patient are left out; "
        "give them one part."
    ]
    status, text = checked(folder, group=group)
    assert status == 1
    assert "spoils training: parts.csv puts patient 0 into" in text
    assert "No case falls to train by parts.csv; name some train in its column 'part'." in text


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "parts.csv cannot be opened"), (b"case,fold\n", "has no column 'part'; add it or correct split.table.")],
)
def test_without_a_table_no_case_has_a_part(folder, content, said):
    (folder / "parts.csv").unlink()
    if content is not None:
        (folder / "parts.csv").write_bytes(content)
    source = source_of(folder)
    assert source.names == ()
    assert said in problems(source)[0]
    with pytest.raises(EmptySite, match=r"or name some train in parts\.csv\.$"):
        data_of(folder, Split(table=TABLE)).samples("train")


def test_an_unseen_site_is_all_tests_and_needs_no_table(folder):
    for there in (True, False):
        if not there:
            (folder / "parts.csv").unlink()
        data = data_of(folder, Split(table=TABLE), unseen=True)
        assert data.counts() == {"train": 0, "val": 0, "test": 12}
        assert data.problems == ()
        assert checked(folder, unseen=True)[0] == 0
    assert examine(source_of(folder), unseen=True).parts["test"] == 0  # a source that was told to read the table


def test_one_image_under_two_patients_is_the_tables_doing(folder):
    for kind in ("images", "labels"):
        path = folder / kind / "case-003.png"
        path.unlink()
        path.hardlink_to(folder / kind / "case-000.png")
    [problem] = examine(source_of(folder)).duplicates
    assert not problem.spoils
    assert "under different patients, which parts.csv puts into one part (train)" in problem.sentence


def test_a_phantom_has_no_table(tmp_path):
    plan = Plan(task=TASK, strategy=StrategyChoice(name="finetune"), split=Split(table=TABLE), sites=("north",))
    site = SiteSettings(name="north", home=tmp_path, phantom=PhantomSite(task="organ", cases=3, size=16))
    with pytest.raises(ValueError, match=r"^A synthetic hospital has no table [^\n]*; remove split\.table\.$"):
        SiteData(site, plan)
    assert SiteData(site, plan, unseen=True).counts()["test"] == 3


def test_the_scenario_tells_the_check(folder):
    scenario = folder / "scenario.yaml"
    scenario.write_text(
        "name: a\ntask: {size: [16, 16], classes: [background, organ]}\nsites: [here]\n"
        "split: {table: {csv: parts.csv}}\n"
    )
    assert read_excerpt(scenario, "here").split == Split(table=TABLE)
