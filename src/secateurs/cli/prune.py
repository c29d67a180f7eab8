"""`secateurs prune`: a network in, a smaller one out, verified and recovered."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from secateurs.cli import options
from secateurs.cli.options import Count, DataOptions, Folder, ModelOptions, Seed, say
from secateurs.cli.recipes import PretrainOptions, RecoverOptions, trained, written
from secateurs.cli.runs import RunFolder
from secateurs.errors import ArtifactError, ConfigError, SecateursError, TrainingError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from secateurs import Budget, Data, Method
    from secateurs.training import Recipe

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Many = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]
Share = float  # a fraction up to 1, or an absolute figure


def prune(
    model: str,
    *,
    method: str = "epruner",
    macs: Share | None = None,
    params: Share | None = None,
    align: Count = 1,
    scope: Literal["internal", "all"] | None = None,
    ranking: Literal["global", "layer"] | None = None,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    allow_inexact: Flag = False,
    model_options: ModelOptions | None = None,
    data_options: DataOptions | None = None,
    recover_options: RecoverOptions | None = None,
    pretrain_options: PretrainOptions | None = None,
    out: Folder,
    resume: Flag = False,
    force: Flag = False,
    seed: Seed = 0,
    device: str | None = None,
    track: Many = (),
) -> None:
    """Prune a network to a budget, verify the cut, recover the accuracy, save the result.

    Without `--weights` the network is trained first, on the same data. A run that was killed goes on with `--resume`.

    ```
    $ secateurs prune zoo:small_cnn --data digits --normalize none \\
          --batch-size 64 --method l1 --macs 0.5 --out runs/digits
    no --weights: training zoo:small_cnn on digits first, 30 epochs
    (--pretrain-epochs)
    ...
    traced 5 channel groups, 3 to cut
    l1 keeps 49.6% of the MACs and 50.1% of the parameters
    cut and verified: masked and sliced differ by 5.3e-08
    ...
                     MACs          params          top-1 %  top-5 %    loss
    ───────────────────────────────────────────────────────────────────────
    before          2.99M  100.0%   46.1k  100.0%    99.72   100.00   0.020
    after the cut   1.48M   49.6%   23.1k   50.1%    11.98    60.17  10.354
    after recovery  1.48M   49.6%   23.1k   50.1%    98.33   100.00   0.069

    masked ≡ sliced to 5.3e-08 · 8.1 s · saved to runs/digits
    model = secateurs.load("runs/digits")
    ```

    Parameters
    ----------
    model
        zoo:NAME, torchvision:NAME, timm:NAME or python:package.module:factory; or the folder of an artifact, whose
        network is pruned further
    method
        how channels are chosen; `secateurs demo` runs every method there is
    macs
        the MACs that may stay: a fraction up to 1 (0.5), or a figure (60e6)
    params
        the parameters that may stay, likewise
    align
        keep widths that are multiples of this
    scope
        internal leaves channels on a shortcut alone, all cuts them too; by default as the method's paper does
    ranking
        compare channels over the whole network, or cut the same share of every group
    settings
        a setting of the method, key=value; may be given several times
    allow_inexact
        also cut channels that a layer or group norm takes its statistics over; the cut is then not verified
    out
        folder for the artifact, the checkpoints and the log
    resume
        go on with the run in --out; other settings of recovery are taken as long as it has not begun
    force
        replace what is in --out
    seed
        of initial weights, the order of the data, augmentation and the method
    device
        cpu, cuda, cuda:1 …; an accelerator if there is one
    track
        a tracker that accelerate knows (tensorboard, wandb …)
    """
    began = time.perf_counter()
    model_options, data_options = model_options or ModelOptions(), (data_options or DataOptions()).complete()
    recipes = (recover_options or RecoverOptions()).recipes()
    chosen = configured(method, settings, ranking)
    run = _Run(
        spec=model,
        method=chosen,
        budget=_budget(macs, params, align),
        model=model_options,
        data=data_options,
        recipes=recipes,
        scope=scope or chosen.default_scope,
        allow_inexact=allow_inexact,
        pretrain=pretrain_options or PretrainOptions(),
        folder=RunFolder(out),
        seed=seed,
        device=device,
        track=track,
    )
    run.pretrain.check(run.weights)
    run.model.check(model)
    run.folder.spare(run.weights, "" if run.model.weights is not None else f"The artifact {model}")
    record = run.record()
    if run.folder.check(record, resume=resume, force=force):
        say(f"{out} is finished already: nothing to do.")
    else:
        if resume and not run.folder.resumable():
            say(f"{out} holds nothing to go on from: the run starts from the beginning.")
        try:
            run.go(record, resume=resume, began=began)
        except KeyboardInterrupt:
            if run.folder.goes_on(record):
                text = f"{out} keeps what is done so far: the same command with --resume goes on from there."
                raise KeyboardInterrupt(text) from None
            raise
        except TrainingError as error:
            raise run.explained(error) from error
        except ConfigError as error:  # a node to mimic that the cut has changed, say
            if not run.folder.goes_on(record):
                raise
            raise ConfigError(
                f"{error} {out} keeps what is done so far: with --resume the same command goes on from there, with other "
                "settings of recovery, too."
            ) from error
    if options.first():
        _show(out)


@dataclass(frozen=True)
class _Run:
    """One run: its settings, and its stages one after another."""

    spec: str
    method: Method
    budget: Budget | None
    model: ModelOptions
    data: DataOptions
    recipes: Sequence[Recipe]
    scope: Literal["internal", "all"]
    allow_inexact: bool
    pretrain: PretrainOptions
    folder: RunFolder
    seed: int
    device: str | None
    track: Sequence[str]

    @property
    def weights(self) -> Path | None:
        """The file that the network's weights are in; None if it has to be trained first."""
        from secateurs.api import is_artifact
        from secateurs.artifact import MODEL

        own = Path(self.spec) / MODEL if is_artifact(self.spec) else None
        return own if self.model.weights is None else self.model.weights

    def record(self) -> dict[str, Any]:
        """All that the result depends on. A resumed run has to agree."""
        from secateurs.artifact import digest

        weights = self.weights
        return {
            "model": self.spec,
            "weights": None if weights is None else digest(weights),
            "num_classes": self.model.num_classes,
            **asdict(self.data),
            "method": {"name": self.method.name, **self.method.model_dump(mode="json")},
            "budget": None if self.budget is None else asdict(self.budget),
            "scope": self.scope,
            "allow_inexact": self.allow_inexact,
            "recover": written(self.recipes),
            "pretrain": None if weights is not None else asdict(self.pretrain),
            "seed": self.seed,
        }

    def go(self, record: dict[str, Any], *, resume: bool, began: float) -> None:
        import secateurs as sc
        from secateurs import artifact

        where = options.pick(self.device)
        data = self.data.load(self.seed, where)
        network = self.model.build(self.spec, data, where, self.seed)
        inputs = options.example(data)
        self._preflight(network, inputs, data)
        self.folder.writable()
        if options.first():  # the others wait for it where training starts
            self.folder.begin(record, resume=resume)
        network = self._trained(network, data, where, resume)
        options.rewind(data)
        result = sc.prune(
            network,
            inputs,
            self.method,
            self.budget,
            data,
            self.recipes,
            self.scope,
            self.seed,
            allow_inexact=self.allow_inexact,
            report=say,
            folder=self.folder.folder,
            resume=resume,
            device=where,
            save_seconds=60,
            track=self.track,
        )
        card = {
            **result.card(),
            "data": asdict(self.data),
            "budget": record["budget"],
            "recover": record["recover"],
            "seed": self.seed,
            "seconds": round(time.perf_counter() - began, 1),
        }
        if not options.first():
            return
        artifact.save(self.folder.folder, result.model, result.plan, card, overwrite=True)
        self.folder.finish(record)
        cut, after = result.cut.top1, result.after.top1
        if self.recipes and cut is not None and after is not None and after < cut:
            knob = "--mimic-lr" if all(recipe.mode == "mimic" for recipe in self.recipes) else "--lr"
            say(
                f"recovery left top-1 at {after:.2f}%, below the {cut:.2f}% right after the cut: try a lower {knob}, or "
                "--recover none"
            )

    def _preflight(self, network: nn.Module, inputs: torch.Tensor, data: Data) -> None:
        """Whatever would make the run fail in the end, made to fail now."""
        import secateurs as sc
        from secateurs import training
        from secateurs.methods import TrainingMethod
        from secateurs.training.runtime import check_trackers

        check_trackers(self.track, self.folder.folder)
        training.check(self.recipes, network)
        options.feasible(self.method, network, inputs, self.budget, self.scope, data, self.seed, self.allow_inexact)
        first = self.weights is None and self.pretrain.recipe(data).epochs
        if first or self.recipes or isinstance(self.method, TrainingMethod):
            options.trains(network, inputs, self.spec)
        if self.budget is not None and self.budget.allows(cost := sc.count(network, inputs), cost):
            say(
                f"the budget is met already, nothing will be cut: {self.spec} has {cost.macs:,} MACs and {cost.params:,} "
                "parameters"
            )

    def explained(self, error: TrainingError) -> SecateursError:
        """A loss that is not finite, with advice that can be followed here."""
        from secateurs.training.engine import ADVICE

        if ADVICE not in str(error):
            return error
        training, kept = self.weights is None and not self.folder.pretrained.exists(), self.folder.pretrained
        if training:
            knob = f"a --pretrain-lr below {self.pretrain.lr:g}"
        elif self.recipes and (begun := list(self.folder.folder.glob("recover*/metrics.jsonl"))):
            recipe = self.recipes[len(begun) - 1]
            knob = f"{'a --mimic-lr' if recipe.mode == 'mimic' else 'an --lr'} below {recipe.lr:g}"
        else:
            knob = "a lower --set lr=…" if "lr" in type(self.method).model_fields else "other settings of the method"
        anew = f"--weights {kept} and another --out" if kept.exists() and self.weights is None else "--force"
        advice = f" Look for bad values in that batch, or try {knob}, with {anew}."
        return TrainingError(str(error).replace(ADVICE, advice))

    def _trained(self, network: nn.Module, data: Data, where: torch.device, resume: bool) -> nn.Module:
        """The network itself if it came with weights; else trained, and kept as pretrained.safetensors."""
        from secateurs.report import count

        if self.weights is not None:
            return network
        recipe = self.pretrain.recipe(data)
        if not self.folder.pretrained.exists():
            if recipe.epochs:
                epochs = count(recipe.epochs, "epoch")
                say(f"no --weights: training {self.spec} on {self.data.data} first, {epochs} (--pretrain-epochs)")
            else:
                say(f"no --weights and --pretrain-epochs 0: {self.spec} is pruned untrained, with random weights")
        return trained(
            network, data, recipe, self.folder, "pretrain", self.folder.pretrained, seed=self.seed, device=where,
            resume=resume,
        )  # fmt: skip


def configured(method: str, settings: Sequence[str], ranking: str | None = None) -> Method:
    """The method with its settings; values are read as JSON where they are JSON, so that 0.7, true, null mean that."""
    from secateurs.methods import resolve

    values: dict[str, Any] = {} if ranking is None else {"ranking": ranking}
    for item in settings:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {item}: write key=value, such as --set beta=0.7.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if key in values and key == "ranking" and ranking is not None:
            if value == ranking:
                continue
            raise ConfigError(f"--ranking {ranking} and --set {item} contradict each other: give one of them.")
        if key in values:
            raise ConfigError(f"--set {key} is given twice: give one of them.")
        values[key] = value
    found = resolve(method)
    try:
        return resolve(found, **values)
    except ConfigError as error:
        text = str(error).removeprefix(f"{type(found).__name__}: ").replace("Its settings", f"{method}'s settings")
        raise ConfigError(text if text.startswith("ranking=") else f"--set {text}") from None


def _budget(macs: Share | None, params: Share | None, align: int) -> Budget | None:
    from secateurs import Budget

    if macs is None and params is None:
        if align != 1:
            raise ConfigError("--align rounds the widths that a budget leads to: give --macs or --params with it.")
        return None  # some methods have a knob of their own
    return Budget(macs, params, align)


def _show(folder: Path) -> None:
    from secateurs import artifact
    from secateurs.report import duration, error, outcome, stripes_line

    _, card = artifact.read(folder)
    for name in ("before", "cut", "after", "error", "seconds"):
        if name not in card:
            raise ArtifactError(f"{folder / artifact.CARD} is damaged: it has no '{name}'.")
    console = options.out()
    console.print(outcome(card))
    console.print()
    if card.get("stripes"):
        console.print(stripes_line(card["stripes"]))
    console.print(f"masked ≡ sliced to {error(card['error'])} · {duration(card['seconds'])} · saved to {folder}")
    console.print(f'model = secateurs.load("{folder}")')
