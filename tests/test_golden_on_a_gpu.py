"""The released program's values on a GPU: ``python -m pytest -m gpu``. On the CPU, the same comparisons run always."""

from __future__ import annotations

import pytest
import torch
from golden import golden_network, load_golden, normalised
from torch import Tensor

from afa.device import allow_tf32
from afa.maps import present_classes
from afa.methods.afa.config import AffinityConfig, CamConfig, ParConfig
from afa.methods.afa.labels import PseudoLabels, affinity_label
from afa.methods.afa.losses import affinity_loss
from afa.ops.cam import multi_scale_cam
from afa.ops.par import PAR
from afa.ops.random_walk import TokenAffinity
from afa.ops.token_pairs import dense

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    allow_tf32(False)
    return str(request.param)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.cpu(), expected, atol=tolerance, rtol=0)


@torch.no_grad()
def test_network_and_cams(device: str) -> None:
    golden, cams = load_golden("model_gmp"), load_golden("multi_scale_cam")
    network = golden_network().to(device)
    output = network(normalised(golden["images_uint8"]).to(device), all_pairs=True)
    for name in ("cls_logits", "seg_logits", "cam"):
        close(getattr(output, name), golden[name], 1e-4)
    close(dense(output.affinity), golden["affinity"], 1e-4)
    image = normalised(cams["images_uint8"]).to(device)
    fused = multi_scale_cam(network.cam, image, cams["scales"].tolist(), epsilon=1e-5, with_affinity=False)
    close(fused.cams, cams["cams"], 1e-4)


def test_par(device: str) -> None:
    golden = load_golden("par")
    dilations = golden["dilations"].tolist()
    par = PAR(dilations=dilations, iterations=10, temperature=0.3, position_weight=0.01)
    refined = par(golden["images_uint8"].to(device).float() / 255, golden["masks"].to(device))
    close(refined, golden["refined/10"], 1e-5)


def test_affinity_loss_and_walk(device: str) -> None:
    golden = {name: value.to(device) for name, value in load_golden("pseudo_label").items()}
    radius = int(golden["radius"])
    pairs = affinity_label(golden["refined_label"], (8, 8), radius)
    affinity = TokenAffinity(golden["affinity"], (8, 8)).within(radius)
    close(affinity_loss(affinity.values, pairs, positive_share=0.5), golden["affinity_loss"].cpu(), 1e-4)
    present = present_classes(golden["class_labels"])
    cams = present.maps(present.gather(golden["cams"]))
    labels = PseudoLabels(CamConfig(), AffinityConfig(radius=radius), ParConfig())
    near = TokenAffinity(golden["affinity_infer"], (12, 12)).within(radius)
    walked = labels.walk(cams, near, float(golden["low_thre"])).dense(6)
    close(walked, golden["propagated_low"].cpu(), 1e-4)
