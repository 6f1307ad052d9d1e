import hashlib
import hmac

import pytest

from contract.signature import management_key, same, signing_key

TOKEN = b"a-secret-of-the-whole-group"


def test_the_key_is_what_it_was() -> None:
    """The same at the master, in the program and in a block of another version."""
    code = hmac.new(TOKEN, b"splitstack management key 1\x01", hashlib.sha256)
    assert management_key(TOKEN) == code.hexdigest()


def test_keys_of_one_token_differ() -> None:
    assert signing_key(TOKEN).hex() != management_key(TOKEN)
    assert len(signing_key(TOKEN)) == 32


def test_another_token_has_another_key() -> None:
    keys = {management_key(token) for token in (TOKEN, TOKEN + b"2", TOKEN[:-1])}
    assert len(keys) == 3
    assert not any(TOKEN.decode() in key for key in keys)


@pytest.mark.parametrize("given", ["", "key", "KEY-of-the-test", "key-of-the-test ", "\xfc" * 15])
def test_what_is_not_the_same(given: str) -> None:
    assert not same(given, "key-of-the-test")


def test_the_same() -> None:
    assert same("key-of-the-test", "key-of-the-test")
