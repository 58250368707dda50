from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from imaging import canonical
from imaging.envelope import ObjectType, seal
from imaging.errors import Damaged, NotAuthentic, RecoveryKeyMalformed
from imaging.keys import KeyBundle
from imaging.slots import Argon2Cost, MachineKey, Passphrase, RecoveryKey, make_slot, open_slot, parse_slot

BUNDLE = KeyBundle(bytes(range(32)), bytes(range(32, 64)))
REPOSITORY = bytes(range(16))
NOW = datetime(2026, 3, 1, tzinfo=UTC)
CHEAP = Argon2Cost(memory_kib=19_456, passes=1, lanes=1)


@pytest.mark.parametrize("secret", [Passphrase("pässword"), RecoveryKey(b"r" * 32), MachineKey(b"m" * 32)])
def test_a_slot_opens_with_its_secret_and_says_what_it_is(secret: Passphrase | RecoveryKey | MachineKey) -> None:
    slot = make_slot(secret, BUNDLE, REPOSITORY, NOW, "a label", CHEAP)
    again = parse_slot(slot.data, "keys.copy/" + slot.id)
    assert (again.id, again.kind, again.label, again.created_utc) == (slot.id, secret.kind, "a label", NOW)
    assert open_slot(again, secret) == BUNDLE


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (Passphrase("right"), Passphrase("Right")),
        (RecoveryKey(b"r" * 32), RecoveryKey(b"s" * 32)),
        (MachineKey(b"m" * 32), MachineKey(b"n" * 32)),
    ],
)
def test_another_secret_is_told_apart_from_damage(
    right: Passphrase | RecoveryKey | MachineKey, wrong: Passphrase | RecoveryKey | MachineKey
) -> None:
    slot = make_slot(right, BUNDLE, REPOSITORY, NOW, "", CHEAP)
    with pytest.raises(NotAuthentic):
        open_slot(slot, wrong)
    flipped = bytearray(slot.data)
    flipped[-40] ^= 1
    with pytest.raises(Damaged) as caught:
        parse_slot(bytes(flipped), "keys/x")
    assert not isinstance(caught.value, NotAuthentic)


def test_a_passphrase_slot_is_what_the_format_says_computed_by_another_argon2() -> None:
    slot = make_slot(Passphrase("Gru\u0308n"), BUNDLE, REPOSITORY, NOW, "", CHEAP)  # decomposed on one keyboard
    key = hash_secret_raw(
        "Grün".encode(),
        slot.kdf.hex("salt", 16),
        time_cost=1,
        memory_cost=19_456,
        parallelism=1,
        hash_len=32,
        type=Type.ID,
    )
    envelope = slot.envelope
    plain = AESGCMSIV(key).decrypt(envelope.nonce, envelope.sealed, envelope.head + f"keys/{slot.id}".encode())
    assert plain == b"\0\x40\0\0\0" + BUNDLE.to_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"memory_kib": 19_455},
        {"memory_kib": 1_048_577},
        {"memory_kib": 1 << 62},
        {"passes": 0},
        {"passes": 17},
        {"lanes": 0},
        {"lanes": 17},
        {"salt": "00" * 15},
        {"name": "argon2i"},
        {"passes": "1"},
    ],
)
def test_hostile_argon2_parameters_are_refused_before_they_are_computed(
    change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    kdf = {"name": "argon2id", "lanes": 1, "memory_kib": 19_456, "passes": 1, "salt": "00" * 16} | change
    clear = canonical.encode(
        {"created_utc": "2026-03-01T00:00:00Z", "id": "ab" * 16, "kdf": kdf, "kind": "passphrase", "label": ""}
    )
    slot = parse_slot(seal(ObjectType.KEY_SLOT, "keys/" + "ab" * 16, bytes(32), REPOSITORY, b"", clear), "keys/x")

    def never(**_: object) -> None:
        raise AssertionError("it was computed")

    monkeypatch.setattr("imaging.slots.Argon2id", never)
    with pytest.raises(Damaged):
        open_slot(slot, Passphrase("x"))


def test_recovery_keys_are_printed_and_typed_in() -> None:
    key = RecoveryKey(bytes(range(32)))
    text = key.text()
    assert text.startswith("SR1-")
    assert [len(group) for group in text.split("-")] == [3] + [4] * 14
    assert base64.b32decode(text[4:].replace("-", "")) == key.secret + blake3(key.secret).digest()[:3]
    for typed in (text, text.lower(), text.replace("-", ""), " ".join(text) + "\n", text.replace("-", " - ")):
        assert RecoveryKey.parse(typed) == key


@pytest.mark.parametrize("position", [4, 10, 30, 72])
def test_a_mistyped_recovery_key_is_noticed_and_never_repeated(position: int) -> None:
    text = RecoveryKey(bytes(range(32))).text()
    wrong = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
    with pytest.raises(RecoveryKeyMalformed) as caught:
        RecoveryKey.parse(wrong)
    assert text[4:12] not in str(caught.value)
    assert "SR1" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "SR1-", "SR2-" + "AAAA-" * 14, "SR1-" + "AAAA-" * 13, "SR1-" + "1111-" * 14, "x" * 100_000]
)
def test_other_texts_are_no_recovery_key(text: str) -> None:
    with pytest.raises(RecoveryKeyMalformed):
        RecoveryKey.parse(text)


def test_no_secret_shows() -> None:
    assert "hunter2" not in repr(Passphrase("hunter2"))
    assert "rrr" not in repr(RecoveryKey(b"r" * 32))
    assert "mmm" not in repr(MachineKey(b"m" * 32))
