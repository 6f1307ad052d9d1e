"""The lock of a stack's model: written from a hub on loopback, read without any."""

import json

import pytest

from infra.plan.lock import ModelLock, lock_model, model_reader
from infra.plan.stack_plan import plan_stack
from infra.stack.faults import StackConfigError, UserError
from infra.stack.file import load_stack_file
from tests.hub_server import COMMIT, HubServer, Repository, serving
from tests.infra.deployments import LOCAL

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 8192,
}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": b"1234567",
}


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No hub but that of a test, and no cache."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(monkeypatch):
    hub = HubServer({"some/model": Repository(dict(FILES))})
    with serving(hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield hub


def stack(*sets):
    return load_stack_file(LOCAL, ["common_params.model_name=some/model", *sets]).deployment


def locked(tmp_path, **changes):
    path = tmp_path / "it.lock.json"
    row = {"model_name": "some/model", "commit": COMMIT, "config": CONFIG}
    path.write_text(json.dumps(row | changes))
    return model_reader(path)


def test_a_lock_has_what_a_plan_needs(hub, tmp_path):
    reader = lock_model(stack().common_params, tmp_path / "it.lock.json")
    assert json.loads(reader.lock.text) == {
        "model_name": "some/model",
        "model_revision": "",
        "commit": COMMIT,
        "config": CONFIG,
        "weight_files": {"model.safetensors": 7},
    }


def test_with_it_no_hub_is_asked(hub, tmp_path, monkeypatch):
    path = tmp_path / "it.lock.json"
    path.write_text(lock_model(stack().common_params, path).lock.text)
    with_hub = plan_stack(stack())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StackConfigError, match="the hub cannot be reached at http://127"):
        plan_stack(stack())
    plan = plan_stack(stack(), model_reader(path))
    assert plan.ranks == with_hub.ranks
    assert (plan.commit, with_hub.commit) == (COMMIT, "")
    assert plan.notes[0] == f"the model is locked by {path} at commit {COMMIT}"


def test_what_changed_at_the_hub_does_not_count(hub, tmp_path):
    reader = locked(tmp_path)
    hub.repositories["some/model"].commit = "f" * 40
    assert plan_stack(stack(), reader).commit == COMMIT
    again = lock_model(stack().common_params, reader.lock_path)
    assert again.lock.commit == "f" * 40


def test_without_a_file_the_hub_is_asked(hub, tmp_path):
    reader = model_reader(tmp_path / "none.lock.json")
    assert reader.lock is None
    assert len(plan_stack(stack(), reader).ranks) == 2


def test_one_that_was_written_by_hand_is_marked(tmp_path):
    plan = plan_stack(stack(), locked(tmp_path, commit=""))
    assert plan.commit == ""
    assert plan.notes[0].endswith(
        "it.lock.json has no commit, as one that was written by hand: nothing says that the ranks "
        "have the model that it describes"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"model_name": "some/other"},
            "model_name = 'some/other': is not what the stack file says",
        ),
        ({"model_revision": "v2"}, "model_revision = 'v2': is not what the stack file says, ''"),
    ],
)
def test_another_models_lock_is_named_with_what_to_do(tmp_path, changes, told):
    with pytest.raises(StackConfigError) as raised:
        plan_stack(stack(), locked(tmp_path, **changes))
    assert str(raised.value).startswith(f"{tmp_path}/it.lock.json: 1 fault")
    assert told in str(raised.value)
    assert "lock the model again with `splitstack plan --lock`, or remove the lock file" in str(
        raised.value
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "the file: is not JSON"),
        ("{}", "model_name: is required"),
        ('{"model_name": "a/b", "config": {}, "x": 1}', "x = 1: unknown key"),
        ('{"model_name": "a/b", "config": {}, "weight_files": {"a": -1}}', "must be at least 0"),
    ],
)
def test_a_broken_lock_is_named(tmp_path, text, told):
    path = tmp_path / "it.lock.json"
    path.write_text(text)
    with pytest.raises(StackConfigError) as raised:
        model_reader(path)
    assert told in str(raised.value)


def test_a_locked_model_is_refused_as_any_other(tmp_path):
    with pytest.raises(StackConfigError, match="model_type falcon computes attention of its own"):
        plan_stack(stack(), locked(tmp_path, config={"model_type": "falcon"}))


def test_what_cannot_be_read_or_served_cannot_be_locked(hub, tmp_path):
    path = tmp_path / "it.lock.json"
    with pytest.raises(UserError, match="never changes, and needs no lock"):
        lock_model(load_stack_file(LOCAL).deployment.common_params, path)
    with pytest.raises(
        UserError, match=r"'some/none': cannot be locked: the hub has no such model"
    ):
        lock_model(stack("common_params.model_name=some/none").common_params, path)
    del hub.repositories["some/model"].files["tokenizer.json"]
    with pytest.raises(UserError, match=r"'some/model': has no tokenizer\.json"):
        lock_model(stack().common_params, path)


def test_a_folder_can_be_locked_for_machines_that_lack_it(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    common = stack(f"common_params.model_name={folder}").common_params
    lock = lock_model(common, tmp_path / "it.lock.json").lock
    assert (lock.commit, lock.weight_files) == ("", {"model.safetensors": 7})


def test_equal_locks_have_equal_texts():
    one = ModelLock(model_name="a/b", config={"b": 1, "a": 2})
    assert one.text == ModelLock(config={"a": 2, "b": 1}, model_name="a/b").text
