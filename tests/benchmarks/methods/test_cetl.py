"""CETL's forms, by what they hand to the strategy."""

import pytest

from benchmarks.methods import cetl


@pytest.fixture
def settings(monkeypatch):
    """What the last strategy was made with; it trains nothing."""
    seen = {}

    class Strategy:
        def __init__(self, **arguments):
            seen.clear()
            seen.update(arguments)

        def train(self, *args, **kwargs):
            pass

    monkeypatch.setattr(cetl, "CETLStrategy", Strategy)
    monkeypatch.setattr(cetl.CoupledModel, "build", lambda source, network, shape: network)
    return seen


def test_drcn_has_no_source_and_no_fixed_goal(adaptation_job, settings):
    job, _ = adaptation_job(strength=0.3)  # whose make_source would fail
    cetl.adapted("e", with_source=False)(job)
    assert settings["fixed_goal"] is False and settings["lr_factors"] == (1.0, 0.3)


def test_the_strength_is_lambda_or_the_plugin_s_weight(adaptation_job, settings):
    job, _ = adaptation_job(strength=0.3)
    job.make_source = lambda: None
    cetl.penalised("gfi")(job)
    assert settings["dwa_lambda"] == 0.3 and settings["warmup_epochs"] == job.budget.warmup_epochs
    cetl.adapted("gfi", cetl.decoder_hints)(job)
    assert settings["plugins"][-1].weight == 0.3 and settings["lr_factors"] == (1.0, 1.0)


def test_a_preset_has_its_own_warm_up_and_the_budget_s_samples(adaptation_job, settings):
    job, _ = adaptation_job()
    job.make_source = lambda: None
    cetl.preset("fi", "best")(job)
    assert settings["warmup_epochs"] is None and settings["preset"] == "best"
    assert settings["gfi"].samples == job.budget.gfi_samples


def test_without_source_images_no_label_is_in_the_training_stream(adaptation_job):
    job, _ = adaptation_job()
    (experience,) = job.source_free_benchmark().train_stream
    assert {int(label) for label in experience.dataset.targets} == {-1}
    assert len(experience.dataset) == len(job.pair.target)
