"""A test without an assertion cannot fail: none is allowed in."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def _asserts(node: ast.AST) -> bool:
    for child in ast.walk(node):
        if isinstance(child, ast.Assert):
            return True
        if isinstance(child, ast.Call):
            name = ast.unparse(child.func)
            if "assert" in name or name in ("pytest.raises", "refused", "_check"):
                return True
    return False


def test_every_test_asserts_something() -> None:
    silent = []
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not _asserts(node):
                silent.append(f"{file.name}:{node.name}")
    assert silent == []
