"""The training options of the command line: before the cut if there are no weights, and after it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

from secateurs.errors import ConfigError, Setting, as_setting

if TYPE_CHECKING:
    from secateurs.runs import RedesignTraining
    from secateurs.training import Phase


@Parameter(name="*")
@dataclass(frozen=True)
class RecoverOptions:
    recover: str | None = None
    """none, or steps in order: finetune:EPOCHS (on labels and the original's class probabilities),
    mimic:EPOCHS (its feature maps, without labels), reconstruct:IMAGES (least squares, without labels or training); for
    example reconstruct,finetune:10; by default 3 epochs, 1,024 images"""
    recover_epochs: float | None = None
    """short for finetune:EPOCHS; 3 by default, 0 for none"""
    share: float | None = None
    """weight of the original's class probabilities in fine-tuning, 0.9 by default; 0: labels only, 1: no labels"""
    temperature: float | None = None
    """temperature of these probabilities, by which logits are divided; 4 by default"""
    lr: float | None = None
    """peak learning rate of fine-tuning; by default chosen by the number of steps"""
    lr_schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    """learning-rate schedule"""
    weight_decay: float = 5e-4
    """weight decay; norms and biases have none, and there is none while mimicking"""
    label_smoothing: float = 0.0
    """fraction of each label that is spread over all classes"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto selects bf16 where the hardware is fast at it"""
    ema: float | None = None
    """decay of a moving average of the weights, for example 0.999, in every training phase: the averaged weights are
    evaluated and saved"""
    mimic_lr: float | None = None
    """peak learning rate of mimicking (Adam), 0.003 by default"""
    mimic_function: Literal["kl", "js", "mse", "l1"] | None = None
    """distance between feature maps, kl by default"""
    nodes: str | None = None
    """modules whose outputs are mimicked, for example layer1,layer2,layer3; found automatically by default"""
    optimizer: Literal["sgd", "adam", "adamw"] | None = None
    """optimizer of every training phase; sgd by default, adam for mimicking"""
    milestones: str | None = None
    """epochs after which the learning rate is multiplied by --gamma, such as 5,10; instead of --lr-schedule"""
    gamma: float | None = None
    """factor of the learning rate at each milestone, 0.1 by default"""

    def recipes(self) -> list[Phase]:
        """The phases of recovery, in order; ConfigError for invalid options and for those that would be ignored."""
        phases = self._phases()
        kinds = {kind for kind, _ in phases}
        tuned = kinds & {"finetune", "distil"}
        for option, used, kind in (
            ("mimic_lr", "mimic" in kinds, "mimic"),
            ("mimic_function", "mimic" in kinds, "mimic"),
            ("nodes", "mimic" in kinds, "mimic"),
            ("share", tuned, "finetune"),
            ("temperature", tuned and self.share != 0, "finetune"),
            ("lr", tuned, "finetune"),
            ("ema", bool(kinds & {"finetune", "distil", "mimic"}), "finetune"),
        ):
            if getattr(self, option) is not None and not used:
                why = " with a share above 0" if option == "temperature" and tuned else ""
                raise ConfigError(
                    f"--{option.replace('_', '-')} is an option of {kind}: it requires --recover {kind}:EPOCHS{why}."
                )
        return [
            self._stepped(self._recipe(kind, amount)) for kind, amount in phases if amount != 0 or kind == "reconstruct"
        ]

    def _stepped(self, phase: Phase) -> Phase:
        """The phase with the optimizer and the milestones, if it trains."""
        from secateurs.training import Recipe

        given: dict[str, Any] = {n: v for n in ("optimizer", "ema") if (v := getattr(self, n)) is not None}
        if self.milestones is not None:
            if self.lr_schedule != "onecycle":
                raise ConfigError(f"--lr-schedule {self.lr_schedule} and --milestones are mutually exclusive.")
            try:
                points = tuple(float(part) for part in self.milestones.split(","))
            except ValueError:
                raise ConfigError(f"--milestones {self.milestones}: write epochs with commas, such as 5,10.") from None
            given |= {"schedule": "step", "milestones": points}
        if self.gamma is not None:
            if self.milestones is None:
                raise ConfigError("--gamma requires --milestones.")
            given["gamma"] = self.gamma
        if not given or not isinstance(phase, Recipe):
            return phase
        return type(phase)(**{**phase.model_dump(exclude_unset=True), **given})

    def _recipe(self, kind: str, amount: float | None) -> Phase:
        from secateurs.recovery import MODES, Reconstruct

        if kind == Reconstruct.mode:
            try:
                return Reconstruct() if amount is None else Reconstruct(images=int(amount))
            except ConfigError as error:
                raise error.renamed(as_setting("recover")) from None
        epochs = 3 if amount is None else amount
        if kind != "mimic":
            names = ("lr", "share", "temperature", "weight_decay", "label_smoothing", "precision")
            given = {name: value for name in names if (value := getattr(self, name)) is not None}
            return MODES[kind](epochs=epochs, schedule=self.lr_schedule, **given)
        nodes = None if self.nodes is None else tuple(name.strip() for name in self.nodes.split(",") if name.strip())
        given = {"lr": self.mimic_lr, "function": self.mimic_function, "nodes": nodes}
        given = {name: value for name, value in given.items() if value is not None}
        return MODES[kind](epochs=epochs, schedule=self.lr_schedule, precision=self.precision, **given)

    def _phases(self) -> list[tuple[str, float | None]]:
        """Of each: (kind, epochs or images), None by default."""
        from secateurs.runs.training import check_epochs

        if self.recover is None:
            given = self.recover_epochs
            return [("finetune", 3 if given is None else check_epochs(given, Setting("recover_epochs", given)))]
        if self.recover_epochs is not None:
            raise ConfigError("--recover and --recover-epochs are mutually exclusive.")
        if self.recover == "none":
            return []
        from secateurs.recovery import MODES, Reconstruct

        phases: list[tuple[str, float | None]] = []
        for part in self.recover.split(","):
            kind, _, amount = part.strip().partition(":")
            try:
                if kind == Reconstruct.mode:
                    phases.append((kind, int(amount) if amount else None))
                    continue
                if kind in MODES:
                    phases.append((kind, check_epochs(float(amount or 3), Setting("recover", part.strip()))))
                    continue
            except ValueError:
                pass
            raise ConfigError(
                f"--recover {self.recover}: write finetune:EPOCHS, mimic:EPOCHS or reconstruct:IMAGES, several "
                "with commas (reconstruct,finetune:10), or none."
            )
        return phases


@Parameter(name="*")
@dataclass(frozen=True)
class PretrainOptions:
    pretrain_epochs: float | None = None
    """epochs of training a network without --weights; 10 to 30 by default, fewer the more data there is"""
    pretrain_lr: float | None = None
    """peak learning rate of that training, 0.05 by default"""


@Parameter(name="*")
@dataclass(frozen=True)
class RedesignOptions:
    epochs: float | None = None
    """epochs of the base and of the scaled network, each; 10 to 30 by default, fewer the more data there is"""
    lr: float = 0.05
    """peak learning rate of the networks trained from scratch"""
    recover_epochs: float = 3
    """epochs of recovery after the cut; 0 for none"""
    recover_lr: float | None = None
    """peak learning rate of recovery; by default chosen by the number of steps"""
    scratch_epochs: float | None = None
    """epochs of training the widths found from scratch; as many as --epochs by default"""
    lr_schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    """learning-rate schedule"""
    weight_decay: float = 5e-4
    """weight decay; norms and biases have none"""
    label_smoothing: float = 0.0
    """fraction of each label that is spread over all classes"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto selects bf16 where the hardware is fast at it"""

    def training(self) -> RedesignTraining:
        from secateurs.runs import RedesignTraining

        given = asdict(self)
        return RedesignTraining(schedule=given.pop("lr_schedule"), **given)
