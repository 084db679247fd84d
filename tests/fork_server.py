"""Processes that can be killed: a server imports everything once and forks one process per task.

`python -m tests.fork_server` reads one task per line (JSON) and answers with the process id, then the status.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent


class ForkServer:
    """Client of the server process; runs one task at a time."""

    def __init__(self):
        self.running = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server"],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self, task, **arguments):
        """Start a task and return its process id."""
        self.stop()
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in arguments.items()}
        self.process.stdin.write(json.dumps({"task": task, "arguments": plain}) + "\n")
        self.process.stdin.flush()
        self.running = int(self.process.stdout.readline())
        return self.running

    def wait(self):
        """Wait for the task; return the signal that killed it, or 0."""
        killed, status = json.loads(self.process.stdout.readline())
        self.running = None
        assert killed or status == 0, "the task failed; see its stderr"
        return status

    def run(self, task, **arguments):
        self.start(task, **arguments)
        assert self.wait() == 0

    def kill(self, process):
        """Send SIGKILL; return whether the task was still running."""
        os.kill(process, signal.SIGKILL)  # the server reaps it later, so the id is not reused
        return self.wait() == signal.SIGKILL

    def stop(self):
        """Kill the task that a failed test left running."""
        if self.running:
            self.kill(self.running)

    def close(self):
        self.stop()
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def wait_for(condition, seconds=120):
    for _ in range(seconds * 500):
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError(f"the condition was not met within {seconds} seconds")


# Tasks, which run in the forked processes


def slow_down_writes(pause):
    """Write each file in two parts, and pause before each step, so that a kill can fall anywhere."""
    fsync, replace = os.fsync, os.replace

    def write_bytes(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(pause)
            file.write(content[len(content) // 2 :])
        return len(content)

    Path.write_bytes = write_bytes
    os.fsync = lambda handle: (time.sleep(pause), fsync(handle))[1]
    os.replace = lambda old, new: (time.sleep(pause), replace(old, new))[1]


def stop_at(step, name, marker):
    """Create `marker` and sleep at one step of writing the file whose name contains `name`.

    Steps: "content" (half of it is written), "fsync", "replace", and "removal" of a folder.
    """
    fsync, replace, write, rmtree = os.fsync, os.replace, Path.write_bytes, shutil.rmtree
    last_written = ""

    def stop_if(current, path):
        if current == step and name in Path(path).name:
            Path(marker).touch()
            time.sleep(600)

    def write_bytes(path, content):
        nonlocal last_written
        last_written = path.name
        if step == "content" and name in path.name:
            write(path, content[: len(content) // 2])
        stop_if("content", path)
        return write(path, content)

    def patched_fsync(handle):
        stop_if("fsync", last_written)
        return fsync(handle)

    def patched_replace(old, new):
        stop_if("replace", new)
        return replace(old, new)

    def patched_rmtree(folder, **options):
        stop_if("removal", folder)
        return rmtree(folder, **options)

    Path.write_bytes, os.fsync, os.replace, shutil.rmtree = (
        write_bytes, patched_fsync, patched_replace, patched_rmtree,
    )  # fmt: skip


def long_sweep(out, count=100, **options):
    """1 + 6 · `count` conditions of 8 questions to a tiny model."""
    from tl_steer.sweeps._sweep import sweep

    from .test_sweep import MODEL, questions, several

    defaults = {"multipliers": [number / 10 for number in range(1, count + 1)], "controls": 1}
    defaults["control_layers"] = "all"
    return sweep(MODEL, several(), questions(), out=out, progress=False, **defaults | options)


def sweep(out, count=100, pause=0.0):
    slow_down_writes(pause)
    long_sweep(out, count)


def stopped_sweep(out, step, name, marker):
    stop_at(step, name, marker)
    long_sweep(out)


def size_limited_sweep(out, size, message):
    """Sweep with a limit on the size of each file; write the error's text to the file `message`."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    text = ""
    try:
        long_sweep(out)
    except OSError as error:
        text = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path(message).write_text(text)


def run(file, out, pause=0.0):
    slow_down_writes(pause)
    run_experiment(file, out)


def stopped_run(file, out, step, name, marker):
    stop_at(step, name, marker)
    run_experiment(file, out)


def run_experiment(file, out):
    from tl_steer import experiments

    experiments.run(experiments.read_experiment(file), out, progress=False)


def short_work(folder, output):
    """Load, capture, sweep, save and generate as in a fresh process; stdout and stderr go to `output`."""
    from .test_logging import short_work

    warnings.filters[:] = DEFAULT_FILTERS
    handle = os.open(output, os.O_CREAT | os.O_WRONLY)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    short_work(Path(folder))


TASKS = {
    each.__name__: each for each in (sweep, stopped_sweep, size_limited_sweep, run, stopped_run, short_work)
}
DEFAULT_FILTERS = warnings.filters[:]


def main():
    warnings.simplefilter("ignore")
    import tl_steer.experiments

    from . import test_logging, test_sweep  # noqa: F401 (imported before any fork)

    assert tl_steer.experiments._run
    ended = []
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if not process:
            try:
                TASKS[job["task"]](**job["arguments"])
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        print(process, flush=True)
        status = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        print(json.dumps([status.si_code != os.CLD_EXITED, status.si_status]), flush=True)
        ended.append(process)
        while len(ended) > 1:  # the client no longer signals the one before
            os.waitpid(ended.pop(0), 0)


if __name__ == "__main__":
    main()
