"""The Heavy Ranker as it is served: takes plain tensors, has no labels or loss, and can be exported."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from common.errors import ConfigError
from common.features.layout import FeatureLayout
from common.modules.keys import module_key
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.architectures import build_architecture, build_tower
from projects.home.recap.model.bucketed_numbers import BucketedNumbers
from projects.home.recap.model.config import ModelConfig
from projects.home.recap.model.feature_tables import FeatureTables
from projects.home.recap.model.features import LARGEST_IN_EMBEDDING, Featurization, bounded
from projects.home.recap.model.position_debias import PositionDebias, without_position
from projects.home.recap.model.score import WeightedScore, configured_score_weights
from projects.home.recap.model.small_embeddings import SmallEmbeddings


class HeavyRanker(nn.Module):
    """Predicts the probability of each task from the features of a candidate.

    Features and embeddings feed an optional shared backbone (a parallel MaskNet in production) and a tower per task.
    """

    def __init__(
        self,
        config: ModelConfig,
        widths: FeatureWidths,
        sampling_rates: Mapping[str, tuple[float, float]],
        layout: FeatureLayout | None = None,
    ) -> None:
        """Build the model.

        Args:
          config: configuration of the model.
          widths: widths of the features in batches.
          sampling_rates: shares of positives and negatives that the training data kept, by task; (1, 1) if the loss
            weights examples by the inverse rates.
          layout: layout of the configured features; None without.

        Raises:
          ConfigError: two names of tasks, tables or embeddings differ only in '.' and '/', a DLRM has no embeddings, or
            the file of score weights cannot be used.
        """
        super().__init__()
        self.tasks = tuple(config.tasks)
        self._embeddings = tuple(widths.embeddings)
        self.buckets = BucketedNumbers(layout.edges) if layout is not None and any(layout.edges) else None
        continuous = widths.continuous if self.buckets is None else self.buckets.num_plain
        names = None if layout is None else layout.plain
        self.featurization = Featurization(continuous, widths.binary, config.featurization_config, names)
        self.embedding_norms = nn.ModuleDict(
            {module_key(name): nn.LayerNorm(width) for name, width in widths.embeddings.items()}
        )
        if len(self.embedding_norms) != len(widths.embeddings):
            raise ConfigError("features: the names of two embeddings differ only in '.' and '/'. Rename one of them")
        self.small_embeddings = None if config.small_embeddings is None else SmallEmbeddings(config.small_embeddings)
        embedding_widths = list(widths.embeddings.values())  # of the parts at the end of the features
        if self.small_embeddings is not None:
            embedding_widths += self.small_embeddings.widths
        position, columns = config.position_debias_config, None
        self.position_debias = None if position is None else PositionDebias(position, layout)
        if layout is not None and position is not None:
            layout, columns = without_position(layout, position)
        self.feature_tables = FeatureTables(layout, columns) if layout is not None and layout.tables else None
        if self.feature_tables is not None:
            embedding_widths += self.feature_tables.widths
        if self.position_debias is not None:
            embedding_widths.append(self.position_debias.out_features)
        in_features = self.featurization.out_features + sum(embedding_widths)
        if self.buckets is not None:
            in_features += self.buckets.out_features
        self.backbone = (
            None if config.backbone is None else build_architecture(config.backbone, in_features, embedding_widths)
        )
        self._towers_see_features = config.multi_task_type != "share_all"
        tower_features = in_features if self._towers_see_features else 0
        if self.backbone is not None:
            tower_features += self.backbone.out_features
        self.towers = nn.ModuleDict(
            {
                module_key(task): build_tower(
                    tower, tower_features, embedding_widths if self._towers_see_features else ()
                )
                for task, tower in config.tasks.items()
            }
        )
        if len(self.towers) != len(self.tasks):
            raise ConfigError("model.tasks: two task names differ only in '.' and '/'. Rename one of them")
        # Keeping shares (p, n) of positives and negatives multiplies the odds by p / n. This undoes it.
        shifts = [math.log(sampling_rates[task][1] / sampling_rates[task][0]) for task in self.tasks]
        self.register_buffer("_calibration", torch.tensor(shifts), persistent=False)
        self._calibration: torch.Tensor
        score_weights = configured_score_weights(config)
        self.score = None if score_weights is None else WeightedScore(self.tasks, score_weights)

    def forward(
        self,
        continuous: torch.Tensor,
        binary: torch.Tensor,
        user_embedding: torch.Tensor | None = None,
        user_eng_embedding: torch.Tensor | None = None,
        author_embedding: torch.Tensor | None = None,
        discrete: torch.Tensor | None = None,
        ids: torch.Tensor | None = None,
        embeddings: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Score candidates.

        Features may have narrower types than float32 (discrete: int64); they are widened here.

        Args:
          continuous: raw continuous features, [batch, continuous]. NaN and infinities count as missing.
          binary: binary features, 0 or 1, [batch, binary].
          user_embedding: [batch, width]. Each of the three embeddings is required if the model was built with it.
          user_eng_embedding: [batch, width].
          author_embedding: [batch, width].
          discrete: integer discrete features, [batch, discrete]. Required if the model has small embeddings, whose
            features must be ids within their tables. Also required in training, not in evaluation, if it holds the
            position of position_debias_config.
          ids: rows of the configured features' tables, [batch, num_ids]. Required if the model has such tables.
          embeddings: the configured features of kind embedding by name, [batch, length].

        Returns:
          "logits" and "probabilities" (of the data as weighted by the loss), "calibrated_logits" and
          "calibrated_probabilities" (of the data before sampling), each float32 [batch, tasks] in the order of `tasks`.
          Also "score", float64 [batch], if the model has score weights.
        """
        vectors = {
            "user_embedding": user_embedding,
            "user_eng_embedding": user_eng_embedding,
            "author_embedding": author_embedding,
        } | dict(embeddings or {})
        parts = []
        continuous = continuous.float()
        if self.buckets is not None:
            continuous, encoded = self.buckets(continuous)
            parts.append(encoded)
        parts.insert(0, self.featurization(continuous, binary.float()))
        for name in self._embeddings:
            vector = vectors[name]
            assert vector is not None, f"{name} is required: the model was built with it"
            vector = bounded(vector.float(), LARGEST_IN_EMBEDDING)
            parts.append(self.embedding_norms[module_key(name)](vector))
        if self.small_embeddings is not None:
            assert discrete is not None, "discrete is required: the model was built with small embeddings"
            parts.append(self.small_embeddings(discrete.long()))
        if self.feature_tables is not None:
            assert ids is not None, "ids is required: the model was built with tables of features"
            parts.append(self.feature_tables(ids))
        if self.position_debias is not None:
            parts.append(self.position_debias(discrete, ids, continuous.shape[0]))
        features = hidden = torch.cat(parts, dim=1)
        if self.backbone is not None:
            hidden = self.backbone(features)
            if self._towers_see_features:
                hidden = torch.cat([hidden, features], dim=1)
        logits = torch.cat([self.towers[module_key(task)](hidden) for task in self.tasks], dim=1).float()
        calibrated_logits = logits + self._calibration
        outputs = {
            "logits": logits,
            "probabilities": torch.sigmoid(logits),
            "calibrated_logits": calibrated_logits,
            "calibrated_probabilities": torch.sigmoid(calibrated_logits),
        }
        if self.score is not None:
            outputs["score"] = self.score(calibrated_logits)
        return outputs
