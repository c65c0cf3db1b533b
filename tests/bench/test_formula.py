"""Formula-driven pre-training: what is drawn, what is asked about it, and the training's thread."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.formula import pretrain, shapes, textures
from bench.formula.bank import Bank, draw_bank
from bench.formula.objective import LOOKS, Pretraining, describe
from bench.formula.scenes import CELL, UNASKED, Scenes, compose, name_cells
from etstpm.errors import ConfigError
from etstpm.networks import load_weights, random_pyramid

CLASSES = 12
PLAN = ((4, 32), (2, 48), (4, 32), (2, 48))


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return draw_bank(tmp_path_factory.mktemp("bank"), 0, classes=CLASSES, instances=3, processes=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of few small scenes instead of thousands."""
    monkeypatch.setattr(pretrain, "SMALL", PLAN[:2])
    monkeypatch.setattr(pretrain, "LARGE", PLAN[:1])
    monkeypatch.setattr(pretrain, "STATISTICS", ((4, 64),))
    monkeypatch.setattr(pretrain, "CHECKPOINT_STEPS", 1)


@pytest.mark.parametrize("number", range(2 * len(textures.FAMILIES)))
def test_a_texture_is_its_numbers(number: int) -> None:
    first, again, other = (textures.draw_texture(1, number, i, 64) for i in (0, 0, 1))
    assert first.shape == (64, 64)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.std() > 10


@pytest.mark.parametrize("number", range(2 * len(shapes.FAMILIES)))
def test_a_shape_is_its_numbers(number: int) -> None:
    first, again, other = (shapes.draw_shape(1, number, i, 64) for i in (0, 0, 1))
    assert first.shape == (64, 64)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert 0.005 < (first > 127).mean() < 0.9
    assert 0.01 < first.mean() / 255 < 0.9


def test_instances_of_a_texture_are_alike() -> None:
    """The nearest spectrum among all other pictures is most often one of the same class."""
    count = 5 * len(textures.FAMILIES)
    pictures = [textures.draw_texture(0, n, i, 96) for n in range(count) for i in range(3)]
    spectra = []
    for picture in pictures:
        power = np.abs(np.fft.fft2(picture - picture.mean()))[:48, :48] ** 2
        spectra.append(np.log(power.reshape(12, 4, 12, 4).mean((1, 3)) + 1).ravel())
    distance = np.linalg.norm(np.array(spectra)[:, None] - np.array(spectra), axis=2)
    np.fill_diagonal(distance, np.inf)
    labels = np.repeat(np.arange(count), 3)
    assert (labels[distance.argmin(1)] == labels).mean() > 0.6  # by chance 0.02


def test_a_bank_is_drawn_once_and_by_any_number_of_processes(bank: Bank, tmp_path: Path) -> None:
    assert bank.textures.shape == (CLASSES, 3, 160, 160)
    assert bank.shapes.shape == (CLASSES, 3, 96, 96)
    drawn = draw_bank(tmp_path, 0, classes=2, instances=3, processes=2)
    assert np.array_equal(drawn.textures, bank.textures[:2])
    assert np.array_equal(drawn.shapes, bank.shapes[:2])
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(files) == ["shapes-0.npy", "textures-0.npy"]
    draw_bank(tmp_path, 0, classes=2, instances=3, processes=1)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_a_step_has_its_scenes_whenever_it_comes(bank: Bank) -> None:
    scenes = Scenes(bank, PLAN, seed=5)
    assert len(scenes) == len(PLAN)
    for step, (count, size) in enumerate(PLAN):
        images, cells, named = scenes[step]
        assert images.shape == (count, size, size, 3)
        assert images.dtype is torch.uint8
        assert cells.shape == (count, size // CELL, size // CELL)
        assert named.shape == (count,)
        again = Scenes(bank, PLAN, seed=5)[step]
        assert all(torch.equal(a, b) for a, b in zip((images, cells, named), again, strict=True))
    assert not torch.equal(scenes[0][0], scenes[2][0])
    assert not torch.equal(scenes[0][0], Scenes(bank, PLAN, seed=6)[0][0])


def test_scenes_are_varied_and_most_of_their_cells_are_asked_about(bank: Bank) -> None:
    scene = compose(bank, 96, 64, np.random.default_rng(0))
    images = scene.images.float()
    assert float(images.std((1, 2, 3)).min()) > 2
    assert float(images.mean((1, 2)).std(0).min()) > 20  # of all colours
    assert 0.4 < float((scene.textures != UNASKED).float().mean()) < 0.9
    assert 0.7 < float((scene.shapes != UNASKED).float().mean()) < 1.0
    for labels in (scene.textures, scene.shapes):
        # A class whose shapes are hairlines may never show enough to be asked about.
        assert len(set(labels.flatten().tolist())) >= CLASSES


def test_a_cell_has_the_texture_that_fills_most_of_it() -> None:
    owner = torch.full((1, 32, 32), 7)
    owner[0, :16, :9] = 3  # 56 % of the first cell: nobody's
    owner[0, :16, 16:20] = 3  # a quarter of the second
    owner[0, 16:, :12] = UNASKED
    assert name_cells(owner).tolist() == [[[UNASKED, 7], [UNASKED, 7]]]


def test_a_training_that_was_cut_goes_on_as_if_it_had_not_been(
    bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = pretrain.pretrain(bank, tmp_path / "whole", 4, 0).state_dict()

    def stop(*_: object, flush: bool) -> None:
        assert flush  # who watches a file sees each line as it comes
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "print", stop, raising=False)  # after the first checkpoint
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(bank, tmp_path / "cut", 9, 0)  # made shorter before its rate falls
    goes_on = pretrain.pretrain(bank, tmp_path / "cut", 4, 0).state_dict()
    assert all(torch.equal(whole[name], goes_on[name]) for name in whole)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 2, 3, 4]
    with pytest.raises(ConfigError, match="at step 4 of 4 it cannot become a training of 9"):
        pretrain.pretrain(bank, tmp_path / "cut", 9, 0)


def test_what_is_trained_is_a_teachers_weights_file(
    bank: Bank,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pretrain, "draw_bank", lambda *_, **__: bank)
    monkeypatch.setattr("sys.argv", ["pretrain", "--folder", str(tmp_path), "--steps", "2"])
    pretrain.main()
    sha256, path = capsys.readouterr().out.splitlines()[-1].split(" ", 1)
    assert Path(path).stat().st_size < 6_000_000
    weights = load_weights(path, sha256, cache=cache)
    assert not weights.is_folded
    first = random_pyramid(0).state_dict()
    assert not torch.equal(weights.tensors["bn1.running_var"], first["bn1.running_var"])
    assert not torch.equal(weights.tensors["layer3.1.conv2.weight"], first["layer3.1.conv2.weight"])


def test_a_look_is_a_cells_colour_and_its_edges() -> None:
    images = torch.full((2, 32, 32, 3), 100, dtype=torch.uint8)
    images[0, :16, :16, 0] = 200  # the first cell is redder
    images[1, 16:, :16, :] = (100 + 40 * (torch.arange(16) // 2 % 2)).byte()[None, :, None]
    fine, _, coarse = describe(images)
    assert fine.shape == (2 * 8 * 8, LOOKS)
    assert coarse.shape == (2 * 2 * 2, LOOKS)
    assert torch.allclose(coarse.mean(0), torch.zeros(LOOKS), atol=1e-5)
    red, green, *_ = coarse.argmax(0).tolist()
    assert (red, green) == (0, 6)
    across, down = coarse[:, 3].argmax().item(), coarse[6, 3 + 2].item()
    assert across == 6  # stripes from side to side of one colour: all their gradients point across
    assert coarse[6, 3] > 2 > down


@pytest.mark.parametrize("question", ["textures", "looks", "shapes"])
def test_each_question_is_learnt(bank: Bank, question: str) -> None:
    """The same batch again and again: the loss falls by a quarter at the least."""
    scene = compose(bank, 16, 32, np.random.default_rng(0))
    images, looks = scene.images.permute(0, 3, 1, 2).float() / 128 - 1, describe(scene.images)
    weights = {
        "textures": ((0.25, 0.5, 1.0), 0.0, 0.0),
        "looks": ((0.0, 0.0, 0.0), 1.0, 0.0),
        "shapes": ((0.0, 0.0, 0.0), 0.0, 1.0),
    }
    model = Pretraining(CLASSES, *weights[question], seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), pretrain.LEARNING_RATE)
    losses = []
    for _ in range(10):
        answers = model(images, looks, scene.textures, scene.shapes)
        answers.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(answers.loss.item())
    assert losses[-1] < 0.75 * losses[0]
    assert getattr(answers, question) > 0.3


def test_the_learning_rate_rises_stays_and_falls() -> None:
    rates = [pretrain.rate_at(step, 1000) for step in range(1, 1001)]
    assert rates[0] == 0.02
    assert rates[49:750] == [1.0] * 701
    assert all(a > b > 0 for a, b in pairwise(rates[750:]))
    assert rates[-1] < 0.01
    assert rates[:700] == [pretrain.rate_at(step, 8000) for step in range(1, 701)]
