"""kill -9 at random moments, then the same work again: it must end well, each time."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
MOMENTS = 20

DRIVER = """
import os, random, signal, sys, time, traceback

def in_a_child(kill_after=None):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

reset()
started = time.monotonic()
assert in_a_child() == 0, "undisturbed"
seconds = time.monotonic() - started
check()
draw, killed, outran = random.Random(0), 0, 0
while killed < int(sys.argv[1]):
    reset()
    if os.WIFSIGNALED(in_a_child(draw.uniform(0, seconds))):
        killed += 1
    else:  # the machine is less busy than at the first time
        seconds *= 0.8
        outran += 1
        assert outran < 40, "it is never killed before it has ended"
    assert in_a_child() == 0, "again, after kill -9"
    check()
"""


def survive_kills(code: str, *arguments: object) -> None:
    """`code` defines `reset()`, `work()` and `check()`; sys.argv[2:] are the arguments.

    One interpreter imports what the code needs, and forks each attempt: single-threaded until then.
    """
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code + DRIVER, str(MOMENTS), *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
