import json
import pickle
import sys

import pytest
import torch

from raremask import BadInput, shipped
from raremask.building import network
from raremask.nets import EncoderDecoder, UNet
from raremask.prediction import painter
from raremask.selection import Selection
from raremask.shipped import OnnxNet, Shipped

UNET = {"_target_": "raremask.nets.UNet", "in_channels": 3, "base": 4, "levels": 2}


def model(**changes):
    facts = {
        "network": UNET,
        "size": [48, 40],
        "resize": "pad",
        "channels": 3,
        "bits": 16,
        "selection": Selection(0.3, "flips", 20, True, True),
        "tile": None,
        "provenance": {"loss": "dice", "scores": {"val": {"dice": 0.5}}},
    }
    return Shipped(**(facts | changes))


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet(base=4, levels=2).eval()


def test_a_model_is_two_files_from_which_it_comes_back_as_it_was(unet, tmp_path):
    model().write(tmp_path / "run" / "model", unet)
    for path in (tmp_path / "run", tmp_path / "run" / "model"):  # of the run, or by itself
        place = shipped.find(path)
        assert shipped.read(place) == model()
        again = network(place, shipped.read(place)).eval()
        image = torch.rand(1, 3, 30, 41)
        torch.testing.assert_close(again(image), unet(image), rtol=0, atol=0)
    facts = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert facts["classes"] == ["background", "foreground"]
    assert "Divide by 255" in facts["interface"]


def test_what_is_no_model_is_refused_with_what_it_should_be(unet, tmp_path):
    with pytest.raises(BadInput, match="neither the folder of a run, nor of a model"):
        shipped.find(tmp_path)
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / ".hydra" / "config.yaml").touch()
    with pytest.raises(BadInput, match=r"has no model/ yet: its training has not ended. Go on with train.py resume="):
        shipped.find(tmp_path / "run")
    model().write(tmp_path, unet)
    (tmp_path / "model.json").write_text('{"network": {}}')
    with pytest.raises(BadInput, match="not a model of raremask, or of another version"):
        shipped.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"size": "abc"},
        {"tile": [1]},
        {"channels": 2},
        {"bits": 4},
        {"selection": {"threshold": 2}},
        {"selection": None},
    ],
)
def test_a_damaged_model_is_refused(unet, tmp_path, change):
    model().write(tmp_path, unet)
    facts = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(facts | change))
    with pytest.raises(BadInput, match="not a model of raremask, or of another version"):
        shipped.read(tmp_path)


@pytest.mark.parametrize("network_of", [UNET | {"depth": 3}, UNET | {"norm": "layer"}, None])
def test_a_network_that_cannot_be_made_is_refused(unet, tmp_path, network_of):
    model(network=network_of).write(tmp_path, unet)
    with pytest.raises(BadInput):
        network(tmp_path, shipped.read(tmp_path))


def test_an_export_that_computes_something_else_leaves_no_file(unet, tmp_path):
    unet.head.bias.data[:] = torch.nan
    with pytest.raises(BadInput, match="apart, or NaN"):
        shipped.export(model(), unet, "torch_export", tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network_are_refused(unet, tmp_path):
    model().write(tmp_path, unet)
    with pytest.raises(BadInput, match=r"Does it belong to model.json"):
        shipped.load_weights(tmp_path, UNet(base=8, levels=2))


def test_loading_never_unpickles(unet, tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    model().write(tmp_path, unet)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BadInput):
        shipped.load_weights(tmp_path, unet)
    torch.save(Trap(), tmp_path / "model.pt2")
    with pytest.raises(BadInput, match="PyTorch may unpickle what it reads"):
        shipped.find(tmp_path / "model.pt2")
    torch.save(Trap(), tmp_path / "model.onnx")
    with pytest.raises(BadInput, match="no ONNX file"):
        shipped.read(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "asked",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "builtins.print"},
        {},
        {"_target_": "raremask.nets.torch.nn.Linear", "in_features": 1, "out_features": 1},
    ],
)
def test_a_model_from_elsewhere_makes_nothing_but_a_network(unet, tmp_path, asked):
    model(network=asked).write(tmp_path, unet)
    with pytest.raises(BadInput, match=r"a network is made by a class in raremask.nets or seg.*; got "):
        network(tmp_path, shipped.read(tmp_path))


def test_a_network_that_is_gone_is_said(unet, tmp_path):
    model(network={"_target_": "raremask.nets.Renamed"}).write(tmp_path, unet)
    with pytest.raises(BadInput, match=r"there is no network raremask.nets.Renamed; of another version\?"):
        network(tmp_path, shipped.read(tmp_path))


def test_arguments_of_a_model_from_elsewhere_stay_plain_values(unet, tmp_path):
    model(network=UNET | {"norm": {"_target_": "builtins.print"}}).write(tmp_path, unet)
    with pytest.raises(BadInput, match="cannot be made as it says"):  # nothing was made of it
        network(tmp_path, shipped.read(tmp_path))


def test_an_onnx_file_gives_the_same_logits_at_any_size_and_says_how_to_prepare_images(unet, tmp_path):
    file = tmp_path / "model.onnx"
    assert shipped.export(model(), unet, "onnx", file) < 1e-5
    assert shipped.find(file) == file
    assert shipped.read(file) == model()
    for size in ((1, 3, 8, 12), (2, 3, 33, 70), (1, 3, 4, 4), (2, 3, 1, 3)):  # not past what the network shrinks by
        image = torch.rand(size)
        torch.testing.assert_close(OnnxNet(file)(image), unet(image), rtol=1e-3, atol=1e-4)


def test_an_onnx_file_computes_on_the_cpu_and_says_so(unet, tmp_path, monkeypatch, capsys):
    file = tmp_path / "model.onnx"
    shipped.export(model(), unet, "onnx", file)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    painter([model()], [OnnxNet(file)], "auto")
    assert capsys.readouterr().out.endswith("; cpu\n")
    with pytest.raises(BadInput, match="an ONNX file computes on the CPU"):
        painter([model()], [OnnxNet(file)], "cuda")


def test_a_torch_export_gives_the_same_logits_at_any_size_and_says_how_to_prepare_images(unet, tmp_path):
    file = tmp_path / "model.pt2"
    assert shipped.export(model(), unet, "torch_export", file) < 1e-5
    facts = {"raremask.json": ""}
    again = torch.export.load(file, extra_files=facts).module()  # our own file, a moment old
    assert facts["raremask.json"] == model().text()
    image = torch.rand(3, 3, 24, 40)
    torch.testing.assert_close(again(image), unet(image), rtol=1e-4, atol=1e-5)


def test_a_network_of_smp_is_exported_too(tmp_path):
    torch.manual_seed(0)
    net = EncoderDecoder(encoder="mobilenet_v2", encoder_weights=None, in_channels=1)
    facts = model(channels=1, size=[32, 32], tile=[16, 16])  # no larger than what the encoder shrinks by
    assert shipped.export(facts, net, "onnx", tmp_path / "model.onnx") < 1e-4


def test_a_file_that_is_not_ours_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["a"], ["b"])],
        "other",
        [onnx.helper.make_tensor_value_info("a", 1, [1])],
        [onnx.helper.make_tensor_value_info("b", 1, [1])],
    )
    other = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(BadInput, match=r"its metadata does not say how images are prepared"):
        shipped.read(tmp_path / "other.onnx")


def test_without_its_packages_onnx_says_how_to_get_them(unet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BadInput, match=r"pip install '\.\[onnx\]'"):
        shipped.export(model(), unet, "onnx", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
