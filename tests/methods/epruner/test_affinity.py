"""Our affinity propagation against scikit-learn's, against the paper's equations written out, and against itself."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateurs.errors import ConfigError
from secateurs.methods.epruner import messages
from secateurs.methods.epruner.affinity import (
    Affinities,
    exemplars,
    medians,
    similarity,
)

BETAS = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)


def cloud(n: int, d: int, seed: int, *, clusters: int = 0, spread: float = 0.3) -> Tensor:
    """`n` points, around some centers if there are clusters, some nearer to the origin than others as filters are."""
    g = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=g, dtype=torch.float64)
    if clusters:
        centers = torch.randn(clusters, d, generator=g, dtype=torch.float64)
        points = centers[torch.randint(clusters, (n,), generator=g)] + spread * points
    return points * (0.5 + torch.rand(n, 1, generator=g, dtype=torch.float64))


def reference(similar: Tensor, own: Tensor, **options: object) -> tuple[list[int], list[int]]:
    cluster = pytest.importorskip("sklearn.cluster")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = cluster.AffinityPropagation(affinity="precomputed", random_state=0, preference=own.numpy(), **options)
        model.fit(similar.numpy())
    return list(model.cluster_centers_indices_), model.labels_.tolist()


def literally(
    similar: Tensor, own: Tensor, iterations: int = 200, damping: float = 0.5, by_5: bool = False
) -> list[int]:
    """Equations 4 to 10 of the paper, one message at a time; the self-responsibility by equation 4 like all others, or by 5."""
    s = similar.numpy().copy()
    np.fill_diagonal(s, own.numpy())
    n = len(s)
    r, a = np.zeros_like(s), np.zeros_like(s)
    for _ in range(iterations):
        rivals = a + s
        fresh = np.array([[s[i, k] - np.delete(rivals[i], k).max() for k in range(n)] for i in range(n)])
        if by_5:
            np.fill_diagonal(fresh, [s[i, i] - np.delete(s[i], i).max() for i in range(n)])
        r = damping * r + (1 - damping) * fresh
        positive = np.maximum(r, 0)
        np.fill_diagonal(positive, 0)
        votes = positive.sum(0)
        fresh = np.minimum(0, np.diag(r) + votes - positive)
        np.fill_diagonal(fresh, votes)
        a = damping * a + (1 - damping) * fresh
    return sorted(set((r + a).argmax(1).tolist()))


class TestSimilarity:
    def test_is_the_negative_squared_distance(self) -> None:
        points = torch.stack([cloud(17, 40, seed) for seed in range(3)])
        brute = -(points.unsqueeze(2) - points.unsqueeze(1)).square().sum(-1)
        torch.testing.assert_close(similarity(points), brute, rtol=1e-12, atol=0)

    def test_twins_and_far_away_clouds_are_as_exact_as_any(self) -> None:
        points = cloud(12, 30, 0) + 1e6
        points[5] = points[3]
        points[7] = points[2] + 1e-3
        brute = -(points.unsqueeze(1) - points.unsqueeze(0)).square().sum(-1)
        found = similarity(points[None])[0]
        torch.testing.assert_close(found, brute, rtol=1e-7, atol=0)
        assert found[3, 5] == 0
        assert torch.equal(found, found.T)

    def test_counts_in_double_whatever_the_filters_are(self) -> None:
        points = cloud(9, 8, 1).float()
        assert torch.equal(similarity(points[None]), similarity(points.double()[None]))

    @pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
    @pytest.mark.parametrize("diagonal", [True, False])
    def test_medians(self, n: int, diagonal: bool) -> None:
        similar = similarity(cloud(n, 5, n)[None])
        rows = [similar[0, i].numpy() if diagonal or n == 1 else np.delete(similar[0, i].numpy(), i) for i in range(n)]
        assert medians(similar, diagonal=diagonal)[0].tolist() == pytest.approx([np.median(row) for row in rows])


class TestAgainstScikitLearn:
    @settings(max_examples=40, deadline=None)
    @given(
        n=st.integers(3, 60),
        d=st.integers(1, 40),
        seed=st.integers(0, 2**20),
        clusters=st.sampled_from([0, 0, 2, 5]),
        beta=st.sampled_from([0.05, 0.2, 0.4, 0.6, 0.76, 0.9, 1.0, 1.5]),
    )
    def test_clouds(self, n: int, d: int, seed: int, clusters: int, beta: float) -> None:
        affinities = Affinities([cloud(n, d, seed, clusters=clusters)])
        similar = similarity(cloud(n, d, seed, clusters=clusters)[None])[0]
        found = affinities.clusterings(beta)[0]
        if affinities.medians[0].unique().numel() < 3:
            return  # mirror images: which one wins is the last bit's affair
        want, labels = reference(similar, beta * affinities.medians[0])
        if not want:
            assert len(found.exemplars) == 1
            return
        assert found.exemplars.tolist() == want
        assert found.labels.tolist() == labels

    @pytest.mark.parametrize("options", [{"damping": 0.8}, {"max_iter": 20}, {"convergence_iter": 5}])
    def test_settings(self, options: dict[str, float]) -> None:
        names = {"max_iter": "iterations", "convergence_iter": "convergence", "damping": "damping"}
        ours = {names[key]: value for key, value in options.items()}
        for seed in range(4):
            similar = similarity(cloud(50, 12, seed, clusters=6)[None])
            own = 0.8 * medians(similar)
            want, _ = reference(similar[0], own[0], **options)
            assert exemplars(similar, own, **ours)[0].tolist() == want  # type: ignore[arg-type]

    def test_asymmetric_similarities_and_any_preferences(self) -> None:
        g = torch.Generator().manual_seed(3)
        similar = torch.randn(5, 30, 30, generator=g, dtype=torch.float64)
        own = torch.randn(5, 30, generator=g, dtype=torch.float64)
        for one, (s, p) in zip(exemplars(similar, own), zip(similar, own, strict=True), strict=True):
            assert one.tolist() == reference(s, p)[0]

    def test_all_points_alike(self) -> None:
        similar = torch.full((1, 6, 6), -2.0, dtype=torch.float64)
        similar[0].fill_diagonal_(0)
        for preference, want in ((-1.0, list(range(6))), (-2.0, [0]), (-3.0, [0])):
            own = torch.full((1, 6), preference, dtype=torch.float64)
            assert exemplars(similar, own)[0].tolist() == want
            if preference != -2.0:  # a tie, which older releases of scikit-learn resolve the other way
                assert reference(similar[0], own[0])[0] == want

    def test_equal_but_for_the_preferences(self) -> None:
        similar = torch.full((1, 6, 6), -2.0, dtype=torch.float64)
        own = torch.tensor([[-1.0, -3.0, -2.5, -4.0, -2.7, -5.0]], dtype=torch.float64)
        assert exemplars(similar, own)[0].tolist() == reference(similar[0], own[0])[0]

    def test_one_point_two_points(self) -> None:
        for n in (1, 2):
            points = cloud(n, 4, 0)
            assert Affinities([points]).exemplars(0.5, convergence=15)[0].tolist() == ([0] if n == 1 else [0, 1])
            assert Affinities([points]).exemplars(3.0)[0].tolist() == [0]

    def test_dead_filters(self) -> None:
        """Filters that weight decay has brought to zero are exact copies of each other: any may stand for all."""
        copies = [3, 4, 11, 30]
        for seed in range(4):
            points = cloud(40, 20, seed)
            points[copies] = 0
            for beta in BETAS:
                similar = similarity(points[None])
                own = beta * medians(similar)
                want, _ = reference(similar[0], own[0])
                found = exemplars(similar, own)[0].tolist()
                assert sorted(3 if e in copies else e for e in found) == sorted(3 if e in copies else e for e in want)
        assert [len(e) for e in Affinities([torch.zeros(8, 3, 3, 3)]).exemplars(0.5)] == [1]

    def test_where_nobody_steps_forward_the_medoid_does(self) -> None:
        similar = similarity(cloud(20, 5, 0)[None])
        own = 0.9 * medians(similar)
        assert reference(similar[0], own[0], max_iter=1)[0] == []
        found = exemplars(similar, own, iterations=1)[0]
        assert found.tolist() == [int(similar[0].sum(0).argmax())]


class TestThePaper:
    @pytest.mark.parametrize("seed", range(6))
    def test_fixed_iterations_and_equation_10(self, seed: int) -> None:
        similar = similarity(cloud(9 + seed, 6, seed, clusters=seed % 3 * 2)[None])
        for beta in (0.2, 0.5, 0.8, 1.0):
            own = beta * medians(similar)
            assert exemplars(similar, own, convergence=None)[0].tolist() == literally(similar[0], own[0])

    def test_equation_5_is_the_released_codes(self) -> None:
        """With availabilities, as in equation 4. It makes a difference."""
        others = 0
        for seed in range(6):
            similar = similarity(cloud(16, 5, seed)[None])
            own = 0.5 * medians(similar)
            found = exemplars(similar, own, convergence=None)[0].tolist()
            assert found == literally(similar[0], own[0])
            others += found != literally(similar[0], own[0], by_5=True)
        assert others > 0

    @pytest.mark.parametrize("iterations", [1, 2, 3, 7])
    def test_the_messages_are_right_long_before_they_settle(self, iterations: int) -> None:
        for seed in range(4):
            similar = similarity(cloud(16, 5, seed)[None])
            for beta in (0.3, 0.6):
                own = beta * medians(similar)
                found = exemplars(similar, own, convergence=None, iterations=iterations, damping=0.3)
                assert found[0].tolist() == literally(similar[0], own[0], iterations, 0.3)


class TestTogether:
    @pytest.mark.parametrize("convergence", [15, None])
    def test_many_layers_as_one_by_one(self, convergence: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        shapes = ((16, 9, 0), (40, 9, 3), (16, 9, 2), (1, 9, 0), (25, 30, 4))
        layers = [cloud(n, d, n + d, clusters=c) for n, d, c in shapes]
        for beta in (0.4, 0.8):
            alone = [Affinities([layer]).exemplars(beta, convergence=convergence)[0] for layer in layers]
            for entries in (1, 300, messages.BATCH):
                monkeypatch.setattr(messages, "BATCH", entries)
                together = Affinities(layers).exemplars(beta, convergence=convergence)
                assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))

    def test_the_same_at_every_call(self) -> None:
        affinities = Affinities([cloud(30, 10, 0), cloud(50, 10, 1)])
        first = affinities.clusterings(0.7)
        affinities.clusterings(0.9)
        for one, other in zip(first, affinities.clusterings(0.7), strict=True):
            assert torch.equal(one.exemplars, other.exemplars)
            assert torch.equal(one.labels, other.labels)

    def test_single_precision_filters_find_the_same(self) -> None:
        layers = [cloud(48, 27, seed, clusters=seed) for seed in range(5)]
        for beta in BETAS:
            double = Affinities(layers).exemplars(beta)
            single = Affinities([layer.float() for layer in layers]).exemplars(beta)
            assert all(torch.equal(one, other) for one, other in zip(double, single, strict=True))

    def test_a_larger_beta_keeps_fewer(self) -> None:
        affinities = Affinities([cloud(48, 27, seed, clusters=7 * seed) for seed in range(6)])
        widths = [sum(map(len, affinities.exemplars(beta))) for beta in (0.01, *BETAS)]
        assert widths[0] == sum(affinities.sizes)
        assert all(narrow <= wide + 2 for wide, narrow in itertools.pairwise(widths))
        assert widths[-1] < widths[0] / 4

    def test_a_beta_for_each_layer(self) -> None:
        layers = [cloud(30, 10, seed) for seed in range(3)]
        affinities = Affinities([layer.view(30, 2, 5) for layer in layers])
        mixed = affinities.exemplars([0.4, 0.8, 0.6])
        for index, beta in enumerate((0.4, 0.8, 0.6)):
            assert torch.equal(mixed[index], affinities.exemplars(beta)[index])

    def test_labels_stand_for_their_points(self) -> None:
        for convergence in (15, None):
            for found in Affinities([cloud(40, 9, 2, clusters=5)]).clusterings(0.8, convergence=convergence):
                assert found.exemplars.tolist() == sorted(set(found.exemplars.tolist()))
                assert found.labels.shape == (40,)
                assert found.labels[found.exemplars].tolist() == list(range(len(found.exemplars)))


class TestRefusals:
    def test_what_makes_no_sense(self) -> None:
        affinities = Affinities([cloud(5, 3, 0), cloud(6, 3, 0)])
        with pytest.raises(ConfigError, match="3 values of beta for 2 layers"):
            affinities.exemplars([0.1, 0.2, 0.3])
        with pytest.raises(ConfigError, match="damping=1"):
            affinities.exemplars(0.5, damping=1)
        with pytest.raises(ConfigError, match="no filters"):
            Affinities([torch.zeros(0, 3)])
        with pytest.raises(ConfigError, match="not finite"):
            Affinities([torch.tensor([[1.0], [float("nan")], [2.0]])])
        with pytest.raises(ConfigError, match="preferences of shape"):
            exemplars(torch.zeros(1, 3, 3), torch.zeros(1, 2))
