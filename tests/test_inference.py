from threading import Barrier, get_ident

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raremask.inference import VIEWS, Predictor, predict, sharing_cores, to_native


class Pixelwise(nn.Module):
    """Logits that depend on each pixel alone: however an image is turned or cut, they stay the same."""

    def __init__(self, slope=3.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, images):
        return self.slope * (images.mean(dim=1, keepdim=True) - 0.5)


class Sided(nn.Module):
    """Logits that see the left half only."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        columns = torch.arange(images.shape[-1]) < images.shape[-1] / 2
        return torch.where(columns, 5.0, -5.0).expand(len(images), 1, *images.shape[-2:]) * self.weight


def images(height=40, width=56, number=2):
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("views", ["none", "flips", "turns"])
@pytest.mark.parametrize("tile", [None, (16, 16), (17, 23), (64, 24), (100, 100)])
def test_views_and_tiles_change_nothing_where_pixels_are_judged_alone(views, tile):
    expected = torch.sigmoid(Pixelwise()(images()))
    torch.testing.assert_close(Predictor([Pixelwise()], views, tile)(images()), expected)


def test_scales_change_little_where_the_image_is_smooth():
    smooth = F.interpolate(torch.rand(1, 3, 4, 5), size=(40, 56), mode="bicubic").clamp(0, 1)
    found = Predictor([Pixelwise()], "scales")(smooth)
    assert found.shape == (1, 1, 40, 56)
    torch.testing.assert_close(found, torch.sigmoid(Pixelwise()(smooth)), atol=0.05, rtol=0)


def test_scales_bring_every_pixel_back_to_its_place():
    ramp = torch.linspace(-3, 3, 565).expand(1, 1, 38, 565)  # three quarters of the width are no whole number

    class Itself(nn.Module):
        def forward(self, images):
            return torch.logit(images)

    found = Predictor([Itself()], "scales")(torch.sigmoid(ramp))
    step = torch.sigmoid(ramp).diff().abs().max()
    assert (found - torch.sigmoid(ramp))[..., 4:-4].abs().max() < 0.02 * step  # of a pixel


def test_mirrored_views_are_brought_back_before_they_are_averaged():
    # the left half says .993, mirrored the right half does: the mean is one half everywhere
    assert Predictor([Sided()], "flips")(images()).sub(0.5).abs().max() < 1e-6
    assert Predictor([Sided()], "none")(images())[..., 0].min() > 0.99


@pytest.mark.parametrize("views", VIEWS)
def test_each_view_has_its_way_back(views):
    for there, back in VIEWS[views]:
        assert torch.equal(back(there(images())), images())
    assert len({tuple(there(images()[:1]).flatten().tolist()) for there, _ in VIEWS[views]}) == len(VIEWS[views])


def test_networks_are_averaged_as_probabilities():
    nets = [Pixelwise(3.0), Pixelwise(-1.0)]
    expected = (torch.sigmoid(nets[0](images())) + torch.sigmoid(nets[1](images()))) / 2
    torch.testing.assert_close(Predictor(nets)(images()), expected)


def test_tiles_are_blended_without_a_seam():
    class Where(nn.Module):
        """Says how far from its window's middle a pixel is."""

        def forward(self, images):
            height, width = images.shape[-2:]
            rows = torch.linspace(-1, 1, height)[:, None].expand(height, width)
            return (4 * rows).expand(len(images), 1, height, width)

    found = Predictor([Where()], tile=(32, 32))(images(96, 32))[0, 0, :, 0]
    assert (found[1:] - found[:-1]).abs().max() < 0.25  # side by side, windows would jump by .96


def test_a_prediction_leaves_the_network_as_it_was_and_comes_at_native_size():
    predictor = Predictor([Pixelwise()])
    predictor.train()
    native = predict(predictor, images()[0], (20, 28), (0, 0, 40, 56))
    assert native.shape == (20, 28)
    assert predictor.training
    net = Pixelwise().eval()
    predict(Predictor([net]), images()[0], (20, 28), (0, 0, 40, 56))
    assert not net.training


def test_a_prediction_is_in_float32_whatever_the_training_s_precision():
    """Or masks of predict.py and pictures would not be of the probabilities that were scored."""
    predictor = Predictor([nn.Conv2d(3, 1, 3, padding=1)]).eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = predictor(images())
    torch.testing.assert_close(found, predictor(images()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "a prediction needs a network"),
        (([Pixelwise()], "upside"), "views must be one of none, flips, turns, scales; got 'upside'"),
        (([Pixelwise()], "none", (8, 64)), "16 pixels or more, or null"),
        (([Pixelwise()], "none", (64,)), "16 pixels or more, or null"),
    ],
)
def test_impossible_predictions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Predictor(*arguments)


def test_what_is_made_smaller_keeps_what_is_thin():
    stripes = torch.zeros(1, 1, 512, 512)
    for first in range(4):
        stripes.zero_()[..., first::4] = 1
        smaller = to_native(stripes, (128, 128), (0, 0, 512, 512))
        assert smaller.mean() == pytest.approx(0.25, abs=0.01)
        assert smaller.min() > 0.1
    lines = torch.zeros(1, 1, 500, 500)
    lines[..., 20:480:20, :] = lines[..., 21:480:20, :] = 1  # two pixels wide, and the network works at a little more
    fitted = F.interpolate(lines, size=(512, 512), mode="nearest-exact")
    painted = to_native(fitted, (500, 500), (0, 0, 512, 512)) > 0.5
    assert 2 * (painted & (lines > 0)).sum() / (painted.sum() + lines.sum()) > 0.95


@pytest.mark.parametrize(("images", "cores", "threads"), [(1, 4, 1), (2, 4, 2), (3, 4, 3), (9, 4, 4), (0, 1, 1)])
def test_threads_share_the_cores_and_leave_them_to_the_main_thread_afterwards(images, cores, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        with sharing_cores(images) as pool:
            assert torch.get_num_threads() == 1
            wait = Barrier(threads, timeout=60)  # all of them are there at once, and no more
            seen = list(pool.map(lambda _: (wait.wait(), get_ident(), torch.get_num_threads())[1:], range(2 * threads)))
        assert len({name for name, _ in seen}) == threads
        assert {number for _, number in seen} == {cores // threads}
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
