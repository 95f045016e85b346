from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden import DATA, Agreement, golden_network, load_golden, normalised, random_image, small_network
from torch import Tensor

from afa.config import VARIANTS
from afa.methods.afa.config import ModelConfig
from afa.methods.afa.network import build_network
from afa.models import AFANet, MixTransformer
from afa.models.decoder import SegFormerDecoder
from afa.models.mit import DropPath
from afa.ops.token_pairs import dense


@pytest.mark.parametrize("pooling", ["gmp", "gap"])
def test_reference_network(agreement: Agreement, pooling: str) -> None:
    golden = load_golden(f"model_{pooling}")
    network = golden_network(pooling)
    image = normalised(golden["images_uint8"])
    with torch.no_grad():
        output = network(image, all_pairs=True)
        encoded = network.encoder(image, attention_of=2, attention_blocks=2)
    for index, feature in enumerate(encoded.features):
        agreement.values(f"feature map {index + 1}", feature, golden[f"feature/{index}"], 1e-4)
    for index, attention in enumerate(encoded.attention_logits):
        expected = golden[f"attention_logits/{index}"]
        largest = float(expected.abs().max())
        agreement.values(
            f"raw attention logits, block {index + 1} of 2 (over the largest, {largest:.0f})",
            attention / largest,
            expected / largest,
            1e-4,
            "relative",
        )
    agreement.values(f"class logits ({pooling})", output.cls_logits, golden["cls_logits"], 1e-4)
    agreement.values("segmentation logits", output.seg_logits, golden["seg_logits"], 1e-4)
    agreement.values("affinity", dense(output.affinity), golden["affinity"], 1e-4)
    agreement.values("CAM, one scale", output.cam, golden["cam"], 1e-4)


@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3", "b4", "b5"])
def test_reference_names_and_shapes(variant: str) -> None:
    published = json.loads((DATA / "keys.json").read_text())
    with torch.device("meta"):
        network = build_network(ModelConfig(encoder=f"mit_{variant}"), 21)
    ours = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    if f"afa_mit_{variant}_voc" in published:
        assert ours == published[f"afa_mit_{variant}_voc"]
    encoder = {name.removeprefix("encoder."): shape for name, shape in ours.items() if name.startswith("encoder.")}
    imagenet = published[f"segformer_mit_{variant}"]
    assert encoder == {name: shape for name, shape in imagenet.items() if not name.startswith("head.")}


@pytest.mark.parametrize("size", [(33, 47), (16, 16), (20, 100), (7, 5)])
def test_any_size(size: tuple[int, int]) -> None:
    output = small_network()(random_image(2, 3, *size))
    height, width = (-(-side // 16) for side in size)
    assert output.cam.shape == (2, 5, height, width)
    assert output.affinity.shape == (2, height, 2 * width - 1, height, width)
    assert output.seg_logits.shape == (2, 6, -(-size[0] // 4), -(-size[1] // 4))
    assert output.cls_logits.shape == (2, 5)


@pytest.mark.parametrize("variant", ["mit_b0", "mit_b2"])
def test_published_variants_run(variant: str) -> None:
    network = build_network(ModelConfig(encoder=variant), 4).eval()
    assert network.encoder.depths == VARIANTS[variant].depths
    assert network.attn_proj.weight.shape == (1, 16, 1, 1)
    with torch.no_grad():
        assert network(random_image(1, 3, 32, 48)).affinity.shape == (1, 2, 5, 2, 3)


def test_every_parameter_learns() -> None:
    network = small_network().train()
    output = network(random_image(2, 3, 48, 64))
    (output.cls_logits.sum() + output.seg_logits.square().sum() + output.affinity.sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    # The affinity's gradient reaches the encoder through the raw logits.
    assert network.encoder.block4[0].attn.q.weight.grad.abs().max() > 0


def test_affinity_alone_trains_the_encoder() -> None:
    network = small_network()
    network(random_image(1, 3, 48, 64), decode=False).affinity.sum().backward()
    assert network.encoder.patch_embed1.proj.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in network.decoder.parameters())


def test_cam_is_the_classifier_everywhere_and_carries_no_gradient() -> None:
    network = small_network()
    output = network(random_image(2, 3, 64, 64))
    assert not output.cam.requires_grad
    torch.testing.assert_close(small_network(pooling="gap")(random_image(2, 3, 64, 64)).cam, output.cam)
    mean_logits = small_network(pooling="gap")(random_image(2, 3, 64, 64)).cls_logits
    torch.testing.assert_close(mean_logits, output.cam.mean(dim=(2, 3)), atol=1e-5, rtol=1e-5)


def test_cams_are_not_rounded_where_the_passes_are() -> None:
    network, feature = small_network(), random_image(1, 32, 4, 4) + 300
    expected = network.class_activation(feature)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.class_activation(feature), expected)


@pytest.mark.parametrize(("share", "highest"), [(1e-6, 1), (0.25, 4), (0.3, 5), (1.0, 16)])
def test_topk_is_the_mean_of_the_highest_cam_scores_of_each_class(share: float, highest: int) -> None:
    output = small_network(pooling="topk", pooling_share=share)(random_image(2, 3, 64, 64))
    ordered = output.cam.flatten(2).sort(dim=-1, descending=True).values
    assert ordered.shape[-1] == 16
    torch.testing.assert_close(output.cls_logits, ordered[..., :highest].mean(dim=-1))
    assert output.cls_logits.requires_grad


def test_affinity_is_symmetric_and_by_definition() -> None:
    network = small_network()
    image = random_image(2, 3, 48, 64)
    logits = torch.cat(network.encoder(image, attention_of=2, attention_blocks=2).attention_logits, dim=1)
    expected = torch.sigmoid(network.attn_proj(logits + logits.transpose(2, 3)))[:, 0]
    affinity = dense(network(image).affinity)
    torch.testing.assert_close(affinity, expected)
    assert torch.equal(affinity, affinity.transpose(1, 2))
    assert ((affinity >= 0) & (affinity <= 1)).all()


def test_fused_and_raw_attention_agree() -> None:
    network, image = small_network(), random_image(4, 3, 48, 80)
    with torch.no_grad():
        fused = network.encoder(image)
        raw = network.encoder(image, attention_of=4, attention_blocks=2)
        some = network.encoder(image, attention_of=1, attention_blocks=2)
        plain_network = small_network(fused_attention=False)
        plain_network.load_state_dict(network.state_dict())
        written_out = plain_network.encoder(image)
    assert fused.attention_logits == []
    assert [logits.shape for logits in some.attention_logits] == [(1, 8, 15, 15)] * 2
    for one, other, third in zip(fused.features, raw.features, some.features, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one, third, atol=1e-5, rtol=1e-5)
    for one, other in zip(fused.features, written_out.features, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(some.attention_logits[1], raw.attention_logits[1][:1], atol=1e-4, rtol=1e-4)


def test_cam_pass_equals_the_full_pass_and_leaves_the_decoder_alone() -> None:
    network, image = small_network(), random_image(2, 3, 48, 64)
    output = network(image)
    network.train()
    before = network.decoder.linear_fuse.bn.running_mean.clone()
    cam, affinity = network.cam(image, affinity_of=1)
    torch.testing.assert_close(cam, output.cam)
    torch.testing.assert_close(affinity, output.affinity[:1])
    assert torch.equal(network.decoder.linear_fuse.bn.running_mean, before)
    network.cam(image, decode=True)
    assert not torch.equal(network.decoder.linear_fuse.bn.running_mean, before)


def test_parts_left_out() -> None:
    network, image = small_network(), random_image(1, 3, 32, 32)
    output = network(image, decode=False, with_affinity=False)
    assert output.seg_logits is None
    assert output.affinity is None
    torch.testing.assert_close(output.cls_logits, network(image).cls_logits)
    torch.testing.assert_close(network.segment(image), network(image).seg_logits)


def test_finer_strides() -> None:
    network = small_network(strides=[4, 2, 1, 1])
    output = network(random_image(1, 3, 40, 64))
    assert output.cam.shape[-2:] == (5, 8)
    assert output.affinity.shape == (1, 5, 15, 5, 8)
    assert output.seg_logits.shape[-2:] == (10, 16)
    output.affinity.sum().backward()


def test_affinity_from_stage_3_too() -> None:
    network = small_network(reductions=[8, 4, 1, 1], affinity_blocks=3)
    assert network.attn_proj.weight.shape[1] == 5 + 8 + 8
    image = random_image(2, 3, 48, 64)
    logits = network.encoder(image, attention_of=2, attention_blocks=3).attention_logits
    assert [maps.shape[1] for maps in logits] == [5, 8, 8]
    expected = torch.cat(logits, dim=1)
    expected = torch.sigmoid(network.attn_proj(expected + expected.transpose(2, 3)))[:, 0]
    torch.testing.assert_close(dense(network(image).affinity), expected)


def encoder(**changes: object) -> MixTransformer:
    settings = {"widths": (8, 16, 20, 32), "depths": (1, 1, 1, 2), "heads": (1, 2, 5, 8), **changes}
    return MixTransformer(**settings)  # type: ignore[arg-type]


def test_networks_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="square attention"):
        AFANet(encoder=encoder(), num_classes=6, affinity_blocks=3)
    with pytest.raises(ValueError, match="square attention"):
        AFANet(encoder=encoder(reductions=(1, 1, 1, 1)), num_classes=6, affinity_blocks=9)
    with pytest.raises(ValueError, match="token grids"):
        AFANet(encoder=encoder(reductions=(8, 4, 1, 1), strides=(4, 2, 2, 2)), num_classes=6, affinity_blocks=3)
    with pytest.raises(ValueError, match="heads do not divide"):
        encoder(widths=(8, 16, 21, 32))
    with pytest.raises(ValueError, match="at least 2"):
        AFANet(encoder=encoder(), num_classes=1)
    with pytest.raises(ValueError, match="pooling is one of gmp, gap, topk"):
        AFANet(encoder=encoder(), num_classes=6, pooling="max")
    for share in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="pooling_share"):
            AFANet(encoder=encoder(), num_classes=6, pooling="topk", pooling_share=share)


def test_save_and_load(tmp_path: Path) -> None:
    network, image = small_network(), random_image(1, 3, 40, 40)
    torch.save(network.state_dict(), tmp_path / "network.pth")
    other = small_network(seed=1)
    assert not torch.equal(other(image).cls_logits, network(image).cls_logits)
    other.load_state_dict(torch.load(tmp_path / "network.pth", weights_only=True))
    assert torch.equal(other(image).seg_logits, network(image).seg_logits)


def test_stochastic_depth_rises_over_all_blocks_and_only_in_training() -> None:
    network = small_network(drop_path=0.4)
    rates = [block.drop_path.drop_prob for stage in range(1, 5) for block in getattr(network.encoder, f"block{stage}")]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    image = random_image(8, 3, 32, 32)
    assert torch.equal(network(image).cls_logits, network(image).cls_logits)
    network.train()
    assert not torch.equal(network(image).cls_logits, network(image).cls_logits)


def test_stochastic_depth_drops_branches_of_whole_images_and_scales_up_the_rest() -> None:
    drop, branch = DropPath(0.25).train(), random_image(400, 2, 3)
    torch.manual_seed(7)
    found = drop(branch)
    torch.manual_seed(7)
    kept = torch.empty(400, 1, 1).bernoulli_(0.75)
    assert torch.equal(found, branch * (kept / 0.75)) and 0.6 < kept.mean() < 0.9
    assert drop.eval()(branch) is branch


def test_initial_weights() -> None:
    torch.manual_seed(0)
    network = build_network(ModelConfig(encoder="mit_b0"), 21).requires_grad_(False)
    assert network.encoder.block4[0].attn.q.weight.std() == pytest.approx(0.02, rel=0.05)
    assert network.encoder.patch_embed4.proj.weight.std() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)
    # One channel per group: 3 x 3 x 1.
    assert network.encoder.block4[0].mlp.dwconv.dwconv.weight.std() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert network.decoder.linear_fuse.conv.weight.std() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert not network.encoder.block1[0].attn.kv.bias.any()
    assert network.decoder.linear_fuse.bn.momentum == 0.1
    # Kaiming normal with a = sqrt(5) and fan-out 1: std sqrt(2 / 6).
    draws = [build_network(ModelConfig(**small_settings()), 3).attn_proj.weight.detach() for _ in range(40)]
    assert torch.stack(draws).std() == pytest.approx((2 / 6) ** 0.5, rel=0.1)


def small_settings() -> dict[str, object]:
    return {"encoder": "custom", "widths": [8] * 4, "depths": [1, 1, 1, 2], "heads": [1, 1, 1, 8]}


def test_layer_norms_have_the_released_epsilons() -> None:
    network = small_network()
    for name, module in network.encoder.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            inner = name.endswith("attn.norm") or name.startswith("patch_embed")
            assert module.eps == (1e-5 if inner else 1e-6), name


def decode_by_definition(decoder: SegFormerDecoder, features: list[Tensor]) -> Tensor:
    """Project, upsample, concatenate f4 f3 f2 f1, fuse, classify, in this order."""
    size = features[0].shape[-2:]
    projections = (decoder.linear_c4, decoder.linear_c3, decoder.linear_c2, decoder.linear_c1)
    maps = [
        F.interpolate(
            projection.proj(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False
        )
        for projection, feature in zip(projections, reversed(features), strict=True)
    ]
    fused = decoder.linear_fuse.bn(decoder.linear_fuse.conv(torch.cat(maps, dim=1)))
    return decoder.linear_pred(F.relu(fused))


@pytest.mark.parametrize("training", [True, False])
def test_decoder_equals_its_definition(training: bool) -> None:
    decoder = SegFormerDecoder(widths=(8, 16, 20, 32), width=16, num_classes=6, dropout=0).train(training)
    sizes = ((13, 17), (7, 9), (4, 5), (4, 5))
    features = [random_image(2, width, *size) for width, size in zip((8, 16, 20, 32), sizes, strict=True)]
    expected = decode_by_definition(decoder, features)
    wanted = torch.autograd.grad(expected.square().sum(), list(decoder.parameters()))
    found = decoder(features)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for one, other in zip(torch.autograd.grad(found.square().sum(), list(decoder.parameters())), wanted, strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one / scale, other / scale, atol=1e-4, rtol=1e-3)
