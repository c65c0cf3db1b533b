"""A detector as one function from raw images to anomaly map and score, and as a traced program."""

import copy

import torch
from torch import Tensor, nn

from etstpm.compute import Compute
from etstpm.images import normalise_tensor
from etstpm.inference.detector import Detector
from etstpm.scoring import feature_errors, score_errors
from etstpm.students import answer

FLOAT32 = Compute(torch.device("cpu"), torch.float32)
"""What a file computes in, everywhere: load the detector with it."""


class DetectorFunction(nn.Module):
    """Images (N, S, S, 3) uint8 RGB to maps (N, S, S) and scores (N,), float32.

    S is the size that the student was trained at. Everything but decoding and resizing is in it:
    ImageNet normalisation, teacher, student, calibration, fusion, smoothing, top-k mean.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        # In plain memory order: torch.export stores channels-last weights as slices of nothing.
        self.teacher, self.student = (
            copy.deepcopy(network).to(memory_format=torch.contiguous_format)
            for network in (detector.teacher, detector.student)
        )
        self.calibration = detector.calibration
        self.scoring = detector.config.scoring
        self.size = detector.size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        normalised = normalise_tensor(images)
        target = self.teacher(normalised)
        errors = feature_errors(target, answer(self.student, normalised, target))
        return score_errors(errors, self.size, self.scoring, self.calibration)


def trace_detector(detector: Detector) -> torch.export.ExportedProgram:
    """The function as a program for any number of images from 1; no input is kept in it."""
    if detector.compute != FLOAT32:
        raise ValueError(f"a detector is traced in {FLOAT32}, this one computes in another")
    # Two images, since torch.export takes a size of 1 for a constant.
    images = torch.zeros((2, detector.size, detector.size, 3), dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(
            DetectorFunction(detector).eval(),
            (images,),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    program.example_inputs = None  # torch.export.save would pickle them
    return program
