"""Vision Transformers of timm as encoders: the library's own values, what is left out, sizes, and AFA on top."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from golden import random_image
from torch import Tensor, nn

from afa.config.encoders import EncoderConfig, encoder_family, encoder_stride
from afa.errors import UserError
from afa.models import AFANet, TimmViT, build_attentive_encoder, build_encoder
from afa.ops.token_pairs import dense

# Class token; a register, LayerScale and a norm behind the pooling; a register and pooling by attention; norms of query
# and key; a norm before the blocks; registers without positions, patches of 14.
TINY = ("test_vit", "test_vit2", "test_vit3")
OTHERS = ("vit_xsmall_patch16_clip_224", "vit_small_patch14_reg4_dinov2")


def encoder_of(name: str, cam_block: int = 0, **settings: Any) -> TimmViT:
    import timm

    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    torch.manual_seed(0)
    encoder = build_attentive_encoder(EncoderConfig(encoder=f"timm/{name}", **settings), 2, cam_block)
    assert isinstance(encoder, TimmViT)
    # LayerScale starts at 1e-5, with which no block would be noticed.
    with torch.no_grad():
        for key, parameter in encoder.named_parameters():
            if "gamma" in key or "token" in key or "norm" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder.eval()


def own_network(name: str, encoder: TimmViT) -> Any:
    """The library's network with the encoder's weights, which norms all tokens at its end."""
    import timm

    own = timm.create_model(name, num_classes=0, global_pool="", fc_norm=False, dynamic_img_size=True)
    own.load_state_dict({key.removeprefix("vit."): value for key, value in encoder.state_dict().items()})
    return own.eval()


@pytest.mark.parametrize("name", [*TINY, *OTHERS])
def test_features_are_the_library_s_own(name: str) -> None:
    encoder = encoder_of(name)
    patch, depth = encoder.strides[-1], len(encoder.vit.blocks)
    images = random_image(2, 3, 2 * patch, 5 * patch)  # a grid that the table of positions does not have
    own = own_network(name, encoder)
    blocks = [-(-depth * part // 4) - 1 for part in (1, 2, 3, 4)]
    with torch.no_grad():
        found = encoder.features(images)
        expected = own.forward_intermediates(images, indices=blocks, norm=True, intermediates_only=True)
        last = own.forward_features(images)[:, own.num_prefix_tokens :]
        read = encoder(images, attention_of=1, attention_blocks=depth).features
    assert encoder.channels == (own.embed_dim,) * 4 and encoder.strides == (patch,) * 4
    for one, other, third in zip(found, expected, read, strict=True):
        assert one.shape == (2, own.embed_dim, 2, 5)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one, third, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[-1].flatten(2).transpose(1, 2), last, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*TINY, *OTHERS])
def test_attention_is_what_the_unfused_computation_takes_the_softmax_of(name: str) -> None:
    encoder = encoder_of(name)
    patch, blocks = encoder.strides[-1], 2
    images = random_image(2, 3, 3 * patch, 4 * patch)
    own = own_network(name, encoder)
    with torch.no_grad():
        found = encoder(images, attention_of=1, attention_blocks=blocks).attention_logits
        own_logits = unfused_logits(own, images)[-blocks:]
        nothing = encoder(images, attention_blocks=blocks).attention_logits
    assert nothing == []
    assert encoder.attention_maps(blocks) == sum(logits.shape[1] for logits in found)
    tokens = own.num_prefix_tokens
    for logits, expected in zip(found, own_logits, strict=True):
        assert logits.shape[-2:] == (12, 12)
        torch.testing.assert_close(logits, expected[:1, :, tokens:, tokens:], atol=1e-4, rtol=1e-5)


def unfused_logits(own: Any, images: Tensor) -> list[Tensor]:
    """What the library's own attention hands to its softmax, of every block."""
    seen: list[Tensor] = []
    for block in own.blocks:
        block.attn.fused_attn = False
    softmax = Tensor.softmax

    def watched(logits: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        seen.append(logits)
        return softmax(logits, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "softmax", watched)
        own(images)
    return seen


def test_sizes_go_to_the_nearest_multiple_of_the_patch() -> None:
    encoder = encoder_of("test_vit")
    for size, grid in (((1, 7), (1, 1)), ((23, 24), (1, 2)), ((40, 56), (3, 4)), ((39, 55), (2, 3))):
        image = random_image(1, 3, *size)
        with torch.no_grad():
            found = encoder.features(image)
            resized = nn.functional.interpolate(image, [16 * side for side in grid], mode="bilinear")
            for one, other in zip(found, encoder.features(resized), strict=True):
                assert one.shape[-2:] == grid
                torch.testing.assert_close(one, other)


def test_a_small_token_stride_enlarges_the_image_first() -> None:
    plain, fine = encoder_of("test_vit"), encoder_of("test_vit", token_stride=8)
    assert plain.strides[-1] == 16 and fine.strides == (8, 8, 8, 8)
    for size, grid in (((1, 4), (1, 1)), ((40, 56), (5, 7)), ((36, 59), (5, 7))):
        image = random_image(1, 3, *size)
        enlarged = nn.functional.interpolate(image, [16 * side for side in grid], mode="bilinear")
        with torch.no_grad():
            for one, other in zip(fine.features(image), plain.features(enlarged), strict=True):
                assert one.shape[-2:] == grid
                torch.testing.assert_close(one, other)


def test_everything_that_is_used_learns_and_norms_can_stay() -> None:
    for name in TINY:
        encoder = encoder_of(name, drop_path=0.2).train()
        output = encoder(random_image(2, 3, 48, 64), attention_of=2, attention_blocks=2)
        total = sum(feature.square().sum() for feature in output.features)
        (total + sum(logits.sum() for logits in output.attention_logits)).backward()
        assert not [key for key, parameter in encoder.named_parameters() if parameter.grad is None]
        encoder.freeze_released()
        frozen = {key for key, parameter in encoder.named_parameters() if not parameter.requires_grad}
        assert frozen == {key for key, _ in encoder.named_parameters() if "norm" in key} != set()


def test_drop_path_acts_in_training_alone() -> None:
    encoder, image = encoder_of("test_vit", drop_path=0.9), random_image(8, 3, 32, 32)
    plain = encoder_of("test_vit", drop_path=0.0)
    assert torch.equal(encoder.features(image)[-1], plain.features(image)[-1])
    assert torch.equal(plain.train().features(image)[-1], plain.eval().features(image)[-1])
    encoder.train()
    for blocks in (0, 6):  # also where the attention is read
        first, second = (encoder(image, attention_of=8, attention_blocks=blocks).features[-1] for _ in range(2))
        assert not torch.equal(first, second)


@pytest.mark.parametrize("name", TINY)
def test_cams_are_made_of_the_block_that_is_named(name: str) -> None:
    plain, image = encoder_of(name), random_image(2, 3, 50, 40)
    with torch.no_grad():
        expected = own_network(name, plain).forward_intermediates(
            nn.functional.interpolate(image, [48, 48], mode="bilinear"), norm=True, intermediates_only=True
        )
        features = plain.features(image)
    last = plain(image).cam_features
    assert last.requires_grad and torch.equal(last, features[-1])
    for block in (1, 4, len(plain.vit.blocks)):
        encoder = encoder_of(name, cam_block=block)
        output = encoder(image, attention_of=2, attention_blocks=2)
        assert not output.cam_features.requires_grad and len(output.attention) == 2
        torch.testing.assert_close(output.cam_features, expected[block - 1], atol=1e-5, rtol=1e-5)
        for one, other in zip(output.features, features, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_cams_alone_run_no_block_behind_theirs() -> None:
    encoder, image = encoder_of("test_vit", cam_block=4), random_image(1, 3, 32, 32)
    expected = encoder(image).cam_features
    with torch.no_grad():
        for block in encoder.vit.blocks[4:]:
            block.mlp.fc1.bias.fill_(float("nan"))
    assert encoder(image).features[-1].isnan().all()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda kept: kept):
        alone = encoder(image, cam_only=True)
    assert not kept  # for a backward pass that never comes
    torch.testing.assert_close(alone.cam_features, expected)
    assert alone.features == alone.attention == []


def test_a_block_that_there_is_not() -> None:
    for block in (7, -1):
        with pytest.raises(
            UserError, match=rf"model\.cam_block: timm/test_vit has 6 blocks, no block {block}; set 1 to 6, or 0"
        ):
            encoder_of("test_vit", cam_block=block)


def afa_net(name: str = "test_vit", num_classes: int = 4) -> AFANet:
    return AFANet(encoder=encoder_of(name), num_classes=num_classes, decoder_width=16, affinity_blocks=2).eval()


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_afa_s_heads_stand_on_it(name: str) -> None:
    network, image = afa_net(name), random_image(2, 3, 40, 56)
    output = network(image)
    assert output.cam.shape == (2, 3, 3, 4) and output.seg_logits.shape == (2, 4, 3, 4)
    logits = torch.cat(network.encoder(image, attention_of=2, attention_blocks=2).attention_logits, dim=1)
    logits = logits - logits.mean(dim=3, keepdim=True)  # which changes no softmax
    expected = torch.sigmoid(network.attn_proj(logits + logits.transpose(2, 3)))[:, 0]
    torch.testing.assert_close(dense(output.affinity), expected)
    (output.affinity.sum() + output.seg_logits.sum() + output.cls_logits.sum()).backward()
    assert not [key for key, parameter in network.named_parameters() if parameter.grad is None]


def test_affinity_does_not_start_saturated() -> None:
    network = afa_net()
    with torch.no_grad():
        for block in network.encoder.vit.blocks:  # a pretrained network's keys have a large mean
            block.attn.qkv.bias[64:128].add_(20 * torch.randn(64))
    affinity = dense(network(random_image(2, 3, 64, 64)).affinity)
    assert 0.1 < affinity.mean() < 0.9 and ((affinity > 0.05) & (affinity < 0.95)).float().mean() > 0.5


def test_save_and_load() -> None:
    network, image = afa_net(), random_image(1, 3, 33, 50)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    other = AFANet(
        encoder=build_attentive_encoder(EncoderConfig(encoder="timm/test_vit"), 2), num_classes=4, decoder_width=16
    ).eval()
    assert not torch.equal(other.segment(image), network.segment(image))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.segment(image), network.segment(image))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_it_gives_the_same_values_and_gradients(backend: str) -> None:
    encoder, image = encoder_of("test_vit"), random_image(2, 3, 40, 48)
    outcomes = []
    for one in (encoder, torch.compile(encoder, backend=backend, fullgraph=True)):
        encoder.zero_grad()
        output = one(image, attention_of=2, attention_blocks=2)
        (output.features[-1].square().sum() + output.attention_logits[0].square().sum()).backward()
        outcomes.append([output.features[0].detach(), encoder.vit.patch_embed.proj.weight.grad.clone()])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_tiny_patch16_22", r"timm has no network 'vit_tiny_patch16_22'; did you mean 'timm/vit_tiny"),
        ("vit_relpos_small_patch16_224", "is no plain Vision Transformer: it is of another class; set one of timm's"),
        ("vit_tiny_r_s16_p8_224", "its patches come from a HybridEmbed"),
        ("vit_small_patch16_18x2_224", "its blocks are of the class ParallelThingsBlock"),
    ],
)
def test_other_transformers_are_one_line(name: str, words: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=words) as caught:
        build_encoder(EncoderConfig(encoder=f"timm/{name}"))
    assert "\n" not in str(caught.value)


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(UserError, match=r"model\.affinity_blocks=7 does not suit timm/test_vit: there are 6 blocks"):
        build_attentive_encoder(EncoderConfig(encoder="timm/test_vit"), 7)


def test_all_of_the_library_s_transformers_are_told_by_their_names() -> None:
    import timm

    for module in ("vision_transformer", "deit"):
        for name in timm.list_models(module=module):
            assert encoder_family(EncoderConfig(encoder=f"timm/{name}")) == "vit", name
    for name in ("resnet50", "tf_efficientnet_lite0", "convnext_tiny", "efficientvit_b0", "repvit_m1", "mobilevit_s"):
        assert encoder_family(EncoderConfig(encoder=f"timm/{name}")) == "timm"
    strides = {"vit_base_patch16_224": 16, "vit_small_patch14_dinov2": 14, "vit_small_patch8_224": 8, "test_vit": 16}
    for name, stride in strides.items():
        assert encoder_stride(EncoderConfig(encoder=f"timm/{name}.tag")) == stride
