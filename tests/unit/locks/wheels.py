"""What the wheels of the lock files require, and whether a lock file grants it.

``wheels.json`` holds, for every version pinned in a lock file, what its wheel says of itself.
After a change of a lock file, ``python tests/unit/locks/wheels.py``, run in the CPU environment, reads it anew from the
configured package index, which takes ten minutes. A wheel is downloaded only where the index serves no metadata beside it.
"""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[3]
WHEELS = Path(__file__).with_name("wheels.json")
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
NEWEST_GLIBC = 39


@dataclass(frozen=True)
class Wheel:
    """What a wheel says of itself: the range of Python versions that it is for, and, sorted, what must be installed beside it."""

    requires_python: str
    requires: tuple[str, ...]


def pins(*locks: str, markers: dict[str, str] | None = None) -> dict[str, Version]:
    """Names, as the index spells them, and versions of lock files: all, or those that apply under ``markers``."""
    found = {}
    for lock in locks:
        for line in (ROOT / lock).read_text().splitlines():
            if line and not line.startswith("#"):
                requirement = Requirement(line)
                if markers is not None and requirement.marker is not None and not requirement.marker.evaluate(markers):
                    continue
                (specifier,) = requirement.specifier
                assert specifier.operator in ("==", "==="), f"{lock}: {line} pins no version"
                found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def declared(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for: the dependencies of the package where no extra is named, else those of the extras alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for extra in extras for line in project["optional-dependencies"][extra]] or project["dependencies"]
    return [Requirement(line) for line in lines]


def environment(python: str, machine: str) -> dict[str, str]:
    """The environment markers of CPython ``python`` on Linux."""
    system = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine}
    interpreter = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    version = {"python_version": python, "python_full_version": f"{python}.0", "implementation_version": f"{python}.0"}
    return {**default_environment(), **system, **interpreter, **version}


def recorded() -> dict[str, Wheel]:
    """Wheels by ``name==version``, from the extract."""
    entries = json.loads(WHEELS.read_text())
    return {pin: Wheel(entry["requires_python"], tuple(entry["requires"])) for pin, entry in entries.items()}


_parsed = lru_cache(maxsize=None)(Requirement)


def contradictions(
    wanted: Iterable[Requirement],
    pinned: dict[str, Version],
    wheel: Callable[[str, Version], Wheel],
    markers: dict[str, str],
    left_out: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """Sentences on what installing ``pinned`` without a resolver would leave broken, and on pins that nothing asks for.

    Follows ``Requires-Dist`` from what is wanted, with extras, under the environment ``markers``; ``left_out`` are names that are
    knowingly not installed.
    """
    waiting = [(requirement, "pyproject.toml") for requirement in wanted]
    reached: set[tuple[str, str]] = set()
    while waiting:
        requirement, by = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in left_out:
            continue
        if name not in pinned:
            yield f"{by} requires {requirement}, which is not pinned"
            continue
        if not requirement.specifier.contains(pinned[name], prereleases=True):
            yield f"{by} requires {requirement}, and {pinned[name]} is pinned"
        for extra in {"", *requirement.extras}:
            if (name, extra) in reached:
                continue
            reached.add((name, extra))
            pin = f"{name}=={pinned[name]}"
            says = wheel(name, pinned[name])
            if Version(markers["python_full_version"]) not in Requirement(f"python{says.requires_python}").specifier:
                yield f"{pin} is for Python {says.requires_python}"
            inner = map(_parsed, says.requires)
            given = {**markers, "extra": extra}
            waiting.extend((one, pin) for one in inner if one.marker is None or one.marker.evaluate(given))
    for name in pinned.keys() - {name for name, _ in reached}:
        yield f"{name} is pinned, and nothing requires it"


def installed(distribution: importlib.metadata.Distribution) -> Wheel:
    """What an installed distribution says of itself."""
    return Wheel(distribution.metadata.get("Requires-Python") or "", tuple(sorted(distribution.requires or ())))


def _report(python: Path, lines: list[str], version: str, machine: str) -> list[dict[str, Any]]:
    """Pip's report on what it would install of pinned ``lines`` for a version of Python on a machine."""
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(5, NEWEST_GLIBC + 1)]
    tags += [f"manylinux{year}_{machine}" for year in (1, 2010, 2014)]
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder, "lock")
        lock.write_text("\n".join(lines))
        place = ["--python-version", version, *(word for tag in tags for word in ("--platform", tag))]
        command = [python, "-m", "pip", "install", "-qq", "--dry-run", "--no-deps", "--ignore-installed"]
        subprocess.run([*command, "--target", folder, "--report", f"{folder}/report", *place, "-r", lock], check=True)
        return json.loads(Path(folder, "report").read_text())["install"]


def main() -> None:
    """Write the extract anew: two corners of the grid of Python versions and machines must say the same."""
    cuda, cpu = pins("requirements-gpu.lock"), pins("requirements-cpu.lock", "requirements-dev.lock")
    del cpu["torch"]  # of the CPU build, from the environment that runs this: PyTorch's own index has it
    groups = [
        [f"{name}==={version}" for name, version in cuda.items()],
        [f"{name}==={version}" for name, version in cpu.items() if cuda.get(name) != version],
    ]
    torch = importlib.metadata.distribution("torch")
    wheels = {f"torch=={torch.version}": installed(torch)}
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        # An older pip downloads whole wheels in a dry run.
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
        for version, machine in (PYTHONS[0], MACHINES[0]), (PYTHONS[-1], MACHINES[-1]):
            for lines in groups:
                for entry in _report(python, lines, version, machine):
                    says = entry["metadata"]
                    pin = f"{canonicalize_name(says['name'])}=={Version(says['version'])}"
                    wheel = Wheel(says.get("requires_python") or "", tuple(sorted(says.get("requires_dist", ()))))
                    if wheels.setdefault(pin, wheel) != wheel:
                        sys.exit(
                            f"The wheels of {pin} say different things for different machines or versions of Python."
                        )
    entries = (f"{json.dumps(pin)}: {json.dumps(vars(wheel))}" for pin, wheel in sorted(wheels.items()))
    WHEELS.write_text("{\n" + ",\n".join(entries) + "\n}\n")


if __name__ == "__main__":
    main()
