"""Every number is scikit-learn's where it has the same, also on classes that do not occur."""

from __future__ import annotations

import numpy as np
import pytest

from piggyback.kinds import metrics

sklearn = pytest.importorskip("sklearn.metrics")


@pytest.fixture
def generator():
    return np.random.default_rng(4)


@pytest.fixture
def answers(generator):
    truth = generator.integers(0, 6, 200)  # of 8 classes: two have no samples
    called = np.where(generator.random(200) < 0.7, truth, generator.integers(0, 7, 200))
    return truth, called


def test_numbers_from_counts(answers):
    truth, called = answers
    counts = metrics.confusion(truth, called, 8)
    assert (counts == sklearn.confusion_matrix(truth, called, labels=range(8))).all()
    found, whole = metrics.by_class(counts), metrics.overall(counts)
    wanted = sklearn.precision_recall_fscore_support(
        truth, called, labels=range(8), zero_division=np.nan
    )
    assert found["recall"] == pytest.approx(wanted[1], nan_ok=True)
    assert found["precision"][:7] == pytest.approx(wanted[0][:7])
    assert found["f1"] == pytest.approx(wanted[2], nan_ok=True)
    assert whole["accuracy"] == pytest.approx(sklearn.accuracy_score(truth, called))
    assert whole["balanced_accuracy"] == pytest.approx(
        sklearn.balanced_accuracy_score(truth, called)
    )
    macro = sklearn.f1_score(truth, called, average="macro", zero_division=0)
    assert whole["macro_f1"] == pytest.approx(macro)
    macro = sklearn.jaccard_score(truth, called, average="macro", zero_division=0)
    assert whole["mean_iou"] == pytest.approx(macro)


def test_a_class_that_is_never_called_has_precision_0_and_an_unknown_one_no_number():
    found = metrics.by_class(np.array([[2, 1, 0], [3, 0, 0], [0, 0, 0]]))
    assert found["precision"][1] == 0
    assert np.isnan([values[2] for values in found.values()]).all()


def test_scores_of_a_label_with_ties(generator):
    truth = generator.random(80) < 0.3
    scores = (truth + generator.normal(size=80)).round(1)
    assert metrics.auroc(scores, truth) == pytest.approx(sklearn.roc_auc_score(truth, scores))
    wanted = sklearn.average_precision_score(truth, scores)
    assert metrics.average_precision(scores, truth) == pytest.approx(wanted)
    assert np.isnan(metrics.average_precision(scores, np.zeros(80, bool)))
    assert np.isnan(metrics.auroc(scores, np.ones(80, bool)))


def test_numbers_of_a_regression(generator):
    truth, found = generator.normal(size=(2, 50))
    numbers = metrics.errors(found, truth)
    assert numbers["r2"] == pytest.approx(sklearn.r2_score(truth, found))
    assert numbers["mae"] == pytest.approx(sklearn.mean_absolute_error(truth, found))
    assert numbers["rmse"] == pytest.approx(sklearn.root_mean_squared_error(truth, found))
    assert np.isnan(metrics.errors(found, np.ones(50))["r2"])


def test_calibration_is_that_of_torchmetrics(generator):
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    logits = torch.from_numpy(generator.normal(size=(300, 4)) * 2)
    truth = torch.from_numpy(generator.integers(0, 4, 300))
    chances = logits.softmax(1)
    wanted = torchmetrics.multiclass_calibration_error(chances, truth, num_classes=4, n_bins=15)
    sure, called = chances.max(1)
    found = metrics.calibration(sure.numpy(), (called == truth).numpy())
    assert found.ece == pytest.approx(float(wanted), abs=1e-6)
    assert sum(found.counts) == 300


def test_intervals_hold_the_number_and_are_those_of_resampled_samples(answers):
    truth, called = answers
    counts = metrics.confusion(truth, called, 8)
    by_cells = metrics.bootstrap_counts(counts)
    by_samples = metrics.bootstrap(
        lambda rows: metrics.overall(metrics.confusion(truth[rows], called[rows], 8)), len(truth)
    )
    for name, value in metrics.overall(counts).items():
        low, high = by_cells[name]
        assert low < value < high
        assert by_samples[name] == pytest.approx((low, high), abs=0.02)
    assert by_cells == metrics.bootstrap_counts(counts)


def test_mcnemar_is_the_exact_binomial_test(generator):
    stats = pytest.importorskip("scipy.stats")
    one, other = generator.random((2, 400)) < 0.8
    first, second, p = metrics.mcnemar(one, other)
    assert p == pytest.approx(stats.binomtest(first, first + second).pvalue)
    assert metrics.mcnemar(one, one)[2] == 1


def test_coverage_falls_on_no_threshold_between_equal_answers():
    sure, share, right = metrics.coverage(
        np.array([0.5, 0.9, 0.5, 0.7]), np.array([True, True, False, True])
    )
    assert sure.tolist() == [0.9, 0.7, 0.5]
    assert share.tolist() == [0.25, 0.5, 1.0]
    assert right.tolist() == [1.0, 1.0, 0.75]
