"""The shape of the code: imports go one way and do nothing heavy, files stay short, the front door is small."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vap_gym"

# A module imports only from its own layer and those before it. Names are first-level modules or packages of vap_gym.
LAYERS = (
    ("errors",),
    ("rotations",),
    ("geometry",),
    ("interfaces",),
    ("assets",),
    ("cards",),
    ("registry",),
    ("contract",),
    ("kinematics",),
    ("prompts",),
    ("rig",),
    ("world",),
    ("video",),
    ("metrics",),
    ("pictures",),
    ("judge",),
    ("data",),
    ("jobs",),
    ("recover",),
    ("sim",),
    (
        "photo",
        "starts",
        "trust",
        "stage",
        "outcome",
        "observations",
        "viewpoints",
        "whereabouts",
        "imagine",
        "loading",
        "viewer",
        "env",
        "vector",
        "oracle_env",
        "twin",
    ),
    ("real_start", "scripted", "drafting"),
    ("train",),
    ("plan", "policies"),
    ("serve",),
    ("evaluate",),
    ("rl",),
    ("studio",),
    ("demo",),
    ("commands",),
    ("cli",),
    ("__main__",),
    ("__init__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Slow or optional: nothing that `import vap_gym` or `vap-gym --help` does may need them.
HEAVY = (
    "torch", "diffusers", "transformers", "peft", "tensordict", "pybullet", "kornia", "matplotlib", "cv2", "pandas",
    "scipy", "ray", "h5py", "stable_baselines3", "torchrl", "pyarrow", "av", "yourdfpy", "trimesh", "PIL", "jaxtyping",
)  # fmt: skip


def module_name(path: Path) -> str:
    """`vap_gym/world/codec.py` → `vap_gym.world.codec`; a package is named by its folder."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(name: str) -> set[str]:
    """Return the modules of vap_gym that a module imports anywhere, inside functions and for types only included."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            inner = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            # `from vap_gym.world import codec` needs the codec; the package around it is named only for its own names.
            found |= inner if len(inner) == len(node.names) else inner | ({base} & MODULES.keys())
    return found


def layer(name: str) -> str:
    """`vap_gym.world.codec` → `world`; `vap_gym` itself → `__init__`."""
    return [*name.split("."), "__init__"][1]


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_from_its_own_layer_and_those_before(name: str) -> None:
    assert layer(name) in RANK, f"{layer(name)} has no place in LAYERS: say which modules it may import from"
    upward = {other for other in imported_modules(name) if RANK[layer(other)] > RANK[layer(name)]}
    assert not upward, f"{name} imports from layers after its own: {sorted(upward)}"


def test_imports_form_no_cycle() -> None:
    graph = {name: imported_modules(name) - {name} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]), pytrace=False)


def test_no_file_is_longer_than_400_lines() -> None:
    root = PACKAGE.parent
    files = [
        path for folder in ("vap_gym", "tests", "examples", "benchmarks") for path in (root / folder).rglob("*.py")
    ]
    long = {str(path.relative_to(root)): n for path in files if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_every_module_says_its_idea_in_its_first_line() -> None:
    silent = [name for name, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints; warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_vap_gym_imports_nothing_heavy() -> None:
    assert run_python(f"import sys, vap_gym; print(sorted(set({HEAVY!r}) & set(sys.modules)))") == "[]"


def test_help_imports_nothing_heavy() -> None:
    code = (
        f"import sys; from vap_gym.cli import main; main(['--help']); print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert run_python(code).endswith("[]")


def test_front_door_has_at_most_25_names_and_all_can_be_opened() -> None:
    code = "import vap_gym; [getattr(vap_gym, name) for name in vap_gym.__all__]; print(*vap_gym.__all__)"
    names = run_python(code).split()
    assert 0 < len(names) <= 25
    assert len(set(names)) == len(names)
