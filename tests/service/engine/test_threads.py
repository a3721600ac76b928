"""Quotas in folders like those of the kernel. CPUs of the process are eight in all tests."""

import os
from pathlib import Path

import pytest

from service.engine.threads import available_cpus

_CPUS = 8


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(_CPUS)))


def _group(folder: Path, cpus: float | None, version: int = 2) -> None:
    """A control group in which this many CPUs may be used; None for all."""
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / "cpu.max").write_text(f"{'max' if cpus is None else round(cpus * 100_000)} 100000\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text(f"{-1 if cpus is None else round(cpus * 50_000)}\n")
        (folder / "cpu.cfs_period_us").write_text("50000\n")


def _cpus_of(tmp_path: Path, membership: str) -> int:
    (tmp_path / "membership").write_text(membership)
    return available_cpus(tmp_path, tmp_path / "membership")


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1, 1), (2.5, 3), (99, _CPUS), (None, _CPUS)])
@pytest.mark.parametrize("version", [1, 2])
def test_the_quota_of_a_container_is_at_the_root(quota: float | None, expected: int, version: int, tmp_path: Path) -> None:
    """Rounded up, at least one, and no more than there are; `max` and -1 are no quota."""
    _group(tmp_path if version == 2 else tmp_path / "cpu", quota, version)
    assert _cpus_of(tmp_path, "0::/\n") == expected


@pytest.mark.parametrize("quotas", [(None, None, 3), (None, 3, None), (None, 3, 5), (None, 5, 3), (4, 3, 5)])
@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_quota_of_a_group_and_those_above_it(quotas: tuple[float | None, ...], version: int, tmp_path: Path) -> None:
    """A service with CPUQuota=, or a container without a cgroup namespace, finds its group by the path that the kernel tells."""
    root = tmp_path if version == 2 else tmp_path / "cpu"
    for folder, quota in zip((root, root / "system.slice", root / "system.slice" / "normscope.service"), quotas, strict=True):
        _group(folder, quota, version)
    path = "/system.slice/normscope.service\n"
    membership = f"0::{path}" if version == 2 else f"12:memory:/other\n4:cpu,cpuacct:{path}1:name=systemd:{path}"
    assert _cpus_of(tmp_path, membership) == 3


def test_groups_of_others_do_not_count(tmp_path: Path) -> None:
    """Neither the group of another service, nor that of another controller."""
    _group(tmp_path / "own.service", None)
    _group(tmp_path / "other.service", 1)
    _group(tmp_path / "cpu" / "other.service", 1, version=1)
    assert _cpus_of(tmp_path, "5:cpuset:/other.service\n0::/own.service\n") == _CPUS


def test_a_path_of_the_host_in_a_container(tmp_path: Path) -> None:
    """Where the kernel tells a path that is not mounted, the quota at the root is that of the container."""
    _group(tmp_path / "cpu", 2, version=1)
    assert _cpus_of(tmp_path, "4:cpu,cpuacct:/docker/0123\n") == 2


def test_a_group_outside_of_the_namespace(tmp_path: Path) -> None:
    """A path that leads out of what is mounted is not followed."""
    _group(tmp_path / "cgroup", 2)
    _group(tmp_path / "outside", 1)
    (tmp_path / "membership").write_text("0::/../outside\n")
    assert available_cpus(tmp_path / "cgroup", tmp_path / "membership") == 2


def test_no_control_groups(tmp_path: Path) -> None:
    """Without any, the CPUs of the process are what there is."""
    assert available_cpus(tmp_path, tmp_path / "missing") == _CPUS
