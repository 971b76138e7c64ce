"""ONNX Runtime itself: loading a graph, and what it raises."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from ...heap import return_large_blocks

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
DAMAGED = (errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoModel, errors.NoSuchFile)
FAILURES = (RuntimeError, ValueError, *DAMAGED, errors.EPFail, errors.Fail, errors.NotImplemented, errors.RuntimeException)
"""What ONNX Runtime raises; the `DAMAGED` when the graph is at fault."""


def load_engine(
    graph: bytes,
    folder: Path,
    provider: str = CPU,
    settings: Mapping[str, str] | None = None,
    disabled: Sequence[str] = (),
    *,
    arena: bool = True,
    many_nodes: bool = False,
    stored: bool = False,
) -> onnxruntime.InferenceSession:
    """The graph in an engine that never changes its provider by itself. Raises one of FAILURES.

    folder: of the weights.  settings: of the provider.  disabled: optimizers not to run.
    arena: keep the CPU's memory for the next run.
    many_nodes: compile in time that grows with the number of nodes, not with its square: which value takes over whose memory
    is not planned, and the nodes run in the graph's order, where by default the last one and what it needs come first.
    stored: weights stay as they are stored; a node that widens one runs just before the one that uses it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.enable_cpu_mem_arena = arena
    if many_nodes:
        options.enable_mem_reuse = False
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if stored:
        _keep_stored(options)
    # 1: in float32. By default, activations would be rounded to 8 bits before they meet weights of 8 or 4.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    providers = [(provider, dict(settings or {}))]
    return onnxruntime.InferenceSession(graph, options, providers, enable_fallback=0, disabled_optimizers=list(disabled))


def _keep_stored(options: onnxruntime.SessionOptions) -> None:
    # By default all weights are widened before the first is used. In the graph's order each has its turn, but for optimizers:
    # what they fuse they append, behind everything that is widened.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False  # grows by powers of two, and never shrinks
    return_large_blocks()


def cause_of(error: Exception) -> str:
    """The message without what ONNX Runtime puts before it: its codes, and where in its source it was."""
    text = re.sub(r".*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error), flags=re.DOTALL)
    text = re.sub(r"\S+\.(cc|h):\d+ ", "", text)
    return " ".join(re.sub(r"([\w:]+ )?onnxruntime::[\w:]+\([^()]*\) ", "", text).split())
