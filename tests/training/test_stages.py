import pytest
import torch
from avalanche.core import SupervisedPlugin
from coupled_runs import SHAPE, batch, coupled, small_target, source_net, strategy
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import CICNN, CoupledModel, ModuleEncoder
from avalanche_cetl.common.batch import Batch
from avalanche_cetl.training import ClassifyStage, CoupledStage, MergedStage, SourceStage
from avalanche_cetl.training.stages import LabelledRows


def test_l_rs_is_the_mean_square_over_rows_and_pixels():
    networks, rows = strategy().networks, batch()
    (loss,) = SourceStage().losses(networks, rows).values()
    images = networks.model.reconstruct_source(rows.images)
    wanted = sum((a - b).square().sum() for a, b in zip(images, rows.images, strict=True))
    torch.testing.assert_close(loss, wanted / rows.images.numel())


def test_l_rs_reaches_t1_and_the_source_adapter_and_nothing_else():
    networks = strategy().networks
    SourceStage().losses(networks, batch())["L_rs"].backward()
    held = {n.split(".")[0] for n, p in networks.model.named_parameters() if p.grad is not None}
    assert held == {"decoder", "source_adapter"}


def test_the_target_without_a_source_network_is_the_image_itself(transfer):
    model = coupled(source=None, target=CICNN(3, SHAPE, width=0.25))
    s = strategy(model, train_epochs=12, variant="gfi")
    s.train(transfer.train_stream)
    assert "L_rs" not in s.round_losses and s.importance.keys() == {"GFI3"}
    x = torch.stack([row[0] for row in transfer.test_stream[0].dataset])
    assert (model.reconstruct_target(x) - x).square().mean() < x.var()


def test_l_rt_is_the_mean_square_between_both_reconstructions():
    networks, rows = strategy().networks, batch()
    loss = CoupledStage().losses(networks, rows)["L_rt"]
    target = rows.reconstruction_target
    torch.testing.assert_close(target, networks.model.reconstruct_source(rows.images))
    wanted = (rows.reconstruction - target).square().sum() / rows.images.numel()
    torch.testing.assert_close(loss, wanted)
    assert not target.requires_grad and networks.latest.shape == (5, 3)


def test_l_rt_holds_its_target_constant():
    networks = strategy().networks
    CoupledStage().losses(networks, batch())["L_rt"].backward()
    held = {n.split(".")[0] for n, p in networks.model.named_parameters() if p.grad is not None}
    assert "source_adapter" not in held and {"decoder", "target"} <= held


@pytest.mark.parametrize("fixed_goal", [True, False])
def test_a_lone_row_passes_batch_norm_in_t1_and_in_its_copy(fixed_goal):
    decoder = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 64), nn.Unflatten(1, SHAPE)
    )
    encoder = ModuleEncoder(source_net(), input_shape=SHAPE)
    networks = strategy(
        CoupledModel(encoder, decoder, small_target(), SHAPE), fixed_goal=fixed_goal
    ).networks
    networks.fix_target()
    rows = batch(rows=1)
    CoupledStage().losses(networks, rows)["L_rt"].backward()
    assert decoder[1].training and decoder[1].num_batches_tracked == 0
    wanted = networks.model.eval().reconstruct_source(rows.images)
    torch.testing.assert_close(rows.reconstruction_target, wanted)


def test_unlabelled_rows_are_left_out_of_the_mean():
    outputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, -1, 0, 1, -1, 1])
    found = LabelledRows.of(None)(outputs, labels)
    torch.testing.assert_close(found, F.cross_entropy(outputs[labels >= 0], labels[labels >= 0]))


def test_the_loss_of_no_labelled_row_is_zero_and_has_a_gradient_of_zero():
    outputs = torch.randn(2, 3, requires_grad=True)
    loss = LabelledRows.of(None)(outputs, torch.tensor([-1, -1]))
    loss.backward()
    assert float(loss.detach()) == 0 and not outputs.grad.any()


def test_real_valued_labels_are_all_known():
    outputs, labels = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.0])
    assert float(LabelledRows.of(F.mse_loss)(outputs, labels)) == 4.0


def test_a_criterion_that_is_a_plugin_stays_as_it_is():
    plugin = SupervisedPlugin()
    assert LabelledRows.of(plugin) is plugin


def test_l_c_is_the_criterion_of_logits_and_labels():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, -1])
    rows = Batch([torch.rand(4, *SHAPE), labels, torch.zeros(4)])
    rows.logits = logits
    found = ClassifyStage().losses(strategy().networks, rows)
    torch.testing.assert_close(found, {"L_c": F.cross_entropy(logits[:3], labels[:3])})


def test_the_losses_of_a_merged_stage_are_those_of_its_parts_in_their_order():
    merged = MergedStage((ClassifyStage(), CoupledStage(), SourceStage()))
    assert merged.names == ("L_c", "L_rt", "L_rs") and merged.label == "merged"


def test_parts_of_a_merged_stage_read_the_labelled_rows_or_those_beside():
    stages = (ClassifyStage(), CoupledStage())
    target, labelled = Batch([torch.zeros(3)]), Batch([torch.zeros(2)])
    found = list(MergedStage(stages).pieces({"labelled": labelled, "target": target}))
    assert found == [(stages[0], labelled), (stages[1], target)]
    assert list(MergedStage(stages).pieces({"target": target})) == [(stages[1], target)]


def test_a_merged_step_without_a_source_network_leaves_l_rs_out(transfer):
    run = strategy(coupled(source=None), variant="joint")
    run.train(transfer.train_stream)
    assert run.round_losses.keys() == {"L_c", "L_rt"}
