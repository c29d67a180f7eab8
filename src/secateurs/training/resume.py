"""Save an engine's state to a checkpoint and restore it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from secateurs.changes import differences
from secateurs.errors import ArtifactError, ConfigError, SecateursError, Setting
from secateurs.files import dump_json, faults, open_regular, parse_json, shown, write_whole
from secateurs.training.checkpoint import TENSORS, TREE
from secateurs.training.hooks import Hook
from secateurs.training.parts import Part
from secateurs.training.run import TrainingRun
from secateurs.training.runtime import written
from secateurs.training.state import PartState, State, misfit, optimizer_misfit

log = logging.getLogger("secateurs")
LOG = "metrics.jsonl"


def snapshot(engine: TrainingRun) -> dict[str, Any]:
    """The complete state of a run. The schedule and the random numbers are functions of the position."""
    return {
        "recipe": engine.recipe.model_dump(mode="json"),
        "seed": engine.seed,
        "position": {"step": engine.step, "epoch": engine.epoch, "batch": engine.batch, "done": engine._done},
        "sums": engine._sums,
        "seconds": engine._seconds,
        "history": engine.history,
        "plans": [plan.to_json() for plan in engine.plans],
        "hooks": {_name(i, hook): hook.state() for i, hook in enumerate(engine.hooks)},
        "parts": {
            part.name: {
                "active": part.active,
                "eval": [name for name, module in part.module.named_modules() if not module.training],
                "frozen": [name for name, p in part.module.named_parameters() if not p.requires_grad],
                "module": dict(part.module.state_dict()),
                "optimizer": part.optimizer.state_dict(),
            }
            for part in engine.parts.values()
        },
        "ema": None if engine.ema is None else dict(engine.ema.state_dict()),
        "scaler": None if engine.runtime.scaler is None else engine.runtime.scaler.state_dict(),
    }


def resume(engine: TrainingRun) -> None:
    """Restore the engine from the newest valid checkpoint; without one it starts from the beginning."""
    if engine.checkpoints is None:
        raise ConfigError(Setting("resume", True), " needs a CheckpointStore to resume from.")
    if engine.rank:  # the first process sets damaged checkpoints aside before the others read
        engine.runtime.wait()
    else:
        engine.checkpoints.tidy()
    found = engine.checkpoints.load()
    if engine.rank == 0:
        engine.runtime.wait()
    if found is None:
        log.info("no checkpoint in %s: starting from the beginning", shown(engine.checkpoints.folder))
        return
    step, tree = found
    where = engine.checkpoints.path(step)
    try:
        state = State.model_validate(tree)
        if state.position.step != step:
            raise _Misfit(f"field 'position.step' is {state.position.step}, expected {step}")
        _same_run(engine, state, shown(where))
        _restore(engine, state)
    except ValidationError as error:
        fault = faults(error)
    except _Misfit as error:
        fault = str(error)
    else:
        log.info("resumed from %s (epoch %d, batch %d)", shown(where), engine.epoch + 1, engine.batch)
        return
    earlier = engine.checkpoints.steps()[:-1]
    advice = (
        f"Remove {shown(where)} to resume from {engine.checkpoints.path(earlier[-1]).name}."
        if earlier
        else f"Remove {shown(engine.checkpoints.folder)} to start over."
    )
    file = where / (TENSORS if fault.startswith("tensor ") else TREE)
    raise ArtifactError(f"{shown(file)} does not fit this run: {fault}. {advice}")


class _Misfit(Exception):
    """The part of a checkpoint that does not fit this run."""


def refuse_old(engine: TrainingRun) -> None:
    """Raise if a new run would replace an old run's checkpoints."""
    if engine.checkpoints is not None and engine.checkpoints.steps():
        raise ConfigError(
            f"{shown(engine.checkpoints.folder)} holds the checkpoints of an earlier run. Resume it (",
            Setting("resume", True),
            "), choose another folder, or remove them with CheckpointStore.clear().",
        )


def last_checkpoint(engine: TrainingRun) -> str:
    """A sentence with its path for the end of a message; empty if there is none."""
    path = last_path(engine)
    return "" if path is None else f" The last valid checkpoint is {shown(path)}."


def last_path(engine: TrainingRun) -> Path | None:
    """Where the last checkpoint is; None if there is none."""
    found = engine.checkpoints.steps() if engine.checkpoints else []
    return engine.checkpoints.path(found[-1]) if engine.checkpoints and found else None


class _Line(BaseModel):
    """The fields of every line of our log."""

    model_config = ConfigDict(extra="allow", strict=True)

    epoch: NonNegativeInt
    step: NonNegativeInt
    train_loss: float | None
    images_per_second: float | None


def refuse_foreign_log(folder: Path) -> None:
    """Raise ConfigError for a log that was not written by an engine, which ours would overwrite."""
    path = folder / LOG
    if not os.path.lexists(path):
        return
    try:
        with open_regular(path) as file:
            first = file.readline(1 << 20)
        if not first or (
            first.startswith(_BEGINNING) and not first.endswith(b"\n")
        ):  # a process was killed while writing it
            return
        parse_json(first, _Line, path)
    except (ArtifactError, OSError):
        raise ConfigError(
            f"{shown(path)} already exists and is not the log of a run: move it, or choose another folder. It would "
            "be overwritten."
        ) from None


_BEGINNING = b'{"epoch": '


def _name(index: int, hook: Any) -> str:
    return f"{index}-{type(hook).__name__}"


def _same_run(engine: TrainingRun, state: State, where: str) -> None:
    then = {**state.recipe, "seed": state.seed}
    now = {**engine.recipe.model_dump(mode="json"), "seed": engine.seed}
    now["compile"] = then.get("compile")  # compiled or not, it is the same run
    changed = list(differences(then, now))
    names = [_name(i, hook) for i, hook in enumerate(engine.hooks)]
    if names != list(state.hooks):
        changed.append(f"hooks ({', '.join(state.hooks) or 'none'} then, {', '.join(names) or 'none'} now)")
    scaled = ["fp16" if scaler is not None else "unscaled" for scaler in (state.scaler, engine.runtime.scaler)]
    if scaled[0] != scaled[1] and engine.recipe.precision == "auto":  # as set by `accelerate launch`
        changed.append(f"precision ({scaled[0]} then, {scaled[1]} now)")
    if changed:
        raise ConfigError(
            f"{where} belongs to another run, which differs in {'; '.join(changed)}. To resume it, use the same settings "
            "as before. Otherwise, choose another folder."
        )


def _restore(engine: TrainingRun, state: State) -> None:
    at = state.position
    if engine.total is not None and at.step > engine.total:
        raise _Misfit(
            f"field 'position.step' is {at.step}, expected at most {engine.total}, the steps of the whole run"
        )
    if len(state.history) != at.epoch:
        raise _Misfit(f"field 'history' has {len(state.history)} entries, expected {at.epoch}, one for each epoch")
    if state.plans:
        from secateurs.plans import Plan

        for i in range(len(engine.plans), len(state.plans)):  # a hook's `start` may have made the first cuts already
            try:
                engine.cut(Plan.from_json(state.plans[i]))
            except Exception as error:
                raise _Misfit(f"field 'plans.{i}': {str(error).rstrip('.')}") from error
    for i, hook in enumerate(engine.hooks):
        _load_hook(hook, _name(i, hook), state)
    if unknown := set(state.parts) ^ set(engine.parts):
        raise _Misfit(f"field 'parts' has {_names(state.parts)}, expected {_names(engine.parts)} ({min(unknown)})")
    for name, part in engine.parts.items():
        _load_part(part, state.parts[name], f"parts.{name}")
    for field, saved, own in (("ema", state.ema, engine.ema), ("scaler", state.scaler, engine.runtime.scaler)):
        if saved is None and own is not None:
            raise _Misfit(f"field '{field}' is null, but this recipe needs it")
        if saved is not None and own is None:
            raise _Misfit(f"field '{field}' is not expected with this recipe")
    if engine.ema is not None and state.ema is not None:
        _fits(misfit(state.ema, dict(engine.ema.state_dict()), "ema"))
        engine.ema.load_state_dict(state.ema)
    if engine.runtime.scaler is not None and state.scaler is not None:
        engine.runtime.scaler.load_state_dict(state.scaler.model_dump(by_alias=True))
    engine.rebind()
    engine.step, engine.epoch, engine.batch, engine._done = at.step, at.epoch, at.batch, at.done
    engine._sums, engine._seconds, engine.history = [*state.sums, state.sums[2]][:4], state.seconds, state.history


def _load_hook(hook: Hook, name: str, state: State) -> None:
    try:
        hook.load(state.hooks[name])
    except SecateursError:
        raise
    except Exception as error:  # any exception of a user's hook
        what = f"{error} is missing" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise _Misfit(f"field 'hooks.{name}': {what}") from error


def _load_part(part: Part, saved: PartState, field: str) -> None:
    modules, parameters = dict(part.module.named_modules()), dict(part.module.named_parameters())
    for known, names, kind in ((modules, saved.eval, "eval"), (parameters, saved.frozen, "frozen")):
        if unknown := [name for name in names if name not in known]:
            raise _Misfit(f"field '{field}.{kind}' names {unknown[0]!r}, which this network does not have")
    _fits(misfit(saved.module, dict(part.module.state_dict()), f"{field}.module"))
    _fits(optimizer_misfit(saved.optimizer, part.optimizer, f"{field}.optimizer"))
    try:
        part.module.load_state_dict(saved.module)
        part.optimizer.load_state_dict(saved.optimizer.model_dump())
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _Misfit(f"field '{field}': {error}") from error
    part.active = saved.active
    for key, module in modules.items():
        module.training = key not in saved.eval
    for key, p in parameters.items():
        p.requires_grad_(key not in saved.frozen)


def _fits(fault: str | None) -> None:
    if fault is not None:
        raise _Misfit(fault)


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def rewrite_log(engine: TrainingRun) -> None:
    """Truncate `metrics.jsonl` to the history: epochs after the checkpoint are trained and logged again."""
    if engine.folder is None:
        return
    refuse_foreign_log(engine.folder)
    if engine.rank:
        return
    path = engine.folder / LOG
    with written(path):
        engine.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(map(_line, engine.history)))


def append_log(engine: TrainingRun, line: dict[str, Any]) -> None:
    if engine.folder is None or engine.rank:
        return
    path = engine.folder / LOG
    with written(path), open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            _write_all(file, _line(line).encode())
        except OSError:  # a partial line would remain
            file.truncate(end)
            raise


def _write_all(file: IO[bytes], data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def _line(figures: dict[str, Any]) -> str:
    return dump_json(figures) + "\n"
