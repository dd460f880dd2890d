"""Describes an export in signature.json, and writes its vocabularies."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.features.encoder import FeatureEncoder
from common.features.vocabulary import Vocabulary
from projects.home.recap.export.encoding import Entry, encoding_of_features, encoding_of_schema, ignored_features
from projects.home.recap.export.flat_ranker import RankerInput
from projects.home.recap.model.small_embeddings import smallest_table_sizes
from projects.home.recap.saved import SavedRanker

SIGNATURE = "signature.json"

FORMAT_VERSION = 1

_VOCABULARIES = "vocabularies"


def write_vocabularies(encoder: FeatureEncoder | None, out: Path) -> dict[str, str]:
    """Write vocabularies/<number>.json for each vocabulary: the list of its values, in which value i has row i + 2.

    Returns:
      The name of each file in `out`, by the path of the vocabulary in the configuration.
    """
    names: dict[str, str] = {}
    for path, vocabulary in ({} if encoder is None else encoder.vocabularies).items():
        names[path] = f"{_VOCABULARIES}/{len(names)}.json"
        (out / _VOCABULARIES).mkdir(exist_ok=True)
        values = vocabulary.values.to_pylist()
        (out / names[path]).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    return names


def signature(
    saved: SavedRanker, inputs: Sequence[RankerInput], outputs: Mapping[str, torch.Tensor], files: Mapping[str, str]
) -> dict[str, Any]:
    """Return what signature.json says about a ranker.

    Args:
      saved: the ranker.
      inputs: its inputs.
      outputs: its outputs for some batch.
      files: names of the vocabularies' files, by their paths in the configuration.
    """
    config, ranker = saved.config, saved.ranker
    encoder = saved.encoder
    weights = None if ranker.score is None else dict(zip(ranker.tasks, ranker.score.weights.tolist(), strict=True))
    return {
        "format": FORMAT_VERSION,
        "torch": torch.__version__,
        "checkpoint": {"path": str(saved.checkpoint.absolute()), "step": saved.step, "digest": saved.digest},
        "computes_in": "float32",
        "trained_with_autocast": config.runtime.enable_amp,
        "inputs": [{"name": each.name, "dtype": _name(each.dtype), "shape": ["batch", each.width]} for each in inputs],
        "outputs": [
            {"name": name, "dtype": _name(values.dtype), "shape": ["batch", *values.shape[1:]]}
            for name, values in outputs.items()
        ],
        "tasks": list(ranker.tasks),
        "score_weights": weights,
        "features": None if encoder is None else _features(config.features or {}, files),
        "encoding": _encoding(saved, inputs, files),
        "vocabularies": {} if encoder is None else _vocabularies(encoder.vocabularies, files),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _features(features: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Return the complete configuration of the features, with the names of the export's vocabularies."""
    dumped = {name: feature.model_dump(mode="json") for name, feature in features.items()}
    for feature in dumped.values():
        if feature.get("vocabulary") is not None:
            feature["vocabulary"] = files[feature["vocabulary"]]
    return dumped


def _encoding(saved: SavedRanker, inputs: Sequence[RankerInput], files: Mapping[str, str]) -> list[Entry]:
    """Return how columns become the inputs of the ranker."""
    model = saved.config.model
    if saved.encoder is not None:
        return encoding_of_features(saved.encoder, inputs, files, ignored_features(model))
    small_embeddings = model.small_embeddings
    num_ids = {} if small_embeddings is None else smallest_table_sizes(small_embeddings)
    return encoding_of_schema(saved.features, inputs, num_ids)


def _vocabularies(vocabularies: Mapping[str, Vocabulary], files: Mapping[str, str]) -> dict[str, Any]:
    return {
        files[path]: {
            "digest": vocabulary.digest,
            "num_values": len(vocabulary),
            "values": "strings" if vocabulary.has_strings else "integers",
        }
        for path, vocabulary in vocabularies.items()
    }
