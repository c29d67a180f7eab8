"""The messages of affinity propagation: which of them matter, and the iterations until the exemplars converge."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateurs.errors import ConfigError

NEVER = -1e200  # the similarity of a missing candidate: finite, so that differences of two are not NaN
# List entries that are iterated together: enough to hide the cost of a call, few enough to fit in the cache.
BATCH = 1 << 16


@dataclass(frozen=True, eq=False)
class Clustering:
    """The outcome for one layer."""

    exemplars: Tensor  # (k,) the exemplars, ascending, at least one
    labels: Tensor  # (n,) for each point, the position in `exemplars` of its exemplar


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread for thousands of calls of a few microseconds: synchronizing a second thread costs more than it saves.

    A second thread saves a sixth on an idle machine, and is up to a hundred times slower when other processes use the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.lru_cache(maxsize=4)
def noise_of(n: int) -> Tensor:
    """The numbers that scikit-learn draws for `n` points and ``random_state=0``, ``(n, n)``."""
    return torch.from_numpy(np.random.RandomState(0).standard_normal((n, n)))


def _jitter(values: Tensor, noise: Tensor) -> Tensor:
    """`values` with noise in their last bit; zeros with negligible noise."""
    info = torch.finfo(torch.float64)
    return torch.addcmul(values, values.mul(info.eps).add_(100 * info.tiny), noise)


class Layer:
    """One layer's points: everything that does not depend on the preferences."""

    def __init__(self, similarities: Tensor) -> None:
        s = similarities.detach().to("cpu", torch.float64)  # (n, n)
        n = len(s)
        noise = noise_of(n)
        self.last = s[0, -1].item()
        self.alike = bool((s[0, 1:] == self.last).all()) and int((s == self.last).fill_diagonal_(True).sum()) == n * n
        self.similar = _jitter(s, noise).fill_diagonal_(-torch.inf)
        self.nearest = self.similar.amax(1)
        self.own_noise = noise.diagonal().clone()

    def __len__(self) -> int:
        return len(self.nearest)

    def trivial(self, preferences: Tensor) -> Clustering | None:
        """One point, or identical points: all of them if they prefer themselves, else the first."""
        every = torch.arange(len(self))
        if len(self) > 1 and not (self.alike and bool((preferences == preferences[0]).all())):
            return None
        if len(self) > 1 and preferences[0].item() > self.last:
            return Clustering(every, every)
        return Clustering(every[:1], torch.zeros_like(every))


# ---------------------------------------------------------------------------------------------------------------------
# which messages matter


class _Problem:
    """A layer with preferences, reduced to the points that are not certain exemplars and to the candidates that matter."""

    def __init__(self, layer: Layer, preferences: Tensor, *, second: bool) -> None:
        self.layer = layer
        self.preferences = _jitter(preferences.detach().to("cpu", torch.float64), layer.own_noise)
        self.certain = self.preferences > layer.nearest
        self.points = (~self.certain).nonzero().squeeze(1)  # (m,) the remaining points
        self.own = self.preferences[self.points]
        # the offer of the certain exemplars, and the second best (which only equation 10 needs)
        self.offer = torch.full_like(self.own, NEVER)
        self.second = torch.full_like(self.own, NEVER)
        self.offerer = torch.zeros_like(self.points)
        rows = layer.similar[self.points] if len(self.points) < len(layer) else layer.similar
        inner = rows
        if len(self.points) < len(layer):
            inner = rows[:, self.points]
            sure = self.certain.nonzero().squeeze(1)
            outer = rows[:, sure]  # (m, n - m)
            if second and len(self.points):
                best = outer.topk(min(2, len(sure)), dim=1)
                self.offer, self.offerer = best.values[:, 0], sure[best.indices[:, 0]]
                self.second = best.values[:, 1] if len(sure) > 1 else self.second
            elif len(self.points):
                self.offer = outer.amax(1)
        matters = inner >= torch.maximum(self.own, self.offer).unsqueeze(1)
        self.row, self.candidate = matters.nonzero().unbind(1)
        self.value = inner[self.row, self.candidate]
        self.degree = torch.bincount(self.row, minlength=len(self.points))
        self.width = max(1, int(self.degree.max())) if len(self.points) else 0


class _Batch:
    """The messages of several problems: one column per point with the list of its candidates, padded to one length."""

    def __init__(self, problems: Sequence[_Problem], damping: float) -> None:
        self.keep, self.move = damping, 1 - damping
        first = problems[0].own
        sizes = [len(problem.points) for problem in problems]
        points, width = sum(sizes), max(problem.width for problem in problems)
        starts = np.cumsum([0, *sizes]).tolist()
        row = torch.cat([problem.row + start for problem, start in zip(problems, starts, strict=False)])
        degree = torch.cat([problem.degree for problem in problems])
        place = torch.arange(len(row)) - (degree.cumsum(0) - degree)[row]
        self.similar = first.new_full((width, points), NEVER)
        self.similar[place, row] = torch.cat([problem.value for problem in problems])
        self.candidate = torch.full_like(self.similar, points, dtype=torch.long)  # padding refers to no point
        self.candidate[place, row] = torch.cat(
            [problem.candidate + start for problem, start in zip(problems, starts, strict=False)]
        )
        self.respons = torch.zeros_like(self.similar)  # r
        self.unavail = torch.zeros_like(self.similar)  # -a
        self.own = torch.cat([problem.own for problem in problems])
        self.offer = torch.cat([problem.offer for problem in problems])
        self.second = torch.cat([problem.second for problem in problems])
        self.own_respons, self.own_avail, self.offer_respons = (torch.zeros_like(self.own) for _ in range(3))
        self.owner = torch.repeat_interleave(torch.arange(len(problems)), torch.tensor(sizes))
        self._allocate()

    def _allocate(self) -> None:
        points = self.similar.shape[1]
        self.scratch, self.total = torch.empty_like(self.similar), torch.empty_like(self.similar)
        self.votes = self.own.new_zeros(points + 1)
        self.trust = self.own.new_zeros(points + 1)

    def step(self, *, literal: bool = False) -> Tensor:
        """One iteration over all messages. Returns which points choose themselves as exemplars, ``(points,)``."""
        move, scratch, index = self.move, self.scratch, self.candidate.view(-1)

        # responsibilities: r(i, k) <- s(i, k) - the best of a(i, k') + s(i, k') over the rivals k' of k
        torch.sub(self.similar, self.unavail, out=scratch)
        best, at = scratch.max(0)
        scratch.scatter_(0, at.unsqueeze(0), NEVER)
        rest = scratch.amax(0)
        own = self.own + self.own_avail
        if literal:
            rival = torch.maximum(torch.maximum(best, own), self.second)
            self.offer_respons.lerp_(self.offer - rival, move)
        self.own_respons.lerp_(self.own - torch.maximum(best, self.offer), move)
        floor = torch.maximum(own, self.offer)
        best, rest = torch.maximum(best, floor), torch.maximum(rest, floor)
        self.respons.lerp_(self.similar, move).sub_(best, alpha=move)
        self.respons.scatter_add_(0, at.unsqueeze(0), (best - rest).mul_(move).unsqueeze(0))

        # availabilities: a(i, k) <- min(0, r(k, k) + the positive responsibilities that k gets from all but i and k)
        torch.clamp_min(self.respons, 0, out=scratch)
        self.votes.zero_().scatter_add_(0, index, scratch.view(-1))
        votes = self.votes[:-1]
        self.own_avail.lerp_(votes, move)
        torch.add(votes, self.own_respons, out=self.trust[:-1])
        torch.index_select(self.trust, 0, index, out=self.total.view(-1))
        self.unavail.lerp_(scratch.sub_(self.total).clamp_min_(0), move)
        return self.own_avail + self.own_respons > 0

    def drop(self, gone: Tensor) -> Tensor:
        """Remove the points of the problems marked in `gone`. Returns the mask of the former points that remain."""
        stay = ~gone[self.owner]
        kept = stay.nonzero().squeeze(1)
        place = torch.full((len(stay) + 1,), len(kept))
        place[kept] = torch.arange(len(kept))
        candidate = self.candidate[:, kept]
        width = max(1, int((candidate < len(stay)).sum(0).max()))
        self.candidate = place[candidate[:width]]
        for name in ("similar", "respons", "unavail"):
            setattr(self, name, getattr(self, name)[:width, kept])
        for name in ("own", "offer", "second", "own_respons", "own_avail", "offer_respons", "owner"):
            setattr(self, name, getattr(self, name)[kept])
        self._allocate()
        return stay

    def choices(self, problem: _Problem) -> Tensor:
        """Equation 10, for a batch of this one problem: for each ``i`` the ``j`` with the largest r(i, j) + a(i, j)."""
        chosen = torch.arange(len(problem.layer))  # the certain exemplars choose themselves
        value, at = (self.respons - self.unavail).max(0)
        other = problem.points[self.candidate.gather(0, at.unsqueeze(0)).squeeze(0).clamp_max(len(problem.points) - 1)]
        own = self.own_respons + self.own_avail
        pick = torch.where(own >= value, problem.points, other)
        pick = torch.where(self.offer_respons > torch.maximum(own, value), problem.offerer, pick)
        chosen[problem.points] = pick
        return chosen


# ---------------------------------------------------------------------------------------------------------------------
# until the exemplars converge


@one_thread()
def solve(
    layers: Sequence[Layer],
    preferences: Sequence[Tensor],
    *,
    iterations: int = 200,
    damping: float = 0.5,
    convergence: int | None = 15,
) -> list[Clustering]:
    """Affinity propagation on layers of any sizes.

    iterations:  maximum number of iterations.
    damping:     the fraction of its old value that a message keeps, lambda in the paper.
    convergence: stop once the exemplars are unchanged for this many iterations; ``None``: the paper's rule, see above.
    """
    if iterations < 1 or not 0 <= damping < 1 or (convergence is not None and convergence < 1):
        raise ConfigError(f"affinity propagation got invalid settings: {iterations=}, {damping=}, {convergence=}")
    results: dict[int, Clustering] = {}
    problems: dict[int, _Problem] = {}
    for index, (layer, own) in enumerate(zip(layers, preferences, strict=True)):
        if own.shape != (len(layer),):
            raise ConfigError(f"problem {index} has {len(layer)} points, but preferences of shape {tuple(own.shape)}")
        trivial = layer.trivial(own)
        if trivial is not None:
            results[index] = trivial
            continue
        problem = _Problem(layer, own, second=convergence is None)
        if len(problem.points):
            problems[index] = problem
        else:
            every = torch.arange(len(layer))
            results[index] = Clustering(every, every)
    for group in _groups(problems, alone=convergence is None):
        batch = _Batch([problems[index] for index in group], damping)
        if convergence is None:
            for _ in range(iterations):
                batch.step(literal=True)
            chosen = batch.choices(problems[group[0]])
            exemplars, labels = chosen.unique(return_inverse=True)
            results[group[0]] = Clustering(exemplars, labels)
            continue
        members = [problems[index] for index in group]
        for position, willing in _converge(batch, members, iterations, convergence):
            results[group[position]] = _refine(members[position], willing)
    return [results[index] for index in range(len(layers))]


def _groups(problems: dict[int, _Problem], *, alone: bool) -> Iterator[list[int]]:
    """Batches of problems with lists of similar length."""
    group: list[int] = []
    points = entries = 0
    for index in sorted(problems, key=lambda index: -problems[index].width):
        problem = problems[index]
        width = problems[group[0]].width if group else problem.width
        padded = (points + len(problem.points)) * width
        entries += len(problem.points) * problem.width
        if group and (alone or padded > BATCH or padded > 2 * entries + (1 << 14)):
            yield group
            group, points, entries = [], 0, len(problem.points) * problem.width
        group.append(index)
        points += len(problem.points)
    if group:
        yield group


def _converge(
    batch: _Batch, problems: Sequence[_Problem], iterations: int, convergence: int
) -> Iterator[tuple[int, Tensor]]:
    """Yields (position, mask of the problem's points that are exemplars) as each converges."""
    sizes = [len(problem.points) for problem in problems]
    certain = torch.tensor([len(p.layer) > len(p.points) for p in problems])
    stable = torch.zeros(len(problems), dtype=torch.long)
    done = torch.zeros(len(problems), dtype=torch.bool)
    dropped = done.clone()
    before = torch.zeros_like(batch.owner, dtype=torch.bool)
    for count in range(1, iterations + 1):
        willing = batch.step()
        stable += 1
        stable[batch.owner[willing != before]] = 1
        before = willing
        if count <= convergence and count < iterations:
            continue
        populated = certain.clone()
        populated[batch.owner[willing]] = True
        held = (stable >= convergence) & populated & (count > convergence)
        finished = ~done if count == iterations else held & ~done
        if not finished.any():
            continue
        for position in finished.nonzero().squeeze(1).tolist():
            yield position, willing[batch.owner == position]
        done |= finished
        if done.all():
            return
        left = sum(size for size, over in zip(sizes, done.tolist(), strict=True) if not over)
        if left < 0.65 * len(willing):
            before = before[batch.drop(done & ~dropped)]
            dropped = done.clone()


def _refine(problem: _Problem, willing: Tensor) -> Clustering:
    """Replace each exemplar by the medoid of the points that it represents, preferences included."""
    similar = problem.layer.similar
    n = len(similar)
    chosen = problem.certain.clone()
    chosen[problem.points[willing]] = True
    if not chosen.any():  # none: the point that is most similar to all others
        medoid = similar.clone().fill_diagonal_(0).sum(0).argmax()
        return Clustering(medoid.view(1), torch.zeros(n, dtype=torch.long))

    exemplars = chosen.nonzero().squeeze(1)
    labels, followers = _assign(similar, exemplars, chosen)
    if len(followers):
        followed = torch.zeros(len(exemplars), dtype=torch.bool)
        followed[labels[followers]] = True
        member = followed[labels].nonzero().squeeze(1)  # the points of all clusters with more than one point
        mine = labels[member]
        inside = similar[member][:, member]
        inside.diagonal().copy_(problem.preferences[member])
        score = inside.masked_fill_(mine.unsqueeze(1) != mine, 0).sum(0)
        top = score.new_full((len(exemplars),), -torch.inf).scatter_reduce_(0, mine, score, "amax")
        winner = member.masked_fill(score != top[mine], n)
        moved = torch.full_like(exemplars, n).scatter_reduce_(0, mine, winner, "amin")
        moved = torch.where(followed, moved, exemplars).sort().values
        if not torch.equal(moved, exemplars):
            exemplars = moved
            labels, _ = _assign(similar, exemplars, torch.zeros_like(chosen).index_fill_(0, exemplars, True))
    return Clustering(exemplars, labels)


def _assign(similar: Tensor, exemplars: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """For each point the position of its most similar exemplar; and the points that are not exemplars."""
    labels = chosen.cumsum(0) - 1
    followers = (~chosen).nonzero().squeeze(1)
    labels[followers] = similar[followers][:, exemplars].max(1).indices
    return labels, followers
