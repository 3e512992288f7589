import torch
from coupled_runs import batch, strategy

from avalanche_cetl.training import SourceStage


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
