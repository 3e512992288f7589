import torch
from coupled_runs import SHAPE, batch, coupled, strategy

from avalanche_cetl import CICNN
from avalanche_cetl.training import CoupledStage


def test_the_target_without_a_source_network_is_the_image_itself(transfer):
    model = coupled(source=False, target=CICNN(3, SHAPE, width=0.25))
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
