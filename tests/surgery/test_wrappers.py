"""Models that are wrapped, compiled or sharded, and what else refers to the parameters of a model that is cut in place."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import secateurs as sc
from secateurs.zoo.vision import torchvision


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
    )


def images(count: int = 4) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=source), torch.randint(0, 4, (count,), generator=source)


def plan_of(model: nn.Module) -> sc.Plan:
    return sc.trace(model, images()[0]).plan({"0": [0, 2, 3, 7], "3": range(6)})


DOORS: dict[str, Callable[[Any, sc.Plan], Any]] = {
    "trace": lambda m, plan: sc.trace(m, images()[0]),
    "apply": sc.apply,
    "cut_": sc.cut_,
    "prune": lambda m, plan: sc.prune(m, images()[0], "l1", sc.Budget(macs=0.5)),
    "attach": lambda m, plan: sc.attach(
        m, images()[0], "npn", sc.Budget(macs=0.6), steps=1, epoch_steps=1, data=[images()]
    ),
}
WRAPPED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "DistributedDataParallel": (
        nn.parallel.DistributedDataParallel,
        r"inside it \(model\.module\), and wrap the pruned network again, DistributedDataParallel\(…\)",
    ),
    "DataParallel": (nn.DataParallel, r"DataParallel is a wrapper: pass the network inside it \(model\.module\)"),
    "torch.compile": (torch.compile, r"was compiled .*\(model\._orig_mod\), and call torch\.compile on what you get"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", WRAPPED)
def test_every_door_says_what_to_pass_in_place_of_a_wrapper(kind: str, door: str, group: None) -> None:
    wrap, message = WRAPPED[kind]
    with pytest.raises(sc.SecateursError, match=message):
        DOORS[door](wrap(net()), plan_of(net()))


def fully_sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model


def sharded_once(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def within(shard: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Sequential], nn.Module]:
    def place(model: nn.Sequential) -> nn.Module:
        model[3] = shard(model[3])
        return model

    return place


SHARDED: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "FSDP1": (sharded_once, r"FSDP's FullyShardedDataParallel: .*Prune before you shard"),
    "FSDP1 of a layer": (within(sharded_once), r"FSDP's FullyShardedDataParallel \(at 3\).*Prune before you shard"),
    "fully_shard": (fully_sharded, r"sharded by fully_shard \(FSDP2\).*Prune before you shard"),
    "fully_shard of a layer": (within(fully_sharded), r"fully_shard \(FSDP2\) \(at 3\).*Prune before you shard"),
}


@pytest.mark.filterwarnings("ignore")  # of FSDP on CPUs
@pytest.mark.parametrize("kind", SHARDED)
def test_a_sharded_model_is_refused_by_name_with_what_to_do(kind: str, group: None) -> None:
    shard, message = SHARDED[kind]
    plan = plan_of(net())
    model = shard(net())
    for door in DOORS.values():
        with pytest.raises(sc.SecateursError, match=message):
            door(model, plan)


@pytest.mark.filterwarnings("ignore")
def test_distributed_tensors_are_refused(group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    model = net()
    plan = plan_of(model)
    model[3].weight = nn.Parameter(distribute_tensor(model[3].weight.detach(), init_device_mesh("cpu", (1,))))
    with pytest.raises(sc.SecateursError, match=r"DTensors \(at 3\), which are distributed"):
        sc.apply(model, plan)


def test_a_wrapper_of_a_model_that_was_cut_is_retired(group: None) -> None:
    """With find_unused_parameters=True it would go on without an error, and average nothing."""
    model, (x, y) = net(), images()
    outer = nn.Sequential(model)  # of another trainer
    wrappers = [nn.parallel.DistributedDataParallel(m, find_unused_parameters=True) for m in (model, outer)]
    other = nn.parallel.DistributedDataParallel(net())
    sc.cut_(model, plan_of(model))
    for wrapper in wrappers:
        with pytest.raises(
            sc.ConfigError, match=r"Wrap the network again: DistributedDataParallel\(model\.module, …\)"
        ):
            wrapper(x)
    assert other(x).shape == (4, 4)
    again = nn.parallel.DistributedDataParallel(wrappers[0].module)
    F.cross_entropy(again(x), y).backward()
    assert model[0].weight.grad is not None


def test_a_plan_that_cuts_nothing_retires_no_wrapper(group: None) -> None:
    model = net()
    wrapper = nn.parallel.DistributedDataParallel(model)
    sc.cut_(model, sc.trace(model, images()[0]).plan({}))
    wrapper(images()[0])


@pytest.mark.filterwarnings("ignore")
def test_an_optimizer_that_is_spread_over_processes_is_refused(group: None) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = net()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    before = model[0].weight
    with pytest.raises(sc.PlanError, match="ZeroRedundancyOptimizer spreads its state over the processes"):
        sc.cut_(model, plan_of(model), optimizer)
    assert model[0].weight is before


# -- what follows a cut in place -------------------------------------------------------------------------------------


def trained(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler, steps: int
) -> None:
    x, y = images()
    for _ in range(steps):
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()


def fp16_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)


def test_gradient_scalers_schedulers_and_several_optimizers_follow() -> None:
    """The same as if the small network had been given the sliced state."""
    model = net().train()
    body = torch.optim.SGD(model[:3].parameters(), 0.05, momentum=0.9)
    head = torch.optim.AdamW(model[3:].parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.StepLR(body, 1, 0.5)
    scaler = fp16_scaler()
    trained(model, [body, head], scaler, 3)
    plan = plan_of(model)
    scale = scaler.get_scale()
    momentum = body.state[model[0].weight]["momentum_buffer"][[0, 2, 3, 7]]
    moment = head.state[model[3].weight]["exp_avg"][:6][:, [0, 2, 3, 7]]
    sc.cut_(model, plan, [body, head])
    assert torch.equal(body.state[model[0].weight]["momentum_buffer"], momentum)
    assert torch.equal(head.state[model[3].weight]["exp_avg"], moment)
    assert {id(p) for o in (body, head) for g in o.param_groups for p in g["params"]} == {
        id(p) for p in model.parameters()
    }
    schedule.step()
    assert body.param_groups[0]["lr"] == 0.025
    before = [p.detach().clone() for p in model.parameters()]
    trained(model, [body, head], scaler, 2)
    assert scaler.get_scale() >= scale
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_cut_between_unscaling_and_the_step() -> None:
    model, (x, y) = net().train(), images()
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), fp16_scaler()
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.unscale_(optimizer)
    before = model[3].bias.detach()[:6].clone() - 0.1 * model[3].bias.grad[:6]
    sc.cut_(model, plan_of(model), optimizer)
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(model[3].bias.detach(), before)


def averaged(model: nn.Module) -> Any:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


def timm_averaged(model: nn.Module) -> Any:
    if importlib.util.find_spec("torchvision"):
        torchvision()  # timm imports it: also one whose operators do not load
    return pytest.importorskip("timm.utils").ModelEmaV2(model, decay=0.9)


@pytest.mark.parametrize("kind", [averaged, timm_averaged])
def test_an_averaged_copy_is_cut_by_the_same_plan(kind: Callable[[nn.Module], Any]) -> None:
    """It continues as if it had been cut from the start, and says which part of it to pass."""
    model, (x, y) = net().train(), images()
    optimizer, ema = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), kind(model)
    update = ema.update_parameters if isinstance(ema, AveragedModel) else ema.update
    for _ in range(3):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        update(model)
    plan = plan_of(model)
    due = sc.apply(ema.module, plan)
    with pytest.raises(sc.PlanError, match=r"a part of this \w+, 'module': pass that part, model\.module"):
        sc.cut_(ema, plan)
    sc.cut_(model, plan, optimizer)
    sc.cut_(ema.module, plan)
    for name, value in due.state_dict().items():
        assert torch.equal(ema.module.state_dict()[name], value), name
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    update(model)
    for name, value in due.named_parameters():
        wanted = 0.9 * value.detach() + 0.1 * model.get_parameter(name).detach()
        torch.testing.assert_close(ema.module.get_parameter(name).detach(), wanted)
