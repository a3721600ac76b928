"""How many threads a run may use: the CPU quota of the container or service, not the cores of its host."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """CPUs that this process may use: the scheduler's affinity, cut by the smallest quota of its control groups; at least 1.

    Args:
        cgroup: where the control groups are mounted, of version 2 or 1.
        membership: the file of the kernel that names the groups of the process, `man 7 cgroups`.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(cgroup, membership) if (quota := _quota(folder)) is not None]
    return max(1, min([cpus, *map(math.ceil, quotas)]))


def _groups(cgroup: Path, membership: Path) -> Iterator[Path]:
    """The folders of the process's groups that may hold a quota, and of all groups above them.

    A container with its own cgroup namespace sees its group as the root. Without one, its group has the path of the host, and may
    lie at the root all the same where nothing else is mounted; folders that do not exist have no quota.
    """
    yield from (cgroup, cgroup / "cpu")
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        group = PurePosixPath(path)
        if ".." in group.parts:  # outside of what is mounted here
            continue
        if not controllers:
            mounted = cgroup
        elif "cpu" in controllers.split(","):
            mounted = cgroup / "cpu"
        else:
            continue
        yield from (mounted / str(each).lstrip("/") for each in (group, *group.parents))


def _quota(folder: Path) -> float | None:
    """CPUs that the group in a folder may use; None without a limit."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return None if limit_us <= 0 else limit_us / period_us
    except (OSError, ValueError):
        return None
