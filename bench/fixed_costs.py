"""What is paid before and around the work: imports, help, Prefect.

    python -m bench.fixed_costs --output result.json [--runs 5]

`overhead` is a run of the drawn sample whose every stage is reused, by the command that `make run`
calls, less the same stages, tables and report made one after another in a plain process: what
Prefect's server, its client and its tasks cost a run. `server` is the embedded server from its
start to its first answer, `task` what a flow takes longer with one more task that does nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = (
    *("dataset.image_size=64", "student.epochs=4"),
    *("teacher.mode=imagenet", "teacher.weights=formula"),
)
STAGES = """
import sys, uuid
from etstpm.config import Config
from etstpm.report import write_report
from etstpm.storage import Store
from tests.nights import publish_night
config = Config.load("sample", sys.argv[2:], {"store": sys.argv[1]})
write_report(Store(config.store), publish_night(config, uuid.uuid4().hex).run.run_id)
"""
PREFECT = """
import sys, time
started = time.perf_counter()
from flows.embedded import begin, connected
server = begin()
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

@task(cache_policy=NO_CACHE)
def nothing():
    pass

@flow
def tasks(count):
    for _ in range(count):
        nothing()

seconds = {}
with connected(server):
    seconds["server"] = time.perf_counter() - started
    tasks(1)
    for count in (1, 41):
        began = time.perf_counter()
        tasks(count)
        seconds[count] = time.perf_counter() - began
print(seconds["server"], (seconds[41] - seconds[1]) / 40)
"""


def main() -> None:
    """Medians of each."""
    arguments = parse_arguments()
    load_at_start = os.getloadavg()[0]
    python = sys.executable
    with ExitStack() as stack:
        folder = arguments.folder or stack.enter_context(tempfile.TemporaryDirectory())
        store = f"{folder}/store"
        flow = [python, "-m", "flows.full", "--config", "sample", "--store", store]
        flow += [part for setting in SETTINGS for part in ("--set", setting)]
        commands = {
            "python": [python, "-c", "pass"],
            "import": [python, "-c", "import etstpm"],
            "help": [python, "-c", "from etstpm.cli import main; main()", "--help"],
            "torch": [python, "-c", "import torch"],
            "typer": [python, "-c", "import typer"],
            "stages": [python, "-c", STAGES, store, *SETTINGS],
            "flow": flow,
        }
        environment = os.environ | {
            "ETSTPM_CACHE": f"{folder}/cache",
            "PREFECT_HOME": f"{folder}/prefect",
        }
        for first in ("stages", "flow"):  # so that all is made, and Prefect's database is there
            seconds_of(commands[first], environment)
        seconds = {name: [] for name in commands}  # type: dict[str, list[float]]
        for _ in range(arguments.runs):
            for name, command in commands.items():
                seconds[name].append(seconds_of(command, environment))
            for name, value in prefects_own(python, environment).items():
                seconds.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    medians["overhead"] = medians["flow"] - medians["stages"]
    result = {"load_at_start": load_at_start, "seconds": medians, "all": seconds}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def prefects_own(python: str, environment: dict[str, str]) -> dict[str, float]:
    """Seconds until the embedded server answers, and of one task that does nothing."""
    done = subprocess.run(
        [python, "-c", PREFECT],
        check=True,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    server, task = (float(word) for word in done.stdout.split()[-2:])
    return {"server": server, "task": task}


def seconds_of(command: list[str], environment: dict[str, str]) -> float:
    """Wall seconds of a command that must end well."""
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="kept, so that the next time all is made")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
