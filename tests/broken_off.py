"""Work in processes that can be killed: one process imports everything, and forks another for each attempt.

`python -m tests.broken_off` reads a line of JSON for each attempt, and answers with its process id, then with
its exit status.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Nursery:
    """Where attempts are begun; the test's side."""

    def __init__(self):
        self.running = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.broken_off"],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def begin(self, work, **given):
        """The process id of an attempt."""
        self.stop()
        job = {"work": work, "given": {name: value if isinstance(value, int | float | list) else str(value)
                                       for name, value in given.items()}}  # fmt: skip
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        self.running = int(self.process.stdout.readline())
        return self.running

    def end(self):
        """The signal that killed the attempt, or 0 where it came to its end."""
        killed, status = json.loads(self.process.stdout.readline())
        self.running = None
        assert killed or status == 0, "the attempt failed; see its stderr"
        return status

    def do(self, work, **given):
        """An attempt that nobody disturbs."""
        self.begin(work, **given)
        assert self.end() == 0

    def kill(self, process):
        """`kill -9`; whether it came in time."""
        os.kill(process, signal.SIGKILL)  # it is reaped later, so that the number is still its own
        return self.end() == signal.SIGKILL

    def stop(self):
        """An attempt that a failing test has left."""
        if self.running:
            self.kill(self.running)

    def close(self):
        self.stop()
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def wait_for(condition, seconds=120):
    """Until something is so."""
    for _ in range(seconds * 500):
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError("it never came to that")


@contextmanager
def nursery():
    made = Nursery()
    try:
        yield made
    finally:
        made.close()


# --- in the attempts ------------------------------------------------------------------------------------


def slow_writes(pause):
    """Content comes in two halves, and everything about a file waits first: a kill falls where it likes."""
    fsync, replace = os.fsync, os.replace

    def written(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(pause)
            file.write(content[len(content) // 2 :])
        return len(content)

    Path.write_bytes = written
    os.fsync = lambda handle: (time.sleep(pause), fsync(handle))[1]
    os.replace = lambda old, new: (time.sleep(pause), replace(old, new))[1]


def stop_at(place, name, there):
    """Stop for good at one place of the writing of one file; `there` is made when it has come to that."""
    fsync, replace, write, rmtree = os.fsync, os.replace, Path.write_bytes, None
    import shutil

    rmtree = shutil.rmtree
    now = {"name": ""}

    def stop():
        Path(there).touch()
        time.sleep(600)

    def written(path, content):
        now["name"] = path.name
        if place == "content" and name in path.name:
            with open(path, "wb") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                stop()
        return write(path, content)

    def flushed(handle):
        if place == "fsync" and name in now["name"]:
            stop()
        return fsync(handle)

    def replaced(old, new):
        if place == "replace" and name in Path(new).name:
            stop()
        return replace(old, new)

    def removed(folder, **options):
        if place == "removal" and name in Path(folder).name:
            stop()
        return rmtree(folder, **options)

    Path.write_bytes, os.fsync, os.replace, shutil.rmtree = written, flushed, replaced, removed


def swept(out, count=100, **options):
    """The sweep that is broken off in these tests: 1 + 6 · `count` cells of 8 questions to a tiny model."""
    from tl_steer.evaluation.sweep import sweep

    from .test_sweep import MODEL, questions, several

    given = {"multipliers": [number / 10 for number in range(1, count + 1)], "controls": 1, "progress": False}
    return sweep(MODEL, several(), questions(), out=out, **given | options)


def sweeping(out, count=100, pause=0.0):
    slow_writes(pause)
    swept(out, count)


def stopping_sweep(out, place, name, there):
    stop_at(place, name, there)
    swept(out)


def limited_sweep(out, size):
    """With files of at most so many bytes, as on a disk that is full."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    told = ""
    try:
        swept(out)
    except OSError as error:
        told = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path(out).with_suffix(".told").write_text(told)


def running(file, out, pause=0.0):
    from tl_steer.experiments import read_experiment, run

    slow_writes(pause)
    run(read_experiment(file), out, progress=False)


def stopping_run(file, out, place, name, there):
    from tl_steer.experiments import read_experiment, run

    stop_at(place, name, there)
    run(read_experiment(file), out, progress=False)


WORK = {each.__name__: each for each in (sweeping, stopping_sweep, limited_sweep, running, stopping_run)}


ENDED = []


def main():
    import warnings

    warnings.simplefilter("ignore")
    import tl_steer.experiments

    from . import test_sweep  # noqa: F401 (everything is imported once)

    assert tl_steer.experiments.run
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if not process:
            try:
                WORK[job["work"]](**job["given"])
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(process, flush=True)
        ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        print(json.dumps([ended.si_code != os.CLD_EXITED, ended.si_status]), flush=True)
        ENDED.append(process)
        while len(ENDED) > 1:  # the one before: nobody asks for it any more
            os.waitpid(ENDED.pop(0), 0)


if __name__ == "__main__":
    main()
