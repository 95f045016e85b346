#!/usr/bin/env python
"""Plant small mistakes in the package, one at a time, and see whether the tests notice.

    python tests/mutants.py                       all of them
    python tests/mutants.py sampler losses        those whose place or text holds one of these words
    python tests/mutants.py --tree ../other       those of another working tree, with its tests

Each mistake is planted in a copy; the tree itself is left alone. The test files that should notice run first, and stop
at the first failure; a mistake that they miss meets the whole suite. Exit code 1 where a mistake survives.

A change of the package may move a text: the script names the entry, which is mended here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]
# A mistake may make the package wait for ever; no run of sound tests comes near this.
SECONDS = 3600


class Mutant(NamedTuple):
    """A small mistake.

    Attributes:
        file: Where it is planted.
        old: Occurs there exactly once.
        new: Takes its place.
        tests: Files below ``tests/`` that should notice.
    """

    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # CAMs of an earlier block.
    Mutant(
        "afa/models/timm_vit.py", "index + 1 == self._cam_block", "index == self._cam_block", "models/test_timm_vit.py"
    ),
    Mutant(
        "afa/models/timm_vit.py", "                if cam_only:", "                if False:", "models/test_timm_vit.py"
    ),
    Mutant(
        "afa/models/afa_net.py",
        "self.classify(cam_features)",
        "self.classify(features[-1])",
        "methods/test_afa_on_vit.py",
    ),
    Mutant("afa/ops/cam.py", "        if centred:", "        if not centred:", "ops/test_cam.py"),
    Mutant("afa/methods/afa/method.py", "centred=settings.centred", "centred=False", "methods/test_afa_on_vit.py"),
    Mutant(
        "afa/methods/afa/prediction.py", "centred=config.cam.centred", "centred=False", "methods/test_afa_on_vit.py"
    ),
    Mutant("afa/methods/afa/method.py", "if self.config.model.cam_block:", "if False:", "methods/test_afa_on_vit.py"),
    # The page of all settings.
    Mutant("afa/config/page.py", "all_of[key] != own[key]", "all_of[key] == own[key]", "config/test_settings_page.py"),
    Mutant("afa/config/page.py", "if common.get(key) != one", "if key not in common", "config/test_settings_page.py"),
    Mutant("afa/config/page.py", "_purpose(classes[-1])", "_purpose(classes[0])", "config/test_settings_page.py"),
    # Images for people.
    Mutant("afa/visual/scores.py", "wins | (above & (own != 0))", "wins | above", "test_visual.py"),
    Mutant("afa/visual/scores.py", "greys[:, :, None])", "colours)", "test_visual.py"),
    Mutant(
        "afa/visual/scores.py",
        "second = np.maximum(second, np.minimum(first, channel))",
        "second = np.minimum(second, channel)",
        "test_visual.py",
    ),
    Mutant("afa/visual/scores.py", "max(0.6, math.ceil(10", "max(0.6, (10", "test_visual.py"),
    Mutant("afa/visual/overlays.py", "(rows + columns) % _STRIPES", "rows % _STRIPES", "test_visual.py"),
    Mutant(
        "afa/evaluation/metrics.py", "shown = self.union > 0", "shown = self.labelled > 0", "prediction/test_sheet.py"
    ),
    Mutant("afa/prediction/sheet.py", "if name == self.scored", "if name != self.scored", "prediction/test_sheet.py"),
    Mutant("afa/prediction/predictor.py", "resized, others", "resized, others[:1]", "prediction/test_predictor.py"),
    # Operators.
    # Labels of large images.
    Mutant("afa/ops/enlarged_label.py", "level - margin)", "level + margin)", "ops/test_enlarged_label.py"),
    Mutant("afa/ops/enlarged_label.py", "(scores > best)", "(scores >= best)", "ops/test_enlarged_label.py"),
    Mutant(
        "afa/ops/enlarged_label.py",
        "int(self.second[end - 1])",
        "int(self.first[end - 1])",
        "ops/test_enlarged_label.py",
    ),
    Mutant("afa/ops/enlarged_label.py", "size) + 0.5) - 0.5", "size) + 0.5) - 0.4999", "ops/test_enlarged_label.py"),
    Mutant("afa/ops/cam.py", "fused = torch.maximum(", "fused = torch.minimum(", "ops/test_cam.py"),
    Mutant("afa/ops/par.py", "variance.div_(count - 1)", "variance.div_(count)", "ops/test_par.py"),
    Mutant("afa/ops/random_walk.py", ".add_(epsilon)", "", "ops/test_random_walk.py"),
    Mutant("afa/ops/random_walk.py", "(down * width)", "(down * height)", "ops/test_random_walk.py"),
    Mutant(
        "afa/ops/token_pairs.py",
        "return 2 * sums.sum() - sums",
        "return sums.sum() + 0 * sums",
        "methods/test_losses.py",
    ),
    Mutant(
        "afa/ops/token_pairs.py",
        "second.baddbmm_(products.transpose(1, 2)",
        "second.baddbmm_(products",
        "ops/test_token_pairs.py",
    ),
    Mutant("afa/ops/token_pairs.py", "columns - right, down", "columns, down", "ops/test_token_pairs.py"),
    Mutant(
        "afa/methods/afa/labels.py",
        "    pairs[:, 0, : pairs.shape[2] // 2] = IGNORE",
        "    # pairs",
        "methods/test_losses.py",
    ),
    Mutant("afa/benchmarks/flops.py", "(3 * query[-1]", "(2 * query[-1]", "benchmarks/test_flops.py"),
    Mutant("afa/ops/random_walk.py", "return y * width + x", "return y * height + x", "ops/test_random_walk.py"),
    Mutant("afa/ops/permutohedral.py", "[0.5, 1.0, 0.5]", "[0.5, 0.9, 0.5]", "ops/test_permutohedral.py"),
    Mutant("afa/ops/dense_crf.py", ".add_(log_p_chunk)", "", "ops/test_dense_crf.py"),
    Mutant(
        "afa/ops/dense_energy.py",
        "gate[label == ignore_index] = 1",
        "gate[label == ignore_index] = 0",
        "ops/test_dense_energy.py",
    ),
    Mutant(
        "afa/ops/neighbour_pairs.py",
        "if dx * dx + dy * dy < radius * radius",
        "if dx * dx + dy * dy <= radius * radius",
        "ops/test_neighbour_pairs.py",
    ),
    # Models.
    Mutant(
        "afa/models/base.py",
        "        if self.norms_are_frozen:\n",
        "        if False:\n",
        "models/test_encoders_and_decoders.py",
    ),
    Mutant(
        "afa/models/resnet38.py",
        "ResidualUnit(8 * width, 8 * width, 16 * width, dilation=2)",
        "ResidualUnit(8 * width, 8 * width, 16 * width, first_dilation=2, dilation=2)",
        "models/test_psa_networks.py",
    ),
    Mutant(
        "afa/models/psa.py",
        "of_anchors -= slope",
        "of_anchors += slope",
        "models/test_psa_networks.py",
    ),
    Mutant(
        "afa/models/mit.py",
        "self.drop_path = DropPath(drop_path)",
        "self.drop_path = DropPath(0.0)",
        "models/test_afa_net.py",
    ),
    Mutant(
        "afa/models/mit.py",
        "query.shape[-1] ** -0.5",
        "query.shape[-1] ** -1",
        "models/test_afa_net.py",
    ),
    Mutant(
        "afa/models/decoder.py",
        'size=full_size, mode="bilinear", align_corners=False',
        'size=full_size, mode="bilinear", align_corners=True',
        "models/test_afa_net.py",
    ),
    Mutant(
        "afa/models/afa_net.py",
        "return F.conv2d(feature.detach(), self.classifier.weight.detach())",
        "return F.conv2d(feature, self.classifier.weight)",
        "models/test_afa_net.py",
    ),
    # Methods.
    Mutant(
        "afa/methods/segmentation.py",
        "(label != 0) & (label != IGNORE)",
        "(label != 0)",
        "methods/test_losses.py",
    ),
    Mutant(
        "afa/methods/afa/losses.py",
        "sum_of_ordered_pairs(positive * (1 - affinity))",
        "sum_of_ordered_pairs(positive * affinity)",
        "methods/test_losses.py",
    ),
    Mutant(
        "afa/maps.py",
        "torch.where(score <= background, 0, ids)",
        "torch.where(score < background, 0, ids)",
        "methods/test_pseudo_labels.py",
    ),
    Mutant(
        "afa/methods/afa/labels.py",
        "(rows < y1)",
        "(rows <= y1)",
        "methods/test_pseudo_labels.py",
    ),
    Mutant(
        "afa/methods/afa/method.py",
        "cls_only = step <= schedule.cls_until",
        "cls_only = step < schedule.cls_until",
        "methods/test_afa_method.py engine/test_trajectory.py",
    ),
    Mutant(
        "afa/methods/afa/method.py",
        "with_affinity=step > schedule.refined_until",
        "with_affinity=step >= schedule.refined_until",
        "methods/test_afa_method.py engine/test_trajectory.py",
    ),
    Mutant(
        "afa/methods/afa/method.py",
        "if weights.reg.weight and not cls_only:",
        "if False and not cls_only:",
        "methods/test_afa_method.py",
    ),
    Mutant(
        "afa/methods/segmentation.py",
        "(runtime.sum(counts) + plus) / runtime.world_size",
        "runtime.sum(counts) + plus",
        "engine/test_processes.py",
    ),
    Mutant(
        "afa/methods/segmentation.py",
        'if normalisation == "process" or runtime.world_size == 1:',
        "if runtime.world_size == 1:",
        "engine/test_processes.py",
    ),
    # Data.
    Mutant(
        "afa/data/transforms.py",
        "shown[:, ::-1] if self.mirrored else shown",
        "shown if self.mirrored else shown[:, ::-1]",
        "data_pipeline/test_transforms.py",
    ),
    Mutant(
        "afa/data/sampler.py",
        "first = step * self.global_batch + self.rank * self.share",
        "first = step * self.global_batch",
        "data_pipeline/test_batches.py",
    ),
    Mutant(
        "afa/data/sampler.py",
        "default_rng((self.seed, epoch, ",
        "default_rng((self.seed, 0, ",
        "data_pipeline/test_batches.py",
    ),
    Mutant(
        "afa/data/labels.py",
        "if value != 0 and value != ignore_index",
        "if value != 0",
        "data_pipeline/test_class_labels.py data_pipeline/test_prepare_voc.py",
    ),
    Mutant(
        "afa/data/lists.py",
        "if name in names:",
        "if False:",
        "data_pipeline/test_names_and_lists.py data_pipeline/test_check_data.py",
    ),
    Mutant(
        "afa/data/dataset.py",
        "if mask.shape != sample.image.shape[:2]:",
        "if False:",
        "data_pipeline/test_batches.py data_pipeline/test_images.py",
    ),
    # Weights.
    Mutant(
        "afa/weights/reading.py",
        "intact = _CHECKSUM not in metadata or metadata[_CHECKSUM] == content_checksum(tensors, metadata)",
        "intact = True",
        "weights/test_weights_commands.py weights/test_reading.py",
    ),
    Mutant(
        "afa/weights/layouts.py",
        'zip("kv", tensor.chunk(2), strict=True)',
        'zip("vk", tensor.chunk(2), strict=True)',
        "weights/test_loading.py test_transformers_witness.py",
    ),
    Mutant(
        "afa/weights/loading.py",
        "if not torch.isfinite(tensor).all()]",
        "if False]",
        "weights/test_loading.py weights/test_reading.py",
    ),
    Mutant(
        "afa/weights/mxnet.py",
        "        if count > self.left:\n",
        "        if False:\n",
        "weights/test_mxnet.py",
    ),
    Mutant(
        "afa/weights/layouts.py",
        '"gamma": "weight", "beta": "bias"',
        '"gamma": "bias", "beta": "weight"',
        "weights/test_psa_files.py",
    ),
    # Prediction.
    Mutant("afa/methods/base.py", "if set(output.inputs) <= set(given)", "if True", "prediction/test_inputs.py"),
    Mutant(
        "afa/prediction/predictor.py",
        "value.resized(detail) if value.size == size else value",
        "value.resized(detail)",
        "prediction/test_inputs.py",
    ),
    Mutant(
        "afa/prediction/predictor.py",
        "if output.logits else None",
        "if False else None",
        "prediction/test_predictor.py",
    ),
    Mutant(
        "afa/commands/eval.py",
        """require_writable(path, "--output" if args.output else "without --output,")""",
        "pass",
        "tools/test_commands.py",
    ),
    # Engine.
    Mutant(
        "afa/engine/optimisation.py",
        "/ max(1, steps - start)) ** settings.power",
        "/ max(1, steps - settings.warmup_steps)) ** settings.power",
        "engine/test_optimisation.py",
    ),
    Mutant(
        "afa/engine/trainer.py",
        "self.scaler.scale(total / count if count > 1 else total)",
        "self.scaler.scale(total)",
        "engine/test_processes.py",
    ),
    Mutant(
        "afa/engine/trainer.py",
        "step_seed(self.config.train.seed, step, self.runtime.rank)",
        "step_seed(self.config.train.seed, 0, self.runtime.rank)",
        "engine/test_trajectory.py engine/test_randomness.py",
    ),
    Mutant("afa/engine/loop.py", "score > self.best", "score < self.best", "engine/test_checkpoints.py"),
    Mutant(
        "afa/engine/checkpoint.py",
        "if os.path.realpath(self.path(step)) != best:",
        "if True:",
        "engine/test_checkpoints.py",
    ),
    Mutant(
        "afa/engine/finite.py",
        "(~(torch.isfinite(norm) & torch.isfinite(step.total.detach())))",
        "(~torch.isfinite(step.total.detach()))",
        "engine/test_numbers.py",
    ),
    Mutant(
        "afa/engine/finite.py",
        'if self.policy == "skip" or self.scaled:',
        "if self.scaled:",
        "engine/test_numbers.py",
    ),
    Mutant(
        "afa/engine/runtime.py",
        "return self.sum(values) / self.world_size if self.world_size > 1 else values",
        "return values",
        "engine/test_processes.py",
    ),
    # Evaluation.
    Mutant(
        "afa/evaluation/metrics.py",
        "self.labelled + self.predicted - self.intersection",
        "self.labelled + self.predicted",
        "evaluation/test_metrics.py",
    ),
    Mutant(
        "afa/methods/segmentation.py",
        "plain = (plain + mirrored.flip(-1)) / 2",
        "plain = (plain + mirrored) / 2",
        "prediction/test_predict.py",
    ),
    Mutant(
        "afa/maps.py",
        "label = torch.where(scores > best,",
        "label = torch.where(scores >= best,",
        "prediction/test_predict.py",
    ),
    # Configuration.
    Mutant("afa/methods/afa/config.py", "if self.cam.low > self.cam.high:", "if False:", "test_config.py"),
    Mutant(
        "afa/methods/afa/config.py",
        "min(self.cam.scales) * crop < 16",
        "max(self.cam.scales) * crop < 16",
        "test_config.py",
    ),
    Mutant(
        "afa/config/reading.py",
        "return copy.deepcopy(_made_once(kind))",
        "return _made_once(kind)",
        "test_config.py",
    ),
    # EDAM's network, pairs and files.
    Mutant(
        "afa/models/resnet38.py",
        "if self._last_relu else last",
        "if True else last",
        "models/test_edam_network.py",
    ),
    Mutant(
        "afa/models/edam.py",
        "torch.std_mean(tokens, dim=-1, keepdim=True)",
        "torch.std_mean(tokens, dim=-1, correction=0, keepdim=True)",
        "models/test_edam_network.py",
    ),
    Mutant(
        "afa/models/edam.py",
        "[:2].repeat(len(values) // 2, 1)",
        "[:2].repeat_interleave(len(values) // 2, dim=0)",
        "models/test_edam_network.py",
    ),
    Mutant(
        "afa/models/edam.py",
        'approximate="tanh"',
        'approximate="none"',
        "models/test_edam_network.py",
    ),
    Mutant(
        "afa/methods/edam/parameters.py",
        '0.0 if name == "encoder_biases"',
        '0.0 if name in ("encoder_biases", "attention")',
        "methods/test_edam_training.py",
    ),
    Mutant(
        "afa/methods/edam/method.py",
        'sampler = "pairs"',
        'sampler = "images"',
        "methods/test_edam.py",
    ),
    Mutant(
        "afa/data/sampler.py",
        "self._pairs[pair % self.size, is_partner]",
        "self._pairs[pair % self.size, 0]",
        "data_pipeline/test_pair_lists.py",
    ),
    Mutant(
        "afa/data/pair_lists.py",
        "if not class_labels[number, common] > 0:",
        "if False:",
        "data_pipeline/test_pair_lists.py",
    ),
    Mutant(
        "afa/data/dataset.py",
        "if self.pairs is None:",
        "if True:",
        "methods/test_edam.py",
    ),
    Mutant(
        "afa/weights/layouts.py",
        " or name == _EDAM_POSITIONS]",
        "]",
        "weights/test_edam_files.py",
    ),
    # EDAM's labels, and saliency.
    Mutant(
        "afa/methods/edam/labels.py", "saliency > math.floor(grey)", "saliency >= grey", "methods/test_edam_labels.py"
    ),
    Mutant(
        "afa/methods/edam/labels.py", "saliency >= math.ceil(grey)", "saliency > grey", "methods/test_edam_labels.py"
    ),
    Mutant(
        "afa/methods/edam/labels.py",
        "(values > beta).int().argmax(dim=1)",
        "(values > beta).int().cumsum(dim=1).argmax(dim=1)",
        "methods/test_edam_labels.py",
    ),
    Mutant(
        "afa/methods/edam/labels.py",
        "& (best >= alpha) & (best > 0)",
        "& (best >= alpha)",
        "methods/test_edam_labels.py",
    ),
    Mutant(
        "afa/methods/edam/labels.py",
        "torch.where(salient, best >= alpha, best > beta)",
        "torch.where(salient, best >= alpha, best >= beta)",
        "methods/test_edam_labels.py",
    ),
    Mutant(
        "afa/methods/edam/labels.py",
        "torch.cat([one[:, -1:], present.gather(one[:, :-1])]",
        "torch.cat([one[:, :1], present.gather(one[:, 1:])]",
        "methods/test_edam_labels.py",
    ),
    Mutant(
        "afa/methods/edam/labels.py",
        "settings.crf_beta if refines",
        "settings.beta if refines",
        "methods/test_edam_labels.py",
    ),
    Mutant(
        "afa/ops/cam.py",
        "torch.where(maximum == 0, 1.0, maximum + epsilon)",
        "(maximum + epsilon)",
        "methods/test_edam_labels.py",
    ),
    Mutant("afa/data/saliency.py", "if _is_transparent(decoded.image):", "if False:", "data_pipeline/test_saliency.py"),
    Mutant("afa/data/shapes.py", "if not missed:", "if True:", "data_pipeline/test_shapes.py"),
    Mutant(
        "afa/data/shapes.py",
        "np.random.default_rng((seed, _SPLITS.index(split), number, _SALIENCY_STREAM))",
        "np.random.default_rng()",
        "data_pipeline/test_shapes.py",
    ),
    Mutant("afa/commands/summary.py", "supervision.get(title)", "None", "tools/test_summary.py"),
    Mutant("afa/ops/minimum_barrier.py", "- np.max(distances, axis=0)", "", "ops/test_minimum_barrier.py"),
    Mutant("afa/ops/minimum_barrier.py", "_pass(state, columns[::-1])", "pass", "ops/test_minimum_barrier.py"),
    Mutant(
        "afa/prediction/saliency.py",
        "image.info.get(_NOTE) == note",
        "image.info.get(_NOTE)",
        "tools/test_make_saliency.py",
    ),
    # PSA's labels, walk and transforms.
    Mutant(
        "afa/methods/cam_volumes.py",
        "(1 - scores[:, 1:].amax(dim=1)).clamp(min=0) ** alpha",
        "1 - scores[:, 1:].amax(dim=1).clamp(min=0) ** alpha",
        "methods/test_psa.py",
    ),
    Mutant("afa/methods/psa/labels.py", "label[label == 0] = IGNORE", "pass", "methods/test_psa.py"),
    Mutant("afa/methods/psa/labels.py", "same & ~background", "same", "methods/test_psa_reference.py"),
    Mutant("afa/ops/cam.py", "mirrored.flip(-1)):", "mirrored):", "methods/test_psa.py"),
    Mutant("afa/methods/psa/affinity.py", "/ counts[2]", "/ counts[1]", "methods/test_psa.py"),
    Mutant(
        "afa/methods/psa/affinity.py",
        "steps=2**settings.log_steps",
        "steps=settings.log_steps",
        "methods/test_psa_reference.py",
    ),
    Mutant("afa/methods/psa/parameters.py", "0.0 if of_biases else", "", "methods/test_psa.py"),
    Mutant(
        "afa/ops/random_walk.py",
        "shares /= shares.sum(dim=(1, 2), keepdim=True)",
        "shares /= shares.sum(dim=(1, 2), keepdim=True) + 0.01",
        "methods/test_psa.py",
    ),
    Mutant(
        "afa/data/transforms.py", "for side in (width, height))", "for side in (height, width))", "methods/test_psa.py"
    ),
    Mutant("afa/engine/held_out.py", "network.eval()", "network.train()", "methods/test_psa.py"),
    Mutant("afa/data/map_folders.py", "theirs != list(class_names)", "False", "methods/test_psa.py"),
    # The report.
    Mutant(
        "afa/report/scores.py",
        "return best / total.masked_fill(total == 0, 1), winner",
        "return best - background, winner",
        "report/test_report.py",
    ),
    Mutant("afa/report/scores.py", "self.images += 1", "self.images += 2", "report/test_report.py"),
    Mutant("afa/report/encoding.py", "low, high = min(0.0,", "low, high = max(0.0,", "report/test_report.py"),
    Mutant("afa/report/encoding.py", "np.triu(values) if half", "np.tril(values) if half", "report/test_report.py"),
    Mutant(
        "afa/report/encoding.py",
        "(0, 0, 0, 0, wide, wide, high, high)",
        "(0, 0, 0, 0, high, high, wide, wide)",
        "report/test_report.py",
    ),
    Mutant("afa/report/page.py", '.replace("<", "\\\\u003c")', "", "report/test_report.py"),
    Mutant("afa/report/page.py", "-miou > self._worst[0][0]", "-miou < self._worst[0][0]", "report/test_report.py"),
    Mutant("afa/report/page.py", "autoescape=True", "autoescape=False", "report/test_report.py"),
    Mutant("afa/report/page.py", "number < WITH_AFFINITY", "number > WITH_AFFINITY", "report/test_report.py"),
    Mutant(
        "afa/report/sources.py", "return next(reversed(scored or", "return next(iter(scored or", "report/test_report.py"
    ),
    # Flags of the commands.
    Mutant(
        "afa/commands/arguments.py",
        'given["mirror"] = str(given["mirror"]).lower()',
        'given["mirror"] = "true"',
        "tools/test_eval.py",
    ),
    # Comparison and exports.
    Mutant("afa/report/bootstrap.py", "[2.5, 97.5]", "[5, 95]", "report/test_comparison.py"),
    Mutant("afa/report/bootstrap.py", "labelled = labelled[kept]", "labelled = labelled", "report/test_comparison.py"),
    Mutant("afa/report/comparison.py", "statistics.stdev(", "statistics.pstdev(", "report/test_comparison.py"),
    Mutant("afa/report/bootstrap.py", "weights @ labelled", "labelled.sum(axis=0)", "report/test_comparison.py"),
    Mutant("afa/data/map_files.py", 'mode="area"', 'mode="nearest"', "data_pipeline/test_map_folders.py"),
    Mutant("afa/data/other_layouts.py", "(0 if maps.has_background else 1)", "0", "tools/test_export.py"),
    Mutant("afa/data/voc_submission.py", "if highest == 255:", "if False:", "tools/test_export.py"),
    Mutant("afa/evaluation/sweep.py", "histogram[index + 1 :]", "histogram[index:]", "tools/test_score.py"),
    Mutant("afa/commands/eval.py", "if args.cams or output.logits]", "]", "tools/test_eval.py"),
    Mutant("afa/commands/infer.py", "gif=args.gif,", "gif=False,", "tools/test_infer.py"),
    Mutant(
        "afa/commands/train.py",
        "load_config(args.config, [*args.settings, *settings])",
        "load_config(args.config)",
        "test_config.py",
    ),
    # The grammar of the commands, recipes, locks.
    Mutant("afa/commands/arguments.py", "and not os.path.lexists(text)", "", "tools/test_commands.py"),
    Mutant("afa/commands/arguments.py", '"--flip": "--mirror"', '"--flip": "--no-mirror"', "tools/test_commands.py"),
    Mutant(
        "afa/commands/demo.py",
        "if (code := command(words))",
        "if (code := command(words)) and False",
        "tools/test_demo.py",
    ),
    Mutant("afa/config/recipes.py", "and not path.is_dir()", "", "config/test_recipes.py"),
    Mutant("afa/device.py", "world_size == 1 and mps_available()", "mps_available()", "test_device.py"),
    Mutant("afa/engine/output.py", "        lock.acquire()\n", "", "engine/test_locks.py"),
    Mutant("setup.py", "self._recipes():", "self._recipes()[1:]:", "test_package.py"),
]


def copy_tree(source: Path, target: Path) -> None:
    """Everything that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def dies(tree: Path, tests: list[str]) -> bool:
    """Whether one of the tests fails."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",  # two mistakes of one length within a second would share it
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in (0, 1, 2):  # 2: the tests could not even be imported
        raise SystemExit(f"error: pytest did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode != 0


def main() -> int:
    """Plant all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mistakes whose file or text holds one of these")
    parser.add_argument("--tree", type=Path, default=REPOSITORY, help="working tree (default: this one)")
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not args.words or any(word in f"{mutant}" for word in args.words)]
    survivors, misplaced = 0, 0
    print("| file | mistake | noticed by |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy_tree(args.tree.resolve(), tree)
        for mutant in chosen:
            path = tree / mutant.file
            sound = path.read_text(encoding="utf-8") if path.is_file() else ""
            if sound.count(mutant.old) != 1:
                misplaced += 1
                print(
                    f"| {mutant.file} | `{mutant.old}` occurs {sound.count(mutant.old)} times, not once | - |",
                    flush=True,
                )
                continue
            path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
            own = [f"tests/{name}" for name in mutant.tests.split() if (tree / "tests" / name).is_file()]
            if dies(tree, own):
                noticed = "its tests"
            elif dies(tree, ["tests"]):
                noticed = "the whole suite alone"
            else:
                noticed, survivors = "**nobody**", survivors + 1
            path.write_text(sound, encoding="utf-8")
            print(f"| {mutant.file} | `{mutant.old}` -> `{mutant.new}` | {noticed} |", flush=True)
    print(f"\n{len(chosen) - survivors - misplaced} of {len(chosen)} are noticed")
    return 1 if survivors or misplaced else 0


if __name__ == "__main__":
    sys.exit(main())
