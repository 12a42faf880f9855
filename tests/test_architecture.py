"""Who may import whom: the rooms' one-way order, and no circles among files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "realcustom"

# A room imports rooms of its own row and of earlier ones. The package's front, which hands out names, is in no row.
ORDER = (
    {"checks", "types", "pictures", "hub"},
    {"encoders", "guidance"},
    {"models"},
    {"convert", "pipelines"},
    {"engine"},
    {"data", "miniature", "training", "evaluation"},
    {"batch", "serving", "distributed"},
    {"cli"},
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}

Import = tuple[str, str, int, bool]  # importing module, imported module, line, whether it runs when the file is loaded


def module_name(path: Path) -> str:
    parts = ("realcustom", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str) -> Iterator[Import]:
    """Every import of the package's own modules in a file; those for type checkers only are left out."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, loaded: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    yield from walk(ast.Module([other], []), loaded)
                continue
            for name in imported(child, package):
                yield module, name, child.lineno, loaded
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from walk(child, loaded and not function)

    return walk(ast.parse(path.read_text(encoding="utf-8")), True)


def imported(node: ast.AST, package: str) -> list[str]:
    """The package's own modules that one import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in MODULES]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = package.rsplit(".", node.level - 1)[0] if node.level else ""
    base = ".".join(filter(None, [above, node.module]))
    names = [f"{base}.{alias.name}" for alias in node.names]
    inner = [name for name in names if name in MODULES]
    return inner + [base] * (base in MODULES and len(inner) < len(names))


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach one another, each sorted (Tarjan's strongly connected components)."""
    number, low, stack, found = {}, {}, [], []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in number:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == number[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in edges.get(node, ()):
                found.append(sorted(group))

    for node in edges:
        if node not in number:
            visit(node)
    return found


ALL = [entry for module in MODULES for entry in imports_of(module)]


def test_the_reader_sees_each_kind_of_import():
    """So that the tests below cannot pass by finding nothing."""
    assert len(ALL) > len(MODULES)
    assert {loaded for *_, loaded in ALL} == {True, False}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    tree = ast.parse("from . import types\nfrom .pictures.png import write_whole\nimport realcustom.types, json")
    found = [imported(node, "realcustom") for node in tree.body]
    assert found == [["realcustom.types"], ["realcustom.pictures.png"], ["realcustom.types"]]


def test_every_room_has_its_place():
    rooms = {room(module) for module in MODULES} - {"", "__main__"}
    assert rooms == set(RANK)


def test_imports_go_one_way():
    wrong = [
        f"{source}:{line} imports {target}"
        for source, target, line, _ in ALL
        if room(source) in RANK and room(target) in RANK and RANK[room(target)] > RANK[room(source)]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("when_loaded", [True, False], ids=["module level", "functions too"])
def test_no_circles_among_files(when_loaded):
    edges: dict[str, set[str]] = {}
    for source, target, _, loaded in ALL:
        if loaded or not when_loaded:
            edges.setdefault(source, set()).add(target)
    assert not circles(edges)
