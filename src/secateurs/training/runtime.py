"""Where training runs: device, processes, precision, memory format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.devices import usable
from secateurs.errors import ConfigError, Setting, TrainingError, shown
from secateurs.training import precision as P
from secateurs.training.processes import Peers, check, check_group, on_cpu, several
from secateurs.training.recipe import Recipe


class Runtime:
    """accelerate's device, processes, wrapping and trackers, but our own precision and accumulation.

    accelerate keeps these two in process-wide state that a second engine could not change, and its autocast wraps the
    user's model permanently. `precision` is 'fp32', 'bf16' or 'fp16'. `scaler` is the loss scaler of 'fp16'.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: str | torch.device | None,
        track: Sequence[Any] = (),
        folder: Path | None = None,
    ):
        from accelerate import Accelerator  # slow to import, and starts process groups
        from accelerate.utils import GradientAccumulationPlugin

        check_trackers(track, folder)
        check(device)
        if track and folder is not None:
            with written(folder):
                folder.mkdir(parents=True, exist_ok=True)
        self.accelerator: Any = Accelerator(
            # With one process, choose the device ourselves: accelerate's first choice is final for the process.
            cpu=several() and on_cpu(device),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=list(track) or None,
            project_dir=str(folder) if track and folder is not None else None,
        )
        launched = str(self.accelerator.mixed_precision)
        self.accelerator.native_amp, self.accelerator.scaler = False, None
        self.rank, self.world = int(self.accelerator.process_index), int(self.accelerator.num_processes)
        check_group(device, self.world)
        self.peers = Peers.gather(self.rank, self.world) if self.world > 1 else None
        # With several processes, the launcher assigns a device to each.
        self.device = usable(device) if self.world == 1 else self.accelerator.device
        self.precision = P.resolve(recipe.precision, self.device, model, launched)
        self.channels_last = P.wants_channels_last(recipe.channels_last, self.precision, self.device, model)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else None
        self.compile = (
            recipe.compile is True and self.world > 1
        )  # one process compiles at its first batch: see `capture`

    def autocast(self) -> torch.autocast:
        return P.autocast(self.precision, self.device)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor summed over all processes."""
        if self.peers is None:
            return tensor
        with self.peers.watched():
            total: torch.Tensor = self.accelerator.reduce(tensor, "sum")
        return total

    def wait(self) -> None:
        """Wait for all processes."""
        if self.peers is not None:
            with self.peers.watched():
                self.accelerator.wait_for_everyone()

    def share(self, source: Any) -> tuple[int, int]:
        """Return (rank, world) to split batches by; (0, 1) for loaders that already split them by process."""
        return (0, 1) if getattr(source, "world_size", 1) == self.world else (self.rank, self.world)

    def release(self) -> None:
        """Release the wrapped networks."""
        if self.world > 1:
            self.accelerator.free_memory()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the callable to use instead of the module. It averages gradients over the processes."""
        net = module
        if self.world > 1 and any(p.requires_grad for p in module.parameters()):
            net = self.accelerator.prepare_model(module, device_placement=False)
        return torch.compile(net) if self.compile else net  # type: ignore[return-value]


@contextmanager
def written(what: Path | None) -> Iterator[None]:
    """Raise TrainingError if files of a tracker or a run cannot be written in this context."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{shown(what or 'A tracker')} cannot be written: "
            f"{error.strerror or error}. Free disk space (or choose another folder) "
            "and resume."
        ) from error


def trackers(track: Any) -> tuple[Any, ...]:
    """Return the trackers that a setting names: one, or several."""
    return tuple(track) if isinstance(track, Iterable) and not isinstance(track, str) else (track,)


def check_trackers(track: Any, folder: Path | None) -> None:
    """Raise ConfigError for a tracker that accelerate would reject or silently ignore."""
    track = trackers(track)
    if not track:
        return
    from accelerate.tracking import get_available_trackers

    ready = sorted(str(getattr(t, "value", t)) for t in get_available_trackers())
    for name in track:
        if isinstance(name, str) and name not in ready:
            raise ConfigError(
                Setting("track", name),
                " is not available: it must be a tracker that accelerate supports, and be installed "
                f"(pip install {name}). Available: {', '.join(ready) or 'none'}.",
            )
    if folder is None and any(isinstance(name, str) for name in track):
        raise ConfigError("track=... needs folder=... for the trackers to write to.")


def wait_for_everyone(device: str | torch.device | None) -> None:
    """Wait for all processes that a launcher started. Can be called before any engine exists. Raises TrainingError if one
    of them does not arrive."""
    if not several():
        return
    from accelerate import PartialState

    check(device)
    state = PartialState(cpu=on_cpu(device))
    with Peers(int(state.num_processes), {}).watched():
        state.wait_for_everyone()
