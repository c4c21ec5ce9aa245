import copy

import pytest
import torch
from torch import nn

from raremask import BadInput, nets
from raremask.nets import EncoderDecoder, InstanceNorm, Standardize, UNet, pad_to


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 31), (565, 584)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_unet_gives_one_channel_of_logits_at_the_size_of_its_input(size, channels):
    net = UNet(in_channels=channels, base=2, levels=4)
    assert net(torch.rand(1, channels, *size)).shape == (1, 1, *size)


@pytest.mark.parametrize("channels", [1, 3])
def test_smp_takes_any_size_and_one_or_three_channels(channels):
    net = EncoderDecoder(encoder="resnet18", encoder_weights=None, in_channels=channels, dropout=0.3)
    assert net.eval()(torch.rand(1, channels, 57, 65)).shape == (1, 1, 57, 65)


def test_depthwise_convolutions_that_bfloat16_slows_down_stay_in_float32_on_the_cpu():
    net = EncoderDecoder(encoder="tu-tf_efficientnet_lite0", encoder_weights=None)
    copied, names = copy.deepcopy(net), []
    for name, layer in copied.named_modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.groups > 1:
            features = torch.rand(1, layer.in_channels, 9, 9)
            expected = layer(features)
            with torch.autocast("cpu", torch.bfloat16):
                exact = layer(features).dtype == torch.float32 and torch.equal(layer(features), expected)
                assert layer(features.bfloat16()).dtype == torch.bfloat16  # what follows goes on as fast as before
            assert exact == (layer.stride[0] > 1 or layer.kernel_size[0] > 3)
            names.append(name)
            with torch.no_grad():
                layer.weight.zero_()
    assert len(names) == 16
    assert all(net.get_parameter(f"{name}.weight").any() for name in names)  # the copy has weights of its own


def test_the_thesis_unet_doubles_from_64_to_1024_and_has_no_learned_normalisation():
    net = UNet(base=64, levels=4)
    assert [block[0].out_channels for block in net.down] == [64, 128, 256, 512, 1024]
    assert not [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any("bias" in name and "down" in name for name, _ in net.named_parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (12, 16)), (5, (7, 9)), (8, (12, 17)), (12, (8, 8)), (24, (12, 17))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instance_normalisation_is_that_of_pytorch_and_stays_channels_last(dtype, channels, size, layout):
    torch.manual_seed(0)
    values, weight = (torch.randn(3, channels, *size).mul(4).add(2).to(dtype) for _ in range(2))
    weight = weight.contiguous(memory_format=layout)  # and so the gradient
    found = []
    for norm in (InstanceNorm(), nn.InstanceNorm2d(channels)):
        features = values.clone(memory_format=torch.channels_last).requires_grad_()
        normed = norm(features)
        (normed * weight).sum().backward()
        found.append((normed, features.grad))
        if isinstance(norm, InstanceNorm):
            assert normed.is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(*found, strict=True):
        tolerance = {"rtol": 1.6e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_he_and_xavier_differ_by_their_spread():
    # a 3x3 convolution of 32 to 32 channels: He sqrt(2 / 288), Xavier sqrt(2 / (288 + 288)), uniform or normal
    torch.manual_seed(0)
    he, xavier = (UNet(base=32, levels=1, init=init).down[0][3].weight.std().item() for init in ("he", "xavier"))
    assert he == pytest.approx((2 / 288) ** 0.5, rel=0.05)
    assert xavier == pytest.approx((2 / 576) ** 0.5, rel=0.05)


def test_dropout_acts_in_training_only():
    net = UNet(base=4, levels=2, dropout=0.5)
    image = torch.rand(1, 3, 16, 16)
    assert not torch.equal(net(image), net(image))
    net.eval()
    assert torch.equal(net(image), net(image))


def test_images_are_standardised_by_themselves_unless_a_mean_is_given():
    image = torch.rand(2, 3, 30, 30) * 0.3 + 0.1
    each = Standardize(None, None)(image)
    torch.testing.assert_close(each.mean((2, 3)), torch.zeros(2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(each.std((2, 3)), torch.ones(2, 3), atol=1e-2, rtol=0)
    given = Standardize([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])(image)
    torch.testing.assert_close(given, (image - 0.5) / 0.25)
    with pytest.raises(ValueError, match="together"):
        Standardize([0.5], None)


def test_a_constant_image_gives_finite_logits():
    assert UNet(base=2, levels=2)(torch.zeros(1, 3, 20, 20)).isfinite().all()


def test_padding_repeats_the_edge_and_keeps_what_fits():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    padded = pad_to(image, 2)  # to 4 x 4: at least twice the multiple
    assert padded.shape == (1, 1, 4, 4)
    assert padded[0, 0, 1].tolist() == [3, 4, 5, 5]
    assert pad_to(torch.zeros(1, 1, 8, 8), 4).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_encoder_takes_its_weights_from_a_file_for_colour_and_for_gray(tmp_path, suffix):
    source = EncoderDecoder(encoder="resnet18", encoder_weights=None)
    weights, file = source.net.encoder.state_dict(), tmp_path / f"encoder{suffix}"
    if suffix == ".pth":
        torch.save(weights, file)
    else:
        from safetensors.torch import save_file

        save_file({name: weight.contiguous() for name, weight in weights.items()}, file)  # it asks for that
    colour = EncoderDecoder(encoder="resnet18", encoder_weights=str(file))
    assert all(torch.equal(value, weights[key]) for key, value in colour.net.encoder.state_dict().items())
    gray = EncoderDecoder(encoder="resnet18", encoder_weights=str(file), in_channels=1)
    expected = weights["conv1.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(gray.net.encoder.state_dict()["conv1.weight"], expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, suffix):
    file = tmp_path / f"encoder{suffix}"
    file.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(BadInput, match=r"holds no weights .*: was it downloaded whole"):
        EncoderDecoder(encoder="resnet18", encoder_weights=str(file))
    if suffix == ".pth":
        torch.save(torch.zeros(3), file)
        with pytest.raises(BadInput, match="holds no state dict but a Tensor"):
            EncoderDecoder(encoder="resnet18", encoder_weights=str(file))


@pytest.mark.parametrize(
    ("file", "encoder", "mean", "std"),
    [
        ("mobilenet_v2_features_torchvision.pth", "mobilenet_v2", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("tf_efficientnet_lite0_timm.pth", "tu-tf_efficientnet_lite0", [127 / 255] * 3, [128 / 255] * 3),
    ],
)
def test_real_imagenet_weights_load_into_their_encoder(real_data, file, encoder, mean, std):
    path = real_data("weights") / file
    net = EncoderDecoder(encoder=encoder, encoder_weights=str(path), mean=mean, std=std)
    stored = torch.load(path, weights_only=True)
    loaded = {key.removeprefix("model."): value for key, value in net.net.encoder.state_dict().items()}
    assert len(loaded) > 280
    assert all(torch.equal(value, stored[key]) for key, value in loaded.items())


def test_weights_of_another_network_are_refused(tmp_path):
    file = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    with pytest.raises(BadInput, match=r"lacks 1\d\d of the encoder's 1\d\d tensors"):
        EncoderDecoder(encoder="resnet18", encoder_weights=str(file))


def test_without_a_connection_the_message_says_how_to_go_on(monkeypatch):
    create = nets.smp.create_model

    def no_network(*args, encoder_weights, **kwargs):
        if encoder_weights:
            raise OSError("Name or service not known")
        return create(*args, encoder_weights=None, **kwargs)

    monkeypatch.setattr(nets.smp, "create_model", no_network)
    with pytest.raises(BadInput, match=r"model.encoder_weights=null to train from scratch, or model.encoder_weights=<"):
        EncoderDecoder(encoder="resnet34", encoder_weights="imagenet")
    with pytest.raises(BadInput, match=r"such as model.safetensors of smp-hub/resnet34.imagenet on the Hugging"):
        EncoderDecoder(encoder="resnet34", encoder_weights="imagenet")
    with pytest.raises(BadInput, match=r"such as model.safetensors of timm/tf_efficientnet_lite0.in1k on the"):
        EncoderDecoder(encoder="tu-tf_efficientnet_lite0", encoder_weights="imagenet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "resnet43"}, "Did you mean resnet34"),
        ({"architecture": "Unett"}, "Did you mean Unet"),
        ({"encoder_weights": "imagenets"}, "is no file"),
    ],
)
def test_a_misspelled_network_is_refused_with_what_was_meant(arguments, message):
    with pytest.raises(BadInput, match=message):
        EncoderDecoder(**{"encoder_weights": None} | arguments)


@pytest.mark.parametrize("arguments", [{"norm": "layer"}, {"init": "zero"}, {"dropout": 1.0}, {"levels": 0}])
def test_an_impossible_unet_is_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        UNet(**arguments)
