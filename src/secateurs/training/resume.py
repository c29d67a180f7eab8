"""What of an engine goes into a checkpoint, and how it comes back."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateurs.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from secateurs.training.engine import Engine

log = logging.getLogger("secateurs")
LOG = "metrics.jsonl"


def snapshot(engine: Engine) -> dict[str, Any]:
    """All that the rest of the run depends on. The schedule and the random draws are functions of the position."""
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


def resume(engine: Engine) -> None:
    """Brings the engine to the newest whole checkpoint; without one it starts from the beginning."""
    if engine.checkpoints is None:
        raise ConfigError("resume=True needs a CheckpointStore to resume from")
    if engine.rank:  # the first process sets damaged checkpoints aside before the others look
        engine.runtime.wait()
    found = engine.checkpoints.load()
    if engine.rank == 0:
        engine.runtime.wait()
    if found is None:
        log.info("no checkpoint in %s: starting from the beginning", engine.checkpoints.folder)
        return
    step, state = found
    where = engine.checkpoints.path(step)
    _same_run(engine, state, str(where))
    _restore(engine, state, str(where))
    log.info("resumed from %s (epoch %d, batch %d)", where, engine.epoch + 1, engine.batch)


def refuse_old(engine: Engine) -> None:
    """A new run must not push an old run's checkpoints out."""
    if engine.checkpoints is not None and engine.checkpoints.steps():
        raise ConfigError(
            f"{engine.checkpoints.folder} holds the checkpoints of an earlier run. Resume it (resume=True), choose "
            "another folder, or forget them with CheckpointStore.clear()."
        )


def refuse_foreign_log(folder: Path) -> None:
    """Raise ConfigError for a log that no engine has written: ours would take its place."""
    path = folder / LOG
    try:
        with open(path) as file:
            first = file.readline()
        if not first or {"epoch", "step", "train_loss", "images_per_second"} <= set(json.loads(first)):
            return
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, TypeError):
        pass
    raise ConfigError(
        f"{path} is there already, and is no log of a run: move it, or choose another folder. Ours would replace it."
    )


def _name(index: int, hook: Any) -> str:
    return f"{index}-{type(hook).__name__}"


def _same_run(engine: Engine, state: dict[str, Any], where: str) -> None:
    now = {**engine.recipe.model_dump(mode="json"), "seed": engine.seed}
    then = {**state["recipe"], "seed": state["seed"]}
    changed = [f"{k} ({then.get(k)!r} then, {now.get(k)!r} now)" for k in now if now.get(k) != then.get(k)]
    names = [_name(i, hook) for i, hook in enumerate(engine.hooks)]
    if names != list(state["hooks"]):
        changed.append(f"hooks ({', '.join(state['hooks']) or 'none'} then, {', '.join(names) or 'none'} now)")
    if changed:
        raise ConfigError(f"{where} belongs to another run, which differs in {'; '.join(changed)}.")


def _restore(engine: Engine, state: dict[str, Any], where: str) -> None:
    if state["plans"]:
        from secateurs.surgery import Plan

        for text in state["plans"][len(engine.plans) :]:  # a hook's `start` may have made the first cuts already
            engine.cut(Plan.from_json(text))
    for i, hook in enumerate(engine.hooks):
        hook.load(state["hooks"][_name(i, hook)])
    try:
        for name, saved in state["parts"].items():
            part = engine.parts[name]
            part.module.load_state_dict(saved["module"])
            part.optimizer.load_state_dict(saved["optimizer"])
            part.active = saved["active"]
            for key, module in part.module.named_modules():
                module.training = key not in saved["eval"]
            for key, p in part.module.named_parameters():
                p.requires_grad_(key not in saved["frozen"])
        if engine.ema is not None:
            engine.ema.load_state_dict(state["ema"])
        if engine.runtime.scaler is not None:
            engine.runtime.scaler.load_state_dict(state["scaler"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise TrainingError(f"{where} is not of this network: {error}") from error
    engine.rebind()
    at = state["position"]
    engine.step, engine.epoch, engine.batch, engine._done = at["step"], at["epoch"], at["batch"], at["done"]
    engine._sums, engine._seconds, engine.history = state["sums"], state["seconds"], state["history"]


def rewrite_log(engine: Engine) -> None:
    """`metrics.jsonl` made to hold the history and no more: lines past the checkpoint are trained and written again."""
    if engine.folder is None:
        return
    refuse_foreign_log(engine.folder)
    if engine.rank:
        return
    path = engine.folder / LOG
    try:
        engine.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in engine.history))
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritten(path, error) from error


def append_log(engine: Engine, line: dict[str, Any]) -> None:
    if engine.folder is None or engine.rank:
        return
    path = engine.folder / LOG
    try:
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> TrainingError:
    what = error.strerror or error
    return TrainingError(f"{path} can't be written: {what}. Make room (or choose another folder) and resume.")
