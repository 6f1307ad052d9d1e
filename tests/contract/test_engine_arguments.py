"""Arguments of another engine that a stack file may not give."""

import pytest

from contract.engine_arguments import refusals


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kv-cache-dtype", "fp8"],
        ["--enable-prefix-caching"],
        ["--no-enable-prefix-caching"],
        ["--quantization=awq", "--seed", "-1"],
        ["-cc.mode=2", "-cc.backend=eager"],
        ["--block_size", "16"],
        ["--reasoning-parser", "deepseek_r1"],
    ],
)
def test_what_only_tunes_passes(arguments):
    assert refusals(arguments) == {}


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("--port", "open a port"),
        ("--port=80", "open a port"),
        ("--uds", "open a port"),
        ("--kv_transfer_config", "open a port"),
        ("--kv-transfer-config.kv_role", "open a port"),
        ("--trust-remote-code", "run code"),
        ("--trust-rem", "run code"),
        ("--no-trust-remote-code", "run code"),
        ("--middleware", "run code"),
        ("--logits_processors", "run code"),
        ("--tool-parser-plugin", "run code"),
        ("--disable-log-stats", "keeper could not see"),
        ("--api-key", "keeper could not see"),
        ("--config", "keeper could not see"),
        ("--headless", "keeper could not see"),
        ("--revision", "keeper has fetched"),
        ("--nnodes", "which rank"),
        ("-tp", "common_params.tensor_parallel"),
        ("-n", "which rank"),
        ("--max-model-len", "common_params.max_model_len"),
        ("-cc.custom_ops=x", "-cc.mode=2"),
        ("-cc.backend=my.module", "-cc.mode=2"),
        ("-O3", "no short argument"),
        ("model", "must begin with -"),
        ("--", "no argument's name"),
    ],
)
def test_what_is_refused_says_why(argument, why):
    (rule,) = refusals([argument]).values()
    assert why in rule


def test_a_value_belongs_to_the_argument_before_it():
    assert set(refusals(["--seed=1", "2"])) == {1}
    assert set(refusals(["--seed", "1", "2"])) == {2}
