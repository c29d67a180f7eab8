"""The training options of the command line: before the cut if there are no weights, and after it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

from secateurs.cli.options import once
from secateurs.cli.spelling import MIMIC, RECOVERY, TRAINED, as_text
from secateurs.errors import ConfigError, Setting

if TYPE_CHECKING:
    from secateurs.runs import RedesignTraining
    from secateurs.training import Phase


@Parameter(name="*")
@dataclass(frozen=True)
class RecoverOptions:
    recover: str | None = None
    """none, or the phases in order, each optionally followed by settings: finetune:EPOCHS (on labels and the original's class
    probabilities), mimic:EPOCHS (its feature maps, without labels), reconstruct:IMAGES (least squares, without labels or
    training): "reconstruct, finetune:10 lr=0.05"; by default 3 epochs, 1,024 images"""
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
        """The phases of recovery, in order; ConfigError for invalid options, for those that would be ignored, and for a setting
        that is given twice."""
        from secateurs.training import Recipe

        if self.milestones is not None and not self.milestones.strip(" ,"):
            raise ConfigError("--milestones names none: give epochs, such as --milestones 5,10.")
        if self.milestones is not None and self.lr_schedule != "onecycle":
            raise ConfigError(f"--lr-schedule {self.lr_schedule} and --milestones are mutually exclusive.")
        text = f"--recover {shlex.quote(self.recover or '')}"
        phases = [
            (kind, settings, once([*((text, key, value) for key, value in settings.items()), *self._options(kind)]))
            for kind, settings in self._phases()
        ]
        self._check_used([(kind, settings) for kind, _, settings in phases])
        found = [_made(*phase) for phase in phases]
        return [phase for phase in found if not (isinstance(phase, Recipe) and 0 in (phase.epochs, phase.steps))]

    def _phases(self) -> list[tuple[type[Phase], dict[str, Any]]]:
        """The phases with the settings of the text."""
        from secateurs.recovery import KINDS
        from secateurs.recovery.text import read
        from secateurs.runs.training import check_epochs

        if self.recover is not None and self.recover_epochs is not None:
            raise ConfigError("--recover and --recover-epochs are mutually exclusive.")
        if self.recover is not None:
            try:
                found = read(self.recover)
            except ConfigError as error:
                raise error.renamed(as_text) from None
        else:
            given = self.recover_epochs
            epochs = 3 if given is None else check_epochs(given, Setting("recover_epochs", given))
            found = [(KINDS["finetune"], {"epochs": epochs})]
        step = {} if self.milestones is None else {"schedule": "step"}
        return [(kind, {**step, **settings} if kind.mode in TRAINED else settings) for kind, settings in found]

    def _given(self) -> dict[str, Any]:
        """The options that say something: files that `--print-config` writes have all of them."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name in RECOVERY}
        usual = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in given.items() if value != usual[name]}

    def _options(self, kind: type[Phase]) -> Iterator[tuple[str, str, Any]]:
        """Of each option that sets something of these phases: the option, the setting, the value."""
        from secateurs.grammar import typed

        for option, value in self._given().items():
            setting, modes = RECOVERY[option]
            if kind.mode in modes:
                own = typed(kind, {setting: value})[setting] if isinstance(value, str) else value
                yield f"--{option.replace('_', '-')} {value}", setting, own

    def _check_used(self, phases: Sequence[tuple[type[Phase], Mapping[str, Any]]]) -> None:
        """Raise ConfigError for an option that none of these phases has."""
        for option in self._given():
            flag, modes = f"--{option.replace('_', '-')}", RECOVERY[option][1]
            has = [
                {**kind.presets.get(str(settings.get("preset")), {}), **settings}
                for kind, settings in phases
                if kind.mode in modes
            ]
            if not has and modes == TRAINED:
                raise ConfigError(f"{flag} is an option of phases that train, and --recover names none.")
            kind = "mimic" if modes == MIMIC else "finetune"
            requires = f"{flag} is an option of {kind}: it requires --recover {kind}:EPOCHS"
            if option == "temperature" and has and all(settings.get("share") == 0 for settings in has):
                raise ConfigError(f"{requires} with a share above 0.")
            if not has:
                raise ConfigError(f"{requires}.")
            if option == "gamma" and not any("milestones" in settings for settings in has):
                raise ConfigError("--gamma requires --milestones.")


def _made(kind: type[Phase], text: Mapping[str, Any], settings: Mapping[str, Any]) -> Phase:
    """The phase; an error spells the settings of the text as in text."""
    try:
        return kind(**settings)
    except ConfigError as error:
        raise error.renamed(lambda setting: as_text(setting) if setting.name in text else setting) from None


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
