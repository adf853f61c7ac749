"""How a process computes: in which numbers, with which kernels, and how exactly it repeats itself.

The one place that opens mixed precision, compiles a network, or sets torch's own switches.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any, cast

import torch
from torch import nn

from agrekd_ray.errors import RunError
from agrekd_ray.files import in_a_line
from agrekd_ray.settings import Compile, Numbers, Precision

# A workspace with which cuBLAS repeats itself; it is read once, when a GPU multiplies first.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def numbers_on(precision: Precision, device: torch.device | str) -> Numbers:
    """What a precision comes to on a device.

    Raises:
        RunError: the device is a GPU without bfloat16, and that is asked for.
    """
    if torch.device(device).type == "cpu":
        return "bfloat16" if precision == "bfloat16" else "float32"
    if precision == "float32":
        return precision
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    if precision == "auto":
        return "float32"
    raise RunError(
        f"precision: bfloat16, and {torch.cuda.get_device_name()} does not compute in it; set "
        "precision: float32."
    )


def computing_in(
    numbers: Numbers, device: torch.device | str
) -> contextlib.AbstractContextManager[Any]:
    """Forward passes on a device compute in such numbers while the block runs."""
    if numbers == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


@contextlib.contextmanager
def training_kernels(device: torch.device | str, *, deterministic: bool) -> Iterator[None]:
    """Which kernels training takes on a GPU while the block runs; on a CPU nothing changes.

    As a rule the fastest: cuDNN tries several, and float32 products are of TF32. They differ in
    their last bits from run to run, and gradients add up in any order.

    Args:
        device: that is trained on.
        deterministic: take those alone that repeat themselves, in whole float32.

    Raises:
        RunError: of something in the model there is no such kernel.
    """
    if torch.device(device).type == "cpu":
        yield
        return
    cudnn = torch.backends.cudnn
    products = torch.get_float32_matmul_precision()
    switches = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32)
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = (
        not deterministic,
        deterministic,
        not deterministic,
    )
    if strict != deterministic:
        torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    except RuntimeError as error:
        said = in_a_line(error)
        if "deterministic" not in said.lower():
            raise
        kernel, found, _ = said.partition(" does not have a deterministic implementation")
        why = f"PyTorch has no {kernel} that repeats itself" if found else said
        raise RunError(
            f"training.deterministic: {why}; take another model, or set it to false."
        ) from error
    finally:
        torch.set_float32_matmul_precision(products)
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = switches
        if strict != deterministic:
            torch.use_deterministic_algorithms(strict, warn_only=warns)


def computes_alone(pool: Executor) -> None:
    """Has the one thread of a new pool compute without helpers, and the others as before.

    OpenMP would give it as many as the main thread has, and where there are more than cores all of
    them go to sleep after each operation.
    """
    # With its first look a thread takes the setting up that holds then; so this one looks first.
    threads = torch.get_num_threads()
    pool.submit(torch.get_num_threads).result()
    pool.submit(torch.set_num_threads, 1).result()  # of that thread, and of all that are to come
    torch.set_num_threads(threads)


def compiled(network: nn.Module, how: Compile, device: torch.device | str) -> nn.Module:
    """A network that computes the same with compiled kernels; parameters stay those of the network.

    Raises:
        RunError: CUDA graphs, and the device is no GPU.
    """
    if how == "off":
        return network
    if how == "cuda_graphs" and torch.device(device).type == "cpu":
        raise RunError(
            "training.compile: cuda_graphs are a GPU's, and this process computes on a CPU; set "
            "default or off, or give it a GPU."
        )
    mode = "reduce-overhead" if how == "cuda_graphs" else None
    return cast(nn.Module, torch.compile(network, mode=mode))


@contextlib.contextmanager
def compiling(how: Compile) -> Iterator[None]:
    """A step of a `compiled` network.

    Raises:
        RunError: torch.compile fails, for instance without a C++ compiler.
    """
    if how == "off":
        yield
        return
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    if how == "cuda_graphs":  # what the last step's graph has put out is overwritten from now on
        torch.compiler.cudagraph_mark_step_begin()
    try:
        yield
    except (TorchDynamoException, InductorError) as error:
        raise RunError(
            f"training.compile: {how}: torch.compile fails here ({in_a_line(error)}); set off."
        ) from error
