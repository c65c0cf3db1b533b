"""Fine-tuning on several processes of one machine, started with torchrun.

    torchrun --standalone --nproc-per-node 4 -m etstpm.finetuning.processes CONFIG DATASET FILE

CONFIG is a config as JSON, DATASET the key of a validated dataset in its store, FILE where the
first process writes the tuned teacher.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from etstpm.compute import Compute, choose_compute
from etstpm.config import Config
from etstpm.errors import EtstpmError, TrainingError
from etstpm.finetuning.loop import FinetunedTeacher, TeacherEpoch, finetune_teacher
from etstpm.inputs import open_inputs, proven_weights
from etstpm.networks import FeaturePyramid, freeze
from etstpm.storage import Store

FAULT = "etstpm: "


def finetune_on(processes: int, config: Config, dataset_key: str) -> FinetunedTeacher:
    """What `finetune_teacher` returns, made by several processes.

    Raises `TrainingError` with the fault of the process that had one.
    """
    with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
        file = Path(folder) / "teacher.safetensors"
        done = subprocess.run(  # noqa: S603
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", str(processes), "--module", __name__),
                *(config.model_dump_json(), dataset_key, str(file)),
            ],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode or not file.is_file():
            faults = [line for line in done.stderr.splitlines() if line.startswith(FAULT)]
            said = faults[0].removeprefix(FAULT) if faults else done.stderr[-2000:]
            raise TrainingError(f"teacher on {processes} processes: {said}")
        return _read(file)


def _write(tuned: FinetunedTeacher, file: Path) -> None:
    history = [dataclasses.asdict(epoch) for epoch in tuned.history]
    tensors = {name: t.cpu().contiguous() for name, t in tuned.pyramid.state_dict().items()}
    save_file(tensors, file, {"history": json.dumps(history), "summary": tuned.summary})


def _read(file: Path) -> FinetunedTeacher:
    with safe_open(file, "pt") as content:
        pyramid = FeaturePyramid()
        names = pyramid.state_dict()
        pyramid.load_state_dict({name: content.get_tensor(name) for name in names})
        said = content.metadata()
    history = [TeacherEpoch(**epoch) for epoch in json.loads(said["history"])]
    return FinetunedTeacher(freeze(pyramid), history, said["summary"])


def _tune(config: Config, dataset_key: str) -> FinetunedTeacher:
    store = Store(config.store)
    inputs = open_inputs(config, store, dataset_key)
    pixels = {
        name: inputs.pixels(name, "train", config.dataset.image_size)
        for name in sorted(store.get(dataset_key).card["categories"])
    }
    return finetune_teacher(
        proven_weights(config),
        pixels,
        config.teacher,
        seed=config.seed,
        compute=_own_device(choose_compute(config)),
    )


def _own_device(compute: Compute) -> Compute:
    if compute.device.type != "cuda":
        return compute
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return Compute(device, compute.precision)


def main(arguments: list[str]) -> int:
    """One process of the group."""
    text, dataset_key, file = arguments
    config = Config.model_validate_json(text)
    dist.init_process_group("nccl" if choose_compute(config).device.type == "cuda" else "gloo")
    try:
        tuned = _tune(config, dataset_key)
        if dist.get_rank() == 0:
            _write(tuned, Path(file))
    except EtstpmError as error:
        sys.stderr.write(f"{FAULT}{error}\n")
        return error.exit_code
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
