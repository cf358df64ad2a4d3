"""How many tasks there may be in a sandbox at once."""

import resource

SPARE_TASKS = (
    512  # beside the processes that are allowed: threads, and what the sandbox itself runs
)


def bound_tasks(processes: int) -> None:
    """Limit the tasks of this process's user, where that is the user of one sandbox alone.

    Elsewhere the user's other processes would count. Linux does not apply it to root's sandboxes.
    """
    with open("/proc/self/uid_map") as file:
        lines = file.read().splitlines()
    if len(lines) == 1 and lines[0].split()[2] == "1":
        most = processes + SPARE_TASKS
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
