"""Writes a ranker in formats that need no code of this project, and loads what was written.

compare.py compares the loaded models with the ranker.
"""

import contextlib
import dataclasses
import io
import logging
import os
import platform
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from projects.home.recap.export.flat_ranker import FlatRanker, RankerInput, Scorer

PT2, ONNX, AOTINDUCTOR = "model.pt2", "model.onnx", "model-aotinductor.pt2"
"""Names of the files."""

_OPSET = 20

# A protocol buffer holds less than 2 GiB. The rest is for the graph.
_MAX_BYTES_IN_ONE_FILE = 2**31 - 2**24

_BATCH = "batch"

# Rows of the example from which the graph is traced. One row would be taken for a constant of the model.
_EXAMPLE_ROWS = 4


def trace(ranker: FlatRanker, inputs: Sequence[RankerInput]) -> torch.export.ExportedProgram:
    """Return the graph of a ranker for batches of any size."""
    example = {each.name: torch.zeros(_EXAMPLE_ROWS, each.width, dtype=each.dtype) for each in inputs}
    batch = torch.export.Dim(_BATCH, min=1)
    return torch.export.export(ranker, (example,), dynamic_shapes={"inputs": {name: {0: batch} for name in example}})


def write_pt2(program: torch.export.ExportedProgram, path: Path) -> Scorer:
    """Write a program of torch.export, and return the model that was loaded from the file."""
    content = io.BytesIO()  # torch aborts the process if it cannot write to a file
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())
    scorer: Scorer = torch.export.load(path).module()
    return scorer


def write_onnx(program: torch.export.ExportedProgram, path: Path, outputs: Sequence[str]) -> Scorer:
    """Write an ONNX file, and return the model that was loaded from it with ONNX Runtime.

    A model of 2 GiB or more has its weights in a second file, <name>.data, as ONNX requires.

    Args:
      program: the graph.
      path: the file.
      outputs: names of the outputs, in the order in which the graph returns them.
    """
    import onnxruntime

    names = list(program.example_inputs[0][0])
    with _quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=_OPSET,
            input_names=names,
            output_names=list(outputs),
            custom_translation_table={torch.ops.aten.nan_to_num.default: _finite},
            verbose=False,
        )
    assert converted is not None
    _name_batch(converted.model.graph)
    constants = [value.const_value for value in converted.model.graph.initializers.values()]
    weights = sum(constant.nbytes for constant in constants if constant is not None)
    converted.save(path, external_data=weights > _MAX_BYTES_IN_ONE_FILE)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def score(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        values = session.run(None, {name: inputs[name].numpy() for name in names})
        return {name: torch.from_numpy(value) for name, value in zip(outputs, values, strict=True)}

    return score


def _finite(values: Any, nan: float = 0.0, posinf: float = 0.0, neginf: float = 0.0) -> Any:
    """Translate nan_to_num() if all replacements are 0, to three operations; the translation of torch has nine."""
    from onnxscript import opset20

    assert nan == posinf == neginf == 0.0
    is_finite = opset20.LessOrEqual(opset20.Abs(values), torch.finfo(torch.float32).max)  # false for NaN
    return opset20.Where(is_finite, values, 0.0)


def _name_batch(graph: Any) -> None:
    """Give the size of the batch the name "batch" in all shapes of a graph; the tracer numbers it."""
    [symbol] = {str(value.shape[0]) for value in graph.inputs}
    values = [*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if str(size) == symbol:
                value.shape[axis] = _BATCH


@dataclasses.dataclass(frozen=True)
class Target:
    """The processors that an AOTInductor package runs on.

    Attributes:
      compiler: the C++ compiler.
      machine: architecture, such as x86_64.
      architecture: the compiler's name of the minimum instruction set, such as x86-64-v3; None for that of this
        machine.
      vector: vector instructions that the kernels use.
    """

    compiler: str
    machine: str
    architecture: str | None
    vector: str

    def __str__(self) -> str:
        return f"for {self.architecture or self.machine} ({self.vector}) with {self.compiler}"


def compiler_name() -> str:
    """Return the name of the C++ compiler that AOTInductor uses."""
    return os.environ.get("CXX", "g++")


def find_compiler() -> str | None:
    """Return the C++ compiler that AOTInductor uses, or None if there is none."""
    compiler = compiler_name()
    try:
        subprocess.run([compiler, "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return compiler


def find_target(compiler: str) -> Target:
    """Return the processors for which a compiler compiles: those with the vector instructions of this machine."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    vector = str(pick_vec_isa())
    architecture = None
    if platform.machine() == "x86_64":
        architecture = {"avx512": "x86-64-v4", "avx2": "x86-64-v3"}.get(vector.split()[0], "x86-64")
    return Target(compiler, platform.machine(), architecture, vector)


def write_aotinductor(program: torch.export.ExportedProgram, path: Path, target: Target) -> Scorer:
    """Compile an AOTInductor package, and return the model that was loaded from it.

    Raises:
      UserError: the compiler fails.
    """
    from torch._inductor import aoti_compile_and_package, aoti_load_package
    from torch._inductor.exc import CppCompileError, InductorError
    from torch._inductor.utils import fresh_cache

    # Otherwise the number of threads of this process would be compiled in.
    options: dict[str, Any] = {"cpp.dynamic_threads": True, "cpp.march": target.architecture}
    try:
        # Inductor's own cache would keep a copy of the weights.
        with _quiet(), tempfile.TemporaryDirectory() as cache, fresh_cache(dir=cache):
            content = io.BytesIO()
            aoti_compile_and_package(program, package_path=content, inductor_configs=options)
    except InductorError as error:
        if not isinstance(error.inner_exception, CppCompileError):
            raise
        raise UserError(
            f"{target.compiler} cannot compile the package of AOTInductor. Set the environment variable CXX to another "
            f"compiler, or use --skip_aotinductor. {error.inner_exception}"
        ) from error
    path.write_bytes(content.getbuffer())
    with _quiet():
        scorer: Scorer = aoti_load_package(str(path))
    return scorer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch and its exporters log about each step."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
