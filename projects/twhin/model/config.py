"""Configuration of TwHIN's model."""

import functools
from typing import Annotated, Literal

import pydantic

from common.errors import ConfigError
from common.modules.embedding.config import EmbeddingBagConfig, LargeEmbeddingsConfig
from common.optimizers.config import OptimizerConfig
from common.process.paths import user_path
from core.config.base_config import BaseConfig

Operator = Literal["identity", "translation", "diagonal", "linear", "complex_diagonal"]
"""What a relation does to an embedding (docs/twhin.md has the formulas)."""


class Relation(BaseConfig):
    """A type of edges; its id in the data is its position in the list."""

    name: str = pydantic.Field(min_length=1, description="Name of the relation.")
    lhs: str = pydantic.Field(description="Table of the edges' left entities.")
    rhs: str = pydantic.Field(description="Table of the edges' right entities.")
    operator: Operator = pydantic.Field(
        "translation", description="What the relation does to an embedding before the comparison."
    )


class NamedRelations(BaseConfig):
    """Relations of one kind, whose names are in a file, as projects.twhin.tools.prepare writes it."""

    names_path: str = pydantic.Field(min_length=1, description="Text file: a name a line, in the order of their ids.")
    lhs: str = pydantic.Field(description="Table of the edges' left entities.")
    rhs: str = pydantic.Field(description="Table of the edges' right entities.")
    operator: Operator = pydantic.Field(
        "translation", description="What each does to an embedding, with its own parameters."
    )

    def read(self) -> list[Relation]:
        """The relations.

        Raises:
          ConfigError: the file can't be read, or has an empty line, or a name twice.
        """
        place = f"model.relations.names_path: {self.names_path}"
        try:
            names = user_path(self.names_path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{place}: can't be read: {error}") from error
        first: dict[str, int] = {}
        for line, name in enumerate(names, start=1):
            if not name:
                raise ConfigError(f"{place}: line {line}: empty; a name is expected on each line")
            if first.setdefault(name, line) != line:
                raise ConfigError(f"{place}: line {line}: {name} stands on line {first[name]} too; names must differ")
        return [Relation(name=name, lhs=self.lhs, rhs=self.rhs, operator=self.operator) for name in names]


_Relations = Annotated[
    Annotated[list[Relation], pydantic.Field(min_length=1), pydantic.Tag("list")]
    | Annotated[NamedRelations, pydantic.Tag("named")],
    pydantic.Discriminator(lambda relations: "named" if isinstance(relations, dict | NamedRelations) else "list"),
]


class RegularizationConfig(BaseConfig):
    """A penalty on the embeddings of the edges' entities, a mean over edges; at most one kind."""

    n3: pydantic.PositiveFloat | None = pydantic.Field(
        None,
        json_schema_extra={"at_most_one_of": "penalty"},
        description="Weight of the sum of cubed absolute values (arXiv 1806.07297), of moduli for complex_diagonal.",
    )
    l2: pydantic.PositiveFloat | None = pydantic.Field(
        None, json_schema_extra={"at_most_one_of": "penalty"}, description="Weight of the sum of squares."
    )
    operators: bool = pydantic.Field(
        False,
        description="Also penalise the parameters of the edges' relations (a mean over directions): else these grow "
        "while embeddings shrink, and the penalty costs nothing. Of no use to translation, which is no factor.",
    )

    @pydantic.model_validator(mode="after")
    def _there_is_one(self) -> "RegularizationConfig":
        if self.operators and (self.n3 or self.l2) is None:
            raise ValueError("operators: true, but neither n3 nor l2 is given; give one of them")
        return self


class TwhinEmbeddingsConfig(LargeEmbeddingsConfig):
    """The embeddings of entities."""


class TwhinModelConfig(BaseConfig):
    """Embeddings of typed entities, compared through the relations between them."""

    embeddings: TwhinEmbeddingsConfig = pydantic.Field(description="A table for each type of entities.")
    relations: _Relations = pydantic.Field(
        description="The types of edges, in the order of their ids: a list, or one kind of them with names from a file."
    )
    operator_sides: Literal["both", "lhs", "rhs"] = pydantic.Field(
        "both",
        description="both: each relation has two operators, one applied to left entities when right ones are ranked "
        "and one for the other direction. lhs or rhs: one operator, applied to that side always.",
    )
    comparator: Literal["dot", "cos", "l2"] = pydantic.Field(
        "dot", description="How two embeddings are compared: dot product, cosine, or the negative distance."
    )
    loss: Literal["logistic", "softmax", "margin"] = pydantic.Field(
        "logistic", description="Of an edge's score against those of its negatives."
    )
    margin: pydantic.PositiveFloat = pydantic.Field(
        0.1, description="Of loss: margin: by how much an edge is to score above its negatives."
    )
    regularization: RegularizationConfig = pydantic.Field(
        RegularizationConfig(), description="A penalty on embeddings."
    )
    translation_optimizer: OptimizerConfig = pydantic.Field(description="What updates the relations' operators.")

    @pydantic.model_validator(mode="after")
    def _relations_fit(self) -> "TwhinModelConfig":
        tables = self.tables
        problems = []
        given = self.relations
        if isinstance(given, NamedRelations):  # one stands for all; the file is read later
            given = [Relation(name=f"({given.names_path})", lhs=given.lhs, rhs=given.rhs, operator=given.operator)]
        names = [relation.name for relation in given]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"several relations are called {', '.join(twice)}; names must differ")
        wrong: dict[str, list[str]] = {}
        for relation in given:
            if unknown := sorted({relation.lhs, relation.rhs} - tables.keys()):
                wrong.setdefault(f"of {', '.join(unknown)}, which is no table", []).append(relation.name)
        for what, which in wrong.items():
            further = f" and {len(which) - 3} more" if len(which) > 3 else ""
            problems.append(f"relation(s) {', '.join(which[:3])}{further}: {what}")
        used = {table for relation in given for table in (relation.lhs, relation.rhs)}
        if unused := [name for name in tables if name not in used]:
            problems.append(f"no relation uses the table {', '.join(unused)}; remove it, or add a relation")
        if self.translation_optimizer.row_wise_adagrad is not None:
            problems.append("translation_optimizer: row_wise_adagrad is for tables; use adagrad")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @functools.cached_property
    def relation_list(self) -> list[Relation]:
        """The relations, in the order of their ids.

        Raises:
          ConfigError: the file of their names is not as it must be.
        """
        return self.relations.read() if isinstance(self.relations, NamedRelations) else self.relations

    @property
    def tables(self) -> dict[str, EmbeddingBagConfig]:
        """By name."""
        return {table.name: table for table in self.embeddings.tables}
