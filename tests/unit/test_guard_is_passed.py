"""There is one way to delete: the source is looked through for any other.

What writes a tombstone, removes a key slot or releases a hold is named here, with who may; a new place has to be put
into these lists by somebody who has thought about it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[2]

REMOVES_OBJECTS = {
    "imaging/configuration.py": "key slots, with a permit",
    "imaging/founding.py": "what an interrupted init left, in a store without a configuration",
    "imaging/guard/persons.py": "a person's key under the old passphrase, by who knows it",
    "imaging/leases.py": "what a lease that has ended needs no more",
    "imaging/points.py": "holds (protections with a permit), and what it has just written",
    "imaging/repairing.py": "damaged index objects, which are set aside before",
    "imaging/rollcalls.py": "older roll calls",
    "imaging/running.py": "beats and claims of its own series",
    "imaging/tidying.py": "what a collection found nothing to need",
    "imaging/undoing.py": "what came since an intruder did, and stands against points: tombstones, leases, claims",
    "imaging/verdicts.py": "verdicts that hold no more",
}
STORES = ("imaging/storage/",)


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in ("imaging", "appliance", "web"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            yield path.relative_to(PROJECT).as_posix(), ast.parse(path.read_text("utf-8"))


def calls(tree: ast.Module, *names: str) -> list[ast.Call]:
    """Calls of a function or method of one of these names."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Attribute) and node.func.attr in names)
            or (isinstance(node.func, ast.Name) and node.func.id in names)
        )
    ]


def of_a_store(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value).endswith("store")


def test_only_known_modules_remove_objects_of_a_store() -> None:
    found = {
        name
        for name, tree in modules()
        if not name.startswith(STORES) and any(of_a_store(call) for call in calls(tree, "delete", "delete_many"))
    }
    assert found == set(REMOVES_OBJECTS)


def test_one_place_writes_tombstones() -> None:
    found = {
        name
        for name, tree in modules()
        for call in calls(tree, "create", "create_json", "replace")
        if "TOMBSTONE" in " ".join(ast.unparse(each) for each in call.args)
    }
    assert found == {"imaging/points.py"}


def test_what_deletes_takes_a_permit_and_only_the_guard_makes_one() -> None:
    makers = {name for name, tree in modules() if calls(tree, "issue", "Permit")}
    assert makers == {"imaging/guard/acts.py", "imaging/guard/guard.py"}
    guard = dict(modules())["imaging/guard/guard.py"]
    (permit,) = [each for each in ast.walk(guard) if isinstance(each, ast.FunctionDef) and each.name == "permit"]
    inside = {id(node) for node in ast.walk(permit)}
    assert all(id(call) in inside for call in calls(guard, "issue"))
    for name, function in (
        ("imaging/points.py", "delete"),
        ("imaging/points.py", "release"),
        ("imaging/configuration.py", "remove_slot"),
        ("imaging/guard/states.py", "append"),
    ):
        (found,) = [
            node
            for node in ast.walk(dict(modules())[name])
            if isinstance(node, ast.FunctionDef) and node.name == function
        ]
        wanted = next(each for each in found.args.args if each.arg in ("permit", "permits"))
        assert "Permit" in ast.unparse(wanted.annotation or ast.Constant(None))
        assert not found.args.defaults, "a permit cannot be left out"
        assert any(ast.unparse(call.func).endswith(".check") for call in calls(ast.Module([found], []), "check"))
