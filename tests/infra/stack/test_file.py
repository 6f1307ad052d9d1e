"""Reading stack files, `--set`, every fault at once."""

import contextlib
import copy
import tempfile
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.aios.import_split import import_split
from infra.stack.faults import StackConfigError
from infra.stack.file import apply_sets, load_stack_file, parse_deployment
from tests.infra.deployments import MINIMAL, PHI
from tests.lanes import examples


def write(folder, text):
    path = folder / "Pulumi.mine.yaml"
    path.write_text(text)
    return path


def refusal(call, *arguments):
    with pytest.raises(StackConfigError) as raised:
        call(*arguments)
    return raised.value


def test_three_mistakes_are_three_faults():
    error = refusal(
        parse_deployment,
        {
            "deployment_name": "Upper",
            "nnodes": 2,
            "common_params": {"model_name": "m", "modelrevision": "x"},
            "per_rank_params": [{"rank": 0, "cpu": "two"}, {"rank": 0}],
            "proxy_blocks": [{"block_id": "b"}],
        },
    )
    assert [(fault.path, fault.value) for fault in error.faults] == [
        ("deployment_name", "Upper"),
        ("common_params.modelrevision", "x"),
        ("per_rank_params[0].cpu", "two"),
    ]
    assert "did you mean model_revision?" in str(error)
    assert str(error).startswith("splitstack:deployment: 3 faults\n  deployment_name = 'Upper': ")


def test_keys_that_are_right_are_held_against_one_another():
    ranks = [{"rank": 0, "cuda_visible_devices": 0}, {"rank": 0}]
    error = refusal(parse_deployment, MINIMAL | {"per_rank_params": ranks})
    assert [(fault.path, fault.value) for fault in error.faults] == [
        ("per_rank_params[1].rank", 0),
        ("per_rank_params[0].cuda_visible_devices", "0"),
    ]


def test_missing_keys_are_named():
    error = refusal(parse_deployment, {})
    paths = {fault.path for fault in error.faults}
    assert {"deployment_name", "nnodes", "common_params"} <= paths


@pytest.mark.parametrize("value", [None, 3, "text", []])
def test_a_deployment_that_is_no_mapping(value):
    error = refusal(parse_deployment, value)
    assert "must be a mapping" in str(error)


def test_other_keys_and_secrets_are_ignored(tmp_path):
    path = write(
        tmp_path,
        "encryptionsalt: v1:abc\nconfig:\n  splitstack:group_token:\n    secure: v1:xyz\n"
        "  splitstack:deployment:\n    deployment_name: mine\n    nnodes: 1\n"
        "    common_params: {model_name: m}\n    inference_server: {enabled: false}\n",
    )
    stack = load_stack_file(path, ["common_params.model_name=/other"])
    assert (stack.stack, stack.path) == ("mine", path)
    assert stack.deployment.common_params.model_name == "/other"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("config:\n  - [", "line 2: broken YAML"),
        ("a: b: c\n", "line 1: broken YAML"),
        ("config: {}\nconfig: {}\n", 'line 2: broken YAML: found duplicate key "config"'),
        ("", "the file = None: must be a mapping"),
        ("- 1\n", "the file = [1]: must be a mapping"),
        ("other: 1\n", "config: is required"),
        ("config: 3\n", "config = 3: must be a mapping"),
        ("config: {a: 1}\n", "splitstack:deployment: is required"),
        ("config: {splitstack:deployment: 1}\n", "splitstack:deployment = 1: must be a mapping"),
        ("config: {1: {[a]: 1}, [b]: 2}\n", "line 1: broken YAML: found unhashable key"),
        (
            "a: " + "[" * 300,
            "line 1: broken YAML: maximum depth of data structure exceeded (101)\n",
        ),
        ('a: "\\U00110000"', "the file: broken YAML: is not YAML"),
        ("a: 2024-99-99\n", "line 1: broken YAML: found no timestamp"),
        ("\x00", "broken YAML"),
    ],
)
def test_files_that_are_none(tmp_path, text, told):
    error = refusal(load_stack_file, write(tmp_path, text))
    assert told in f"{error}\n"
    assert str(error).startswith(f"{tmp_path}/Pulumi.mine.yaml: 1 fault")


def test_a_key_that_is_given_twice_is_refused_without_its_values(tmp_path):
    text = "config:\n  a:token: {secure: first}\n  a:token: {secure: second}\n"
    error = refusal(load_stack_file, write(tmp_path, text))
    assert 'line 3: broken YAML: found duplicate key "a:token"' in str(error)
    assert "first" not in str(error)
    assert "second" not in str(error)


def test_files_that_cannot_be_read(tmp_path):
    assert "cannot be read: No such file" in str(refusal(load_stack_file, tmp_path / "none"))
    assert "cannot be read: Is a directory" in str(refusal(load_stack_file, tmp_path))
    binary = tmp_path / "binary"
    binary.write_bytes(b"config: \xff")
    assert "is not UTF-8 text" in str(refusal(load_stack_file, binary))


def test_sets():
    changed = apply_sets(
        MINIMAL,
        [
            "nnodes=4",
            "common_params.model_name=/x=y",
            "per_rank_params[0].rank=1",
            "per_rank_params[0].cpu=500m",
            "splitstack:deployment.extra_env.A=1",
            "proxy_blocks[0].labels={size: small}",
        ],
    )
    assert changed["nnodes"] == 4
    assert changed["common_params"] == {"model_name": "/x=y"}
    assert changed["per_rank_params"] == [{"rank": 1, "cpu": "500m"}]
    assert changed["extra_env"] == {"A": 1}
    assert changed["proxy_blocks"][0]["labels"] == {"size": "small"}
    assert MINIMAL["nnodes"] == 2
    assert "labels" not in MINIMAL["proxy_blocks"][0]


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("nnodes", "nnodes: must be path=value"),
        ("=4", "=4: must be path=value"),
        ("nnodes.x=3", "nnodes.x: unknown path: nnodes is no mapping and no list"),
        ("proxy_blocks[3].port=1", "proxy_blocks[3].port: unknown path: the list has 1 items"),
        ("proxy_blocks.port=1", "proxy_blocks.port: unknown path: 'port' must be an index"),
        ("common_params[0]=1", "common_params[0]: unknown path: [0] is an index"),
        ("a..b=1", "a..b: is no path"),
        ("a[x]=1", "a[x]: is no path"),
        ("nnodes=[", "nnodes = '[': the value is not YAML"),
        ("nnodes=2024-99-99", "nnodes = '2024-99-99': the value is not YAML"),
        ('nnodes="\\U00110000"', "the value is not YAML"),
    ],
)
def test_wrong_sets(item, told):
    error = refusal(apply_sets, MINIMAL, [item, "nnodes=3"])
    assert told in str(error)
    assert len(error.faults) == 1


def test_a_set_of_an_unknown_key_is_refused_by_name(tmp_path):
    error = refusal(parse_deployment, apply_sets(MINIMAL, ["common_params.modelname=x"]))
    assert "common_params.modelname = 'x': unknown key; did you mean model_name?" in str(error)


def test_an_unknown_key_under_a_name_of_the_users_own():
    with pytest.raises(StackConfigError, match="unknown key"):
        parse_deployment(DEPLOYMENT | {"clusters": {"gcp-cluster-2": {"contxt": "x"}}})


def test_a_world_size_beyond_all_models_is_refused_before_ranks_are_made():
    with pytest.raises(StackConfigError, match="nnodes = 1000000000000"):
        parse_deployment(DEPLOYMENT | {"nnodes": 10**12})


def places(value, path=()):
    """The path of every value inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


DEPLOYMENT = yaml.safe_load(PHI.read_text("utf-8"))["config"]["splitstack:deployment"]
NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner)
    ),
    max_leaves=5,
)


@settings(max_examples=examples(300), deadline=None)
@given(st.dictionaries(st.sampled_from(list(places(DEPLOYMENT))), NONSENSE, min_size=1, max_size=3))
def test_no_nonsense_raises_anything_else(changes):
    document = copy.deepcopy(DEPLOYMENT)
    for path, value in changes.items():
        place = document
        try:
            for part in path[:-1]:
                place = place[part]
            place[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    faults = []
    for call in (parse_deployment, import_split):
        try:
            call(copy.deepcopy(document))
        except StackConfigError as error:
            faults += error.faults
    assert all(fault.path and fault.rule for fault in faults)


# What YAML is made of, and what ruamel has tripped over.
PIECES = r"""
    config:N__ a :_ :N N N__ N-_ -_ ?_ [ ] { } ,_ &a_ *a << ! % ' " | > # T ---N = ~ true 1e999 0x
    !!int_ !!map_ !!omap_ !!set_ !!float_ !!bool_ !!timestamp_ !foo_ 2024-99-99 \U00110000
"""


def _text(pieces):
    return "".join(pieces).replace("_", " ").replace("N", "\n").replace("T", "\t")


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.sampled_from(PIECES.split()), max_size=12).map(_text) | st.text(max_size=20))
def test_no_text_raises_anything_else(text):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder, "Pulumi.mine.yaml")
        path.write_text(text, "utf-8", errors="surrogatepass")
        with pytest.raises(StackConfigError) as raised:
            load_stack_file(path)
        assert len(raised.value.faults) == 1
        with contextlib.suppress(StackConfigError):
            apply_sets(MINIMAL, [f"nnodes={text}"])


def test_numbers_where_a_text_is_meant_are_those_that_pulumi_hands_on(tmp_path):
    text = (
        "config:\n  splitstack:deployment:\n    deployment_name: mine\n    nnodes: 1\n"
        "    common_params: {model_name: m}\n    inference_server: {enabled: false}\n"
        "    extra_env: {A: 1e3, B: 1.0, C: 010, D: 1.50, E: 1e21}\n"
    )
    found = load_stack_file(write(tmp_path, text)).deployment.extra_env
    assert found == {"A": "1000", "B": "1", "C": "8", "D": "1.5", "E": "1e+21"}
