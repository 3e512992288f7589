"""Information maximisation, minimum class confusion, and the prior of the losses' classes."""

import json
import math

import pytest
import torch
from avalanche.training.supervised import Naive
from loss_runs import coupled, student, trained

from avalanche_cetl import (
    CETLPlugin,
    InformationMaximization,
    MinimumClassConfusion,
    ViewConsistency,
    adaptation_benchmark,
    transfer_benchmark,
)
from avalanche_cetl.plugins.adaptation import (
    information_maximization_loss,
    minimum_class_confusion_loss,
)
from avalanche_cetl.plugins.unlabelled import ramp
from avalanche_cetl.plugins.views import balance_loss
from avalanche_cetl.training.choice import Rule
from avalanche_cetl.training.presets import Preset

NEW = [InformationMaximization, MinimumClassConfusion]
FUNCTIONS = {"L_im": information_maximization_loss, "L_mcc": minimum_class_confusion_loss}


def random_logits(rows=7, classes=4, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def softmax(row, temperature=1.0):
    sizes = [math.exp(float(v) / temperature) for v in row]
    return [size / sum(sizes) for size in sizes]


def entropy_of(row):
    return -sum(p * math.log(p) for p in row)


def naive_information(logits, prior, balance, temperature):
    rows = [softmax(row, temperature) for row in logits]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    prior = [share / sum(prior) for share in prior]
    divergence = sum(p * math.log(p / q) for p, q in zip(mean, prior, strict=True))
    return sum(map(entropy_of, rows)) / len(rows) + balance * divergence


def naive_confusion(logits, temperature, prior=None):
    rows = [softmax(row, temperature) for row in logits]
    weights = [1 + math.exp(-entropy_of(row)) for row in rows]
    weights = [len(rows) * weight / sum(weights) for weight in weights]
    classes = len(rows[0])
    prior = [1 / classes] * classes if prior is None else [p / sum(prior) for p in prior]
    total = 0.0
    for k in range(classes):
        line = [
            sum(w * row[k] * row[j] for w, row in zip(weights, rows, strict=True))
            for j in range(classes)
        ]
        total += prior[k] * (sum(line) - line[k]) / sum(line)
    return total


@pytest.mark.parametrize(
    ("logits", "wanted"),
    [
        (50 * torch.eye(2), 0.0),  # sure of each row, both classes in turn
        (50 * torch.eye(3)[[1, 1, 1, 1]], math.log(3)),  # sure, but of one class
        (torch.zeros(4, 5), math.log(5)),  # even classes, but sure of nothing
    ],
)
def test_information_is_whole_for_rows_that_are_sure_and_balanced_only(logits, wanted):
    assert float(information_maximization_loss(logits)) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("prior", [None, [1.0, 2.0, 0.5, 4.0]])
@pytest.mark.parametrize(("balance", "temperature"), [(1.0, 1.0), (0.3, 2.0), (0.0, 0.5)])
def test_information_maximization_equals_the_naive_formula(prior, balance, temperature):
    logits = random_logits()
    found = information_maximization_loss(logits, prior, balance, temperature)
    wanted = naive_information(logits, prior or [1.0] * 4, balance, temperature)
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_no_information_is_lost_where_the_classes_are_as_the_prior():
    logits = 50 * torch.eye(2)[[0, 0, 0, 1]]
    assert float(information_maximization_loss(logits, [3, 1])) == pytest.approx(0, abs=1e-5)
    wanted = 0.75 * math.log(0.75 / 0.25) + 0.25 * math.log(0.25 / 0.75)
    assert float(information_maximization_loss(logits, [1, 3])) == pytest.approx(wanted, abs=1e-5)
    assert float(balance_loss(logits, torch.tensor([1.0, 3.0]))) == pytest.approx(wanted, abs=1e-5)


def test_an_even_prior_is_as_none():
    logits = random_logits()
    for loss in (information_maximization_loss, minimum_class_confusion_loss, balance_loss):
        torch.testing.assert_close(loss(logits, prior=[2] * 4), loss(logits), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("logits", "wanted"),
    [
        (50 * torch.eye(3), 0.0),  # each class alone in its row
        (torch.zeros(4, 5), 4 / 5),  # every class beside all others
        (300 * torch.eye(3)[[1, 1]], 2 / 3),  # where the others are predicted, class 1 is
    ],
)
def test_confusion_in_cases_by_hand(logits, wanted):
    found = float(minimum_class_confusion_loss(logits, temperature=1.0))
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("prior", [None, [1.0, 2.0, 0.5, 4.0]])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_confusion_equals_the_naive_double_loop(temperature, prior):
    logits = random_logits()
    found = minimum_class_confusion_loss(logits, temperature, prior)
    assert float(found) == pytest.approx(naive_confusion(logits, temperature, prior), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_confusion_has_the_value_of_skada_and_another_gradient(temperature):
    from skada.deep.losses import mcc_loss

    ours, theirs = (random_logits(rows=20).requires_grad_() for _ in range(2))
    found = minimum_class_confusion_loss(ours, temperature)
    wanted = mcc_loss(theirs, T=temperature)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    found.backward()
    wanted.backward()
    assert (ours.grad - theirs.grad).norm() > 0.05 * ours.grad.norm()  # theirs moves W too


def test_no_gradient_flows_through_the_weights_of_the_rows():
    logits = random_logits().requires_grad_()
    minimum_class_confusion_loss(logits, 2.0).backward()
    free = logits.detach().clone().requires_grad_()
    scaled = free / 2.0
    rows = scaled.softmax(1)
    entropy = -(rows * scaled.log_softmax(1)).sum(1, keepdim=True)
    matrix = rows.T @ (rows * (1 + torch.exp(-entropy)).detach())
    matrix = matrix / matrix.sum(1, keepdim=True)
    ((matrix.sum() - matrix.trace()) / 4).backward()
    torch.testing.assert_close(logits.grad, free.grad)
    assert logits.grad.abs().max() > 1e-3


def test_a_class_that_no_row_predicts_leaves_the_losses_finite():
    logits = torch.tensor([[900.0, 0.0, -900.0], [0.0, 900.0, -900.0]], requires_grad=True)
    for loss in (information_maximization_loss, minimum_class_confusion_loss):
        logits.grad = None
        value = loss(logits, prior=[1, 1, 2])
        value.backward()
        assert value.isfinite() and logits.grad.isfinite().all()


def test_descent_ends_in_sure_classes_as_frequent_as_the_prior():
    logits = random_logits(rows=40, classes=2, scale=0.1).requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        information_maximization_loss(logits, [3, 1], balance=3.0).backward()
        optimizer.step()
    found = logits.detach().softmax(1)
    assert found.amax(1).mean() > 0.95
    assert float(found.mean(0)[0]) == pytest.approx(0.75, abs=0.04)


@pytest.fixture
def adapted(digits):
    return adaptation_benchmark(digits(30, seed=1), digits(36, shift=0.1), digits(30, seed=2))


def own_runs(benchmark, *plugins, **options):
    return trained(coupled(None), benchmark, *plugins, **options)


@pytest.mark.parametrize("variant", ["joint", "e"])
@pytest.mark.parametrize("rows", ["labelled", "target", "unlabelled"])
def test_both_losses_are_recorded_and_train(adapted, variant, rows):
    plain = own_runs(adapted, variant=variant, train_epochs=1)
    s = own_runs(adapted, *(make(rows=rows) for make in NEW), variant=variant, train_epochs=1)
    assert 0 < s.round_losses["L_im"] <= math.log(3) + 1e-6
    assert 0 < s.round_losses["L_mcc"] < 1
    its = plain.model.state_dict()
    assert any(not torch.equal(value, its[name]) for name, value in s.model.state_dict().items())


class Around(CETLPlugin):
    """Keeps the loss of each step of stage 2 or of the merged one, and what the step read."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def before_backward(self, strategy, *args, **kwargs):
        if strategy.coupled is not None and strategy.stage.value in ("stage 2", "merged"):
            step = strategy.coupled
            self.kept.append((float(strategy.loss.detach()), step.logits.detach(), step.labels))


@pytest.mark.parametrize("make", NEW)
@pytest.mark.parametrize("variant", ["joint", "e"])
@pytest.mark.parametrize("rows", ["target", "unlabelled"])
def test_a_step_has_the_loss_of_its_rows_times_their_share_and_ramp(few, make, variant, rows):
    before, after = Around(), Around()
    plugin = make(50.0, rows=rows, prior=[1, 2, 3], rampup_rounds=2)
    s = own_runs(few, before, plugin, after, variant=variant, warmup_epochs=0, train_epochs=3)
    steps, sums = len(after.kept) // 3, [0.0, 0]
    assert len(before.kept) == len(after.kept) > 3
    for i, ((bare, logits, labels), (whole, _, _)) in enumerate(
        zip(before.kept, after.kept, strict=True)
    ):
        counted = labels < 0 if rows == "unlabelled" else labels >= -1
        share = float(counted.float().mean())
        wanted = share * float(FUNCTIONS[make.name](logits[counted], prior=[1, 2, 3]))
        assert whole - bare == pytest.approx(50 * ramp(i // steps, 2) * wanted, rel=1e-3, abs=1e-4)
        if i // steps == 2:
            sums = [sums[0] + wanted * len(labels), sums[1] + len(labels)]
    assert any((labels >= 0).any() for _, _, labels in after.kept)  # some rows do not count
    assert s.round_losses[make.name] == pytest.approx(sums[0] / sums[1], rel=1e-5)


@pytest.mark.parametrize("make", NEW)
def test_where_all_rows_have_labels_none_is_unlabelled(digits, make):
    x, y = digits(40, seed=1)
    benchmark = transfer_benchmark((x, y), (x[:2], y[:2]))
    runs = [own_runs(benchmark, *plugins, train_epochs=1) for plugins in ([], [make(9.0)])]
    its = runs[0].model.state_dict()
    assert all(torch.equal(v, its[name]) for name, v in runs[1].model.state_dict().items())
    assert runs[1].round_losses[make.name] == 0


@pytest.mark.parametrize("make", NEW)
def test_a_stock_strategy_reads_its_mini_batch_whatever_the_labels_are(adapted, make):
    net = student()
    seen = []

    class Spy(make):
        def loss(self, strategy, batch):
            found = super().loss(strategy, batch)
            wanted = FUNCTIONS[self.name](strategy.mb_output)
            assert len(batch.logits) == len(strategy.mb_y) and torch.equal(found, wanted)
            seen.append(strategy.mb_y)
            return found

    criterion = torch.nn.CrossEntropyLoss(ignore_index=-1)
    Naive(
        model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), criterion=criterion,
        plugins=[Spy(rows="labelled")], train_mb_size=16, evaluator=None,
    ).train(adapted.train_stream)  # fmt: skip
    labels = torch.cat(seen)
    assert (labels < 0).sum() == 36 and (labels >= 0).sum() == 30


@pytest.mark.parametrize("rows", ["target", "unlabelled"])
@pytest.mark.parametrize("make", [*NEW, ViewConsistency])
def test_a_stock_strategy_has_no_target_rows(adapted, make, rows):
    message = "needs CETLStrategy" if make is ViewConsistency else "rows='labelled'"
    for net in (student(), coupled(None)):
        naive = Naive(
            model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), evaluator=None,
            plugins=[make(rows=rows)],
        )  # fmt: skip
        with pytest.raises(ValueError, match=message):
            naive.train(adapted.train_stream)


def test_the_prior_of_views_is_that_of_their_balance(adapted):
    after, before = Around(), Around()
    plugin = ViewConsistency(0.0, balance=100.0, rows="unlabelled", prior=torch.tensor([4, 1, 1]))
    own_runs(adapted, before, plugin, after, train_epochs=1)
    assert plugin.prior == pytest.approx((4 / 6, 1 / 6, 1 / 6))
    for (bare, logits, _), (whole, _, _) in zip(before.kept, after.kept, strict=True):
        wanted = 100 * float(balance_loss(logits, [4, 1, 1]))
        assert whole - bare == pytest.approx(wanted, rel=1e-3, abs=1e-4)


WRONG = [
    [], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 1.0]], "even", 0.5,
    [1e300, 1e-300], [1e308, 1e308], ["a", "b"],
]  # fmt: skip


@pytest.mark.parametrize("prior", WRONG)
@pytest.mark.parametrize("make", [*NEW, ViewConsistency])
def test_a_prior_that_is_no_row_of_positive_numbers_is_refused(make, prior):
    with pytest.raises(ValueError, match=r"prior=.*one for each class"):
        make(prior=prior)


@pytest.mark.parametrize("make", [*NEW, ViewConsistency])
def test_a_prior_of_other_classes_is_refused_at_the_first_batch(adapted, make):
    with pytest.raises(ValueError, match="prior has 2 numbers and the network 3 outputs"):
        own_runs(adapted, make(prior=[1, 1]))


@pytest.mark.parametrize("make", [*NEW, ViewConsistency])
def test_a_preset_with_a_prior_is_described_in_plain_words(make):
    (found,) = Preset(plugins=(Rule(lambda: make(prior=[1, 3])),)).describe()["plugins"]
    assert json.loads(json.dumps(found)) == found
    assert found["class"] == make.__name__ and found["weight"] > 0


class Priors(CETLPlugin):
    """Keeps the prior that each loss has in training."""

    def __init__(self, *plugins):
        super().__init__()
        self.plugins, self.kept = plugins, []

    def before_backward(self, strategy, *args, **kwargs):
        if strategy.coupled is not None:
            logits = strategy.coupled.logits
            self.kept += [plugin.prior_of(strategy, logits) for plugin in self.plugins]


ALL = [*NEW, ViewConsistency]


@pytest.fixture
def unlabelled(digits):
    return adaptation_benchmark(None, digits(20), digits(20))


@pytest.fixture
def absent(digits):
    """Rows of the classes 0 and 1 alone, for a T2 of three outputs; target rows have no label."""

    def few(count, seed, shift=0.0):
        x, y = digits(count, seed=seed, shift=shift)
        return x[y < 2], y[y < 2]

    return adaptation_benchmark(few(45, 1), few(48, 0, 0.1), few(30, 2))


@pytest.mark.parametrize(
    ("data", "given", "wanted"),
    [
        ("absent", None, [1.0, 1.0, 1e-3]),
        ("absent", [1, 1, 1], [1 / 3] * 3),
        ("adapted", None, None),
        ("unlabelled", None, None),
    ],
)
@pytest.mark.parametrize("make", ALL)
def test_the_prior_is_the_given_one_or_even_over_classes_of_labelled_rows(
    request, make, data, given, wanted
):
    plugin = make(rows="target", prior=given)
    seen = Priors(plugin)
    data = request.getfixturevalue(data)
    own_runs(data, plugin, seen, variant="joint", train_epochs=1)
    assert seen.kept
    for prior in seen.kept:
        assert (prior is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(torch.as_tensor(prior), torch.tensor(wanted))


def test_classes_are_those_of_the_experience(digits, absent):
    whole = adaptation_benchmark(digits(30, seed=1), digits(36), digits(30, seed=2))
    plugin = InformationMaximization()
    seen = Priors(plugin)
    s = own_runs(absent, plugin, seen, variant="joint", train_epochs=1)
    seen.kept.clear()
    s.train(whole.train_stream)
    assert seen.kept and set(seen.kept) == {None}


@pytest.mark.parametrize("make", NEW)
def test_an_absent_class_is_hardly_predicted(absent, make):
    plugin = make(3.0, rows="target")
    s = own_runs(absent, plugin, variant="joint", train_epochs=12)
    x = torch.stack([torch.as_tensor(row[0]) for row in absent.test_stream[0].dataset])
    assert s.model.target.eval()(x).softmax(1)[:, 2].mean() < 0.05
