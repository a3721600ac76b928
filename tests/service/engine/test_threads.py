import os
from pathlib import Path

from service.engine.threads import available_cpus


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def test_quota_of_cgroup_version_2(tmp_path: Path) -> None:
    """A quota of half a CPU gives one thread; of many CPUs no more than there are."""
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert available_cpus(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("9999900000 100000\n")
    assert available_cpus(tmp_path) == _cpus()


def test_quota_of_cgroup_version_1(tmp_path: Path) -> None:
    """The older files are read where cpu.max does not exist; -1 is no quota."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    assert available_cpus(tmp_path) == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert available_cpus(tmp_path) == _cpus()


def test_no_quota(tmp_path: Path) -> None:
    """`max`, or no cgroup at all, leaves the CPUs of the process."""
    assert available_cpus(tmp_path) == _cpus()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cpus(tmp_path) == _cpus()
