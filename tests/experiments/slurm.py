"""A SLURM of one node for tests: munge, controller and node daemon of Debian's packages, in a folder of their own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol", "scancel")

CONFIG = """
ClusterName=deepvit
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=1
ReturnToService=2
KillWait=60
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no SLURM here; None where there can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"{absent[0]} is not installed (Debian: apt install slurm-wlm munge)" if absent else None


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextlib.contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """A running SLURM inside; gives the environment in which its commands find it.

    Raises:
        OSError: a daemon does not come up; the text has the end of its log.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    config = folder / "slurm.conf"
    user, host = pwd.getpwuid(os.geteuid()).pw_name, socket.gethostname().split(".")[0]
    config.write_text(CONFIG.format(host=host, user=user, folder=folder, ports=free_ports(2)))
    env = {**os.environ, "PATH": path, "SLURM_CONF": str(config)}
    log = {name: folder / f"{name}.log" for name in ("munged", "slurmctld", "slurmd")}
    commands = {
        "munged": [
            "munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munge.pid", f"--log-file={log['munged']}", f"--seed-file={folder}/munge.seed",
        ],
        "slurmctld": ["slurmctld", "-D", "-f", str(config), "-L", str(log["slurmctld"])],
        "slurmd": ["slurmd", "-D", "-f", str(config), "-L", str(log["slurmd"]), "-N", host],
    }  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in commands.items():
            running.append(
                subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            if name == "munged":
                wait_until(lambda: (folder / "munge.socket").exists(), log[name])
        wait_until(lambda: "idle" in told(["sinfo", "-h", "-o", "%T"], env), log["slurmctld"])
        yield env
    finally:
        with contextlib.suppress(OSError):
            told(["scancel", "--state=RUNNING", "--state=PENDING", f"--user={user}"], env)
        for process in reversed(running):
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def told(command: list[str], env: dict[str, str]) -> str:
    """What a command prints; nothing where it fails."""
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def wait_until(holds: object, log: Path, seconds: float = 90) -> None:
    """Wait for a condition.

    Raises:
        OSError: it did not come; the text has the end of a log.
    """
    until = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        if time.monotonic() > until:
            raise OSError(f"it does not come: {log.read_text()[-600:] if log.exists() else log}")
        time.sleep(0.3)
