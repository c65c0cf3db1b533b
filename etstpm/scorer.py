"""Teacher and student at work: images in, anomaly maps and scores out, and what is normal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from etstpm.calibration import (
    UNCALIBRATED,
    Calibration,
    Parts,
    add_up,
    distances,
    fit_quantiles,
    fit_whitening,
    measure,
)
from etstpm.compute import Compute
from etstpm.config import ScoringConfig
from etstpm.images import Pixels, normalise
from etstpm.networks import FeaturePyramid, Pyramid
from etstpm.progress import Bar
from etstpm.scoring import ScoredImages, feature_errors, score_errors
from etstpm.splits import Indices, batches
from etstpm.students import Student, answer

FOLDS = 10
"""Parts of the held-out good images, each scored by the calibration of the others."""


@dataclass(frozen=True)
class Scorer:
    """A frozen teacher with its trained student, by which config and on which device they score.

    name: what a progress bar calls the images. All images are (N, H, H, 3) uint8 RGB.
    """

    teacher: FeaturePyramid
    student: Student
    config: ScoringConfig
    compute: Compute
    name: str = "images"

    def score(self, pixels: Pixels, calibration: Calibration = UNCALIBRATED) -> ScoredImages:
        """Score images, batch by batch."""
        return self._score(pixels, calibration, "score")

    def score_batch(self, pixels: Pixels, calibration: Calibration) -> ScoredImages:
        """Score images that are few enough to be looked at together."""
        with torch.inference_mode():
            errors = self.errors(normalise(pixels, self.compute.device))
            maps, scores = score_errors(errors, pixels.shape[1], self.config, calibration)
        return ScoredImages(maps.cpu().numpy(), scores.cpu().double().numpy())

    def calibrate(self, good: Pixels) -> Calibration:
        """What the config asks for of good images that no network was trained on."""
        numbers = np.arange(len(good))
        return self._fit(good, numbers, self._measure(good, [numbers]))

    def cross_fit(self, good: Pixels) -> tuple[Calibration, ScoredImages]:
        """The same, and their scores as if they were new: each is calibrated by the others alone.

        By the calibration that they made themselves they would look more normal than any new image:
        a threshold taken from such scores calls half of the good images defective. One image alone
        has no others; then its own calibration is all there is.
        Source: cross-fitting, as in Stone 1974 and the cross-conformal prediction of Vovk 2015.
        """
        numbers = np.arange(len(good))
        count = min(FOLDS, len(good))
        folds = [numbers[fold::count] for fold in range(count)]
        parts = self._measure(good, folds)
        whole = self._fit(good, numbers, parts)
        maps = np.empty(good.shape[:3], np.float32)
        scores = np.empty(len(good), np.float64)
        for fold, mine in enumerate(folds):
            calibration = whole
            if count > 1:
                others = np.setdiff1d(numbers, mine)
                calibration = self._fit(good, others, parts[:fold] + parts[fold + 1 :])
            scored = self._score(good[mine], calibration, "held-out")
            maps[mine], scores[mine] = scored.maps, scored.scores
        return whole, ScoredImages(maps, scores)

    def errors(self, images: Tensor) -> Pyramid:
        """`feature_errors` of a batch of normalised images (N, 3, H, H)."""
        with self.compute.autocast():
            target = self.teacher(images)
            output = answer(self.student, images, target)
        return feature_errors(target, output)

    def _score(self, pixels: Pixels, calibration: Calibration, doing: str) -> ScoredImages:
        maps = np.empty(pixels.shape[:3], np.float32)
        scores = np.empty(len(pixels), np.float64)
        for batch, errors in self._batches(pixels, doing):
            scored = score_errors(errors, pixels.shape[1], self.config, calibration)
            maps[batch], scores[batch] = (values.cpu().numpy() for values in scored)
        return ScoredImages(maps, scores)

    def _measure(self, good: Pixels, parts: Sequence[Indices]) -> list[Parts]:
        """Of each part of the images, their errors' moments, if they are called for."""
        if self.config.calibration == "none":
            return []
        return [
            measure(errors for _, errors in self._batches(good[part], "calibrate"))
            for part in parts
        ]

    def _fit(self, good: Pixels, numbers: Indices, parts: Sequence[Parts]) -> Calibration:
        """Of the images of these numbers; the parts' moments, if called for, are of them all."""
        whitening = quantiles = None
        if parts:
            whitening = fit_whitening(
                add_up(parts),
                is_diagonal=self.config.calibration == "variance",
                is_levelled=self.config.level_border,
            )
        if self.config.fusion == "quantile-sum":
            errors = (batch for _, batch in self._batches(good[numbers], "quantiles"))
            quantiles = fit_quantiles(distances(batch, whitening) for batch in errors)
        return Calibration(whitening, quantiles)

    def _batches(self, pixels: Pixels, doing: str) -> Iterator[tuple[Indices, Pyramid]]:
        """Batch by batch, which images they are and their `errors`."""
        for network in (self.teacher, self.student):
            network.to(self.compute.device)
        with Bar(f"{self.name}: {doing}", len(pixels)) as bar, torch.inference_mode():
            for batch in batches(np.arange(len(pixels)), self.config.batch_size):
                yield batch, self.errors(normalise(pixels[batch], self.compute.device))
                bar.advance(len(batch))
