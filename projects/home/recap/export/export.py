"""Exports the ranker of a checkpoint in several formats, each compared with the ranker before any appears."""

import dataclasses
import json
import logging
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from common.files.atomic_directory import atomic_directory
from common.process.memory import format_bytes
from common.process.optional_packages import require_packages
from projects.home.recap.export import formats
from projects.home.recap.export.check_score import check_score
from projects.home.recap.export.compare import Comparison
from projects.home.recap.export.flat_ranker import FlatRanker, RankerInput, Scorer, ranker_inputs
from projects.home.recap.export.fold import folded
from projects.home.recap.export.rows import choose_rows, read_rows
from projects.home.recap.export.signature import SIGNATURE, signature, write_vocabularies
from projects.home.recap.saved import SavedRanker, load_saved_ranker

logger = logging.getLogger(__name__)

SCORE = "score.py"
"""Name of the program that scores rows with an export, and of its source."""

_XXH64 = "xxh64.py"  # score.py runs it where xxhash is not installed


@dataclasses.dataclass(frozen=True)
class Exported:
    """Describes what was exported.

    Attributes:
      out: the directory.
      checkpoint: the checkpoint.
      files: size in bytes of each file, by its path in the directory.
      comparison: the entry of signature.json about the comparison with the ranker.
      skipped: why there is no AOTInductor package; None if there is one.
    """

    out: Path
    checkpoint: Path
    files: dict[str, int]
    comparison: Mapping[str, Any]
    skipped: str | None


def export(checkpoint: Path, out: Path, *, compiles: bool = True) -> Exported:
    """Export the ranker of a checkpoint. Must run in a process of its own, which has not set the precision of TF32.

    Args:
      checkpoint: directory of the checkpoint.
      out: directory to create; must be empty if it exists. It appears when it is complete.
      compiles: compile a package of AOTInductor if there is a C++ compiler.

    Raises:
      UserError: the checkpoint cannot be read, a package is missing, the compiler fails, an exported model differs
        from the ranker, or `out` cannot be written.
    """
    require_packages(formats.ONNX, ["onnx", "onnxscript", "onnxruntime"])
    with atomic_directory(out) as partial:
        logger.info("loading %s", checkpoint)
        saved = load_saved_ranker(checkpoint)
        comparison, skipped = write_export(saved, partial, compiles)
        files = {
            str(path.relative_to(partial)): path.stat().st_size for path in sorted(partial.rglob("*")) if path.is_file()
        }
    return Exported(out, checkpoint, files, comparison, skipped)


def write_export(saved: SavedRanker, out: Path, compiles: bool) -> tuple[dict[str, Any], str | None]:
    """Write all files, and return the entry of signature.json about the comparison, and why a package is missing."""
    ranker = FlatRanker(saved.ranker).eval()
    inputs = ranker_inputs(saved)
    data = read_rows(saved, inputs)
    rows, source = choose_rows(saved, inputs, data)
    logger.info("computing the ranker's outputs on edge cases and %s", source)
    score = saved.ranker.score
    comparison = Comparison(ranker, rows, saved.ranker.tasks, None if score is None else score.weights)
    writer = _Writer(FlatRanker(folded(saved.ranker)).eval(), inputs, comparison, out)
    target, skipped = None, "--skip_aotinductor was given"
    if compiles:
        compiler = formats.find_compiler()
        target = None if compiler is None else formats.find_target(compiler)
        skipped = f"there is no C++ compiler {formats.compiler_name()} (the environment variable CXX names another one)"
    writer.write(target)
    described = signature(saved, inputs, comparison.outputs, write_vocabularies(saved.encoder, out))
    compared = {"rows": len(rows.names), "data": source, "largest_differences": writer.differences}
    described |= {
        "aotinductor": None if target is None else dataclasses.asdict(target),
        "compared_with_the_ranker": compared,
    }
    (out / SIGNATURE).write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for program in (SCORE, _XXH64):
        shutil.copyfile(Path(__file__).with_name(program), out / program)
    if data is not None:
        check_score(saved, data, out)
    return compared, skipped if target is None else None


class _Writer:
    """Writes and compares models."""

    def __init__(self, ranker: FlatRanker, inputs: list[RankerInput], comparison: Comparison, out: Path) -> None:
        self._ranker = ranker
        self._inputs = inputs
        self._comparison = comparison
        self._out = out
        self.differences: dict[str, dict[str, float]] = {}

    def write(self, target: formats.Target | None) -> None:
        """Write all models; the package of AOTInductor only with a target."""
        logger.info("tracing the ranker")
        program = formats.trace(self._ranker, self._inputs)
        logger.info("writing %s", formats.PT2)
        self._check(formats.PT2, formats.write_pt2(program, self._out / formats.PT2))
        logger.info("converting the ranker to ONNX")
        outputs = list(self._comparison.outputs)
        self._check(formats.ONNX, formats.write_onnx(program, self._out / formats.ONNX, outputs))
        if target is not None:
            logger.info("compiling %s, which takes about a minute", target)
            path = self._out / formats.AOTINDUCTOR
            self._check(formats.AOTINDUCTOR, formats.write_aotinductor(program, path, target))

    def _check(self, name: str, model: Scorer) -> None:
        with torch.no_grad():
            self.differences[name] = self._comparison.check(name, model)
        logger.info("%s equals the ranker", name)


def report(exported: Exported) -> str:
    """Return a summary of what was exported, and what to do next."""
    differences = exported.comparison["largest_differences"]
    rows = []
    for name, size in exported.files.items():
        of_file = differences.get(name)
        largest = None if of_file is None else of_file["calibrated_probabilities"]
        rows.append([name, format_bytes(size), "" if largest is None else f"{largest:.1g}"])
    lines = [
        f"exported {exported.checkpoint} to {exported.out}",
        tabulate(rows, headers=["file", "size", "largest difference"], disable_numparse=True),
        f"The largest difference is that of a probability from the ranker's own, over {exported.comparison['rows']:,} "
        f"rows: edge cases and {exported.comparison['data']}.",
    ]
    if exported.skipped is not None:
        lines.append(f"There is no {formats.AOTINDUCTOR}, because {exported.skipped}.")
    lines += [
        "\nScore rows, one JSON object per line, with",
        f"  python {shlex.quote(str(exported.out / SCORE))} < ROWS",
        f"docs/export.md shows how to load each file. {SIGNATURE} describes the inputs.",
    ]
    return "\n".join(lines) + "\n"
