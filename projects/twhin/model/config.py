"""Configuration of TwHIN's model and of its ranking metrics."""

import functools
from typing import Annotated, Literal

import pydantic

from common.modules.embedding.config import EmbeddingBagConfig, LargeEmbeddingsConfig
from common.optimizers.config import OptimizerConfig
from core.config.base_config import BaseConfig
from core.config.numbers import NumRows, PositiveFloat32
from projects.twhin.data.config import NamedRelations, OperatorSides, Relation

ComparatorName = Literal["dot", "cos", "l2"]
"""Similarity of two embeddings (docs/twhin.md has the formulas)."""

_RelationsConfig = Annotated[
    Annotated[list[Relation], pydantic.Field(min_length=1), pydantic.Tag("list")]
    | Annotated[NamedRelations, pydantic.Tag("named")],
    pydantic.Discriminator(lambda relations: "named" if isinstance(relations, dict | NamedRelations) else "list"),
]


class RegularizationConfig(BaseConfig):
    """A penalty on the embeddings of the edges' entities, averaged over edges. At most one kind can be set."""

    n3: PositiveFloat32 | None = pydantic.Field(
        None,
        json_schema_extra={"at_most_one_of": "penalty"},
        description="Weight of the sum of cubed absolute values (arXiv 1806.07297). For complex_diagonal, the absolute "
        "values are those of complex numbers.",
    )
    l2: PositiveFloat32 | None = pydantic.Field(
        None, json_schema_extra={"at_most_one_of": "penalty"}, description="Weight of the sum of squares."
    )
    operators: bool = pydantic.Field(
        False,
        description="Also penalize the parameters of the edges' relations, averaged over directions. Without this, the "
        "parameters can grow while embeddings shrink, which defeats the penalty. Not useful for translation, which "
        "multiplies nothing.",
    )

    @pydantic.model_validator(mode="after")
    def _operators_need_a_penalty(self) -> "RegularizationConfig":
        if self.operators and (self.n3 or self.l2) is None:
            raise ValueError("operators is true, but neither n3 nor l2 is set. Set one of them")
        return self


class TwhinEmbeddingsConfig(LargeEmbeddingsConfig):
    """The embeddings of entities."""


class TwhinModelConfig(BaseConfig):
    """Embeddings of typed entities, which are compared through the relations between them."""

    embeddings: TwhinEmbeddingsConfig = pydantic.Field(description="One table for each type of entity.")
    relations: _RelationsConfig = pydantic.Field(
        description="Types of edges, in the order of their ids: a list, or one definition for all of them, with the "
        "names in a file."
    )
    operator_sides: OperatorSides = pydantic.Field(
        "both",
        description="both: each relation has two operators, one applied to left entities when right entities are "
        "ranked and one for the other direction. lhs or rhs: one operator, always applied to that side.",
    )
    comparator: ComparatorName = pydantic.Field(
        "dot", description="Similarity of two embeddings: dot product, cosine, or negative Euclidean distance."
    )
    loss: Literal["logistic", "softmax", "margin"] = pydantic.Field(
        "logistic", description="Loss of an edge's score against the scores of its negatives."
    )
    margin: PositiveFloat32 = pydantic.Field(
        0.1,
        description="Margin by which an edge should score above its negatives. Used only with loss: margin.",
    )
    regularization: RegularizationConfig = pydantic.Field(RegularizationConfig(), description="Penalty on embeddings.")
    translation_optimizer: OptimizerConfig = pydantic.Field(
        description="Optimizer of the parameters of the relations' operators."
    )

    @pydantic.model_validator(mode="after")
    def _relations_fit(self) -> "TwhinModelConfig":
        tables = self.tables
        problems = []
        relations = self.relations
        if isinstance(relations, NamedRelations):  # One relation stands for all of them. The file is read later.
            relations = [
                Relation(
                    name=f"({relations.names_path})",
                    lhs=relations.lhs,
                    rhs=relations.rhs,
                    operator=relations.operator,
                )
            ]
        names = [relation.name for relation in relations]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"several relations are named {', '.join(duplicates)}. Give each relation a unique name")
        relations_by_unknown: dict[str, list[str]] = {}
        for relation in relations:
            if unknown := sorted({relation.lhs, relation.rhs} - tables.keys()):
                relations_by_unknown.setdefault(", ".join(unknown), []).append(relation.name)
        for unknown_tables, users in relations_by_unknown.items():
            more = f" and {len(users) - 3} more" if len(users) > 3 else ""
            problems.append(
                f"relation(s) {', '.join(users[:3])}{more}: no table {unknown_tables}. "
                f"The tables are {', '.join(tables)}"
            )
        used = {table for relation in relations for table in (relation.lhs, relation.rhs)}
        if unused := [name for name in tables if name not in used]:
            problems.append(f"no relation uses the table {', '.join(unused)}. Remove the table or add a relation")
        if self.translation_optimizer.row_wise_adagrad is not None:
            problems.append("translation_optimizer: row_wise_adagrad is for tables only. Use adagrad")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @functools.cached_property
    def relation_list(self) -> list[Relation]:
        """Relations in the order of their ids.

        Raises:
          ConfigError: the file with their names is invalid.
        """
        return self.relations.read() if isinstance(self.relations, NamedRelations) else self.relations

    @property
    def tables(self) -> dict[str, EmbeddingBagConfig]:
        """Tables by name."""
        return {table.name: table for table in self.embeddings.tables}


class RankingConfig(BaseConfig):
    """The metrics that evaluations compute. They may differ between a run and its resume."""

    candidates: NumRows | None = pydantic.Field(
        None,
        description="Number of entities that an edge's own entity is ranked among: one random sample, shared by all "
        "edges. null ranks among the whole table.",
    )
    filtered: bool = pydantic.Field(
        True,
        description="Also compute filtered ranks, which ignore other known edges: those of train_data, of all "
        "validation_data and of known_edges.",
    )
    known_edges: list[str] = pydantic.Field(
        [], description="More files of known edges for filtered ranks, each in the form of data_root."
    )
    hits_at: list[NumRows] = pydantic.Field(
        [1, 10, 50], description="Values of k for Hits@k, the share of ranks up to k."
    )
    per_relation: bool = pydantic.Field(True, description="Also compute the metrics of each relation.")

    @pydantic.field_validator("hits_at")
    @classmethod
    def _hits_at_differ(cls, hits_at: list[int]) -> list[int]:
        if duplicates := sorted({k for k in hits_at if hits_at.count(k) > 1}):
            raise ValueError(f"{', '.join(map(str, duplicates))} is given more than once. Give each value once")
        return hits_at

    @pydantic.model_validator(mode="after")
    def _known_edges_are_used(self) -> "RankingConfig":
        if self.known_edges and not self.filtered:
            raise ValueError("known_edges is set, but filtered is false. Remove one of them")
        return self
