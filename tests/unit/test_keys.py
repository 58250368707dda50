from __future__ import annotations

from dataclasses import fields

import pytest
from blake3 import blake3

from imaging.errors import Damaged
from imaging.keys import KeyBundle, Keys

BUNDLE = KeyBundle(bytes(range(32)), bytes(range(32, 64)))
REPOSITORY = bytes(range(16))
UUID = "5a8e5b1c-0000-4000-8000-000000000001"


def test_each_key_is_derived_by_its_own_purpose_from_its_own_secret() -> None:
    keys = Keys.derive(BUNDLE, REPOSITORY)
    expected = {
        "chunk id": BUNDLE.dedup,
        "node id": BUNDLE.dedup,
        "cut multipliers": BUNDLE.dedup,
        "cut permutation": BUNDLE.dedup,
        "blob": BUNDLE.master,
        "pack table": BUNDLE.master,
        "index": BUNDLE.master,
        "manifest": BUNDLE.master,
        "control": BUNDLE.master,
        "configuration": BUNDLE.master,
        "series": BUNDLE.master,
        "key check": BUNDLE.master,
    }
    assert {each.name for each in fields(Keys)} == {name.replace(" ", "_") for name in expected} | {"repository_id"}
    seen = set()
    for purpose, secret in expected.items():
        length = 8200 if purpose == "cut multipliers" else 32
        derived = getattr(keys, purpose.replace(" ", "_"))
        assert derived == blake3(secret, derive_key_context="strongroom v1 " + purpose).digest(length=length)
        seen.add(derived[:32])
    assert len(seen) == len(expected)


def test_a_repository_made_like_another_shares_cuts_and_ids_and_nothing_else() -> None:
    other = KeyBundle.new(like=BUNDLE)
    mine, theirs = Keys.derive(BUNDLE, REPOSITORY), Keys.derive(other, REPOSITORY)
    same = {each.name for each in fields(Keys) if getattr(mine, each.name) == getattr(theirs, each.name)}
    assert same == {"repository_id", "chunk_id", "node_id", "cut_multipliers", "cut_permutation"}


def test_no_secret_shows() -> None:
    keys = Keys.derive(BUNDLE, REPOSITORY)
    shown = repr(keys) + repr(BUNDLE) + str(keys) + str(BUNDLE)
    for secret in (BUNDLE.master, BUNDLE.dedup, keys.blob, keys.chunk_id, keys.control):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


def test_a_bundle_of_another_length_is_damage() -> None:
    assert KeyBundle.from_bytes(BUNDLE.to_bytes(), "keys/x") == BUNDLE
    with pytest.raises(Damaged, match="keys/x"):
        KeyBundle.from_bytes(bytes(63), "keys/x")


def test_series_names() -> None:
    keys = Keys.derive(BUNDLE, REPOSITORY)
    name = keys.series_of("vm", UUID)
    assert name == blake3(b"vm" + bytes(1) + UUID.encode(), key=keys.series).hexdigest()[:32]
    assert keys.series_of("image", UUID) != name
    for kind, wrong in (("vm", ""), ("disk", "x"), ("image", "a\0b")):
        with pytest.raises(ValueError, match="no series"):
            keys.series_of(kind, wrong)
