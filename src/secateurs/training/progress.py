"""Show the progress of training: a live bar on a terminal, periodic lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Literal, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from secateurs.errors import ConfigError
from secateurs.report import count

Mode = Literal["auto", "bar", "lines", "silent"]


def checked_mode(mode: Any) -> Mode:
    """Return the mode that a setting stands for. Raises ConfigError if it is none."""
    if isinstance(mode, bool):
        return "auto" if mode else "silent"
    if mode not in get_args(Mode):
        raise ConfigError(f"progress={mode!r} is not valid: choose auto, bar, lines or silent")
    return mode


class Reporter:
    """Reports progress. `mode`: 'bar', 'lines' (one per `interval` seconds), 'silent', or 'auto' (a bar if stderr is a
    terminal, otherwise lines)."""

    def __init__(self, mode: Mode | bool = "auto", title: str = "training", interval: float = 15.0):
        mode = checked_mode(mode)
        self.console = Console(stderr=True)
        self.mode = mode if mode != "auto" else "bar" if self.console.is_terminal else "lines"
        self.title, self.interval = title, interval
        self.total: int | None = None
        self._bar: Progress | None = None
        self._task: Any = None
        self._due = 0.0
        self._first = self._began = 0.0

    def start(self, total: int | None, done: int) -> None:
        """Start a run of `total` steps. `done`: the steps taken before it was resumed."""
        self.total, self._first, self._began = total, done, time.perf_counter()
        self._due = self._began + self.interval
        if self.mode == "bar":
            columns = (
                TextColumn("{task.description}"),
                BarColumn(None),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task(self.title, total=total, completed=done, text="")
            self._bar.start()

    def update(self, step: int, epoch: int, loss: float, top1: float | None, rate: float) -> None:
        """Report a step. `top1`: in percent, over the epoch so far; None without labels. `rate`: in images per second."""
        right = "" if top1 is None else f"top-1 {top1:.1f}  "
        self.show(step, f"loss {loss:.3f}  {right}{rate:,.0f} img/s", f"epoch {epoch + 1}  ")

    def show(self, step: int, text: str, where: str = "") -> None:
        """Report that step number `step` is done. `where` is only shown in lines, because a bar shows the position."""
        now = time.perf_counter()
        if self.mode == "silent" or now < self._due:
            return
        self._due = now + (0.1 if self.mode == "bar" else self.interval)
        steps = f"{step}/{self.total}" if self.total else f"{step}"
        if self.total and step > self._first:
            text += f"  {clock((self.total - step) * (now - self._began) / (step - self._first))} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        else:
            self.line(f"{self.title}  {where}step {steps}  {text}")

    def line(self, text: str) -> None:
        """Print a line."""
        if self.mode == "silent":
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def clock(seconds: float) -> str:
    """Format seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def summary(line: dict[str, Any], title: str) -> str:
    """Format an epoch's log line for display, within 80 columns."""
    text = f"{title}  epoch {line['epoch']}  loss {line['train_loss']:.3f}"
    if "train_top1" in line:  # not without labels
        text += f"  top-1 {line['train_top1']:.1f}"
    if "val_top1" in line:
        text += f"  val {line['val_top1']:.2f}"
    known = {"val_loss", "val_top1", "val_top5", "val_skipped"}
    own = {name.removeprefix("val_"): x for name, x in line.items() if name.startswith("val_") and name not in known}
    text += "".join(f"  {name} {x:.4g}" for name, x in own.items() if isinstance(x, int | float))
    for name, kind in (("skipped", "unreadable image"), ("val_skipped", "unreadable validation image")):
        if name in line:
            text += f"  {count(line[name], kind)} left out"
    return f"{text}  {line['images_per_second']:,.0f} img/s  {clock(line['seconds'])}"
