"""The scenario: the documented file works, and every mistake is one sentence with the file, the key and the remedy."""

import shlex
import string

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from coordinator.scenario import Scenario, ScenarioError, load_scenario, parse_scenario
from coordinator.simulate import begin
from tests.conftest import Desk

DOCUMENTED = """
name: chest-xray
task:
  dims: 2
  channels: 1                     # grey; 3 for colour
  size: [128, 128]
  classes: [background, left lung, right lung, cardiomediastinum]
sites: [italy, china, spain, australia, other]        # visiting order as listed
unseen: [held-out-hospital]       # scored, never visited; may be empty
# a site may be a mapping: {name: italy, path: some/where, labels: {1: left lung, 2: right lung, 3: cardiomediastinum}}
order: listed                     # or reversed, or {shuffle: 7}, or an explicit list
strategy: {name: finetune}        # plus the strategy's own parameters
network: {name: unet, channels: [8, 16, 32, 64, 128]}
training: {steps: 300, batch_size: 8, optimizer: adam, lr: 1.0e-3, augment: [rotate, scale, intensity]}
split: {train: 0.6, val: 0.15, test: 0.25, group: case}   # or by file name pattern or a CSV column
seed: 0
"""
SITES = ("italy", "china", "spain", "australia", "other")

SMALL = """
name: small
task: {classes: [background, organ]}
sites: [a, b]
"""


def small(*overrides: str, more: str = "", sites: str = "[a, b]") -> Scenario:
    return parse_scenario(SMALL.replace("[a, b]", sites) + more, "my.yaml", overrides)


def fault(*overrides: str, **changes: str) -> str:
    """The only sentence that a mistake gives."""
    with pytest.raises(ScenarioError) as caught:
        small(*overrides, **changes)
    (sentence,) = str(caught.value).splitlines()
    return sentence


# The documented file


def test_the_documented_file_reads_as_it_stands():
    scenario = parse_scenario(DOCUMENTED, "chest.yaml")
    assert scenario.visiting_order() == SITES
    assert [site.name for site in scenario.unseen] == ["held-out-hospital"]
    assert scenario.task.classes[3] == "cardiomediastinum"
    assert scenario.task.size == (128, 128)
    assert scenario.training.lr == 1e-3
    assert (scenario.split.train, scenario.split.val, scenario.split.test) == (0.6, 0.15, 0.25)
    assert list(scenario.runs()) == [scenario]


def test_the_documented_file_runs_on_folders_beside_it(desk: Desk):
    """`sites` alone name folders; a mapping gives a path of its own and what the label files' values mean."""
    rng = np.random.default_rng(0)
    for number, site in enumerate((*SITES, "held-out-hospital")):
        folder = desk.folder / ("some/where" if site == "italy" else site)
        for case in range(8):
            label = np.zeros((24, 24), np.uint8)
            label[4:12, 4:10], label[4:12, 14:20], label[14:20, 8:16] = (30, 10, 20) if site == "italy" else (3, 1, 2)
            image = np.clip(label * 5 + rng.integers(0, 40, label.shape) + number, 0, 255).astype(np.uint8)
            for kind, array in (("images", image), ("labels", label)):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / kind / f"case{case}.png")
    italy = "{name: italy, path: some/where, labels: {10: left lung, 20: right lung, 30: cardiomediastinum}}"
    text = DOCUMENTED.replace("[italy,", f"[{italy},")
    run = desk.simulate("training.steps=1", "task.size=[32, 32]", "training.batch_size=2", text=text)
    summary = desk.summary(run)
    assert summary.status == "done"
    assert summary.columns == (*SITES, "held-out-hospital")
    assert summary.dsc.shape == (5, 6, 3)
    assert np.isfinite(summary.dsc).all()
    assert np.isfinite(summary.asd).all()
    assert summary.cases[5] == 8  # an unseen site trains nothing, so all its cases are test cases


def test_a_site_without_its_folder_is_named_before_a_run_is_written_down(desk: Desk):
    for site in SITES:
        (desk.folder / site).mkdir()
    with pytest.raises(ScenarioError, match=r"^tiny.yaml: site held-out-hospital: there is no folder .*--data"):
        begin(parse_scenario(DOCUMENTED, ""), desk.home, desk.folder, "locum", source="tiny.yaml")
    assert not (desk.home.folder / "coordinator.db").exists()


# Orders and studies


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("listed", "abcdef"),
        ("reversed", "fedcba"),
        ("[f, a, e, b, d, c]", "faebdc"),
        ("{shuffle: 7}", "".join(np.array(list("abcdef"))[np.random.default_rng(7).permutation(6)])),
    ],
)
def test_the_forms_of_an_order(order, expected):
    scenario = small(more=f"order: {order}", sites="[a, b, c, d, e, f]")
    assert "".join(scenario.visiting_order()) == expected
    assert "".join(scenario.plan().sites) == expected
    assert Scenario.model_validate(scenario.model_dump(mode="json")) == scenario  # as the store keeps it


@given(st.integers(0, 2**32), st.integers(1, 30))
@settings(max_examples=30)
def test_a_shuffle_is_a_permutation_that_its_seed_fixes(seed, count):
    names = [f"s{number}" for number in range(count)]
    orders = [small(more=f"order: {{shuffle: {seed}}}", sites=str(names)).visiting_order() for _ in range(2)]
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(names)


def test_a_study_is_every_combination_once():
    study = "study: {seeds: [3, 4], strategies: [l2, {name: dropout}], orders: [reversed, [b, a], {shuffle: 1}]}"
    runs = list(small(more=study).runs())
    combinations = [(run.strategy.name, run.order, run.seed) for run in runs]
    assert len(set(combinations)) == len(combinations) == 12
    assert [name for name, _, _ in combinations] == ["l2"] * 6 + ["dropout"] * 6
    assert {seed for _, _, seed in combinations} == {3, 4}
    assert all(list(run.runs()) == [run] for run in runs)  # none has a study of its own


def test_a_study_keeps_what_it_does_not_list():
    (run,) = small(more="order: reversed\nseed: 5\nstudy: {strategies: [l2]}").runs()
    assert (run.strategy.name, run.order, run.seed) == ("l2", "reversed", 5)


# Overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.steps=50", lambda s: s.training.steps == 50),
        ("seed=7", lambda s: s.seed == 7),
        ("task.size=[32, 64]", lambda s: s.task.size == (32, 64)),
        ("sites.1=c", lambda s: s.sites[1].name == "c"),
        ("sites.1.name=c", lambda s: s.sites[1].name == "c"),
        ("sites.0.path=some/where", lambda s: (s.sites[0].name, str(s.sites[0].path)) == ("a", "some/where")),
        ("sites.0={name: z, labels: {1: organ}}", lambda s: s.sites[0].labels == {1: "organ"}),
        ("unseen=[]", lambda s: s.unseen == ()),
        ("strategy=l2", lambda s: s.strategy.name == "l2"),
        ("strategy.strength=0.5", lambda s: s.strategy.parameters == {"strength": 0.5}),
        ("order.shuffle=3", lambda s: s.order.shuffle == 3),
        ("split.group={pattern: '(.*)_'}", lambda s: s.split.group.pattern == "(.*)_"),
        ("name=a-b=c", None),
    ],
)
def test_set_overrides_any_key(override, value):
    more = "strategy: dropout\nstudy:\n"
    if override.startswith("order"):
        more = "order: {shuffle: 1}\n"
    if value is None:
        assert fault(override).startswith("my.yaml: name: should be")
    else:
        assert value(small(override, more=more.removesuffix("study:\n")))


def test_the_last_of_two_overrides_wins():
    assert small("seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.steps", "--set training.steps: write it as key=value, for example --set training.steps=50."),
        ("=3", "--set =3: write it as key=value"),
        ("training..steps=3", "--set training..steps=3: write it as key=value"),
        ("training.steps=[", "the value is not valid YAML; quote it."),
        ("training.steps=2001-99-99", "the value is not valid YAML; quote it."),
        ("training={steps: 1, steps: 2}", "the value is not valid YAML; quote it."),
        ("sites.5=x", "sites has no entry 5; count from 0."),
        ("sites.5.name=x", "sites has no entry 5; count from 0."),
        ("sites.-1=x", "sites has no entry -1; count from 0."),
        ("name.first=x", "name has no keys of its own; replace it as a whole instead."),
        ("training.stps=5", "my.yaml: training.stps: unknown key; did you mean steps?"),
    ],
)
def test_a_wrong_override_is_explained(override, said):
    assert said in fault(override)


STUDY = "study: {seeds: [1, 2], strategies: [finetune, {name: l2}], orders: [listed, {shuffle: 1}]}"


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("seed=3", "study.seeds=[3]"),
        ("strategy=dropout", "study.strategies=[dropout]"),
        ("strategy={name: l2, strength: 1}", "study.strategies=[{name: l2, strength: 1}]"),
        ("strategy.strength=1", "study.strategies.0.strength=1"),
        ("order=reversed", "study.orders=[reversed]"),
        ("order.shuffle=3", "study.orders=[{shuffle: 3}]"),
    ],
)
def test_an_override_that_a_study_would_hide_is_an_error_with_a_remedy_that_works(override, remedy):
    more = STUDY if "." not in override else f"{STUDY}\norder: {{shuffle: 1}}"
    said = fault(override, more=more)
    key, _, _ = remedy.partition("=")
    assert said.startswith(f"--set {override}: has no effect, since study.{key.split('.')[1]} lists ")
    (_, word) = shlex.split(said[said.index("for example") :].removeprefix("for example ").removesuffix("."))
    assert word == remedy
    before, after = (list(small(*sets, more=more).runs()) for sets in ([], [remedy]))
    assert before != after


def test_an_override_counts_when_the_study_is_emptied_by_another():
    (run,) = small("seed=3", "study.seeds=[]", more="study: {seeds: [1]}").runs()
    assert run.seed == 3


@pytest.mark.parametrize("key", ["seed", "split.seed", "study.seeds"])
def test_seeds_have_32_bits(key):
    value = "[{}]" if key == "study.seeds" else "{}"
    small(f"{key}={value.format(2**32 - 1)}")
    assert "should be less than 4294967296, not 4294967296." in fault(f"{key}={value.format(2**32)}")
    assert "should be greater than or equal to 0, not -1." in fault(f"{key}={value.format(-1)}")


def test_the_longest_names_make_a_run_that_the_store_can_hold(desk: Desk):
    for site in "ab":
        (desk.folder / site).mkdir()
    scenario = small(f"name={'x' * 40}", "strategy=joint-fedavg", f"seed={2**32 - 1}")
    names = {begin(scenario, desk.home, desk.folder, "locum") for _ in range(50)}
    assert len(names) == 50
    assert all(len(name) <= 80 and name.startswith("x" * 40 + "-joint-fedavg-s4294967295-") for name in names)


# Mistakes

MISTAKES = {
    "trainig: {steps: 3}": "my.yaml: trainig: unknown key; did you mean training?",
    "training: {stps: 3}": "my.yaml: training.stps: unknown key; did you mean steps?",
    "zzz: 3": "my.yaml: zzz: unknown key; remove it; known here: name, task, sites, unseen, order, strategy, network, "
    "training, split, scored, patience, seed, study.",
    "training: {steps: many}": "my.yaml: training.steps: should be a whole number, not 'many'.",
    "training: {steps: -3}": "my.yaml: training.steps: should be greater than or equal to 0, not -3.",
    "training: {lr: .inf}": "my.yaml: training.lr: should be a finite number, not inf.",
    "training: {lr: fast}": "my.yaml: training.lr: should be a number, not 'fast'.",
    "training: {augment: [blur]}": "my.yaml: training.augment.0: should be 'flip', 'rotate', 'scale', 'intensity' or "
    "'noise', not 'blur'.",
    "training: {augment: [flip, flip]}": "my.yaml: training.augment: augment names one augmentation twice.",
    "training: 300": "my.yaml: training: should be a mapping of keys to values, not 300.",
    "training:": "my.yaml: training: should be a mapping of keys to values, not None.",
    "unseen: [a]": "my.yaml: sites and unseen name a twice; list every site once.",
    "unseen: [../b]": "my.yaml: unseen.0: should be 1 to 64 letters, digits, spaces, dots, hyphens and "
    "underscores, beginning with a letter or digit, not '../b'.",
    "unseen: [null]": "my.yaml: unseen.0: should be a mapping of keys to values, not None.",
    "unseen: [[c]]": "my.yaml: unseen.0: should be a mapping of keys to values.",
    "unseen: {c: 1}": "my.yaml: unseen: should be a list.",
    "unseen: [{path: x}]": "my.yaml: unseen.0.name: is missing; add it.",
    "unseen: [{name: c, labels: {1: liver}}]": "my.yaml: site c: labels maps to 'liver', which is not in task.classes "
    "(background, organ).",
    "unseen: [{name: c, labels: {x: organ}}]": "my.yaml: unseen.0.labels.x: should be a whole number, not 'x'.",
    "unseen: [{name: c, phantom: {}}]": "my.yaml: unseen.0.phantom.task: is missing; add it.",
    "unseen: [{name: c, phantom: {task: organ, size: 3}}]": "my.yaml: unseen.0.phantom.size: should be greater than or "
    "equal to 16, not 3.",
    "unseen: [{name: c, path: x, phantom: {task: organ}}]": "my.yaml: unseen.0: a site has either a path or a phantom; "
    "remove one of them.",
    "order: random": "my.yaml: order: should be 'listed' or 'reversed', not 'random'.",
    "order: 5": "my.yaml: order: should be listed, reversed, {shuffle: NUMBER} or a list of all sites, not 5.",
    "order: [a]": "my.yaml: order must name every site of sites exactly once.",
    "order: [a, b, a]": "my.yaml: order must name every site of sites exactly once.",
    "order: {shuffle: x}": "my.yaml: order.shuffle: should be a whole number, not 'x'.",
    "order: {}": "my.yaml: order.shuffle: is missing; add it.",
    "strategy: [l2]": "my.yaml: strategy: should be a mapping of keys to values.",
    "strategy: {strength: 1}": "my.yaml: strategy.name: is missing; add it.",
    "network: {name: vnet}": "my.yaml: network.name: should be 'unet' or 'basic_unet', not 'vnet'.",
    "split: {train: 0.5}": "my.yaml: split: train, val and test sum to 0.9; they must sum to 1.",
    "split: {group: patient}": "my.yaml: split.group: should be 'case', not 'patient'.",
    "split: {group: {pattern: x}}": "my.yaml: split.group.pattern: 'x' has no group; put the part that names the "
    "patient in brackets.",
    "split: {group: {csv: ../x, column: y}}": "my.yaml: split.group.csv: '../x' leaves the site's folder; give a path "
    "inside it.",
    "split: {group: {csv: x}}": "my.yaml: split.group.column: is missing; add it.",
    "split: {group: 5}": "my.yaml: split.group: should be case, {pattern: REGULAR_EXPRESSION} or {csv: FILE, column: "
    "NAME}, not 5.",
    "split: {table: {csv: ../x}}": "my.yaml: split.table.csv: '../x' leaves the site's folder; give a path inside it.",
    "split: {table: {csv: x, colum: y}}": "my.yaml: split.table.colum: unknown key; did you mean column?",
    "split: {table: {csv: x}, seed: 1}": "my.yaml: split: table says the part of every case, so seed has no effect; "
    "remove one of them.",
    "study: {seeds: 3}": "my.yaml: study.seeds: should be a list, not 3.",
    "study: {strategies: [l2, {nam: x, name: l2}, {}]}": "my.yaml: study.strategies.2.name: is missing; add it.",
    "study: {orders: [foo]}": "my.yaml: study.orders.0: should be 'listed' or 'reversed', not 'foo'.",
    "study: {orders: [[a]]}": "my.yaml: order must name every site of sites exactly once.",
    "seed: 1\nseed: 2": "my.yaml, line 6: not valid YAML (the key 'seed' stands twice); correct it.",
    "training: {steps: 1, steps: 2}": "my.yaml, line 5: not valid YAML (the key 'steps' stands twice); correct it.",
    "training: [": "my.yaml, line 5: not valid YAML (expected the node content, but found '<stream end>'); correct it.",
    "seed: 2001-99-99": "my.yaml: not valid YAML (month must be in 1..12); correct it.",
    "seed: !!python/object/apply:os.getcwd []": "my.yaml, line 5: not valid YAML (could not determine a constructor "
    "for the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'); correct it.",
    "1: x": "my.yaml: 1: keys should be text; put it in quotes, not 1.",
    "---\na: 1": "my.yaml, line 5: not valid YAML (but found another document); correct it.",
    "a: \0": "my.yaml: not valid YAML (unacceptable character #x0000: special characters are not allowed); correct it.",
}


@pytest.mark.parametrize("more", MISTAKES)
def test_a_mistake_is_one_sentence_with_file_key_and_remedy(more):
    assert fault(more=more) == MISTAKES[more]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.soft=true"], "soft labels are learnt with Dice, not dice_ce; set training.loss to dice."),
        (["task.plane=tilted"], "task.plane: should be 'axial', 'coronal' or 'sagittal', not 'tilted'."),
        (
            ["task.dims=3", "task.size=[16, 16, 16]", "task.plane=coronal"],
            "task: plane is coronal but dims is 3, where nothing is sliced; remove plane or set dims to 2.",
        ),
        (
            ["split.table={csv: parts.csv}", "sites.1={name: b, phantom: {task: organ}}"],
            "site b is a phantom, which has no parts.csv; remove split.table or give the site a folder.",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(overrides, said):
    assert fault(*overrides) == f"my.yaml: {said}"


def test_an_unseen_phantom_needs_no_table():
    scenario = small("split.table={csv: parts.csv}", "unseen=[{name: c, phantom: {task: organ}}]")
    assert scenario.plan().split.table is not None


def test_several_mistakes_are_all_named_a_line_each():
    with pytest.raises(ScenarioError) as caught:
        parse_scenario("name: Chest X\nsites: []\nseed: -1", "my.yaml")
    assert str(caught.value).splitlines() == [
        "my.yaml: name: should be 1 to 40 lower-case letters, digits and hyphens, beginning with a letter or digit, "
        "not 'Chest X'.",
        "my.yaml: task: is missing; add it.",
        "my.yaml: sites: is empty; it needs at least one entry.",
        "my.yaml: seed: should be greater than or equal to 0, not -1.",
    ]


@pytest.mark.parametrize("text", ["", "3", "- a", "[]"])
def test_what_is_no_mapping_is_no_scenario(text):
    with pytest.raises(ScenarioError, match=r"^my.yaml: a scenario is a mapping with name, task and sites"):
        parse_scenario(text, "my.yaml")


def test_merge_keys_are_yaml_as_well():
    assert small(more="training: {<<: {steps: 3, lr: 0.5}, steps: 4}").training.model_dump(include={"steps", "lr"}) == {
        "steps": 4,
        "lr": 0.5,
    }


def test_names_that_yaml_reads_as_numbers_or_dates_stay_names():
    assert small(sites="[1, 2020-01-31]").visiting_order() == ("1", "2020-01-31")


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), (b"\xff\xfe", "it is not UTF-8 text")]
)
def test_a_file_that_cannot_be_read(tmp_path, content, reason):
    path = tmp_path / "my.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    assert str(caught.value) == f"{path}: the scenario cannot be read ({reason}); give the path of a YAML file."


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["strategy=no-such"], "my.yaml: strategy.name: 'no-such' is not installed; choose one of finetune, "),
        (["strategy={name: l2, strenth: 1}"], "my.yaml: strategy.strenth: "),
        (["task.size=[16, 16]", "network.channels=[8, 16, 32, 64, 128, 256, 512]"], "my.yaml: "),
    ],
)
def test_what_the_strategy_does_not_accept_names_the_file_and_leaves_no_run(desk: Desk, overrides, said):
    for site in "ab":
        (desk.folder / site).mkdir()
    with pytest.raises(ScenarioError) as caught:
        begin(small(*overrides), desk.home, desk.folder, "locum", source="my.yaml")
    (sentence,) = str(caught.value).splitlines()
    assert sentence.startswith(said)
    assert not (desk.home.folder / "coordinator.db").exists()


# Whatever the text

KEYS = st.sampled_from([*Scenario.model_fields, "steps", "shuffle", "path", "labels", "phantom", "group", "csv"])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.text(string.printable, max_size=8)
    | st.sampled_from(["listed", "a", "organ"])
)
TREES = st.recursive(
    LEAVES,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(KEYS | LEAVES, inside, max_size=4),
    max_leaves=8,
)


def assert_sentences(text: str, *overrides: str) -> None:
    try:
        scenario = parse_scenario(text, "my.yaml", overrides)
    except ScenarioError as error:
        for line in str(error).splitlines():
            assert line.startswith(("my.yaml", "--set "))
            assert "Input should" not in line
    else:
        assert Scenario.model_validate(scenario.model_dump(mode="json")) == scenario


@given(st.dictionaries(KEYS, TREES, max_size=5))
@settings(max_examples=150)
def test_any_tree_is_a_scenario_or_a_sentence(tree):
    assert_sentences(yaml.safe_dump({"name": "a", "task": {"classes": ["b", "c"]}, "sites": ["a", "b"]} | tree))


@given(st.text(alphabet="&*!<>|%@{}[]:,-?#'\"\\ \n\tab1.~", max_size=40))
@example("[" * 5000)
@example("a: " + "9" * 5000)
@example("a: !!timestamp x")
@example("a: !!bool x")
@example("a: !!int x")
@example("&x {name: *x, task: *x, sites: *x, study: *x, strategy: *x}")
@example("&x [*x]")
@example("{a: 1}: 2")
@settings(max_examples=150)
def test_any_text_is_a_scenario_or_a_sentence(text):
    assert_sentences(text)


@given(st.text(alphabet="nametrigsptudk.=0123[]{}:,-'\"", max_size=30))
@example("sites.0.x.y.z=1")
@example("training={}")
@example("unseen.0.name=c")
@settings(max_examples=150)
def test_any_override_is_applied_or_explained(override):
    assert_sentences(SMALL, override)
