#!/usr/bin/env python3
"""Run one command and append what it cost to a file, as one line of JSON.

usage: measure.py RESULTS SCENARIO TOOL [--disk MOUNTPOINT] [--known PID]... [--log FILE] -- COMMAND...

wall     seconds from exec until what COMMAND wrote is on the disk: its exit, and a sync of MOUNTPOINT. The reference
         importer leaves with its reference in memory only; who leaves with everything on the disk pays a millisecond.
exit     seconds from exec to exit
cpu      CPU seconds of everything it started: a cgroup of its own, or, without cgroup v2, the sum over descendants
peak     bytes: the highest sum of RssAnon and RssShmem over those processes, looked at every 20 ms. The page cache
         and the code of programs do not count: the kernel takes them back when it needs them.
written  bytes that the disk below MOUNTPOINT was told to write
kernel   CPU seconds of kernel threads, which write back what COMMAND left to them
others   CPU seconds of everything else during the run but --known (registry, proxy): disturbance
"""
import argparse
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time

SAMPLE = 0.02
TICK = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36


def read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


class Cgroup:
    """A fresh cgroup v2. cpu.stat needs no controller, so a hybrid hierarchy will do."""

    def __init__(self):
        mounts = [line.split() for line in read("/proc/mounts").splitlines()]
        root = next(m[1] for m in mounts if m[2] == "cgroup2")
        self.path = os.path.join(root, f"osctl-bench-{os.getpid()}")
        os.mkdir(self.path)
        try:
            self.cpu()
        except Exception:
            os.rmdir(self.path)
            raise

    def enter(self):
        with open(os.path.join(self.path, "cgroup.procs"), "w", encoding="utf-8") as f:
            f.write("0")

    def pids(self):
        return read(os.path.join(self.path, "cgroup.procs")).split()

    def cpu(self):
        stat = dict(line.split() for line in read(os.path.join(self.path, "cpu.stat")).splitlines())
        return tuple(int(stat[k]) / 1e6 for k in ("usage_usec", "user_usec", "system_usec"))

    def close(self):
        """What outlived COMMAND is given a second, then killed: it must not run into the next measurement."""
        deadline = time.monotonic() + 1
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.01)
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.01)
        cpu = self.cpu()
        os.rmdir(self.path)
        return cpu


class Descendants:
    """The same without cgroup v2: as their subreaper we inherit whoever loses a parent, and wait for all."""

    def __init__(self):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def enter(self):
        pass

    def pids(self):
        parents = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                parents[int(pid)] = int(read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
        found, ring = [], {os.getpid()}
        while ring:
            ring = {pid for pid, parent in parents.items() if parent in ring}
            found += ring
        return found

    def close(self):
        deadline = time.monotonic() + 1
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG) != (0, 0):
                    continue
            except ChildProcessError:
                break
            if time.monotonic() > deadline:
                for pid in self.pids():
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime, used.ru_utime, used.ru_stime


def memory(pids):
    total = 0
    for pid in pids:
        try:
            for line in read(f"/proc/{pid}/status").splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += int(line.split()[1]) * 1024
        except OSError:
            pass  # it has just ended
    return total


def busy():
    """CPU seconds of the whole machine, those stolen by its host included."""
    fields = [int(v) for v in read("/proc/stat").splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / TICK


def used_by(pids):
    total = 0
    for pid in pids:
        fields = read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / TICK
    return total


def kernel_threads():
    """CPU seconds by pid of the children of kthreadd."""
    used = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[1] == "2":
            used[pid] = (int(fields[11]) + int(fields[12])) / TICK
    return used


class Disk:
    def __init__(self, mountpoint):
        self.fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        dev = os.fstat(self.fd).st_dev
        self.stat = f"/sys/dev/block/{os.major(dev)}:{os.minor(dev)}/stat"

    def sync(self):
        if ctypes.CDLL(None, use_errno=True).syncfs(self.fd):
            raise OSError(ctypes.get_errno(), "syncfs")

    def written(self):
        return int(read(self.stat).split()[6]) * 512


def measure(command, log, disk, known):
    try:
        group = Cgroup()
    except (OSError, StopIteration, KeyError):
        group = Descendants()
    if disk:
        disk.sync()
        written = disk.written()
    threads = kernel_threads()
    before = busy() - used_by(known)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            group.enter()
            with open(log, "ab") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            os.execvp(command[0], command)
        except BaseException as error:  # the child must not run on in the parent's code
            os.write(2, f"{command[0]}: {error}\n".encode())
            os._exit(127)
    peak = 0
    try:
        with os.fdopen(os.pidfd_open(pid)) as ended:
            while not select.select([ended], [], [], SAMPLE)[0]:
                peak = max(peak, memory(group.pids()))
        exited = time.monotonic() - started
        if disk:
            disk.sync()
        wall = time.monotonic() - started
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        # Also when somebody ends us: COMMAND goes too.
        cpu, user, system = group.close()
    others = busy() - used_by(known) - before - cpu
    kernel = sum(used - threads.get(pid, 0) for pid, used in kernel_threads().items())
    result = {"wall": wall, "exit": exited, "cpu": cpu, "user": user, "system": system, "peak": peak, "kernel": kernel}
    result["others"] = max(0, others - kernel)
    if disk:
        result["written"] = disk.written() - written
    return status, result


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("results")
    p.add_argument("scenario")
    p.add_argument("tool")
    p.add_argument("--disk")
    p.add_argument("--known", action="append", default=[])
    p.add_argument("--log", default="/dev/null")
    p.add_argument("command", nargs="+")
    a = p.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    status, result = measure(a.command, a.log, a.disk and Disk(a.disk), a.known)
    if status == 0:
        with open(a.results, "a", encoding="utf-8") as f:
            run = {"scenario": a.scenario, "tool": a.tool} | {k: round(v, 4) for k, v in result.items()}
            f.write(json.dumps(run) + "\n")
    print("{wall:.2f} s, cpu {cpu:.2f} s, peak {0:.0f} MiB, kernel {kernel:.2f} s, others {others:.2f} s".format(result["peak"] / 2**20, **result))
    sys.exit(0 if status == 0 else 1)


if __name__ == "__main__":
    main()
