"""`secateurs bench`: how much faster a pruned network is, in the runtime where it is to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secateurs.cli import options
from secateurs.cli.artifacts import ArtifactOptions, Opened
from secateurs.cli.options import Count, Flag, Folder, Names
from secateurs.errors import ConfigError, shown

if TYPE_CHECKING:
    from secateurs.deploy import Bench
    from secateurs.deploy.clock import Spread


def bench(
    artifact: Folder,
    *,
    target: Names = (),
    batch: Annotated[tuple[Count, ...], Parameter(negative="", show_default=False)] = (),
    threads: Count | None = None,
    precision: Literal["fp32", "fp16", "bf16"] = "fp32",
    channels_last: Flag = False,
    mode: Literal["eager", "compile", "cudagraphs"] = "eager",
    seconds: float = 2.0,
    artifact_options: ArtifactOptions | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
    plot: Path | None = None,
    save: Flag = False,
) -> None:
    """Measure a pruned network beside its original: in turn, so that other load falls on both.

    A speed-up is the median over rounds of the ratio of the two times, with its quartiles. Without `--target`, every
    runtime that is installed is measured.

    ```
    $ secateurs bench runs/digits --target torch-cpu --batch 1 --batch 64
    target     batch  original   pruned  speed-up   quartiles   memory
    ───────────────────────────────────────────────────────────────────────────
    torch-cpu      1    0.51 ms  0.42 ms     1.21×  1.20 – 1.22  0.3 → 0.2 MiB
    torch-cpu     64   10.31 ms  6.20 ms     1.66×  1.64 – 1.68  9.9 → 5.8 MiB

    2.99M → 1.48M MACs: 2.02× if time followed them
    AMD EPYC, 1 thread
    ```

    Parameters
    ----------
    artifact
        the folder of a pruned network, or hf:USER/NAME on the hub
    target
        torch-cpu, torch-cuda, onnxruntime or openvino; may be given several times
    batch
        images per run, 1 by default; may be given several times
    threads
        of the CPU; by default as many as PyTorch uses
    precision
        what the networks are converted to; onnxruntime runs in fp32 only
    channels_last
        lay images and kernels out with channels last, in PyTorch
    mode
        compile uses torch.compile, cudagraphs its reduce-overhead mode on a GPU
    seconds
        to measure each row for, at least seven rounds
    as_json
        print JSON instead of a table
    plot
        draw the speed-up over the batch size into this file (.png, .svg, .pdf)
    save
        keep the times in the artifact's folder, as bench.json, where `secateurs report` finds them; replaces earlier ones
    """
    from secateurs.artifact import on_hub, save_timings
    from secateurs.deploy import Target
    from secateurs.deploy import bench as measure
    from secateurs.files import check_writable
    from secateurs.report.curves import can_plot, check_picture

    if save and on_hub(artifact):
        raise ConfigError(
            f"--save keeps the times in the artifact's folder, and {shown(artifact)} is on the hub: use --json."
        )
    if plot is not None and not can_plot():
        raise ConfigError("--plot needs matplotlib: pip install 'secateurs[report]'.")
    if plot is not None:
        check_picture(plot)
        check_writable(plot.parent)
    given = [Target(name, None, threads, precision, channels_last, mode) for name in target]  # type: ignore[arg-type]
    opened = Opened(artifact, artifact_options or ArtifactOptions())
    found = measure(
        opened.original, opened.network, opened.inputs(), given or Target.installed(threads, precision, channels_last, mode),
        batches=batch or None, seconds=seconds,
    )  # fmt: skip
    if as_json:
        print(json.dumps({"artifact": shown(artifact), **found.record()}, indent=2))
    else:
        _show(found)
    if save:
        options.log(f"saved {shown(save_timings(artifact, found.record()))}")
    if plot is not None:
        _draw(found, plot)


def _show(found: Bench) -> None:
    from secateurs.report import count, short, table

    memory = any(row.memory for row in found.rows)
    rows = table("target", "batch", "original", "pruned", "speed-up", "quartiles", *["memory, MiB"] * memory)
    for row in found.rows:
        used = "-" if row.memory is None else " → ".join(f"{n / 2**20:.1f}" for n in row.memory)
        rows.add_row(
            str(row.target), "-" if row.batch is None else f"{row.batch:,}", *map(_time, (row.original, row.pruned)),
            f"{row.speedup:.2f}×", f"{row.ratio.low:.2f} – {row.ratio.high:.2f}", *[used] * memory,
        )  # fmt: skip
    console = options.out()
    console.print(rows)
    console.print()
    console.print(
        f"{short(found.original.macs)} → {short(found.pruned.macs)} MACs: "
        f"{found.original.macs / found.pruned.macs:.2f}× if time followed them"
    )
    machines = dict.fromkeys((row.machine, row.threads) for row in found.rows)
    console.print("; ".join(f"{name}, {count(threads, 'thread')}" for name, threads in machines))
    for row in found.rows:
        if row.faster is not True:
            size = f" at a batch of {row.batch}" if row.batch else ""
            told = "is slower" if row.faster is False else "takes the same time, within the noise,"
            console.print(f"warning: on {row.target} the pruned network {told}{size}", soft_wrap=True)
    for line in found.skipped:
        console.print(f"not measured: {line}", soft_wrap=True)


def _time(spread: Spread) -> str:
    """'0.51 ms', '24.1 ms', '1,203 ms'."""
    ms = 1000 * spread.median
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def _draw(found: Bench, path: Path) -> None:
    """The speed-up over the batch size, a curve for each target, and what the MACs would give."""
    from secateurs.report.curves import plot

    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in found.rows:
        xs, ys = curves.setdefault(str(row.target), ([], []))
        xs.append(row.batch or 1)
        ys.append(row.speedup)
    every = [x for xs, _ in curves.values() for x in xs]
    curves["MACs"] = ([min(every), max(every)], [found.original.macs / found.pruned.macs] * 2)
    try:
        plot(path, curves, x="batch", y="speed-up", marked=True)
    except OSError as error:
        raise ConfigError(f"--plot {path} cannot be written: {error.strerror or error}.") from error
    options.log(f"drew {path}")
