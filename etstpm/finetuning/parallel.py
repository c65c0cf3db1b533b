"""The teacher's loop on several processes of one machine, a GPU each.

Every process draws the same batch, computes the features of its share, and collects those of the
others; each then knows the loss over the whole batch, whatever the objective compares. Gradients of
the pyramid are those of that loss, so that the weights are those of one process but for rounding.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from etstpm.compute import Compute
from etstpm.errors import ConfigError
from etstpm.images import Pixels, normalise
from etstpm.networks import Pyramid


def is_shared() -> bool:
    """Whether this process is one of several that tune one teacher."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def distribute(pyramid: nn.Module, compute: Compute, *, is_folded: bool) -> nn.Module:
    """The module to compute a share's features with; its gradients are averaged over processes.

    Batch normalisation that is not folded counts the whole batch, as one process would, and images
    that fill up the last batch count twice. Raises `ConfigError` on CPUs, where it cannot.
    """
    if not is_shared():
        return pyramid
    if not is_folded:
        if compute.device.type != "cuda":
            raise ConfigError(
                "ETSTPM_TEACHER_PROCESSES: batch normalisation that is not folded into the "
                "weights needs a GPU a process; set it to 1 on this machine"
            )
        pyramid = nn.SyncBatchNorm.convert_sync_batchnorm(pyramid)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(pyramid, broadcast_buffers=False)


def features_of(network: nn.Module, drawn: Pixels, compute: Compute) -> Pyramid:
    """Features of all images of a batch (N, H, W, 3), those of other processes without gradients.

    The network's gradients are averaged over the processes later: what flows into the own share
    counts as many times, so that the average is the sum over the shares.
    """
    if not is_shared():
        with compute.autocast():
            features: Pyramid = network(normalise(drawn, compute.device))
        return features
    rank, processes = dist.get_rank(), dist.get_world_size()
    size = -(-len(drawn) // processes)
    share = np.arange(rank * size, (rank + 1) * size) % len(drawn)  # all alike: filled up
    with compute.autocast():
        own = network(normalise(drawn[share], compute.device))
    layer1, layer2, layer3 = (_collect(layer, rank, processes)[: len(drawn)] for layer in own)
    return layer1, layer2, layer3


def _collect(own: Tensor, rank: int, processes: int) -> Tensor:
    own = own.contiguous()
    shares = [torch.empty_like(own) for _ in range(processes)]
    dist.all_gather(shares, own.detach())
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * processes)  # type: ignore[no-untyped-call]
    shares[rank] = own
    return torch.cat(shares)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Of what every process computes in full: alike but for rounding, and kept alike so."""
    if is_shared():
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()


def agree(*numbers: float) -> tuple[float, ...]:
    """The first process's numbers: all must end the training in the same epoch."""
    if not is_shared():
        return numbers
    shared = [list(numbers)]
    dist.broadcast_object_list(shared, src=0)
    return tuple(shared[0])
